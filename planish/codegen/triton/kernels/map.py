"""Elementwise work: blocks of one flat index, or tiles of rows and columns."""

import triton
import triton.language as tl


@triton.jit
def map_flat(output, count, extras, STORE: tl.constexpr, BLOCK: tl.constexpr):
    """`count` elements, BLOCK by each program."""
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    STORE(at, at < count, output, extras)


@triton.jit
def map_tiles(
    output, rows, columns, extras, STORE: tl.constexpr, BLOCK_ROWS: tl.constexpr, BLOCK_COLUMNS: tl.constexpr
):
    """`rows` x `columns` elements, a tile by each program; tiles of one row follow each other."""
    across = tl.cdiv(columns, BLOCK_COLUMNS)
    program = tl.program_id(0)
    row = (program // across).to(tl.int64) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)[:, None]
    column = (program % across).to(tl.int64) * BLOCK_COLUMNS + tl.arange(0, BLOCK_COLUMNS)[None, :]
    STORE(row, column, row < rows, column < columns, output, extras)
