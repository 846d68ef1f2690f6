"""Products with weights that lie as packed codes, which become operands of the matrix units in registers."""

import triton
import triton.language as tl

from planish.codegen.triton.kernels.gemm import finish_tile, tile_of


@triton.jit
def _spread(values, BLOCKS: tl.constexpr):
    """Values [blocks, 8, 1 or 2, 2] by column, chunk and half as one a word [blocks, 256]."""
    wide = tl.broadcast_to(values[:, :, None, :, :, None], (BLOCKS, 8, 4, 2, 2, 2))
    return tl.reshape(wide, (BLOCKS, 256))


@triton.jit
def _levels(
    words,
    offset,
    scale,
    UNPACK: tl.constexpr,
    CODES: tl.constexpr,
    UNITS: tl.constexpr,
    TILES: tl.constexpr,
    SPLIT: tl.constexpr,
):
    """Words [UNITS * TILES * SPLIT, 256] as numbers [SPLIT, 16 * TILES, depth]; see PackedWeight."""
    parts = UNPACK(words, offset, scale)
    if CODES == 4:
        parts = tl.reshape(parts, (UNITS, TILES, SPLIT, 8, 4, 2, 2, 2, 2, 2))
        parts = tl.permute(parts, (2, 1, 6, 3, 0, 5, 9, 8, 4, 7))
    else:
        parts = tl.reshape(parts, (UNITS, TILES, SPLIT, 8, 4, 2, 2, 2, 2))
        parts = tl.permute(parts, (2, 1, 6, 3, 0, 5, 8, 4, 7))
    shape: tl.constexpr = (16 * TILES, UNITS * 16 * CODES) if SPLIT == 1 else (SPLIT, 16 * TILES, UNITS * 16 * CODES)
    return tl.reshape(parts, shape)


@triton.jit
def coded_rows(
    x,
    codes,
    scale,
    zero,
    at,
    row_mask,
    column_tile,
    matrix,
    columns: tl.constexpr,
    depth: tl.constexpr,
    UNPACK: tl.constexpr,
    CODES: tl.constexpr,
    GROUP: tl.constexpr,
    OFFSET: tl.constexpr,
    SCALED: tl.constexpr,
    DTYPE: tl.constexpr,
    PRECISION: tl.constexpr,
    MATRICES: tl.constexpr,
    BLOCK_M: tl.constexpr,
    TILES: tl.constexpr,
    UNITS: tl.constexpr,
    SPLIT: tl.constexpr,
):
    """A tile of rows, which begin at offsets `at` of x, times the numbers that codes [MATRICES, columns, depth] stand
    for in one matrix, as [BLOCK_M, 16 * TILES], accumulated in f32.

    The weight is the left operand, so that it stays in registers, and few rows waste little of the matrix units. Each
    of SPLIT groups of warps takes its own UNITS of the depth; their sums meet at the end. A scale a whole row of the
    weight (not SCALED) is applied to the sums.
    """
    unit_depth: tl.constexpr = 16 * CODES
    wide: tl.constexpr = 16 * TILES
    deep: tl.constexpr = UNITS * unit_depth
    count: tl.constexpr = UNITS * TILES * SPLIT
    chunks: tl.constexpr = 1 if unit_depth <= GROUP else 2
    padded: tl.constexpr = (columns + 15) // 16 * 16
    units: tl.constexpr = (depth + unit_depth - 1) // unit_depth
    whole: tl.constexpr = depth % (SPLIT * deep) == 0
    block = tl.arange(0, count)
    tile = tl.minimum(column_tile * TILES + block // SPLIT % TILES, padded // 16 - 1)
    if MATRICES > 1:
        tile += matrix * (padded // 16)
    unit = block % SPLIT * UNITS + block // (SPLIT * TILES)
    words = codes.to(tl.pointer_type(tl.int16), bitcast=True)
    if zero is not None:
        zeros = zero.to(tl.pointer_type(tl.int16), bitcast=True)
    words_at = words + (tile.to(tl.int64) * units + unit)[:, None] * 256 + tl.arange(0, 256)[None, :]
    inside = tl.arange(0, 8)[None, :, None, None] + 8 * tl.arange(0, 2)[None, None, None, :]
    column = tile[:, None, None, None] * 16 + inside
    chunk = unit[:, None, None, None] * unit_depth + (unit_depth // 2) * tl.arange(0, chunks)[None, None, :, None]
    if SPLIT == 1:
        row, inner = at[None, :], row_mask[None, :]
        k = tl.arange(0, deep)[:, None]
        total = tl.zeros((wide, BLOCK_M), tl.float32)
    else:
        row, inner = at[None, None, :], row_mask[None, None, :]
        k = tl.arange(0, SPLIT)[:, None, None] * deep + tl.arange(0, deep)[None, :, None]
        total = tl.zeros((SPLIT, wide, BLOCK_M), tl.float32)
    x_at = x + row + k
    offset = tl.full((count, 8, chunks, 2), OFFSET, DTYPE)
    factor = tl.full((count, 8, chunks, 2), 1.0, DTYPE)
    for start in range(0, depth, SPLIT * deep):
        if whole:
            word = tl.load(words_at)
            right = tl.load(x_at, mask=inner, other=0.0)
        else:
            word = tl.load(words_at, mask=unit[:, None] < units - start // unit_depth, other=0)
            right = tl.load(x_at, mask=inner & (k < depth - start), other=0.0)
        group_at = tl.minimum((start + chunk) // GROUP, (depth - 1) // GROUP) * (MATRICES * padded) + column
        if SCALED:
            factor = tl.load(scale + group_at).to(DTYPE)
        if zero is not None:
            offset = (tl.load(zeros + group_at).to(tl.float32) + OFFSET).to(DTYPE)
        left = _levels(word, _spread(offset, count), _spread(factor, count), UNPACK, CODES, UNITS, TILES, SPLIT)
        total = tl.dot(left, right, total, input_precision=PRECISION)
        words_at += SPLIT * UNITS * 256
        x_at += SPLIT * deep
    if SPLIT > 1:
        total = tl.sum(total, 0)
    if not SCALED:
        last = column_tile * wide + tl.arange(0, wide)
        of_matrix = scale + (matrix * padded if MATRICES > 1 else 0)
        total *= tl.load(of_matrix + last, mask=last < columns, other=0.0).to(tl.float32)[:, None]
    return tl.trans(total)


@triton.jit
def coded_gemm(
    x,
    codes,
    scale,
    zero,
    output,
    rows,
    columns,
    depth,
    x_stride,
    extras,
    FINISH: tl.constexpr,
    UNPACK: tl.constexpr,
    CODES: tl.constexpr,
    GROUP: tl.constexpr,
    OFFSET: tl.constexpr,
    SCALED: tl.constexpr,
    DTYPE: tl.constexpr,
    PRECISION: tl.constexpr,
    HALF: tl.constexpr,
    BLOCK_M: tl.constexpr,
    TILES: tl.constexpr,
    UNITS: tl.constexpr,
    SPLIT: tl.constexpr,
    GROUP_M: tl.constexpr,
):
    """x [rows, depth] times the numbers that codes [columns, depth] stand for; see `coded_rows`.

    HALF: columns of each of two slices that lie in turns, or 0.
    """
    wide: tl.constexpr = 16 * TILES
    row_tile, column_tile = tile_of(tl.program_id(0), rows, columns, BLOCK_M, wide, GROUP_M)
    row = row_tile * BLOCK_M + tl.arange(0, BLOCK_M)
    total = coded_rows(
        x, codes, scale, zero, row.to(tl.int64) * x_stride, row < rows, column_tile, 0, columns, depth,
        UNPACK, CODES, GROUP, OFFSET, SCALED, DTYPE, PRECISION, 1, BLOCK_M, TILES, UNITS, SPLIT,
    )  # fmt: skip
    finish_tile(total, row, row < rows, column_tile, columns, output, extras, FINISH, HALF, BLOCK_M, wide)
