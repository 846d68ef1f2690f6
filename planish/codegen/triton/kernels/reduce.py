"""Reductions of the middle of three groups of axes: the outer and inner ones are walked with one index."""

import triton
import triton.language as tl

from planish.codegen.triton.kernels.math import maximum, minimum


@triton.jit
def plus(x, y):
    """The combination of sums and means."""
    return x + y


@triton.jit
def times(x, y):
    """The combination of products."""
    return x * y


@triton.jit
def reduce_middle(
    output,
    kept,
    inner,
    middle,
    extras,
    READ: tl.constexpr,
    FINISH: tl.constexpr,
    COMBINE: tl.constexpr,
    HOW: tl.constexpr,
    IDENTITY: tl.constexpr,
    DTYPE: tl.constexpr,
    KIND: tl.constexpr,
    BLOCK_KEPT: tl.constexpr,
    BLOCK_MIDDLE: tl.constexpr,
):
    """BLOCK_KEPT results by each program; `kept` counts them, `inner` the last of their axes."""
    at = (tl.program_id(0) * BLOCK_KEPT + tl.arange(0, BLOCK_KEPT)).to(tl.int64)[:, None]
    before, behind, mask = at // inner, at % inner, at < kept
    total = tl.full((BLOCK_KEPT, BLOCK_MIDDLE), IDENTITY, DTYPE)
    for start in range(0, middle, BLOCK_MIDDLE):
        along = (start + tl.arange(0, BLOCK_MIDDLE)).to(tl.int64)[None, :]
        x = READ(before, along, behind, mask, along < middle, mask, extras)
        if KIND == "truth":
            x = x != 0
        total = COMBINE(total, tl.where((along < middle) & mask, x.to(DTYPE), IDENTITY))
    # Triton takes the function of a reduction by its name in the module alone
    if HOW == "plus":
        result = tl.reduce(total, 1, plus, keep_dims=True)
    elif HOW == "times":
        result = tl.reduce(total, 1, times, keep_dims=True)
    elif HOW == "maximum":
        result = tl.reduce(total, 1, maximum, keep_dims=True)
    else:
        result = tl.reduce(total, 1, minimum, keep_dims=True)
    if KIND == "mean":
        result = result / middle
    elif KIND == "truth":
        result = result != 0
    FINISH(result, before, behind, mask, mask, output, extras)


@triton.jit
def _first_largest(x, i, y, j):
    """The larger one with its index, the first of equals; not-a-number is larger than all."""
    x_bad, y_bad = x != x, y != y
    other = (y > x) | (y_bad & (x == x))
    equal = (y == x) | (x_bad & y_bad)
    taken = (other & (x == x)) | (equal & (j < i))
    return tl.where(taken, y, x), tl.where(taken, j, i)


@triton.jit
def argmax_middle(
    output,
    kept,
    inner,
    middle,
    extras,
    READ: tl.constexpr,
    FINISH: tl.constexpr,
    IDENTITY: tl.constexpr,
    DTYPE: tl.constexpr,
    BLOCK_KEPT: tl.constexpr,
    BLOCK_MIDDLE: tl.constexpr,
):
    """As `reduce_middle`, the index of the first of the largest."""
    at = (tl.program_id(0) * BLOCK_KEPT + tl.arange(0, BLOCK_KEPT)).to(tl.int64)[:, None]
    before, behind, mask = at // inner, at % inner, at < kept
    best = tl.full((BLOCK_KEPT, BLOCK_MIDDLE), IDENTITY, DTYPE)
    index = tl.zeros((BLOCK_KEPT, BLOCK_MIDDLE), tl.int64) + middle
    for start in range(0, middle, BLOCK_MIDDLE):
        along = (start + tl.arange(0, BLOCK_MIDDLE)).to(tl.int64)[None, :]
        x = READ(before, along, behind, mask, along < middle, mask, extras).to(DTYPE)
        inside = (along < middle) & mask
        place = tl.where(inside, along + tl.zeros((BLOCK_KEPT, BLOCK_MIDDLE), tl.int64), middle)
        best, index = _first_largest(best, index, tl.where(inside, x, IDENTITY), place)
    best, index = tl.reduce((best, index), 1, _first_largest, keep_dims=True)
    FINISH(index, before, behind, mask, mask, output, extras)
