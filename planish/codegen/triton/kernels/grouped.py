"""Products of rows with the weights of their experts: rows are put in the order of experts, then come tiles."""

import triton
import triton.language as tl

from planish.codegen.triton.kernels.gemm import few_rows, finish_tile, in_turns, many_rows, tile_of
from planish.codegen.triton.kernels.quantized import coded_rows


@triton.jit
def order_rows(order, starts, rows, extras, INDEX: tl.constexpr, EXPERTS: tl.constexpr, BLOCK: tl.constexpr):
    """One program an expert: the places of its rows, in their order, to `order`, from the place `starts` on.

    All programs count all rows: cheaper than to tell each other, and the order is always the same.
    """
    expert = tl.program_id(0)
    below = tl.zeros((BLOCK,), tl.int32)
    for first in range(0, rows, BLOCK):
        row = first + tl.arange(0, BLOCK)
        below += (chosen(row, row < rows, extras, INDEX, EXPERTS) < expert).to(tl.int32)
    start = tl.sum(below, 0)
    tl.store(starts + expert, start)
    for first in range(0, rows, BLOCK):
        row = first + tl.arange(0, BLOCK)
        mine = chosen(row, row < rows, extras, INDEX, EXPERTS) == expert
        place = start + tl.cumsum(mine.to(tl.int32), 0) - 1
        tl.store(order + place, row, mask=mine)
        start += tl.sum(mine.to(tl.int32), 0)


@triton.jit
def chosen(row, mask, extras, INDEX: tl.constexpr, EXPERTS: tl.constexpr):
    """The experts of rows, the nearest one for an index out of range; EXPERTS outside of the mask."""
    index = INDEX(row.to(tl.int64), mask, extras)
    return tl.where(mask, tl.minimum(tl.maximum(index, 0), EXPERTS - 1), EXPERTS).to(tl.int32)


@triton.jit
def rows_of_tile(tile, starts, rows, EXPERTS: tl.constexpr, PADDED: tl.constexpr, BLOCK_M: tl.constexpr):
    """The expert of a tile, tiles being counted expert by expert, and its first place in the order and the end of its
    expert's; EXPERTS or more where there are fewer tiles."""
    expert = tl.arange(0, PADDED)
    begin = tl.load(starts + expert, mask=expert < EXPERTS, other=rows)
    end = tl.load(starts + expert + 1, mask=expert < EXPERTS - 1, other=rows)
    tiles = (end - begin + BLOCK_M - 1) // BLOCK_M
    last = tl.cumsum(tiles, 0)
    mine = tl.sum((last <= tile).to(tl.int32), 0)
    before = tl.sum(tl.where(expert < mine, tiles, 0), 0)
    first = tl.sum(tl.where(expert == mine, begin, 0), 0) + (tile - before) * BLOCK_M
    return mine, first, tl.sum(tl.where(expert == mine, end, 0), 0)


@triton.jit
def place_of(
    order,
    starts,
    rows,
    columns,
    extras,
    INDEX: tl.constexpr,
    EXPERTS: tl.constexpr,
    PADDED: tl.constexpr,
    DIRECT: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    GROUP_M: tl.constexpr,
):
    """The expert of this program, EXPERTS or more where it has nothing to do, its rows and their mask, and its tile of
    columns.

    DIRECT: each tile is one row, whose expert it reads itself; else the rows of a tile have one expert, and lie in
    `order`.
    """
    across = tl.cdiv(columns, BLOCK_N)
    lane = tl.arange(0, BLOCK_M)
    if DIRECT:
        row = tl.program_id(0) // across + 0 * lane
        row_mask = lane < 1
        expert = tl.max(chosen(row, row < rows, extras, INDEX, EXPERTS), 0)
        tile_n = tl.program_id(0) % across
    else:
        down = tl.num_programs(0) // across
        tile_m, tile_n = tile_of(tl.program_id(0), down * BLOCK_M, columns, BLOCK_M, BLOCK_N, GROUP_M)
        expert, first, end = rows_of_tile(tile_m, starts, rows, EXPERTS, PADDED, BLOCK_M)
        row_mask = first + lane < end
        row = tl.load(order + first + lane, mask=row_mask, other=0)
    return expert, row.to(tl.int64), row_mask, tile_n


@triton.jit
def grouped_gemm(
    x,
    w,
    order,
    starts,
    output,
    rows,
    columns,
    depth,
    w_stride,
    expert_stride,
    extras,
    ROWS: tl.constexpr,
    INDEX: tl.constexpr,
    FINISH: tl.constexpr,
    EXPERTS: tl.constexpr,
    PADDED: tl.constexpr,
    DIRECT: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    GROUP_M: tl.constexpr,
    WHOLE_K: tl.constexpr,
    SPLIT: tl.constexpr,
    PRECISION: tl.constexpr,
    HALF: tl.constexpr,
    FIRST: tl.constexpr,
    SECOND: tl.constexpr,
):
    """Rows of x times w [EXPERTS, columns, depth] of the expert of each, transposed, accumulated in f32; the constants
    are those of `place_of` and `gemm`."""
    expert, row, row_mask, tile_n = place_of(
        order, starts, rows, columns, extras, INDEX, EXPERTS, PADDED, DIRECT, BLOCK_M, BLOCK_N, GROUP_M
    )
    if expert < EXPERTS:
        column = tile_n * BLOCK_N + tl.arange(0, BLOCK_N)
        of_w = in_turns(column, HALF, FIRST, SECOND) if HALF > 0 else tl.minimum(column, columns - 1)
        at = ROWS(row, row_mask, extras)
        own = w + expert.to(tl.int64) * expert_stride
        if SPLIT > 0:
            total = few_rows(x, own, at, row_mask, of_w, depth, w_stride, BLOCK_M, BLOCK_N, BLOCK_K, SPLIT, PRECISION)
        else:
            total = many_rows(x, own, at, of_w, depth, w_stride, BLOCK_M, BLOCK_N, BLOCK_K, WHOLE_K, PRECISION)
        finish_tile(total, row, row_mask, tile_n, columns, output, extras, FINISH, HALF, BLOCK_M, BLOCK_N)


@triton.jit
def grouped_coded_gemm(
    x,
    codes,
    scale,
    zero,
    order,
    starts,
    output,
    rows,
    columns,
    depth,
    extras,
    ROWS: tl.constexpr,
    INDEX: tl.constexpr,
    FINISH: tl.constexpr,
    EXPERTS: tl.constexpr,
    PADDED: tl.constexpr,
    DIRECT: tl.constexpr,
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
    """`grouped_gemm` with the numbers that codes [EXPERTS, columns, depth] stand for; the constants are those of
    `place_of` and `coded_gemm`."""
    wide: tl.constexpr = 16 * TILES
    expert, row, row_mask, tile_n = place_of(
        order, starts, rows, columns, extras, INDEX, EXPERTS, PADDED, DIRECT, BLOCK_M, wide, GROUP_M
    )
    if expert < EXPERTS:
        at = ROWS(row, row_mask, extras)
        total = coded_rows(
            x, codes, scale, zero, at, row_mask, tile_n, expert, columns, depth,
            UNPACK, CODES, GROUP, OFFSET, SCALED, DTYPE, PRECISION, EXPERTS, BLOCK_M, TILES, UNITS, SPLIT,
        )  # fmt: skip
        finish_tile(total, row, row_mask, tile_n, columns, output, extras, FINISH, HALF, BLOCK_M, wide)
