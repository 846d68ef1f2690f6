"""The choice of tokens from rows of logits by penalty, temperature and filters, without sorting.

A row is walked in parts by many programs: the largest score, then how many tokens lie how deep below it, then those
that the filters can reach at all; one program draws among these. Weights exp(-depth) are summed as integers, so that no
order of sums matters and the same numbers give the same token on every run.
"""

import triton
import triton.language as tl

from planish.codegen.triton.kernels.sampling_bounds import drawn_of_reached, units_of

_NUMBERS = tl.constexpr(6)  # of a row's options: share, temperature, top_k, top_p, min_p, penalty
_LEAST_DEPTH = tl.constexpr(123 << 3)  # 2**-4, as its exponent and three bits of its fraction


@triton.jit
def top_of_part(
    logits,
    seen,
    controls,
    largest,
    tops,
    places,
    VOCABULARY: tl.constexpr,
    PARTS: tl.constexpr,
    BLOCK: tl.constexpr,
    GREEDY: tl.constexpr,
):
    """Of BLOCK logits of a row the largest one, the largest score, and the first place that has it."""
    row, part = (tl.program_id(0) // PARTS).to(tl.int64), tl.program_id(0) % PARTS
    at = part * BLOCK + tl.arange(0, BLOCK)
    mask = at < VOCABULARY
    x = tl.load(logits + row * VOCABULARY + at, mask=mask, other=float("-inf")).to(tl.float32)
    tl.store(largest + tl.program_id(0), _largest(x))
    if not GREEDY:
        x = _adjusted(x, seen, controls, row, at, mask, VOCABULARY)
    top = tl.max(x, 0)
    tl.store(tops + tl.program_id(0), top)
    tl.store(places + tl.program_id(0), tl.min(tl.where((x == top) & mask, at, VOCABULARY), 0))


@triton.jit
def take_largest(
    output,
    largest,
    tops,
    places,
    VOCABULARY: tl.constexpr,
    PARTS: tl.constexpr,
    PADDED: tl.constexpr,
):
    """The first token of the largest score of a row, beside its largest logit."""
    row = tl.program_id(0).to(tl.int64)
    _, token = _top(tops, places, row, VOCABULARY, PARTS, PADDED)
    _give(output, row, token, largest, PARTS, PADDED)


@triton.jit
def measure_part(
    logits,
    seen,
    controls,
    tops,
    places,
    counts,
    masses,
    columns,
    VOCABULARY: tl.constexpr,
    PARTS: tl.constexpr,
    PADDED: tl.constexpr,
    BLOCK: tl.constexpr,
    BINS: tl.constexpr,
    COLUMNS: tl.constexpr,
    WIDE: tl.constexpr,
    HEIGHT: tl.constexpr,
    PADDED_HEIGHT: tl.constexpr,
):
    """Where a row has filters, how many tokens of a part lie in each range of depths, and their weight; where it has
    none, the weight of some of the columns in whose order it is drawn."""
    row, part = (tl.program_id(0) // PARTS).to(tl.int64), tl.program_id(0) % PARTS
    if _draws(controls, row):
        top, _ = _top(tops, places, row, VOCABULARY, PARTS, PADDED)
        if _filters(controls, row, VOCABULARY):
            at = part * BLOCK + tl.arange(0, BLOCK)
            depth = top - _scores(logits, seen, controls, row, at, at < VOCABULARY, VOCABULARY)
            found = tl.histogram(_bin(depth, BINS), BINS, mask=at < VOCABULARY)
            tl.store(counts + (row * PARTS + part) * BINS + tl.arange(0, BINS), found)
            tl.store(masses + row * PARTS + part, tl.sum(units_of(depth), 0))
        else:
            column = part * WIDE + tl.arange(0, WIDE)
            line = tl.arange(0, PADDED_HEIGHT)[:, None]
            inside = (line < HEIGHT) & (column < COLUMNS)[None, :]
            cell = line * COLUMNS + column[None, :]
            below = top - _scores(logits, seen, controls, row, cell, inside, VOCABULARY)
            tl.store(columns + row * COLUMNS + column, tl.sum(units_of(below), 0), mask=column < COLUMNS)


@triton.jit
def gather_part(
    logits,
    seen,
    controls,
    tops,
    places,
    counts,
    masses,
    scores,
    tokens,
    reached,
    VOCABULARY: tl.constexpr,
    PARTS: tl.constexpr,
    PADDED: tl.constexpr,
    BLOCK: tl.constexpr,
    BINS: tl.constexpr,
):
    """The tokens of a part that the filters of the row may leave, with their scores, behind those of earlier parts."""
    row, part = (tl.program_id(0) // PARTS).to(tl.int64), tl.program_id(0) % PARTS
    if _draws(controls, row) & _filters(controls, row, VOCABULARY):
        top, _ = _top(tops, places, row, VOCABULARY, PARTS, PADDED)
        parts = tl.arange(0, PADDED)
        table = counts + (row * PARTS + parts[:, None]) * BINS + tl.arange(0, BINS)[None, :]
        found = tl.load(table, mask=parts[:, None] < PARTS, other=0)
        mass = _mass_of_row(masses, row, PARTS, PADDED)
        every = tl.sum(found, 0)
        kept = _reached(every, mass, controls, row, VOCABULARY, BINS)
        before = tl.sum(tl.where(parts[:, None] < part, found, 0), 0)
        first, last = tl.sum(tl.where(kept, before, 0), 0), tl.sum(kept.to(tl.int32), 0) - 1
        at = part * BLOCK + tl.arange(0, BLOCK)
        score = _scores(logits, seen, controls, row, at, at < VOCABULARY, VOCABULARY)
        mine = (_bin(top - score, BINS) <= last) & (at < VOCABULARY)
        place = row * VOCABULARY + first + tl.cumsum(mine.to(tl.int32), 0) - 1
        tl.store(scores + place, score, mask=mine)
        tl.store(tokens + place, at, mask=mine)
        if part == 0:
            tl.store(reached + row, tl.sum(tl.where(kept, every, 0), 0))


@triton.jit
def draw(
    output,
    logits,
    seen,
    controls,
    largest,
    tops,
    places,
    masses,
    columns,
    scores,
    tokens,
    reached,
    VOCABULARY: tl.constexpr,
    PARTS: tl.constexpr,
    PADDED: tl.constexpr,
    BLOCK: tl.constexpr,
    COLUMNS: tl.constexpr,
    HEIGHT: tl.constexpr,
    PADDED_HEIGHT: tl.constexpr,
):
    """The token of a row: that of the largest score, or the one in whose share of the weight the row's number falls."""
    row = tl.program_id(0).to(tl.int64)
    top, token = _top(tops, places, row, VOCABULARY, PARTS, PADDED)
    if _draws(controls, row):
        if _filters(controls, row, VOCABULARY):
            count = tl.minimum(tl.load(reached + row), VOCABULARY)
            begin = row * VOCABULARY
            options = controls + row * _NUMBERS
            mass = _mass_of_row(masses, row, PARTS, PADDED)
            token = drawn_of_reached(scores + begin, tokens + begin, count, top, mass, options, VOCABULARY, BLOCK)
        else:
            token = _drawn_of_all(
                logits, seen, controls, columns, row, top, VOCABULARY, BLOCK, COLUMNS, HEIGHT, PADDED_HEIGHT
            )
    _give(output, row, token, largest, PARTS, PADDED)


@triton.jit
def _drawn_of_all(
    logits,
    seen,
    controls,
    columns,
    row,
    top,
    VOCABULARY: tl.constexpr,
    BLOCK: tl.constexpr,
    COLUMNS: tl.constexpr,
    HEIGHT: tl.constexpr,
    PADDED_HEIGHT: tl.constexpr,
):
    """A token of the whole row, drawn column by column, and then among what no column holds."""
    line, rest = tl.arange(0, PADDED_HEIGHT), VOCABULARY - COLUMNS * HEIGHT
    behind = _scores(logits, seen, controls, row, COLUMNS * HEIGHT + line, line < rest, VOCABULARY)
    total = tl.sum(units_of(top - behind), 0)
    for start in range(0, COLUMNS, BLOCK):
        column = start + tl.arange(0, BLOCK)
        total += tl.sum(tl.load(columns + row * COLUMNS + column, mask=column < COLUMNS, other=0), 0)
    share = tl.load(controls + row * _NUMBERS)
    wanted = tl.minimum((share * total.to(tl.float64)).to(tl.int64), total - 1)
    before, found = row * 0, (row * 0).to(tl.int32)
    for start in range(0, COLUMNS, BLOCK):
        column = start + tl.arange(0, BLOCK)
        mass = tl.load(columns + row * COLUMNS + column, mask=column < COLUMNS, other=0)
        passed = (before + tl.cumsum(mass, 0) <= wanted) & (column < COLUMNS)
        before += tl.sum(tl.where(passed, mass, 0), 0)
        found += tl.sum(passed.to(tl.int32), 0)
    inside = found < COLUMNS
    first = tl.where(inside, found, COLUMNS * HEIGHT)
    step, height = tl.where(inside, COLUMNS, 1), tl.where(inside, HEIGHT, rest)
    depth = top - _scores(logits, seen, controls, row, first + line * step, line < height, VOCABULARY)
    passed = (before + tl.cumsum(units_of(depth), 0) <= wanted) & (line < height)
    return first + step * tl.minimum(tl.sum(passed.to(tl.int32), 0), height - 1)


@triton.jit
def _largest(x):
    """The largest of a block; not-a-number where one is."""
    undefined = tl.max((x != x).to(tl.int32), 0) > 0
    return tl.where(undefined, float("nan"), tl.max(tl.where(x == x, x, float("-inf")), 0))


@triton.jit
def _top(tops, places, row, VOCABULARY: tl.constexpr, PARTS: tl.constexpr, PADDED: tl.constexpr):
    """The largest score of a row, and the first token that has it."""
    part = tl.arange(0, PADDED)
    top = tl.load(tops + row * PARTS + part, mask=part < PARTS, other=float("-inf"))
    place = tl.load(places + row * PARTS + part, mask=part < PARTS, other=VOCABULARY)
    most = tl.max(top, 0)
    return most, tl.min(tl.where(top == most, place, VOCABULARY), 0)


@triton.jit
def _mass_of_row(masses, row, PARTS: tl.constexpr, PADDED: tl.constexpr):
    part = tl.arange(0, PADDED)
    return tl.sum(tl.load(masses + row * PARTS + part, mask=part < PARTS, other=0), 0)


@triton.jit
def _give(output, row, token, largest, PARTS: tl.constexpr, PADDED: tl.constexpr):
    part = tl.arange(0, PADDED)
    found = tl.load(largest + row * PARTS + part, mask=part < PARTS, other=float("-inf"))
    tl.store(output + 2 * row, token.to(tl.float64))
    tl.store(output + 2 * row + 1, _largest(found).to(tl.float64))


@triton.jit
def _draws(controls, row):
    """Whether the token is drawn, and not that of the largest score."""
    return tl.load(controls + row * _NUMBERS + 1) > 0


@triton.jit
def _filters(controls, row, VOCABULARY: tl.constexpr):
    """Whether the row has a filter that may leave a token out."""
    options = controls + row * _NUMBERS
    top_k = tl.load(options + 2)
    return ((top_k > 0) & (top_k < VOCABULARY)) | (tl.load(options + 3) < 1) | (tl.load(options + 4) > 0)


@triton.jit
def _scores(logits, seen, controls, row, at, mask, VOCABULARY: tl.constexpr):
    """The logits of places of a row after penalty and temperature, in f32; -inf outside of the mask."""
    x = tl.load(logits + row * VOCABULARY + at, mask=mask, other=float("-inf")).to(tl.float32)
    return _adjusted(x, seen, controls, row, at, mask, VOCABULARY)


@triton.jit
def _adjusted(x, seen, controls, row, at, mask, VOCABULARY: tl.constexpr):
    # as blocks: the interpreter makes integers of a scalar predicate and a block
    temperature = tl.zeros(at.shape, tl.float32) + tl.load(controls + row * _NUMBERS + 1).to(tl.float32)
    penalty = tl.zeros(at.shape, tl.float32) + tl.load(controls + row * _NUMBERS + 5).to(tl.float32)
    old = tl.load(seen + row * VOCABULARY + at, mask=mask & (penalty != 1.0), other=0) != 0
    x = tl.where(old, tl.where(x < 0, x * penalty, tl.math.div_rn(x, penalty)), x)
    return tl.where(temperature > 0, tl.math.div_rn(x, tl.where(temperature > 0, temperature, 1.0)), x)


@triton.jit
def _bin(depth, BINS: tl.constexpr):
    """The range of depths that each depth lies in, eight to an octave."""
    return tl.minimum(tl.maximum((depth.to(tl.int32, bitcast=True) >> 20) - _LEAST_DEPTH, 0), BINS - 1)


@triton.jit
def _reached(every, mass, controls, row, VOCABULARY: tl.constexpr, BINS: tl.constexpr):
    """The ranges of depths that may hold tokens which the filters leave, by what each range and all together hold.

    top_p keeps less than its share before any token that it keeps: what lies above a range is at least what is not in
    it or below, were all tokens there as near to the top as they can be. Behind top_k it is a share of what that keeps,
    which must all be there.
    """
    options, bins = controls + row * _NUMBERS, tl.arange(0, BINS)
    top_k, top_p, min_p = tl.load(options + 2), tl.load(options + 3), tl.load(options + 4)
    nearest = tl.where(bins > 0, ((bins + _LEAST_DEPTH) << 20).to(tl.float32, bitcast=True), 0.0)
    heaviest = (units_of(nearest) + 1).to(tl.float64) * 1.00001
    below = every.to(tl.float64) * heaviest
    above = mass.to(tl.float64) - (tl.sum(below, 0) - (tl.cumsum(below, 0) - below))
    free = (top_k <= 0) | (top_k >= VOCABULARY)
    counted = (tl.cumsum(every, 0) - every).to(tl.float64) < tl.where(free, VOCABULARY, top_k)
    shared = above < tl.where(free & (top_p < 1), top_p, 2.0) * 1.000001 * mass.to(tl.float64)
    heavy = heaviest >= tl.where(free | (top_p >= 1), min_p * 1099511627776.0, 0.0)
    return counted & shared & heavy
