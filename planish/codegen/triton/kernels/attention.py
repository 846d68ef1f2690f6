"""Attention in blocks with an online softmax (FlashAttention-2, arXiv 2307.08691)."""

import triton
import triton.language as tl

LOG2E = tl.constexpr(1.4426950408889634)


@triton.jit
def _weighed(scores, largest, total, mixed, value, PRECISION: tl.constexpr):
    """One block of scores (in powers of two) folded into the running maximum, sum and mixture."""
    larger = tl.maximum(largest, tl.max(scores, 1))
    safe = tl.where(larger == float("-inf"), 0.0, larger)
    power = tl.exp2(scores - safe[:, None])
    shrunk = tl.exp2(largest - safe)
    total = total * shrunk + tl.sum(power, 1)
    mixed = tl.dot(power.to(value.dtype), value, mixed * shrunk[:, None], input_precision=PRECISION)
    return larger, total, mixed


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
    k_batch,
    k_head,
    k_row,
    v_batch,
    v_head,
    v_row,
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

    MASK reads the mask, which is ADDED to the scores or keeps what is true.
    """
    # blocks of one element, since the interpreter makes integers of a scalar predicate
    tile, pair = tl.program_id(0), (tl.program_id(1) + tl.zeros((1, 1), tl.int32)).to(tl.int64)
    batch, head = pair // heads, pair % heads
    query = tile * BLOCK_M + tl.arange(0, BLOCK_M)
    depth, width = tl.arange(0, BLOCK_DEPTH), tl.arange(0, BLOCK_WIDTH)
    row = query.to(tl.int64)[:, None]
    q_at = q + batch * q_batch + head * q_head + row * q_row + depth[None, :]
    asked = tl.load(q_at, mask=(row < queries) & (depth[None, :] < DEPTH), other=0.0)
    k_at = k + batch * k_batch + (head // group) * k_head
    v_at = v + batch * v_batch + (head // group) * v_head
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
        largest, total, mixed = _weighed(scores, largest, total, mixed, value.to(asked.dtype), PRECISION)
    result = tl.where(total[:, None] > 0, mixed / total[:, None], tl.where(total != total, float("nan"), 0.0)[:, None])
    across = width.to(tl.int64)[None, :]
    FINISH(result, batch, head, row, across, batch >= 0, head >= 0, row < queries, across < WIDTH, output, extras)
