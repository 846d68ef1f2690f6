"""Products of quantized activations and quantized weights: sums of integers or f8, scaled group by group."""

import triton
import triton.language as tl

from planish.codegen.triton.kernels.gemm import finish_tile, tile_of


@triton.jit
def _codes(loaded, offset, NIBBLES: tl.constexpr, SHAPE: tl.constexpr):
    """The codes of a block of the weight, less their offset, as i8; nibbles lie 16 low ones before 16 high ones."""
    if NIBBLES:
        rows: tl.constexpr = SHAPE[0] if len(SHAPE) == 2 else SHAPE[0] * SHAPE[1]
        halves = tl.reshape(tl.join(loaded & 15, (loaded >> 4) & 15), (rows, SHAPE[-1] // 32, 16, 2))
        codes = tl.reshape(tl.permute(halves, (0, 1, 3, 2)), SHAPE).to(tl.int8)
    else:
        codes = loaded.to(tl.int8, bitcast=True)
    return (codes - offset).to(tl.int8)


@triton.jit
def int8_gemm(
    x,
    x_scale,
    codes,
    w_scale,
    zero,
    output,
    rows,
    columns,
    depth,
    x_stride,
    extras,
    FINISH: tl.constexpr,
    F8: tl.constexpr,
    GAIN: tl.constexpr,
    NIBBLES: tl.constexpr,
    OFFSET: tl.constexpr,
    X_GROUP: tl.constexpr,
    W_GROUP: tl.constexpr,
    SCALED: tl.constexpr,
    HALF: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    SPLIT: tl.constexpr,
    GROUP_M: tl.constexpr,
):
    """Codes x i8 [rows, depth] times codes [columns, depth]; sums of a block are exact. With F8 both are bytes that the
    matrix units take as that dtype; they are summed in f32, and the sums times GAIN are those of the codes.

    Without SCALED both have one scale a row, which is applied to the sums; else BLOCK_K divides both groups. Each of
    SPLIT groups of warps takes its own blocks of the depth. HALF: columns of each of two
    slices that lie in turns, or 0.
    """
    packed: tl.constexpr = 2 if NIBBLES else 1
    stored: tl.constexpr = (depth + 63) // 64 * 64 // packed
    padded: tl.constexpr = (columns + 15) // 16 * 16
    x_groups: tl.constexpr = (depth + X_GROUP - 1) // X_GROUP
    row_tile, column_tile = tile_of(tl.program_id(0), rows, columns, BLOCK_M, BLOCK_N, GROUP_M)
    down, across = row_tile * BLOCK_M + tl.arange(0, BLOCK_M), column_tile * BLOCK_N + tl.arange(0, BLOCK_N)
    if SPLIT == 1:
        part, row, column = 0, down[None, :], tl.minimum(across, columns - 1)[:, None]
        byte, k = tl.arange(0, BLOCK_K // packed)[None, :], tl.arange(0, BLOCK_K)[:, None]
    else:
        part = tl.arange(0, SPLIT)[:, None, None]
        row, column = down[None, None, :], tl.minimum(across, columns - 1)[None, :, None]
        byte, k = tl.arange(0, BLOCK_K // packed)[None, None, :], tl.arange(0, BLOCK_K)[None, :, None]
    shape: tl.constexpr = (BLOCK_N, BLOCK_K) if SPLIT == 1 else (SPLIT, BLOCK_N, BLOCK_K)
    sums: tl.constexpr = (BLOCK_N, BLOCK_M) if SPLIT == 1 else (SPLIT, BLOCK_N, BLOCK_M)
    byte, k = byte + part * (BLOCK_K // packed), k + part * BLOCK_K
    x_at, w_at = x + row.to(tl.int64) * x_stride + k, codes + column.to(tl.int64) * stored + byte
    if F8 is not None:
        x_at, w_at = x_at.to(tl.pointer_type(F8), bitcast=True), w_at.to(tl.pointer_type(F8), bitcast=True)
    outside: tl.constexpr = 0 if F8 is None else 0.0
    summed: tl.constexpr = tl.int32 if F8 is None else tl.float32
    total = tl.zeros(sums, tl.float32 if SCALED else summed)
    for start in range(0, depth, SPLIT * BLOCK_K):
        left = tl.load(w_at, mask=byte < stored - start // packed, other=outside)
        right = tl.load(x_at, mask=(row < rows) & (k < depth - start), other=outside)
        offset = OFFSET
        first = tl.minimum(start + part * BLOCK_K, depth - 1)
        if zero is not None:
            offset = (tl.load(zero + first // W_GROUP * padded + column) + OFFSET).to(tl.int8)
        levels = left if F8 is not None else _codes(left, offset, NIBBLES, shape)
        if SCALED:
            of_x = tl.load(x_scale + row.to(tl.int64) * x_groups + first // X_GROUP, mask=row < rows, other=0.0)
            of_w = tl.load(w_scale + first // W_GROUP * padded + column).to(tl.float32)
            total += tl.dot(levels, right, out_dtype=summed).to(tl.float32) * (of_x * of_w)
        else:
            total = tl.dot(levels, right, total, out_dtype=summed)
        w_at += SPLIT * BLOCK_K // packed
        x_at += SPLIT * BLOCK_K
    if SPLIT > 1:
        total = tl.sum(total, 0)
    if GAIN != 1.0:
        total *= GAIN
    if not SCALED:
        of_x = tl.load(x_scale + down, mask=down < rows, other=0.0)[None, :]
        of_w = tl.load(w_scale + across, mask=across < columns, other=0.0).to(tl.float32)[:, None]
        total = total.to(tl.float32) * (of_x * of_w)
    total = tl.trans(total)
    finish_tile(total, down, down < rows, column_tile, columns, output, extras, FINISH, HALF, BLOCK_M, BLOCK_N)
