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
def in_turns(column, HALF: tl.constexpr, FIRST: tl.constexpr, SECOND: tl.constexpr):
    """The column of the weight, of slices of HALF from FIRST and from SECOND on, 8 of each in turn."""
    within = tl.minimum(column // 16 * 8 + column % 8, HALF - 1)
    return within + tl.where(column // 8 % 2 == 0, FIRST, SECOND)


@triton.jit
def halves(total, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr):
    """The columns of either slice, of a block of columns in turns."""
    turns = tl.permute(tl.reshape(total, (BLOCK_M, BLOCK_N // 16, 2, 8)), (0, 1, 3, 2))
    first, second = tl.split(turns)
    return tl.reshape(first, (BLOCK_M, BLOCK_N // 2)), tl.reshape(second, (BLOCK_M, BLOCK_N // 2))


@triton.jit
def finish_tile(
    total,
    row,
    row_mask,
    tile_n,
    columns,
    output,
    extras,
    FINISH: tl.constexpr,
    HALF: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """Hands a tile of sums to FINISH; with HALF its columns are those of two slices in turns, which go together."""
    row, row_mask = row.to(tl.int64)[:, None], row_mask[:, None]
    if HALF > 0:
        first, second = halves(total, BLOCK_M, BLOCK_N)
        column = (tile_n * (BLOCK_N // 2) + tl.arange(0, BLOCK_N // 2)).to(tl.int64)[None, :]
        FINISH(first, second, row, column, row_mask, column < HALF, output, extras)
    else:
        column = (tile_n * BLOCK_N + tl.arange(0, BLOCK_N)).to(tl.int64)[None, :]
        FINISH(total, row, column, row_mask, column < columns, output, extras)


@triton.jit
def few_rows(
    x,
    w,
    row,
    row_mask,
    column,
    depth,
    w_stride,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    SPLIT: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """A tile of few rows, which begin at offsets `row`: the weight is the left operand, which needs fewer of them;
    SPLIT groups of warps take their own blocks of the depth, whose sums meet at the end."""
    part, k = tl.arange(0, SPLIT)[:, None, None] * BLOCK_K, tl.arange(0, BLOCK_K)
    across, down = part + k[None, None, :], part + k[None, :, None]
    w_at = w + column[None, :, None].to(tl.int64) * w_stride + across
    x_at = x + row[None, None, :] + down
    inside = row_mask[None, None, :]
    total = tl.zeros((SPLIT, BLOCK_N, BLOCK_M), tl.float32)
    for start in range(0, depth, SPLIT * BLOCK_K):
        left = tl.load(w_at, mask=across < depth - start, other=0.0)
        right = tl.load(x_at, mask=inside & (down < depth - start), other=0.0)
        total = tl.dot(left, right, total, input_precision=PRECISION)
        w_at += SPLIT * BLOCK_K
        x_at += SPLIT * BLOCK_K
    return tl.trans(tl.sum(total, 0))


@triton.jit
def many_rows(
    x,
    w,
    row,
    column,
    depth,
    w_stride,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    WHOLE_K: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """A tile of rows that begin at offsets `row`, all of them inside."""
    k = tl.arange(0, BLOCK_K)
    x_at = x + row[:, None] + k[None, :]
    w_at = w + column.to(tl.int64)[None, :] * w_stride + k[:, None]
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
    return total


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
    SPLIT: tl.constexpr,
    PRECISION: tl.constexpr,
    HALF: tl.constexpr,
    FIRST: tl.constexpr,
    SECOND: tl.constexpr,
):
    """x [rows, depth] times w [columns, depth] transposed, accumulated in f32.

    WHOLE_K: BLOCK_K divides the depth. SPLIT: parts of the depth that are summed apart, for few rows; else 0.
    HALF: columns of each of two slices of the product, from FIRST and from SECOND on, that FINISH takes together;
    `columns` then counts both in turns of 8. Else 0.
    """
    tile_m, tile_n = tile_of(tl.program_id(0), rows, columns, BLOCK_M, BLOCK_N, GROUP_M)
    first_row, first_column = tile_m * BLOCK_M, tile_n * BLOCK_N
    column = first_column + tl.arange(0, BLOCK_N)
    if HALF > 0:
        of_w = in_turns(column, HALF, FIRST, SECOND)
    elif SPLIT > 0:
        of_w = tl.minimum(column, columns - 1)
    else:
        of_w = column % columns
    row = first_row + tl.arange(0, BLOCK_M)
    if SPLIT > 0:
        at = row.to(tl.int64) * x_stride
        total = few_rows(x, w, at, row < rows, of_w, depth, w_stride, BLOCK_M, BLOCK_N, BLOCK_K, SPLIT, PRECISION)
    else:
        at = (row % rows).to(tl.int64) * x_stride
        total = many_rows(x, w, at, of_w, depth, w_stride, BLOCK_M, BLOCK_N, BLOCK_K, WHOLE_K, PRECISION)
    finish_tile(total, row, row < rows, tile_n, columns, output, extras, FINISH, HALF, BLOCK_M, BLOCK_N)
