"""New tokens written into a cache."""

import triton
import triton.language as tl


@triton.jit
def _write(
    output,
    tokens,
    pairs,
    slots,
    width,
    extras,
    READ_NEW: tl.constexpr,
    READ_PAST: tl.constexpr,
    READ_COUNT: tl.constexpr,
    FINISH: tl.constexpr,
    HEADS: tl.constexpr,
    BLOCK_TOKENS: tl.constexpr,
    BLOCK_WIDTH: tl.constexpr,
):
    pair = (tl.program_id(1) + tl.zeros((1, 1), tl.int32)).to(tl.int64)
    batch, head, near = pair // HEADS, pair % HEADS, pair < pairs
    token = (tl.program_id(0) * BLOCK_TOKENS + tl.arange(0, BLOCK_TOKENS)).to(tl.int64)[:, None]
    across = tl.arange(0, BLOCK_WIDTH).to(tl.int64)[None, :]
    past = tl.maximum(READ_PAST(batch, near, extras), 0)
    there = (token < tokens) & (token < READ_COUNT(batch, near, extras))
    value = READ_NEW(batch, head, token, across, near, near, token < tokens, across < width, extras)
    FINISH(value, batch, head, (past + token) % slots, across, near, near, there, across < width, output, extras)


@triton.jit
def update(
    output,
    width,
    extras,
    other_output,
    other_width,
    other_extras,
    tokens,
    pairs,
    slots,
    READ_NEW: tl.constexpr,
    READ_PAST: tl.constexpr,
    READ_COUNT: tl.constexpr,
    FINISH: tl.constexpr,
    OTHER_READ_NEW: tl.constexpr,
    OTHER_READ_PAST: tl.constexpr,
    OTHER_READ_COUNT: tl.constexpr,
    OTHER_FINISH: tl.constexpr,
    HEADS: tl.constexpr,
    BLOCK_TOKENS: tl.constexpr,
    BLOCK_WIDTH: tl.constexpr,
):
    """BLOCK_TOKENS tokens of one head of one row of the batch: token i goes to slot (past + i) mod slots. With OTHER_..
    each second program does so for another cache."""
    if tl.program_id(2) == 0:
        _write(
            output, tokens, pairs, slots, width, extras,
            READ_NEW, READ_PAST, READ_COUNT, FINISH, HEADS, BLOCK_TOKENS, BLOCK_WIDTH,
        )  # fmt: skip
    elif OTHER_FINISH is not None:
        _write(
            other_output, tokens, pairs, slots, other_width, other_extras,
            OTHER_READ_NEW, OTHER_READ_PAST, OTHER_READ_COUNT, OTHER_FINISH, HEADS, BLOCK_TOKENS, BLOCK_WIDTH,
        )  # fmt: skip
