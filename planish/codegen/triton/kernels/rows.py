"""Softmax and normalizations along rows: a whole row in one block, or long rows in several passes."""

import triton
import triton.language as tl

from planish.codegen.triton.kernels.math import maximum


@triton.jit
def _scaled(result, column, column_mask, extras, SCALE: tl.constexpr, SHIFT: tl.constexpr):
    if SCALE is not None:
        result = result * SCALE(column, column_mask, extras)
    if SHIFT is not None:
        result = result + SHIFT(column, column_mask, extras)
    return result


@triton.jit
def _normal(x, columns, column_mask, KIND: tl.constexpr, EPSILON: tl.constexpr):
    if KIND == "layer_norm":
        x = x - tl.sum(tl.where(column_mask, x, 0.0), 1, keep_dims=True) / columns
    square = tl.where(column_mask, x * x, 0.0)
    return x * (1.0 / tl.sqrt(tl.sum(square, 1, keep_dims=True) / columns + EPSILON))


@triton.jit
def rows_whole(
    output,
    rows,
    columns,
    extras,
    source,
    source_extras,
    READ: tl.constexpr,
    SCALE: tl.constexpr,
    SHIFT: tl.constexpr,
    FINISH: tl.constexpr,
    FINISH_SOURCE: tl.constexpr,
    KIND: tl.constexpr,
    EPSILON: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_COLUMNS: tl.constexpr,
):
    """BLOCK_ROWS rows by each program; BLOCK_COLUMNS is at least `columns`. What is read goes to `source`, too."""
    row = (tl.program_id(0) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)).to(tl.int64)[:, None]
    column = tl.arange(0, BLOCK_COLUMNS).to(tl.int64)[None, :]
    row_mask, column_mask = row < rows, column < columns
    x = READ(row, column, row_mask, column_mask, extras) + tl.zeros((BLOCK_ROWS, BLOCK_COLUMNS), tl.float32)
    if FINISH_SOURCE is not None:
        FINISH_SOURCE(x, row, column, row_mask, column_mask, source, source_extras)
    if KIND == "softmax" or KIND == "log_softmax":
        x = tl.where(column_mask, x, float("-inf"))
        x = x - tl.max(x, 1, keep_dims=True)
        power = tl.exp(x)
        total = tl.sum(power, 1, keep_dims=True)
        result = power / total if KIND == "softmax" else x - tl.log(total)
    else:
        result = _scaled(_normal(x, columns, column_mask, KIND, EPSILON), column, column_mask, extras, SCALE, SHIFT)
    FINISH(result, row, column, row_mask, column_mask, output, extras)


@triton.jit
def rows_as_codes(
    codes,
    scales,
    rows,
    columns,
    extras,
    scale_extras,
    source,
    source_extras,
    made,
    made_extras,
    READ: tl.constexpr,
    SCALE: tl.constexpr,
    SHIFT: tl.constexpr,
    CONTINUE: tl.constexpr,
    FINISH: tl.constexpr,
    FINISH_SCALE: tl.constexpr,
    FINISH_SOURCE: tl.constexpr,
    FINISH_MADE: tl.constexpr,
    KIND: tl.constexpr,
    EPSILON: tl.constexpr,
    LIMIT: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_COLUMNS: tl.constexpr,
    GROUP: tl.constexpr,
):
    """Rows as codes with a scale for every GROUP columns, max |x| / LIMIT: of what is read, or of its norm of KIND, for
    which BLOCK_COLUMNS is at least `columns`. What is read goes to `source`, too, and what becomes codes to `made`."""
    row = (tl.program_id(0) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)).to(tl.int64)[:, None]
    column = (tl.program_id(1) * BLOCK_COLUMNS + tl.arange(0, BLOCK_COLUMNS)).to(tl.int64)[None, :]
    row_mask, column_mask = row < rows, column < columns
    x = READ(row, column, row_mask, column_mask, extras) + tl.zeros((BLOCK_ROWS, BLOCK_COLUMNS), tl.float32)
    if FINISH_SOURCE is not None:
        FINISH_SOURCE(x, row, column, row_mask, column_mask, source, source_extras)
    if KIND is not None:
        x = _scaled(_normal(x, columns, column_mask, KIND, EPSILON), column, column_mask, extras, SCALE, SHIFT)
        x = CONTINUE(x, row, column, row_mask, column_mask, extras)
    if FINISH_MADE is not None:
        FINISH_MADE(x, row, column, row_mask, column_mask, made, made_extras)
    group = tl.zeros((1, 1), tl.int64)
    group_mask = group == 0
    if GROUP < BLOCK_COLUMNS:  # each group is a row of its own from here on
        parts: tl.constexpr = BLOCK_COLUMNS // GROUP
        x = tl.reshape(x, (BLOCK_ROWS * parts, GROUP))
        at = tl.arange(0, BLOCK_ROWS * parts)[:, None]
        row = (tl.program_id(0) * BLOCK_ROWS + at // parts).to(tl.int64)
        group = (tl.program_id(1) * parts + at % parts).to(tl.int64)
        column = group * GROUP + tl.arange(0, GROUP)[None, :]
        row_mask, column_mask, group_mask = row < rows, column < columns, group * GROUP < columns
    size = tl.where(column_mask, tl.abs(x), 0.0)
    scale = tl.reduce(size, 1, maximum, keep_dims=True) / LIMIT
    FINISH(x, scale, row, column, row_mask, column_mask, codes, extras)
    FINISH_SCALE(scale, row, group, row_mask, group_mask, scales, scale_extras)


@triton.jit
def long_rows_as_codes(
    codes,
    scales,
    rows,
    columns,
    extras,
    scale_extras,
    READ: tl.constexpr,
    FINISH: tl.constexpr,
    FINISH_SCALE: tl.constexpr,
    LIMIT: tl.constexpr,
    BLOCK_COLUMNS: tl.constexpr,
):
    """One row by each program: a pass for its scale, max |x| / LIMIT, and one that writes its codes."""
    row = (tl.program_id(0) + tl.zeros((1, 1), tl.int32)).to(tl.int64)
    across = tl.arange(0, BLOCK_COLUMNS)[None, :]
    row_mask, first = row < rows, tl.zeros((1, 1), tl.int64)
    largest = tl.zeros((1, BLOCK_COLUMNS), tl.float32)
    for start in range(0, columns, BLOCK_COLUMNS):
        column = (start + across).to(tl.int64)
        x = READ(row, column, row_mask, column < columns, extras) + tl.zeros((1, BLOCK_COLUMNS), tl.float32)
        largest = maximum(largest, tl.where(column < columns, tl.abs(x), 0.0))
    scale = tl.reduce(largest, 1, maximum, keep_dims=True) / LIMIT
    for start in range(0, columns, BLOCK_COLUMNS):
        column = (start + across).to(tl.int64)
        x = READ(row, column, row_mask, column < columns, extras) + tl.zeros((1, BLOCK_COLUMNS), tl.float32)
        FINISH(x, scale, row, column, row_mask, column < columns, codes, extras)
    FINISH_SCALE(scale, row, first, row_mask, first == 0, scales, scale_extras)


@triton.jit
def softmax_long(
    output,
    rows,
    columns,
    extras,
    READ: tl.constexpr,
    FINISH: tl.constexpr,
    KIND: tl.constexpr,
    BLOCK_COLUMNS: tl.constexpr,
):
    """One row by each program: a pass for the largest and the sum of exponentials, and one that writes."""
    row = (tl.program_id(0) + tl.zeros((1, 1), tl.int32)).to(tl.int64)
    across = tl.arange(0, BLOCK_COLUMNS)[None, :]
    row_mask = row < rows
    largest = tl.full((1, BLOCK_COLUMNS), float("-inf"), tl.float32)
    total = tl.zeros((1, BLOCK_COLUMNS), tl.float32)
    for start in range(0, columns, BLOCK_COLUMNS):
        column = (start + across).to(tl.int64)
        inside = column < columns
        x = tl.where(inside, READ(row, column, row_mask, inside, extras), float("-inf"))
        larger = tl.maximum(largest, x, propagate_nan=tl.PropagateNan.ALL)
        safe = tl.where(larger == float("-inf"), 0.0, larger)
        total = total * tl.exp(largest - safe) + tl.exp(x - safe)
        largest = larger
    peak = tl.max(largest, 1, keep_dims=True)
    total = tl.sum(total * tl.exp(largest - peak), 1, keep_dims=True)
    for start in range(0, columns, BLOCK_COLUMNS):
        column = (start + across).to(tl.int64)
        inside = column < columns
        x = READ(row, column, row_mask, inside, extras) - peak
        result = tl.exp(x) / total if KIND == "softmax" else x - tl.log(total)
        FINISH(result, row, column, row_mask, inside, output, extras)


@triton.jit
def norm_long(
    output,
    rows,
    columns,
    extras,
    READ: tl.constexpr,
    SCALE: tl.constexpr,
    SHIFT: tl.constexpr,
    FINISH: tl.constexpr,
    KIND: tl.constexpr,
    EPSILON: tl.constexpr,
    BLOCK_COLUMNS: tl.constexpr,
):
    """One row by each program: passes for the mean and the variance, and one that writes."""
    row = (tl.program_id(0) + tl.zeros((1, 1), tl.int32)).to(tl.int64)
    across = tl.arange(0, BLOCK_COLUMNS)[None, :]
    row_mask = row < rows
    mean = tl.zeros((1, 1), tl.float32)
    if KIND == "layer_norm":
        total = tl.zeros((1, BLOCK_COLUMNS), tl.float32)
        for start in range(0, columns, BLOCK_COLUMNS):
            column = (start + across).to(tl.int64)
            total += tl.where(column < columns, READ(row, column, row_mask, column < columns, extras), 0.0)
        mean = tl.sum(total, 1, keep_dims=True) / columns
    total = tl.zeros((1, BLOCK_COLUMNS), tl.float32)
    for start in range(0, columns, BLOCK_COLUMNS):
        column = (start + across).to(tl.int64)
        x = READ(row, column, row_mask, column < columns, extras) - mean
        total += tl.where(column < columns, x * x, 0.0)
    scale = 1.0 / tl.sqrt(tl.sum(total, 1, keep_dims=True) / columns + EPSILON)
    for start in range(0, columns, BLOCK_COLUMNS):
        column = (start + across).to(tl.int64)
        inside = column < columns
        x = (READ(row, column, row_mask, inside, extras) - mean) * scale
        result = _scaled(x, column, inside, extras, SCALE, SHIFT)
        FINISH(result, row, column, row_mask, inside, output, extras)
