"""Attention over an index of kept blocks of keys (arXiv 2205.14135, section 3.3; arXiv 2407.02490)."""

import triton
import triton.language as tl

from planish.codegen.triton.kernels.attention import always, divided, tile_and_pair, weighed


@triton.jit
def flash_blocks(
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
    kept,
    pairs,
    section,
    extras,
    READ_BLOCKS: tl.constexpr,
    FINISH: tl.constexpr,
    SCALE: tl.constexpr,
    SLOPE: tl.constexpr,
    CAUSAL: tl.constexpr,
    QUERY_BLOCK: tl.constexpr,
    KEY_BLOCK: tl.constexpr,
    DEPTH: tl.constexpr,
    WIDTH: tl.constexpr,
    BLOCK_DEPTH: tl.constexpr,
    BLOCK_WIDTH: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """q [B, heads, queries, DEPTH], k [B, heads / group, keys, DEPTH], v [.., WIDTH]; rows of DEPTH are contiguous.
    They start at element `q_from` of q, and alike for k and v; `pairs` counts batches times heads. BLOCK_M divides
    QUERY_BLOCK and BLOCK_N divides KEY_BLOCK. Scores times SCALE times SLOPE are powers of two.

    READ_BLOCKS reads an entry of the index, of which a row holds `kept`; its last entries that name no block are not
    walked over. One loop goes over all parts of all blocks, so that loads are ahead of products across blocks too.
    """
    tile, pair = tile_and_pair(queries, pairs, section, BLOCK_M)
    batch, head, near = pair // heads, pair % heads, always()
    query = tile * BLOCK_M + tl.arange(0, BLOCK_M)
    line = (tile * BLOCK_M // QUERY_BLOCK + tl.zeros((1, 1), tl.int32)).to(tl.int64)
    depth, width = tl.arange(0, BLOCK_DEPTH), tl.arange(0, BLOCK_WIDTH)
    row = query.to(tl.int64)[:, None]
    q_at = q + q_from + batch * q_batch + head * q_head + row * q_row + depth[None, :]
    asked = tl.load(q_at, mask=(row < queries) & (depth[None, :] < DEPTH), other=0.0)
    k_at = k + k_from + batch * k_batch + (head // group) * k_head
    v_at = v + v_from + batch * v_batch + (head // group) * v_head
    largest = tl.full((BLOCK_M,), float("-inf"), tl.float32)
    total = tl.zeros((BLOCK_M,), tl.float32)
    mixed = tl.zeros((BLOCK_M, BLOCK_WIDTH), tl.float32)
    many = tl.cdiv(keys, KEY_BLOCK)
    parts: tl.constexpr = KEY_BLOCK // BLOCK_N
    # the interpreter makes integers of a scalar predicate: entries are blocks of one element
    last = tl.zeros((1, 64), tl.int64)
    for first in range(0, kept, 64):
        entry = (first + tl.arange(0, 64)).to(tl.int64)[None, :]
        named = READ_BLOCKS(batch, head, line, entry, near, near, near, entry < kept, extras).to(tl.int64)
        names = (named >= 0) & (named < many) & (entry < kept)
        last = tl.maximum(last, tl.where(names, entry + 1, 0))
    for step in range(tl.max(last) * parts):
        entry = (step // parts + tl.zeros((1, 1), tl.int32)).to(tl.int64)
        named = READ_BLOCKS(batch, head, line, entry, near, near, near, near, extras).to(tl.int64)
        start = named * KEY_BLOCK + step % parts * BLOCK_N
        along = start + tl.arange(0, BLOCK_N).to(tl.int64)[None, :]
        down = start + tl.arange(0, BLOCK_N).to(tl.int64)[:, None]
        there = tl.load(
            k_at + along * k_row + depth[:, None],
            mask=(along >= 0) & (along < keys) & (depth[:, None] < DEPTH),
            other=0.0,
        )
        scores = tl.dot(asked, there.to(asked.dtype), input_precision=PRECISION) * SCALE
        seen = (along >= 0) & (along < keys)
        if CAUSAL:
            seen = seen & (along <= row + (keys - queries))
        scores = tl.where(seen, scores, float("-inf"))
        value = tl.load(
            v_at + down * v_row + width[None, :],
            mask=(down >= 0) & (down < keys) & (width[None, :] < WIDTH),
            other=0.0,
        )
        largest, total, mixed = weighed(scores, largest, total, mixed, value.to(asked.dtype), SLOPE, PRECISION)
    result = divided(mixed, total)
    across = width.to(tl.int64)[None, :]
    FINISH(result, batch, head, row, across, near, near, row < queries, across < WIDTH, output, extras)
