"""Contractions: linear, matmul, convolution and attention."""

from collections.abc import Mapping
from itertools import chain
from typing import cast

import torch
from torch import Tensor
from torch.nn import functional

from planish.compiler.attributes import Attr
from planish.compiler.ir import Node, Value, op
from planish.compiler.ops.checks import check_float, check_index, check_number, check_same_dtype, check_windows
from planish.compiler.ops.elementwise import broadcast
from planish.compiler.ops.reduce import window_count
from planish.compiler.ops.structure import TORCH_DTYPE
from planish.compiler.types import Dim, DType, Shape, TensorType, same_dim, same_shape
from planish.errors import TypeRuleError


def _linear(x: Tensor, w: Tensor, b: Tensor | None = None, *, dtype: DType | None) -> Tensor:
    return functional.linear(_as(x, dtype), _as(w, dtype), b)


@op(_linear, "contraction")
def linear(x: TensorType, w: TensorType, b: TensorType | None = None, *, dtype: DType | None = None) -> TensorType:
    """Affine map of the last axis: x [..., K], w [N, K], b [N] -> [..., N].

    With `dtype` f32 the products of narrower operands are summed and given in f32, to which b belongs.
    """
    check_number(x)
    check_same_dtype(x, w)
    if w.rank != 2 or x.rank < 1 or not same_dim(x.shape[-1], w.shape[1]):
        raise TypeRuleError(f"x {x} and w {w} do not contract")
    result = TensorType((*x.shape[:-1], w.shape[0]), _summed(x, dtype))
    _check_bias(w, b, result)
    return result


def _as(x: Tensor, dtype: DType | None) -> Tensor:
    return x if dtype is None else x.to(TORCH_DTYPE[dtype])


def _summed(x: TensorType, dtype: DType | None) -> DType:
    """The dtype of sums of products of x."""
    if dtype is None:
        return x.dtype
    if dtype is not DType.f32 or x.dtype not in (DType.bf16, DType.f16):
        raise TypeRuleError(f"products of {x.dtype} are not summed in {dtype}; those of bf16 and f16 are in f32")
    return dtype


def _check_bias(w: TensorType, b: TensorType | None, result: TensorType) -> None:
    if b is not None and (b.rank != 1 or not same_dim(b.shape[0], w.shape[0])):
        raise TypeRuleError(f"b {b} is no bias of w {w}")
    check_same_dtype(result, b)


def _grouped_linear(x: Tensor, w: Tensor, index: Tensor, *, dtype: DType | None) -> Tensor:
    rows, experts = _as(x, dtype).reshape(-1, x.shape[-1]), index.reshape(-1).clamp(0, len(w) - 1)
    result = rows.new_zeros(len(rows), w.shape[1])
    for expert in set(experts.tolist()):
        chosen = (experts == expert).nonzero()[:, 0]
        result[chosen] = functional.linear(rows[chosen], _as(w[expert], dtype))
    return result.reshape(*index.shape, w.shape[1])


@op(_grouped_linear, "contraction")
def grouped_linear(x: TensorType, w: TensorType, index: TensorType, *, dtype: DType | None = None) -> TensorType:
    """Linear map of each row by the weights of its expert: x [..., K], w [E, N, K], index [...] -> [..., N].

    `result[i] = linear(x[i], w[index[i]])`: `index` (i64 or i32) names the expert of each row of x and is clamped to
    0..E-1. With `dtype` f32 the products of narrower operands are summed and given in f32.
    """
    check_float(x)
    check_same_dtype(x, w)
    check_index(index)
    if w.rank != 3 or x.rank < 1 or not same_dim(x.shape[-1], w.shape[2]):
        raise TypeRuleError(f"x {x} and w {w} do not contract")
    if not same_shape(index.shape, x.shape[:-1]):
        raise TypeRuleError(f"index {index} is not one expert for each row of {x}")
    return TensorType((*x.shape[:-1], w.shape[1]), _summed(x, dtype))


@op(torch.matmul, "contraction")
def matmul(x: TensorType, y: TensorType) -> TensorType:
    """Batched matrix product: x [..., M, K], y [..., K, N] -> [..., M, N]; ranks of at least 2, leading broadcast."""
    check_number(x)
    check_same_dtype(x, y)
    if min(x.rank, y.rank) < 2 or not same_dim(x.shape[-1], y.shape[-2]):
        raise TypeRuleError(f"{x} and {y} do not contract")
    return x.with_shape((*broadcast(x.shape[:-2], y.shape[:-2]), x.shape[-2], y.shape[-1]))


def _conv(
    x: Tensor,
    w: Tensor,
    b: Tensor | None = None,
    *,
    stride: tuple[int, ...],
    padding: tuple[int, ...],
    dilation: tuple[int, ...],
    groups: int,
    after: tuple[int, ...] | None = None,
    dtype: DType | None = None,
) -> Tensor:
    function = (functional.conv1d, functional.conv2d, functional.conv3d)[x.ndim - 3]
    x, w = _as(x, dtype).movedim(-1, 1), _as(w, dtype)
    if after is not None:
        sides = zip(reversed(padding), reversed(after), strict=True)
        x, padding = functional.pad(x, tuple(chain(*sides))), (0,) * len(padding)
    y = function(x, w.movedim(-1, 1), b, stride, padding, dilation, groups)
    return y.movedim(1, -1)


@op(_conv, "contraction")
def conv(
    x: TensorType,
    w: TensorType,
    b: TensorType | None = None,
    *,
    stride: Shape,
    padding: Shape,
    dilation: Shape,
    groups: int = 1,
    after: Shape | None = None,
    dtype: DType | None = None,
) -> TensorType:
    """Convolution, channels last: x [N, *spatial, C], w [O, *kernel, C / groups], b [O] -> [N, *spatial', O].

    Each spatial axis gets `padding` zeros in front and `after` zeros behind; as many as in front where that is None.
    With `dtype` f32 the products of narrower operands are summed and given in f32, to which b belongs.
    """
    check_float(x)
    check_same_dtype(x, w)
    ends = padding if after is None else after
    check_windows(x, stride, padding, dilation, ends)
    if any(isinstance(p, int) and p < 0 for p in (*padding, *ends)):
        raise TypeRuleError(f"padding {list(padding)} and {list(ends)} are no counts; slice the input instead")
    if x.rank != w.rank:
        raise TypeRuleError(f"x {x} and w {w} are no convolution over {x.rank - 2} axes")
    if groups < 1 or not same_dim(x.shape[-1], w.shape[-1] * groups) or w.shape[0] % groups:
        raise TypeRuleError(f"{groups} groups do not fit x {x} and w {w}")
    sizes = (d + before + end for d, before, end in zip(x.shape[1:-1], padding, ends, strict=True))
    spatial = zip(sizes, w.shape[1:-1], stride, dilation, strict=True)
    shape = (x.shape[0], *(window_count(d, k, s, 0, e) for d, k, s, e in spatial), w.shape[0])
    result = TensorType(shape, _summed(x, dtype))
    _check_bias(w, b, result)
    return result


def conv_padding(attrs: Mapping[str, Attr]) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The zeros in front of and behind each spatial axis, from the attributes of a `conv`."""
    before, after = attrs["padding"], attrs["after"]
    return cast("tuple[int, ...]", before), cast("tuple[int, ...]", before if after is None else after)


def _attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: Tensor | None = None,
    past: Tensor | None = None,
    sink: Tensor | None = None,
    *,
    causal: bool,
    window: int | None,
    scale: float,
) -> Tensor:
    groups, dtype = q.shape[-3] // k.shape[-3], q.dtype
    k, v = (t.repeat_interleave(groups, -3) for t in (k, v))
    if dtype in (torch.bfloat16, torch.float16):
        q, k, v = q.float(), k.float(), v.float()
    scores = torch.matmul(q, k.transpose(-1, -2)) * scale
    if mask is not None:
        scores = scores.masked_fill(~mask, -torch.inf) if mask.dtype is torch.bool else scores + mask
    if past is not None:
        scores = scores.masked_fill(~_cached_band(past, q.shape[-2], k.shape[-2], window)[:, None], -torch.inf)
    elif causal:
        scores = scores.masked_fill(~_band(q.shape[-2], k.shape[-2], window), -torch.inf)
    if sink is not None:
        column = sink.to(scores.dtype)[:, None, None].expand(*scores.shape[:-1], 1)
        scores = torch.cat((scores, column), -1)
    weights = torch.softmax(scores, -1)[..., : k.shape[-2]].nan_to_num(0.0)
    return torch.matmul(weights, v).to(dtype)


def _band(queries: int, keys: int, window: int | None) -> Tensor:
    """Which keys each query sees: the diagonal ends at the last key; `window` counts the query's own position."""
    distance = torch.arange(keys - queries, keys)[:, None] - torch.arange(keys)[None, :]
    return (distance >= 0) & (distance < (window or keys + 1))


def _cached_band(past: Tensor, queries: int, slots: int, window: int | None) -> Tensor:
    """Which slots [B, S, R] each query sees: the one of its own position and, going back, those before it."""
    position = past[:, None, None] + torch.arange(queries)[None, :, None]
    back = (position - torch.arange(slots)) % slots
    return (back <= position) & (back < (window or slots + 1))


@op(_attention, "contraction")
def attention(
    q: TensorType,
    k: TensorType,
    v: TensorType,
    mask: TensorType | None = None,
    past: TensorType | None = None,
    sink: TensorType | None = None,
    *,
    causal: bool = False,
    window: int | None = None,
    scale: float,
) -> TensorType:
    """Scaled dot-product attention: q [B, H, S, D], k [B, G, T, D], v [B, G, T, E] -> [B, H, S, E].

    G divides H (grouped queries share keys in order). `mask` broadcasts to [B, H, S, T]: bool keeps where true, float
    (of q's dtype or f32) is added to the scores. `causal` aligns the last query with the last key; `window` (with
    causal) lets a query see that many latest keys, itself included. A query that sees no key gives zeros. Narrow
    operands are computed with in f32, and the result is rounded once.

    With `past` i64 [B] the keys are a cache as `cache_update` writes it: query i of row b is at position past[b] + i,
    position p lies in slot p mod T, and each query sees its own position and those before it, as many as the window
    lets it. The queries' own keys are in the cache already; a row holds T >= window + S - 1 slots, or never wraps.

    `sink` [H] (of q's dtype or f32) is a score of each head beside those of the keys, whose value is zero
    (arXiv 2309.17453; as gpt-oss has it).
    """
    check_float(q)
    check_same_dtype(q, k, v)
    check_heads(q, k, v)
    if window is not None and (not causal or window < 1):
        raise TypeRuleError(f"a window is positive and needs causal attention, not {window} with causal {causal}")
    if mask is not None:
        _check_mask(q, k, mask)
    if past is not None:
        _check_past(q, past, causal, mask)
    if sink is not None and (sink.dtype not in (q.dtype, DType.f32) or not same_shape(sink.shape, q.shape[1:2])):
        raise TypeRuleError(f"sink {sink} is not one {q.dtype} or f32 for each head of {q}")
    return q.with_shape((*q.shape[:3], v.shape[3]))


def check_heads(q: TensorType, k: TensorType, v: TensorType) -> None:
    """Raise TypeRuleError unless q [B, H, S, D], k [B, G, T, D] and v [B, G, T, E] attend, where G divides H."""
    if not q.rank == k.rank == v.rank == 4:
        raise TypeRuleError(f"attention takes three tensors of rank 4, not {q}, {k}, {v}")
    grouped = isinstance(q.shape[1], int) and isinstance(k.shape[1], int) and q.shape[1] % k.shape[1] == 0
    pairs = ((q.shape[0], k.shape[0]), (q.shape[3], k.shape[3]), *zip(k.shape[:3], v.shape[:3], strict=True))
    if not grouped or any(not same_dim(a, b) for a, b in pairs):
        raise TypeRuleError(f"q {q}, k {k} and v {v} do not attend")


def _check_past(q: TensorType, past: TensorType, causal: bool, mask: TensorType | None) -> None:
    check_index(past)
    if not causal or mask is not None:
        raise TypeRuleError("attention over a cache is causal and takes no mask")
    if past.rank != 1 or not same_dim(past.shape[0], q.shape[0]):
        raise TypeRuleError(f"past {past} is not one position for each row of {q}")


def _check_mask(q: TensorType, k: TensorType, mask: TensorType) -> None:
    allowed = dict.fromkeys((DType.bool, q.dtype, DType.f32))
    if mask.dtype not in allowed or mask.rank != 4:
        raise TypeRuleError(f"a mask is {' or '.join(map(str, allowed))} of rank 4, not {mask}")
    scores: tuple[Dim, ...] = (*q.shape[:3], k.shape[2])
    if not same_shape(broadcast(mask.shape, scores), scores):
        raise TypeRuleError(f"mask {mask} does not broadcast to the scores {list(scores)}")


def mask_of(node: Node) -> Value | None:
    """The mask of an `attention`, or None."""
    return node.inputs[3] if len(node.inputs) > 3 else None


def sink_of(node: Node) -> Value | None:
    """The scores [H] of an `attention` that belong to no key, or None."""
    return node.inputs[5] if len(node.inputs) > 5 else None
