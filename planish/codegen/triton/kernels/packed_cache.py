"""Caches whose rows are groups of 4-bit codes, as `pack_groups` writes them: new tokens, and attention over them."""

import triton
import triton.language as tl

from planish.codegen.triton.kernels.attention import (
    always,
    bounded,
    divided,
    keys_in,
    leave_sums,
    part_of,
    past_of,
    placed,
    powers,
    span,
    tile_and_pair,
)
from planish.codegen.triton.kernels.math import round_even

LEVELS = tl.constexpr(15)
_BYTES = tl.constexpr(4)  # of the scale and the smallest number of a group
_MAGIC = tl.constexpr(0x4B000000)  # 2**23 in f32: small codes are the low bits of its mantissa


@triton.jit
def _coded(x, inside):
    """Numbers [tokens, groups, size] as codes u8, and words [tokens, groups, 1] of the scale and smallest number."""
    x = tl.where(inside, x.to(tl.float32), 0.0)
    low, high = tl.minimum(tl.min(x, 2, keep_dims=True), 0.0), tl.maximum(tl.max(x, 2, keep_dims=True), 0.0)
    scale = ((high - low) / LEVELS).to(tl.float16)
    wide = scale.to(tl.float32)
    inverse = tl.where(wide == 0, 0.0, 1.0 / wide)
    least = round_even(low * inverse)
    smallest = (least * wide + tl.sum(x * 0.0, 2, keep_dims=True)).to(tl.float16)
    level = round_even(x * inverse) - least
    codes = tl.where(level == level, tl.minimum(tl.maximum(level, 0.0), LEVELS), 0.0).to(tl.uint8)
    bits = smallest.to(tl.uint16, bitcast=True).to(tl.uint32)
    return codes, scale.to(tl.uint16, bitcast=True).to(tl.uint32) | (bits << 16)


@triton.jit
def _leave_words(words, batch, head, slot, place, near, there, known, output, extras, FINISH: tl.constexpr):
    """Words of groups as their bytes, from `place` on."""
    for byte in tl.static_range(4):
        one = (words >> (8 * byte)) & 255
        FINISH(one, batch, head, slot, place + byte, near, near, there, known, output, extras)


@triton.jit
def update_packed(
    output,
    tokens,
    pairs,
    slots,
    half,
    groups,
    extras,
    READ_NEW: tl.constexpr,
    READ_PAST: tl.constexpr,
    READ_COUNT: tl.constexpr,
    FINISH: tl.constexpr,
    HEADS: tl.constexpr,
    SIZE: tl.constexpr,
    BLOCK_TOKENS: tl.constexpr,
    BLOCK_GROUPS: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
):
    """As `update`, of tokens that are packed on the way: each half of a row has `groups` groups of SIZE numbers."""
    pair = (tl.program_id(1) + tl.zeros((1, 1, 1), tl.int32)).to(tl.int64)
    batch, head, near = pair // HEADS, pair % HEADS, pair < pairs
    token = (tl.program_id(0) * BLOCK_TOKENS + tl.arange(0, BLOCK_TOKENS)).to(tl.int64)[:, None, None]
    group = tl.arange(0, BLOCK_GROUPS).to(tl.int64)[None, :, None]
    place = tl.arange(0, BLOCK_SIZE).to(tl.int64)[None, None, :]
    across = group * SIZE + place
    inside, known = (place < SIZE) & (across < half), group < groups
    past = tl.maximum(READ_PAST(batch, near, extras), 0)
    slot = (past + token) % slots
    there = (token < tokens) & (token < READ_COUNT(batch, near, extras))
    read = token < tokens
    low = READ_NEW(batch, head, token, across, near, near, read, inside, extras)
    high = READ_NEW(batch, head, token, half + across, near, near, read, inside, extras)
    first, low_words = _coded(low, inside & read)
    second, high_words = _coded(high, inside & read)
    FINISH(first | (second << 4), batch, head, slot, across, near, near, there, inside, output, extras)
    place = half + group * _BYTES
    _leave_words(low_words, batch, head, slot, place, near, there, known, output, extras, FINISH)
    _leave_words(high_words, batch, head, slot, place + groups * _BYTES, near, there, known, output, extras, FINISH)


@triton.jit
def _decoded(codes, word, DTYPE: tl.constexpr):
    """Codes [rows, groups, size] as numbers, by words [rows, groups, 1] of a scale and a smallest number."""
    level = (codes.to(tl.int32) | _MAGIC).to(tl.float32, bitcast=True) - 8388608.0
    scale = (word & 0xFFFF).to(tl.uint16).to(tl.float16, bitcast=True).to(tl.float32)
    least = (word >> 16).to(tl.uint16).to(tl.float16, bitcast=True).to(tl.float32)
    return (level * scale + least).to(DTYPE)


@triton.jit
def _halves(
    row,
    there,
    HALF: tl.constexpr,
    GROUPS: tl.constexpr,
    SIZE: tl.constexpr,
    BLOCK_GROUPS: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
    DTYPE: tl.constexpr,
):
    """Both halves [rows, BLOCK_GROUPS * BLOCK_SIZE] of the rows at the addresses `row` [rows, 1, 1]."""
    group, place = tl.arange(0, BLOCK_GROUPS)[None, :, None], tl.arange(0, BLOCK_SIZE)[None, None, :]
    across = group * SIZE + place
    codes = tl.load(row + across, mask=there & (place < SIZE) & (across < HALF), other=0)
    words = (row + HALF).to(tl.pointer_type(tl.uint32))
    first = tl.load(words + group, mask=there & (group < GROUPS), other=0)
    second = tl.load(words + (GROUPS + group), mask=there & (group < GROUPS), other=0)
    shape: tl.constexpr = (codes.shape[0], BLOCK_GROUPS * BLOCK_SIZE)
    return _decoded(codes & 15, first, DTYPE).reshape(shape), _decoded(codes >> 4, second, DTYPE).reshape(shape)


@triton.jit
def flash_packed(
    k,
    v,
    output,
    mixed_parts,
    sum_parts,
    rows,
    queries,
    slots,
    pairs,
    section,
    parts,
    k_batch,
    k_head,
    k_row,
    k_from,
    v_batch,
    v_head,
    v_row,
    v_from,
    extras,
    READ_Q: tl.constexpr,
    READ_PAST: tl.constexpr,
    FINISH: tl.constexpr,
    SCALE: tl.constexpr,
    SLOPE: tl.constexpr,
    CAUSAL: tl.constexpr,
    WINDOW: tl.constexpr,
    HEADS: tl.constexpr,
    GROUP: tl.constexpr,
    WIDTH: tl.constexpr,
    DTYPE: tl.constexpr,
    K_HALF: tl.constexpr,
    K_GROUPS: tl.constexpr,
    K_SIZE: tl.constexpr,
    K_BLOCK_GROUPS: tl.constexpr,
    K_BLOCK_SIZE: tl.constexpr,
    V_HALF: tl.constexpr,
    V_GROUPS: tl.constexpr,
    V_SIZE: tl.constexpr,
    V_BLOCK_GROUPS: tl.constexpr,
    V_BLOCK_SIZE: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    PARTED: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """As `flash` with READ_PAST, all blocks with bounds, over rows of bytes. A byte holds a code of each half of a row,
    so that each half is a product of its own, and nothing is moved among threads to unpack it."""
    tile, pair = tile_and_pair(rows, pairs, section, BLOCK_M)
    batch, shared, near = pair // HEADS, pair % HEADS, always()
    at = (tile * BLOCK_M + tl.arange(0, BLOCK_M))[:, None]
    query, row, asking = at // GROUP, at.to(tl.int64), at < rows
    head, turn = shared * GROUP + row % GROUP, query.to(tl.int64)
    depth = tl.arange(0, K_BLOCK_GROUPS * K_BLOCK_SIZE).to(tl.int64)[None, :]
    deep = depth < K_HALF
    low = READ_Q(batch, head, turn, depth, near, near, asking, deep, extras).to(DTYPE)
    high = READ_Q(batch, head, turn, K_HALF + depth, near, near, asking, deep, extras).to(DTYPE)
    shape: tl.constexpr = (BLOCK_M, K_BLOCK_GROUPS * K_BLOCK_SIZE)
    low, high = tl.broadcast_to(low, shape), tl.broadcast_to(high, shape)
    past = past_of(batch, extras, READ_PAST)
    largest = tl.full((BLOCK_M,), float("-inf"), tl.float32)
    total = tl.zeros((BLOCK_M,), tl.float32)
    mixed_low = tl.zeros((BLOCK_M, V_BLOCK_GROUPS * V_BLOCK_SIZE), tl.float32)
    mixed_high = tl.zeros((BLOCK_M, V_BLOCK_GROUPS * V_BLOCK_SIZE), tl.float32)
    of_row, of_head = tl.max(batch), tl.max(shared)
    k_at = k + k_from + of_row * k_batch + of_head * k_head
    v_at = v + v_from + of_row * v_batch + of_head * v_head
    keys = keys_in(past + queries, slots, WINDOW is not None)
    first, last, _, _ = span(past, keys, queries, tile, CAUSAL, WINDOW, GROUP, BLOCK_M)
    begin, end = part_of(tl.cdiv(tl.maximum(last - first, 0), BLOCK_N), parts, tl.program_id(1))
    for block in range(begin, end):
        position = first + block * BLOCK_N + tl.arange(0, BLOCK_N)
        place = placed(position, slots, WINDOW is not None).to(tl.int64)[:, None, None]
        there = (position < last)[:, None, None]
        k_low, k_high = _halves(
            k_at + place * k_row, there, K_HALF, K_GROUPS, K_SIZE, K_BLOCK_GROUPS, K_BLOCK_SIZE, DTYPE
        )
        scores = tl.dot(low, tl.trans(k_low), input_precision=PRECISION)
        scores = tl.dot(high, tl.trans(k_high), scores, input_precision=PRECISION) * SCALE
        scores = bounded(scores, past, query, position, there, CAUSAL, WINDOW)
        largest, total, power, shrunk = powers(scores, largest, total, SLOPE)
        v_low, v_high = _halves(
            v_at + place * v_row, there, V_HALF, V_GROUPS, V_SIZE, V_BLOCK_GROUPS, V_BLOCK_SIZE, DTYPE
        )
        weights = power.to(DTYPE)
        mixed_low = tl.dot(weights, v_low, mixed_low * shrunk[:, None], input_precision=PRECISION)
        mixed_high = tl.dot(weights, v_high, mixed_high * shrunk[:, None], input_precision=PRECISION)
    across = tl.arange(0, V_BLOCK_GROUPS * V_BLOCK_SIZE).to(tl.int64)[None, :]
    inside = across < V_HALF
    if PARTED:
        line = (pair * parts + tl.program_id(1)) * rows + row
        tl.store(mixed_parts + line * WIDTH + across, mixed_low, mask=asking & inside)
        tl.store(mixed_parts + line * WIDTH + V_HALF + across, mixed_high, mask=asking & inside)
        leave_sums(sum_parts, line, largest, total, asking)
    else:
        result = divided(mixed_low, total)
        FINISH(result, batch, head, turn, across, near, near, asking, inside, output, extras)
        result = divided(mixed_high, total)
        FINISH(result, batch, head, turn, V_HALF + across, near, near, asking, inside, output, extras)
