"""Products of two computed operands, one of a batch after another."""

import triton
import triton.language as tl

from planish.codegen.triton.kernels.gemm import tile_of


@triton.jit
def matmul(
    output,
    batches,
    rows,
    columns,
    depth,
    extras,
    READ_X: tl.constexpr,
    READ_Y: tl.constexpr,
    FINISH: tl.constexpr,
    BATCHED: tl.constexpr,
    LINEAR: tl.constexpr,
    OUTER: tl.constexpr,
    DTYPE: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    GROUP_M: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """x [batches, rows, depth] times y [batches, depth, columns], accumulated in f32; LINEAR: y is [columns, depth].

    OUTER: the depth is 1.
    """
    tiles = tl.cdiv(rows, BLOCK_M) * tl.cdiv(columns, BLOCK_N)
    tile_m, tile_n = tile_of(tl.program_id(0) % tiles, rows, columns, BLOCK_M, BLOCK_N, GROUP_M)
    batch = tl.zeros((1, 1), tl.int64) + tl.program_id(0) // tiles
    batch_mask = batch < batches
    row = (tile_m * BLOCK_M + tl.arange(0, BLOCK_M)).to(tl.int64)[:, None]
    column = (tile_n * BLOCK_N + tl.arange(0, BLOCK_N)).to(tl.int64)[None, :]
    row_mask, column_mask = row < rows, column < columns
    total = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    for start in range(0, depth, BLOCK_K):
        k = (start + tl.arange(0, BLOCK_K)).to(tl.int64)
        along, down = k[None, :], k[:, None]
        if BATCHED:
            left = READ_X(batch, row, along, batch_mask, row_mask, along < depth, extras)
            right = READ_Y(batch, down, column, batch_mask, down < depth, column_mask, extras)
        else:
            left = READ_X(row, along, row_mask, along < depth, extras)
            if LINEAR:
                right = READ_Y(column, down, column_mask, down < depth, extras)
            else:
                right = READ_Y(down, column, down < depth, column_mask, extras)
        # along an axis of size 1 there is one element, whatever the index
        left = tl.broadcast_to(left.to(DTYPE), (BLOCK_M, BLOCK_K))
        right = tl.broadcast_to(right.to(DTYPE), (BLOCK_K, BLOCK_N))
        if OUTER:
            left = tl.where(along < depth, left, 0.0)
        total = tl.dot(left, right, total, input_precision=PRECISION)
    if BATCHED:
        FINISH(total, batch, row, column, batch_mask, row_mask, column_mask, output, extras)
    else:
        FINISH(total, row, column, row_mask, column_mask, output, extras)
