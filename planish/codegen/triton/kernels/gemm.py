"""Matrix products on the tensor cores."""

import triton
import triton.language as tl


@triton.jit
def tile_of(program, rows, columns, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, GROUP_M: tl.constexpr):
    """Tile coordinates; programs that run together share rows of x and columns of w in the L2 cache."""
    down, across = tl.cdiv(rows, BLOCK_M), tl.cdiv(columns, BLOCK_N)
    band = program // (GROUP_M * across)
    height = min(down - band * GROUP_M, GROUP_M)
    inside = program % (GROUP_M * across)
    return band * GROUP_M + inside % height, inside // height


@triton.jit
def gemm(
    x,
    w,
    output,
    rows,
    columns,
    depth,
    x_stride,
    w_stride,
    extras,
    FINISH: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    GROUP_M: tl.constexpr,
    WHOLE_K: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """x [rows, depth] times w [columns, depth] transposed, accumulated in f32; WHOLE_K: BLOCK_K divides the depth."""
    tile_m, tile_n = tile_of(tl.program_id(0), rows, columns, BLOCK_M, BLOCK_N, GROUP_M)
    row = tile_m * BLOCK_M + tl.arange(0, BLOCK_M)
    column = tile_n * BLOCK_N + tl.arange(0, BLOCK_N)
    k = tl.arange(0, BLOCK_K)
    x_at = x + (row % rows).to(tl.int64)[:, None] * x_stride + k[None, :]
    w_at = w + (column % columns).to(tl.int64)[None, :] * w_stride + k[:, None]
    total = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    for start in range(0, depth, BLOCK_K):
        if WHOLE_K:
            left, right = tl.load(x_at), tl.load(w_at)
        else:
            inside = k < depth - start
            left = tl.load(x_at, mask=inside[None, :], other=0.0)
            right = tl.load(w_at, mask=inside[:, None], other=0.0)
        total = tl.dot(left, right, total, input_precision=PRECISION)
        x_at += BLOCK_K
        w_at += BLOCK_K
    row, column = row.to(tl.int64)[:, None], column.to(tl.int64)[None, :]
    FINISH(total, row, column, row < rows, column < columns, output, extras)
