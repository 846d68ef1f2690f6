"""Attention in blocks with an online softmax (FlashAttention-2, arXiv 2307.08691)."""

import triton
import triton.language as tl

LOG2E = tl.constexpr(1.4426950408889634)


@triton.jit
def powers(scores, largest, total):
    """Weights of one block of scores (in powers of two): the new maximum and sum, the weights, and what shrinks what
    was mixed before."""
    larger = tl.maximum(largest, tl.max(scores, 1))
    safe = tl.where(larger == float("-inf"), 0.0, larger)
    power = tl.exp2(scores - safe[:, None])
    shrunk = tl.exp2(largest - safe)
    return larger, total * shrunk + tl.sum(power, 1), power, shrunk


@triton.jit
def weighed(scores, largest, total, mixed, value, PRECISION: tl.constexpr):
    """One block of scores (in powers of two) folded into the running maximum, sum and mixture."""
    largest, total, power, shrunk = powers(scores, largest, total)
    mixed = tl.dot(power.to(value.dtype), value, mixed * shrunk[:, None], input_precision=PRECISION)
    return largest, total, mixed


@triton.jit
def divided(mixed, total):
    """Mixtures over their sums: zeros where no key was seen."""
    empty = tl.where(total != total, float("nan"), 0.0)
    return tl.where(total[:, None] > 0, mixed / total[:, None], empty[:, None])


@triton.jit
def _visible(query, key, queries, keys, CAUSAL: tl.constexpr, WINDOW: tl.constexpr):
    """Which keys the queries see: the last query stands at the last key."""
    seen = key < keys
    if CAUSAL:
        behind = query + (keys - queries) - key
        seen = seen & (behind >= 0)
        if WINDOW is not None:
            seen = seen & (behind < WINDOW)
    return seen


@triton.jit
def tile_and_pair(queries, BLOCK_M: tl.constexpr):
    """The tile of queries of this program, and its batch and head counted together as a block of one element: tiles of
    one follow each other, since they share keys. One axis of the grid, for the others end at 65535."""
    tiles = tl.cdiv(queries, BLOCK_M)
    # blocks of one element, since the interpreter makes integers of a scalar predicate
    pair = tl.program_id(0) // tiles + tl.zeros((1, 1), tl.int32)
    return tl.program_id(0) % tiles, pair.to(tl.int64)


@triton.jit
def flash(
    q,
    k,
    v,
    output,
    heads,
    group,
    queries,
    keys,
    q_batch,
    q_head,
    q_row,
    q_from,
    k_batch,
    k_head,
    k_row,
    k_from,
    v_batch,
    v_head,
    v_row,
    v_from,
    extras,
    MASK: tl.constexpr,
    ADDED: tl.constexpr,
    FINISH: tl.constexpr,
    SCALE: tl.constexpr,
    CAUSAL: tl.constexpr,
    WINDOW: tl.constexpr,
    DEPTH: tl.constexpr,
    WIDTH: tl.constexpr,
    BLOCK_DEPTH: tl.constexpr,
    BLOCK_WIDTH: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """q [B, heads, queries, DEPTH], k [B, heads / group, keys, DEPTH], v [.., WIDTH]; rows of DEPTH are contiguous.
    They start at element `q_from` of q, and alike for k and v.

    MASK reads the mask, which is ADDED to the scores or keeps what is true.
    """
    tile, pair = tile_and_pair(queries, BLOCK_M)
    batch, head = pair // heads, pair % heads
    query = tile * BLOCK_M + tl.arange(0, BLOCK_M)
    depth, width = tl.arange(0, BLOCK_DEPTH), tl.arange(0, BLOCK_WIDTH)
    row = query.to(tl.int64)[:, None]
    q_at = q + q_from + batch * q_batch + head * q_head + row * q_row + depth[None, :]
    asked = tl.load(q_at, mask=(row < queries) & (depth[None, :] < DEPTH), other=0.0)
    k_at = k + k_from + batch * k_batch + (head // group) * k_head
    v_at = v + v_from + batch * v_batch + (head // group) * v_head
    largest = tl.full((BLOCK_M,), float("-inf"), tl.float32)
    total = tl.zeros((BLOCK_M,), tl.float32)
    mixed = tl.zeros((BLOCK_M, BLOCK_WIDTH), tl.float32)
    first, last = 0, keys
    if CAUSAL:
        last = tl.minimum(keys, (tile + 1) * BLOCK_M + (keys - queries))
        if WINDOW is not None:
            first = tl.maximum(0, tile * BLOCK_M + (keys - queries) - WINDOW + 1) // BLOCK_N * BLOCK_N
    for start in range(first, last, BLOCK_N):
        key = start + tl.arange(0, BLOCK_N)
        place = key.to(tl.int64)
        there = tl.load(
            k_at + place[None, :] * k_row + depth[:, None],
            mask=(place < keys)[None, :] & (depth[:, None] < DEPTH),
            other=0.0,
        )
        scores = tl.dot(asked, there.to(asked.dtype), input_precision=PRECISION) * (SCALE * LOG2E)
        seen = _visible(query[:, None], key[None, :], queries, keys, CAUSAL, WINDOW)
        if MASK is not None:
            known = MASK(
                batch, head, row, place[None, :], batch >= 0, head >= 0, row < queries, (place < keys)[None, :], extras
            )
            if ADDED:
                scores = scores + known * LOG2E
            else:
                seen = seen & known
        scores = tl.where(seen, scores, float("-inf"))
        value = tl.load(
            v_at + place[:, None] * v_row + width[None, :],
            mask=(place < keys)[:, None] & (width[None, :] < WIDTH),
            other=0.0,
        )
        largest, total, mixed = weighed(scores, largest, total, mixed, value.to(asked.dtype), PRECISION)
    result = divided(mixed, total)
    across = width.to(tl.int64)[None, :]
    FINISH(result, batch, head, row, across, batch >= 0, head >= 0, row < queries, across < WIDTH, output, extras)


@triton.jit
def span(
    past,
    queries,
    tile,
    part,
    WINDOW: tl.constexpr,
    GROUP: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    SPLITS: tl.constexpr,
):
    """The first position that part `part` of a block of queries sees, and the one after its last."""
    first = tl.zeros((), tl.int64)
    last = past + tl.minimum(queries, (tile * BLOCK_M + BLOCK_M - 1) // GROUP + 1)
    if WINDOW is not None:
        first = tl.maximum(first, past + tile * BLOCK_M // GROUP - WINDOW + 1)
    length = tl.cdiv(tl.cdiv(last - first, BLOCK_N), SPLITS) * BLOCK_N
    first = first + part * length
    return first, tl.minimum(last, first + length)


@triton.jit
def leave_sums(sum_parts, line, largest, total, mask):
    """The maximum and the sum of a part, for `merge_parts`."""
    tl.store(sum_parts + line * 2, largest[:, None], mask=mask)
    tl.store(sum_parts + line * 2 + 1, total[:, None], mask=mask)


@triton.jit
def flash_cached(
    output,
    mixed_parts,
    sum_parts,
    rows,
    queries,
    slots,
    pairs,
    extras,
    READ_Q: tl.constexpr,
    READ_K: tl.constexpr,
    READ_V: tl.constexpr,
    READ_PAST: tl.constexpr,
    FINISH: tl.constexpr,
    SCALE: tl.constexpr,
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
    SPLITS: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Queries at positions past .. past + queries - 1 over a cache whose slot p mod slots holds position p.

    A row of a block is one query of one of the GROUP heads that share keys; HEADS counts heads of keys, `rows` is
    queries * GROUP, `pairs` counts batches times HEADS. With SPLITS (Flash-Decoding), each program sees a part of the
    keys and leaves its mixture f32 [pairs, SPLITS, rows, WIDTH] with its maximum and sum f32 [.., rows, 2].
    """
    tile, part = tl.program_id(0), tl.program_id(2)
    pair = (tl.program_id(1) + tl.zeros((1, 1), tl.int32)).to(tl.int64)
    batch, shared = pair // HEADS, pair % HEADS
    near = pair < pairs
    at = tile * BLOCK_M + tl.arange(0, BLOCK_M)
    row = at.to(tl.int64)[:, None]
    query, head = row // GROUP, shared * GROUP + row % GROUP
    depth, width = tl.arange(0, BLOCK_DEPTH).to(tl.int64), tl.arange(0, BLOCK_WIDTH).to(tl.int64)
    asked = READ_Q(batch, head, query, depth[None, :], near, near, row < rows, depth[None, :] < DEPTH, extras).to(DTYPE)
    past = tl.max(READ_PAST(batch, near, extras) + tl.zeros((1, 1), tl.int64))  # a batch of one is read as a scalar
    largest = tl.full((BLOCK_M,), float("-inf"), tl.float32)
    total = tl.zeros((BLOCK_M,), tl.float32)
    mixed = tl.zeros((BLOCK_M, BLOCK_WIDTH), tl.float32)
    first, last = span(past, queries, tile, part, WINDOW, GROUP, BLOCK_M, BLOCK_N, SPLITS)
    for start in range(first, last, BLOCK_N):
        position = start + tl.arange(0, BLOCK_N).to(tl.int64)
        place = position % slots
        down, along = place[:, None], place[None, :]
        there = READ_K(
            batch, shared, along, depth[:, None], near, near, position[None, :] < last, depth[:, None] < DEPTH, extras
        )
        scores = tl.dot(asked, there.to(DTYPE), input_precision=PRECISION) * (SCALE * LOG2E)
        behind = past + query - position[None, :]
        seen = (behind >= 0) & (position[None, :] < last)
        if WINDOW is not None:
            seen = seen & (behind < WINDOW)
        scores = tl.where(seen, scores, float("-inf"))
        value = READ_V(
            batch, shared, down, width[None, :], near, near, position[:, None] < last, width[None, :] < WIDTH, extras
        )
        largest, total, mixed = weighed(scores, largest, total, mixed, value.to(DTYPE), PRECISION)
    across = width[None, :]
    if SPLITS == 1:
        result = divided(mixed, total)
        FINISH(result, batch, head, query, across, near, near, row < rows, across < WIDTH, output, extras)
    else:
        line = (pair * SPLITS + part) * rows + row
        tl.store(mixed_parts + line * WIDTH + across, mixed, mask=(row < rows) & (across < WIDTH))
        leave_sums(sum_parts, line, largest, total, row < rows)


@triton.jit
def merge_parts(
    output,
    mixed_parts,
    sum_parts,
    rows,
    pairs,
    extras,
    FINISH: tl.constexpr,
    HEADS: tl.constexpr,
    GROUP: tl.constexpr,
    WIDTH: tl.constexpr,
    BLOCK_WIDTH: tl.constexpr,
    BLOCK_M: tl.constexpr,
    SPLITS: tl.constexpr,
):
    """The parts that `flash_cached` left, as one result."""
    pair = (tl.program_id(1) + tl.zeros((1, 1), tl.int32)).to(tl.int64)
    row = (tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)).to(tl.int64)[:, None]
    across = tl.arange(0, BLOCK_WIDTH).to(tl.int64)[None, :]
    mask = (row < rows) & (pair < pairs)
    largest = tl.full((BLOCK_M, 1), float("-inf"), tl.float32)
    total = tl.zeros((BLOCK_M, 1), tl.float32)
    mixed = tl.zeros((BLOCK_M, BLOCK_WIDTH), tl.float32)
    for part in range(SPLITS):
        line = (pair * SPLITS + part) * rows + row
        peak = tl.load(sum_parts + line * 2, mask=mask, other=float("-inf"))
        larger = tl.maximum(largest, peak)
        safe = tl.where(larger == float("-inf"), 0.0, larger)
        shrunk, weight = tl.exp2(largest - safe), tl.exp2(peak - safe)
        total = total * shrunk + weight * tl.load(sum_parts + line * 2 + 1, mask=mask, other=0.0)
        found = tl.load(mixed_parts + line * WIDTH + across, mask=mask & (across < WIDTH), other=0.0)
        mixed = mixed * shrunk + weight * found
        largest = larger
    result = tl.where(total > 0, mixed / total, tl.where(total != total, float("nan"), 0.0))
    query, head = row // GROUP, (pair % HEADS) * GROUP + row % GROUP
    near = pair < pairs
    FINISH(result, pair // HEADS, head, query, across, near, near, mask, across < WIDTH, output, extras)
