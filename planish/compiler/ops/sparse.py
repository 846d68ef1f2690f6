"""Attention over an index of kept blocks of keys."""

import torch
from torch import Tensor

from planish.compiler.ir import op
from planish.compiler.ops.checks import check_float, check_index, check_same_dtype
from planish.compiler.ops.contract import attention, check_heads
from planish.compiler.types import TensorType, floor_div, same_dim, simplify
from planish.errors import TypeRuleError


def _kept(blocks: Tensor, queries: int, keys: int, query_block: int, key_block: int) -> Tensor:
    """Which keys [B, H, queries, keys] an index of blocks keeps."""
    count = -(-keys // key_block)
    known = torch.where((blocks >= 0) & (blocks < count), blocks.long(), count)
    chosen = torch.zeros(*blocks.shape[:3], count + 1, dtype=torch.bool).scatter(3, known, True)[..., :count]
    rows = chosen.repeat_interleave(query_block, 2)[:, :, :queries]
    return rows.repeat_interleave(key_block, 3)[..., :keys]


def _block_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    blocks: Tensor,
    *,
    query_block: int,
    key_block: int,
    causal: bool,
    scale: float,
) -> Tensor:
    kept = _kept(blocks, q.shape[2], k.shape[2], query_block, key_block)
    result = attention.reference(q, k, v, kept, causal=causal, window=None, scale=scale)
    assert isinstance(result, Tensor)
    return result


@op(_block_attention, "contraction")
def block_attention(
    q: TensorType,
    k: TensorType,
    v: TensorType,
    blocks: TensorType,
    *,
    query_block: int,
    key_block: int,
    causal: bool = False,
    scale: float,
) -> TensorType:
    """Attention of blocks of queries over some blocks of keys: q [B, H, S, D], k [B, G, T, D], v [B, G, T, E] ->
    [B, H, S, E].

    `blocks` i64 or i32 [B or 1, H or 1, ceil(S / query_block), n] names the blocks of `key_block` keys that each block
    of `query_block` queries sees, in any order and none twice; numbers that are no block of keys, such as -1, fill up.
    `causal` also hides later keys, the last query standing at the last key. A query that sees no key gives zeros.
    Heads, dtypes and rounding are those of `attention`. Sources: arXiv 2205.14135, section 3.3; arXiv 2407.02490.
    """
    check_float(q)
    check_same_dtype(q, k, v)
    check_heads(q, k, v)
    check_index(blocks)
    if min(query_block, key_block) < 1:
        raise TypeRuleError(f"blocks have at least one query and one key, not {query_block} and {key_block}")
    rows = floor_div(simplify(q.shape[2] + (query_block - 1)), query_block)
    wanted = (q.shape[0], q.shape[1], rows)
    fits = blocks.rank == 4 and all(
        same_dim(given, size) or (i < 2 and same_dim(given, 1))
        for i, (given, size) in enumerate(zip(blocks.shape, wanted, strict=False))
    )
    if not fits:
        raise TypeRuleError(
            f"blocks {blocks} are not [{q.shape[0]} or 1, {q.shape[1]} or 1, {rows}, n], an index of {q}"
        )
    return q.with_shape((*q.shape[:3], v.shape[3]))
