"""Scales of symmetric quantization by group."""

import triton
import triton.language as tl


@triton.jit
def group_scales(
    output,
    count,
    groups,
    columns,
    extras,
    READ: tl.constexpr,
    FINISH: tl.constexpr,
    GROUP: tl.constexpr,
    LIMIT: tl.constexpr,
    BLOCK_COUNT: tl.constexpr,
    BLOCK_GROUP: tl.constexpr,
):
    """max |x| / LIMIT of each of `count` groups of GROUP elements, `groups` of them in a row of `columns`."""
    at = (tl.program_id(0) * BLOCK_COUNT + tl.arange(0, BLOCK_COUNT)).to(tl.int64)[:, None]
    row, group, mask = at // groups, at % groups, at < count
    largest = tl.zeros((BLOCK_COUNT, BLOCK_GROUP), tl.float32)
    for start in range(0, GROUP, BLOCK_GROUP):
        inside = (start + tl.arange(0, BLOCK_GROUP)).to(tl.int64)[None, :]
        column = group * GROUP + inside
        there = (inside < GROUP) & (column < columns) & mask
        x = READ(row, column, mask, there, extras).to(tl.float32)
        largest = tl.maximum(largest, tl.abs(tl.where(there, x, 0.0)), propagate_nan=tl.PropagateNan.ALL)
    result = tl.max(largest, 1, keep_dims=True) / LIMIT
    FINISH(result, row, group, mask, mask, output, extras)
