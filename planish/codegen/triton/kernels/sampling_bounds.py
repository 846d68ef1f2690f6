"""A draw among some tokens of a row: the bounds of its filters are found by halving ranges of bit patterns."""

import triton
import triton.language as tl

_UNIT = tl.constexpr(1099511627776.0)  # 2**40: a sum of 2**21 weights of 1 fits into 63 bits
_INFINITE = tl.constexpr(0x7F800000)  # its bits


@triton.jit
def weight_of(depth):
    """exp(-depth) of f32, to a few units in the last place; 0 from a depth of 80 on."""
    near = tl.minimum(depth, 80.0)
    whole = tl.floor(near * 1.4426950408889634 + 0.5)
    # ln 2 in two parts, the first with so few bits that its multiples are exact
    rest = (near - whole * 0.693359375) + whole * 2.12194440054690583e-4
    scale = ((127 - whole.to(tl.int32)) << 23).to(tl.float32, bitcast=True)
    return tl.where(depth < 80.0, tl.exp2(rest * -1.4426950408889634) * scale, 0.0)


@triton.jit
def units_of(depth):
    """exp(-depth) as an integer, 2**40 for 1."""
    return (weight_of(depth) * _UNIT).to(tl.int64)


@triton.jit
def drawn_of_reached(scores, tokens, count, top, mass, options, VOCABULARY: tl.constexpr, BLOCK: tl.constexpr):
    """One of `count` tokens in ascending order, whose scores are at most `top`, by the options of their row; `mass` are
    the units of the whole row."""
    share, top_k, top_p = tl.load(options), tl.load(options + 2), tl.load(options + 3)
    min_p = tl.load(options + 4).to(tl.float32)
    least = (count.to(tl.int64) * 0 - 2147483648).to(tl.int32)
    if (top_k > 0) & (top_k < VOCABULARY):
        least = _least_key(scores, count, top_k.to(tl.int32), BLOCK)
        mass = _mass(scores, count, top, least, count * 0 + _INFINITE, BLOCK)
    edge, last = count * 0 + _INFINITE, count
    if top_p < 1:
        edge, last = _edge(scores, count, top, least, top_p * mass.to(tl.float64), BLOCK)
    kept, total = _sizes(scores, count, top, least, edge, last, min_p, BLOCK)
    wanted = tl.minimum((share * total.to(tl.float64)).to(tl.int64), total - 1)
    rank = _rank(scores, count, top, least, edge, last, min_p, kept, wanted, BLOCK)
    token = count * 0
    passed = count * 0
    for start in range(0, count, BLOCK):
        keeps, _, at = _kept(scores, start, count, top, least, edge, last, min_p, BLOCK)
        upto = passed + tl.cumsum(keeps.to(tl.int32), 0)
        chosen = keeps & (upto == rank + 1)
        token += tl.sum(tl.where(chosen, tl.load(tokens + at, mask=chosen, other=0), 0), 0)
        passed += tl.sum(keeps.to(tl.int32), 0)
    return token


@triton.jit
def _key(score):
    """Integers in the order of f32 numbers."""
    bits = tl.where(score == 0.0, 0.0, score).to(tl.int32, bitcast=True)
    return tl.where(bits < 0, bits ^ 0x7FFFFFFF, bits)


@triton.jit
def _least_key(scores, count, wanted, BLOCK: tl.constexpr):
    """A key that at least `wanted` scores reach, and no more of them than reach the largest such key."""
    low = count.to(tl.int64) * 0 - 2147483648
    high = count.to(tl.int64) * 0 + 2147483648
    while high - low > 1:
        middle = low + (high - low) // 2
        found = tl.zeros((BLOCK,), tl.int32)
        for start in range(0, count, BLOCK):
            at = start + tl.arange(0, BLOCK)
            score = tl.load(scores + at, mask=at < count, other=float("-inf"))
            found += ((_key(score) >= middle.to(tl.int32)) & (at < count)).to(tl.int32)
        reached = tl.sum(found, 0)
        low = tl.where(reached >= wanted, middle, low)
        high = tl.where(reached > wanted, high, tl.where(reached == wanted, middle + 1, middle))
    return low.to(tl.int32)


@triton.jit
def _edge(scores, count, top, least, exact, BLOCK: tl.constexpr):
    """The bits of the depth down to which scores from the key `least` on reach `exact` units, and the place of the last
    of those at that depth that it takes; all where they do not reach them."""
    wanted = exact.to(tl.int64)
    wanted += (wanted.to(tl.float64) < exact).to(tl.int64)
    low = count.to(tl.int64) * 0 - 1
    high = count.to(tl.int64) * 0 + _INFINITE
    while high - low > 1:
        middle = low + (high - low) // 2
        enough = _mass(scores, count, top, least, middle.to(tl.int32), BLOCK) >= wanted
        high = tl.where(enough, middle, high)
        low = tl.where(enough, low, middle)
    missing = wanted - _mass(scores, count, top, least, low.to(tl.int32), BLOCK)
    each = units_of((tl.zeros((1,), tl.int64) + high).to(tl.int32).to(tl.float32, bitcast=True))
    passed, place = count * 0, count * 0
    for start in range(0, count, BLOCK):
        units, bits, at = _weighed(scores, start, count, top, least, BLOCK)
        equal = ((bits == high.to(tl.int32)) & (units > 0)).to(tl.int32)
        upto = (passed + tl.cumsum(equal, 0)).to(tl.int64) * each
        place += tl.sum(((upto < missing) & (at < count)).to(tl.int32), 0)
        passed += tl.sum(equal, 0)
    return high.to(tl.int32), place


@triton.jit
def _weighed(scores, start, count, top, least, BLOCK: tl.constexpr):
    """Units of the scores of a tile, 0 below the key `least`; the bits of their depths; and their places."""
    at = start + tl.arange(0, BLOCK)
    score = tl.load(scores + at, mask=at < count, other=float("-inf"))
    depth = top - score
    units = tl.where((_key(score) >= least) & (at < count), units_of(depth), 0)
    return units, depth.to(tl.int32, bitcast=True), at


@triton.jit
def _mass(scores, count, top, least, edge, BLOCK: tl.constexpr):
    """The units of all scores from the key `least` on, down to the depth of the bits `edge`."""
    total = tl.zeros((BLOCK,), tl.int64)
    for start in range(0, count, BLOCK):
        units, bits, _ = _weighed(scores, start, count, top, least, BLOCK)
        total += tl.where(bits <= edge, units, 0)
    return tl.sum(total, 0)


@triton.jit
def _kept(scores, start, count, top, least, edge, last, min_p, BLOCK: tl.constexpr):
    """Which scores of a tile all filters leave, their units, and their places."""
    at = start + tl.arange(0, BLOCK)
    score = tl.load(scores + at, mask=at < count, other=float("-inf"))
    depth = top - score
    bits, weight = depth.to(tl.int32, bitcast=True), weight_of(depth)
    reached = (bits < edge) | ((bits == edge) & (at <= last))
    keeps = reached & (_key(score) >= least) & (weight >= min_p) & (at < count)
    return keeps, tl.where(keeps, (weight * _UNIT).to(tl.int64), 0), at


@triton.jit
def _sizes(scores, count, top, least, edge, last, min_p, BLOCK: tl.constexpr):
    """How many scores the filters leave, and their units."""
    kept, total = tl.zeros((BLOCK,), tl.int32), tl.zeros((BLOCK,), tl.int64)
    for start in range(0, count, BLOCK):
        keeps, units, _ = _kept(scores, start, count, top, least, edge, last, min_p, BLOCK)
        kept += keeps.to(tl.int32)
        total += units
    return tl.sum(kept, 0), tl.sum(total, 0)


@triton.jit
def _rank(scores, count, top, least, edge, last, min_p, kept, wanted, BLOCK: tl.constexpr):
    """Which of the kept scores is drawn: the first whose units, with all before it in the fixed order, are over
    `wanted`. The order goes column by column where 64 or more are folded into lines as wide as there are columns."""
    columns = tl.maximum(kept // 64, 1)
    height = kept // columns
    low, high = count * 0 - 1, kept - 1
    while high - low > 1:
        middle = low + (high - low) // 2
        total, passed = tl.zeros((BLOCK,), tl.int64), count * 0
        for start in range(0, count, BLOCK):
            keeps, units, _ = _kept(scores, start, count, top, least, edge, last, min_p, BLOCK)
            rank = passed + tl.cumsum(keeps.to(tl.int32), 0) - 1
            folded = (rank % columns) * height + rank // columns
            order = tl.where(rank < columns * height, folded, rank)
            total += tl.where(order <= middle, units, 0)
            passed += tl.sum(keeps.to(tl.int32), 0)
        enough = tl.sum(total, 0) > wanted
        high = tl.where(enough, middle, high)
        low = tl.where(enough, low, middle)
    return tl.where(high < columns * height, (high % height) * columns + high // height, high)
