"""Caches of attention: state that comes in and goes out, and rows of numbers in bytes of two codes."""

import torch
from torch import Tensor

from planish.compiler.ir import op
from planish.compiler.ops.checks import check_float, check_index, check_same_dtype
from planish.compiler.ops.structure import TORCH_DTYPE
from planish.compiler.types import Dim, DType, TensorType, same_dim
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


LEVELS = 15  # the largest code of 4 bits
_PARAMETERS = 8  # bytes of a group of each half: its scale and its smallest number in f16


def packed_bytes(width: int, group: int) -> int:
    """Bytes of a row of `width` numbers as `pack_groups` writes it."""
    return width // 2 + _PARAMETERS * groups_of_half(width, group)


def groups_of_half(width: int, group: int) -> int:
    """How many groups each half of a row has; the last may be shorter."""
    return -(-(width // 2) // group)


def _pack_groups(x: Tensor, *, group: int) -> Tensor:
    width = x.shape[-1]
    half, count = width // 2, groups_of_half(width, group)
    halves = x.float().reshape(*x.shape[:-1], 2, half)
    parts = torch.nn.functional.pad(halves, (0, count * group - half))
    parts = parts.reshape(*x.shape[:-1], 2, count, group)
    low, high = parts.amin(-1).clamp(max=0), parts.amax(-1).clamp(min=0)
    scale = ((high - low) / LEVELS).half().float()
    inverse = torch.where(scale == 0, 0.0, 1.0 / scale)
    least = (low * inverse).round()
    smallest = least * scale + (parts * 0.0).sum(-1)
    codes = ((parts * inverse[..., None]).round() - least[..., None]).clamp(0, LEVELS).nan_to_num(0.0)
    first, second = codes.flatten(-2)[..., :half].to(torch.uint8).unbind(-2)
    parameters = torch.stack((scale, smallest), -1).half().flatten(-3)
    return torch.cat((first + second * 16, parameters.view(torch.uint8)), -1)


@op(_pack_groups)
def pack_groups(x: TensorType, *, group: int = 32) -> TensorType:
    """Rows of numbers in 4 bits, as asymmetric codes by group: x [..., D] -> u8 [..., D / 2 + 8 ceil(D / 2 / group)].

    Byte j of a row holds the code of number j in its lower bits and that of number D / 2 + j in its upper ones. Behind
    them stand, for the groups of the first half and then those of the second, the scale and the smallest number of the
    group in f16: (max - min) / 15 where the range holds 0, and the multiple of the scale next to min. Codes are to the
    nearest level, ties to even. A group with a number that is not finite gives nan. D is a known multiple of 8.
    Source: the form Q4_1 of GGUF; KIVI (arXiv 2402.02750) for asymmetric groups of each token.
    """
    check_float(x)
    if x.rank < 1 or not isinstance(x.shape[-1], int) or x.shape[-1] % 8 or group < 1:
        raise TypeRuleError(f"rows of {x} have no groups of {group} in bytes; their width is a known multiple of 8")
    return TensorType((*x.shape[:-1], packed_bytes(x.shape[-1], group)), DType.u8)


def _unpack_groups(packed: Tensor, *, width: int, group: int, dtype: DType) -> Tensor:
    half, count = width // 2, groups_of_half(width, group)
    codes = torch.stack((packed[..., :half] & 15, packed[..., :half] >> 4), -2).float()
    parameters = packed[..., half:].contiguous().view(torch.float16).reshape(*packed.shape[:-1], 2, count, 2)
    scale, smallest = (t.float().repeat_interleave(group, -1)[..., :half] for t in parameters.unbind(-1))
    return torch.flatten(codes * scale + smallest, -2).to(TORCH_DTYPE[dtype])


@op(_unpack_groups)
def unpack_groups(packed: TensorType, *, width: int, group: int = 32, dtype: DType = DType.f32) -> TensorType:
    """The numbers that `pack_groups` wrote: code * scale + smallest, in f32 and rounded once to `dtype`.

    packed u8 [..., packed_bytes(width, group)] -> [..., width].
    """
    if packed.dtype is not DType.u8 or not dtype.is_float:
        raise TypeRuleError(f"unpack_groups takes bytes to a float, not {packed} to {dtype}")
    known: Dim = packed_bytes(width, group) if width > 0 and width % 8 == 0 and group > 0 else -1
    if packed.rank < 1 or not same_dim(packed.shape[-1], known):
        raise TypeRuleError(f"rows of {packed} are no {width} numbers in groups of {group}")
    return TensorType((*packed.shape[:-1], width), dtype)
