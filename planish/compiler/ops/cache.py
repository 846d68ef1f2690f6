"""Caches of attention: state that comes in and goes out."""

import torch
from torch import Tensor

from planish.compiler.ir import op
from planish.compiler.ops.checks import check_index, check_same_dtype
from planish.compiler.types import TensorType, same_dim
from planish.errors import TypeRuleError


def _cache_update(cache: Tensor, new: Tensor, past: Tensor, count: Tensor) -> Tensor:
    slots, tokens = cache.shape[2], new.shape[2]
    result = cache.clone()
    for row in range(cache.shape[0]):
        written = min(tokens, int(count[row]))
        place = (int(past[row]) + torch.arange(written)) % slots
        result[row, :, place] = new[row, :, :written]
    return result


@op(_cache_update, "state")
def cache_update(cache: TensorType, new: TensorType, past: TensorType, count: TensorType) -> TensorType:
    """The cache with the first `count[b]` tokens of `new` written in row b, from position `past[b]` on.

    cache [B, G, R, ...], new [B, G, S, ...], past and count i64 [B]. Position p lies in slot p mod R. At most R tokens
    are written at once.
    """
    check_same_dtype(cache, new)
    check_index(past)
    check_index(count)
    axes = [i for i in range(cache.rank) if i != 2]
    if cache.rank != new.rank or cache.rank < 3 or any(not same_dim(cache.shape[i], new.shape[i]) for i in axes):
        raise TypeRuleError(f"{new} are no tokens of a cache {cache}")
    for rows in (past, count):
        if rows.rank != 1 or not same_dim(rows.shape[0], cache.shape[0]):
            raise TypeRuleError(f"{rows} is not one number for each row of {cache}")
    return cache
