"""Attention in blocks with an online softmax (FlashAttention-2, arXiv 2307.08691)."""

import triton
import triton.language as tl

LOG2E = tl.constexpr(1.4426950408889634)


@triton.jit
def powers(scores, largest, total, SLOPE: tl.constexpr):
    """Weights of one block of scores, 2 ** (SLOPE * score): the new maximum (times SLOPE) and sum, the weights, and
    what shrinks what was mixed before. SLOPE is positive; its products are fused with the differences."""
    larger = tl.maximum(largest, tl.max(scores, 1) * SLOPE)
    safe = tl.where(larger == float("-inf"), 0.0, larger)
    power = tl.exp2(scores * SLOPE - safe[:, None])
    shrunk = tl.exp2(largest - safe)
    return larger, total * shrunk + tl.sum(power, 1), power, shrunk


@triton.jit
def weighed(scores, largest, total, mixed, value, SLOPE: tl.constexpr, PRECISION: tl.constexpr):
    """One block of scores folded into the running maximum, sum and mixture."""
    largest, total, power, shrunk = powers(scores, largest, total, SLOPE)
    mixed = tl.dot(power.to(value.dtype), value, mixed * shrunk[:, None], input_precision=PRECISION)
    return largest, total, mixed


@triton.jit
def divided(mixed, total):
    """Mixtures over their sums: zeros where no key was seen."""
    empty = tl.where(total != total, float("nan"), 0.0)
    return tl.where(total[:, None] > 0, mixed / total[:, None], empty[:, None])


@triton.jit
def tile_and_pair(rows, pairs, section, BLOCK_M: tl.constexpr):
    """The tile of rows of this program, and its batch and head counted together as a block of one element.

    Sections of pairs, whose keys the L2 holds, come one after the other. In each the last tiles of all pairs come
    first, for those see the most keys where attention is causal, and what starts last should be short. One axis of the
    grid, for the others end at 65535.
    """
    tiles = tl.cdiv(rows, BLOCK_M)
    before = tl.program_id(0) // (tiles * section) * section
    inside = tl.program_id(0) - before * tiles
    wide = tl.minimum(section, pairs - before)
    # blocks of one element, since the interpreter makes integers of a scalar predicate
    pair = before + inside % wide + tl.zeros((1, 1), tl.int32)
    return tiles - 1 - inside // wide, pair.to(tl.int64)


@triton.jit
def always():
    """A mask that lets everything through; the compiler sees that it does."""
    return tl.full((1, 1), 1, tl.int1)


@triton.jit
def _inside(index, BLOCK: tl.constexpr, SIZE: tl.constexpr):
    """The mask of those indices of a block that are below the size."""
    return always() if BLOCK == SIZE else index < SIZE


@triton.jit
def span(
    past,
    keys,
    queries,
    tile,
    CAUSAL: tl.constexpr,
    WINDOW: tl.constexpr,
    GROUP: tl.constexpr,
    BLOCK_M: tl.constexpr,
):
    """The first position that some query of a tile sees and the one after the last, and those that all of them see."""
    near = tile * BLOCK_M // GROUP
    far = tl.minimum(queries, (tile * BLOCK_M + BLOCK_M - 1) // GROUP + 1)
    first, last, first_of_all, last_of_all = 0, keys, 0, keys
    if CAUSAL:
        last = tl.minimum(keys, past + far)
        last_of_all = tl.minimum(keys, past + near + 1)
        if WINDOW is not None:
            first = tl.maximum(past + near - WINDOW + 1, 0)
            first_of_all = tl.maximum(past + far - WINDOW, 0)
    return first, last, first_of_all, last_of_all


@triton.jit
def part_of(blocks, parts, part):
    """The first block of a part and the one after its last."""
    length = tl.cdiv(blocks, parts)
    return part * length, tl.minimum(blocks, (part + 1) * length)


@triton.jit
def past_of(batch, extras, READ_PAST: tl.constexpr):
    """How many tokens of a row came before its queries."""
    # a batch of one is read as a scalar
    return tl.max(READ_PAST(batch, always(), extras) + tl.zeros((1, 1), tl.int64)).to(tl.int32)


@triton.jit
def keys_in(positions, slots, RING: tl.constexpr):
    """How many positions have keys in a cache: all in a ring, as many as there are slots else."""
    return positions if RING else tl.minimum(positions, slots)


@triton.jit
def placed(position, slots, RING: tl.constexpr):
    """The slots of positions."""
    return position % slots if RING else position


@triton.jit
def bounded(scores, past, query, position, there, CAUSAL: tl.constexpr, WINDOW: tl.constexpr):
    """Scores with minus infinity where a query does not see the key, `there` for those of no queries."""
    seen = there
    if CAUSAL:
        behind = past + query - position[None, :]
        seen = behind >= 0
        if WINDOW is not None:
            seen = seen & (behind < WINDOW)
    return tl.where(seen, scores, float("-inf"))


@triton.jit
def _whole_blocks(first, first_of_all, last_of_all, BLOCK_N: tl.constexpr, PARTED: tl.constexpr):
    """The first block of keys that all queries of a tile see, and how many; none in parts, which are short."""
    begin, count = 0, 0
    if not PARTED:
        begin = tl.cdiv(tl.maximum(first_of_all - first, 0), BLOCK_N)
        count = tl.maximum(tl.maximum(last_of_all - first, 0) // BLOCK_N - begin, 0)
    return begin, count


@triton.jit
def at_end(at, total):
    """The rows `at`, as if they followed from their sums, none of which is below zero: where the result lies is then
    computed after the loops, and is not held in registers while they run."""
    return at + (total < 0).to(tl.int32)[:, None]


@triton.jit
def leave_sums(sum_parts, line, largest, total, mask):
    """The maximum and the sum of a part, for `merge_parts`."""
    tl.store(sum_parts + line * 2, largest[:, None], mask=mask)
    tl.store(sum_parts + line * 2 + 1, total[:, None], mask=mask)


@triton.jit
def _masked(scores, known, ADDED: tl.constexpr):
    """Scores with a mask, which is added to them or keeps what is true. Its finite numbers stay finite in powers of
    two, since a row whose mask is the smallest number everywhere still weighs its keys."""
    if ADDED:
        wide = known.to(tl.float32)
        scores = scores + tl.where(wide == float("-inf"), wide, tl.maximum(wide * LOG2E, -3e38))
    else:
        scores = tl.where(known, scores, float("-inf"))
    return scores


@triton.jit
def flash(
    output,
    mixed_parts,
    sum_parts,
    rows,
    queries,
    slots,
    past,
    pairs,
    section,
    parts,
    extras,
    READ_Q: tl.constexpr,
    READ_K: tl.constexpr,
    READ_V: tl.constexpr,
    READ_PAST: tl.constexpr,
    MASK: tl.constexpr,
    ADDED: tl.constexpr,
    FINISH: tl.constexpr,
    SCALE: tl.constexpr,
    SLOPE: tl.constexpr,
    CAUSAL: tl.constexpr,
    WINDOW: tl.constexpr,
    HEADS: tl.constexpr,
    GROUP: tl.constexpr,
    DEPTH: tl.constexpr,
    WIDTH: tl.constexpr,
    DTYPE: tl.constexpr,
    BLOCK_DEPTH: tl.constexpr,
    BLOCK_WIDTH: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    PARTED: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Queries at positions past .. past + queries - 1 over keys in `slots` rows.

    With READ_PAST the rows are a cache, filled up to the last query, whose slot p mod slots holds position p where
    there is a window. A row of a block is one query of one of the GROUP heads that share keys; HEADS counts heads of
    keys, `rows` is queries * GROUP, `pairs` counts batches times HEADS. MASK reads a mask, which is ADDED to the
    scores or keeps what is true. Scores times SCALE, with the mask, times SLOPE are powers of two.

    Blocks of keys that all queries of the tile see are walked over first, without bounds; then those at the edges. With
    PARTED (Flash-Decoding), each program sees one of so many parts of the keys, all with bounds, and leaves its mixture
    f32 [pairs, parts, rows, WIDTH] with its maximum and sum f32 [.., rows, 2].
    """
    tile, pair = tile_and_pair(rows, pairs, section, BLOCK_M)
    batch, shared, near = pair // HEADS, pair % HEADS, always()
    at = (tile * BLOCK_M + tl.arange(0, BLOCK_M))[:, None]
    query, row, asking = at // GROUP, at.to(tl.int64), at < rows
    head, turn = shared * GROUP + row % GROUP, query.to(tl.int64)
    depth, width = tl.arange(0, BLOCK_DEPTH).to(tl.int64), tl.arange(0, BLOCK_WIDTH).to(tl.int64)[None, :]
    deep, wide = _inside(depth[None, :], BLOCK_DEPTH, DEPTH), _inside(width, BLOCK_WIDTH, WIDTH)
    asked = READ_Q(batch, head, turn, depth[None, :], near, near, asking, deep, extras).to(DTYPE)
    asked = tl.broadcast_to(asked, (BLOCK_M, BLOCK_DEPTH))  # along axes of one element all are read as one
    deep, depth = _inside(depth[:, None], BLOCK_DEPTH, DEPTH), depth[:, None]
    past = past if READ_PAST is None else past_of(batch, extras, READ_PAST)
    keys = slots if READ_PAST is None else keys_in(past + queries, slots, WINDOW is not None)
    largest = tl.full((BLOCK_M,), float("-inf"), tl.float32)
    total = tl.zeros((BLOCK_M,), tl.float32)
    mixed = tl.zeros((BLOCK_M, BLOCK_WIDTH), tl.float32)
    first, last, first_of_all, last_of_all = span(past, keys, queries, tile, CAUSAL, WINDOW, GROUP, BLOCK_M)
    begin, end = part_of(tl.cdiv(tl.maximum(last - first, 0), BLOCK_N), parts, tl.program_id(1))
    hole, whole = _whole_blocks(first, first_of_all, last_of_all, BLOCK_N, PARTED)
    for edges in tl.static_range(PARTED, 2):
        left, right = (begin, end - whole) if edges else (hole, hole + whole)
        for block in range(left, right):
            skipped = tl.where(block >= hole, whole, 0) if edges else 0
            position = first + (block + skipped) * BLOCK_N + tl.arange(0, BLOCK_N)
            place = placed(position, slots, READ_PAST is not None and WINDOW is not None).to(tl.int64)
            there = position[None, :] < last if edges else near
            below = position[:, None] < last if edges else near
            key = READ_K(batch, shared, place[None, :], depth, near, near, there, deep, extras).to(DTYPE)
            key = tl.broadcast_to(key, (BLOCK_DEPTH, BLOCK_N))
            scores = tl.dot(asked, key, input_precision=PRECISION) * SCALE
            if MASK is not None:
                known = MASK(batch, head, turn, place[None, :], near, near, asking, there, extras)
                scores = _masked(scores, known, ADDED)
            if edges:
                scores = bounded(scores, past, query, position, there, CAUSAL, WINDOW)
            value = READ_V(batch, shared, place[:, None], width, near, near, below, wide, extras).to(DTYPE)
            value = tl.broadcast_to(value, (BLOCK_N, BLOCK_WIDTH))
            largest, total, mixed = weighed(scores, largest, total, mixed, value, SLOPE, PRECISION)
    at = at_end(at, total)
    query, row, asking = at // GROUP, at.to(tl.int64), at < rows
    head, turn = shared * GROUP + row % GROUP, query.to(tl.int64)
    if PARTED:
        line = (pair * parts + tl.program_id(1)) * rows + row
        tl.store(mixed_parts + line * WIDTH + width, mixed, mask=asking & wide)
        leave_sums(sum_parts, line, largest, total, asking)
    else:
        result = divided(mixed, total)
        FINISH(result, batch, head, turn, width, near, near, asking, wide, output, extras)


@triton.jit
def merge_parts(
    output,
    mixed_parts,
    sum_parts,
    rows,
    parts,
    extras,
    FINISH: tl.constexpr,
    HEADS: tl.constexpr,
    GROUP: tl.constexpr,
    WIDTH: tl.constexpr,
    BLOCK_WIDTH: tl.constexpr,
    BLOCK_PARTS: tl.constexpr,
):
    """The parts that walks over the keys left, as one result. A program is a row, and reads all its parts at once."""
    pair = (tl.program_id(0) // rows + tl.zeros((1, 1), tl.int32)).to(tl.int64)
    row = (tl.program_id(0) % rows + tl.zeros((1, 1), tl.int32)).to(tl.int64)
    part, across = tl.arange(0, BLOCK_PARTS)[:, None], tl.arange(0, BLOCK_WIDTH).to(tl.int64)[None, :]
    wide, left = _inside(across, BLOCK_WIDTH, WIDTH), part < parts
    line = (pair * parts + part) * rows + row
    peak = tl.load(sum_parts + line * 2, mask=left, other=float("-inf"))
    weight = tl.load(sum_parts + line * 2 + 1, mask=left, other=0.0)
    found = tl.load(mixed_parts + line * WIDTH + across, mask=left & wide, other=0.0)
    largest = tl.max(peak, 0, keep_dims=True)
    shrunk = tl.exp2(peak - tl.where(largest == float("-inf"), 0.0, largest))
    total = tl.sum(shrunk * weight, 0, keep_dims=True)
    mixed = tl.sum(shrunk * found, 0, keep_dims=True)
    result = tl.where(total > 0, mixed / total, tl.where(total != total, float("nan"), 0.0))
    near, query, head = always(), row // GROUP, (pair % HEADS) * GROUP + row % GROUP
    FINISH(result, pair // HEADS, head, query, across, near, near, near, wide, output, extras)
