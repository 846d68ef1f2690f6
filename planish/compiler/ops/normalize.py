"""Normalizations, softmax and rotary positions. Statistics run over the last axis unless said otherwise."""

import torch
from torch import Tensor
from torch.nn import functional

from planish.compiler.ir import op
from planish.compiler.ops.checks import check_axes, check_float, check_same_dtype
from planish.compiler.ops.elementwise import broadcast
from planish.compiler.types import DType, TensorType, same_dim, same_shape
from planish.errors import TypeRuleError


def _softmax(x: Tensor, *, axis: int) -> Tensor:
    return torch.softmax(x, axis)


@op(_softmax)
def softmax(x: TensorType, *, axis: int) -> TensorType:
    """exp(x - max) over its sum along a non-negative axis."""
    check_float(x)
    check_axes(x, (axis,))
    return x


def _log_softmax(x: Tensor, *, axis: int) -> Tensor:
    return torch.log_softmax(x, axis)


@op(_log_softmax)
def log_softmax(x: TensorType, *, axis: int) -> TensorType:
    """The logarithm of softmax along a non-negative axis."""
    check_float(x)
    check_axes(x, (axis,))
    return x


def _layer_norm(x: Tensor, w: Tensor | None = None, b: Tensor | None = None, *, eps: float) -> Tensor:
    return functional.layer_norm(x, x.shape[-1:], w, b, eps)


@op(_layer_norm)
def layer_norm(
    x: TensorType, w: TensorType | None = None, b: TensorType | None = None, *, eps: float = 1e-5
) -> TensorType:
    """(x - mean) / sqrt(variance + eps) * w + b over the last axis (arXiv 1607.06450); x [..., D], w and b [D]."""
    _check_last(x, w, b)
    return x


def _rms_norm(x: Tensor, w: Tensor | None = None, *, eps: float) -> Tensor:
    return functional.rms_norm(x, x.shape[-1:], w, eps)


@op(_rms_norm)
def rms_norm(x: TensorType, w: TensorType | None = None, *, eps: float = 1e-6) -> TensorType:
    """x / sqrt(mean(x^2) + eps) * w over the last axis (arXiv 1910.07467); x [..., D], w [D]."""
    _check_last(x, w)
    return x


def _batch_norm(
    mean: Tensor, variance: Tensor, x: Tensor, w: Tensor | None = None, b: Tensor | None = None, *, eps: float
) -> Tensor:
    y = (x - mean) * torch.rsqrt(variance + eps)
    y = y if w is None else y * w
    return (y if b is None else y + b).to(x.dtype)


@op(_batch_norm)
def batch_norm(
    mean: TensorType,
    variance: TensorType,
    x: TensorType,
    w: TensorType | None = None,
    b: TensorType | None = None,
    *,
    eps: float = 1e-5,
) -> TensorType:
    """(x - mean) / sqrt(variance + eps) * w + b per channel, channels last: x [..., C], the others [C]."""
    _check_last(x, w, b, mean, variance)
    return x


def _group_norm(x: Tensor, w: Tensor | None = None, b: Tensor | None = None, *, groups: int, eps: float) -> Tensor:
    return functional.group_norm(x.movedim(-1, 1), groups, w, b, eps).movedim(1, -1)


@op(_group_norm)
def group_norm(
    x: TensorType, w: TensorType | None = None, b: TensorType | None = None, *, groups: int, eps: float = 1e-5
) -> TensorType:
    """Normalization over the spatial axes and the channels of each group: x [N, *spatial, C], w and b [C]."""
    _check_last(x, w, b)
    if x.rank < 3 or not isinstance(x.shape[-1], int) or groups < 1 or x.shape[-1] % groups:
        raise TypeRuleError(f"{groups} groups do not divide the channels of {x}, which is [N, *spatial, C]")
    return x


def _check_last(x: TensorType, *parameters: TensorType | None) -> None:
    check_float(x)
    if x.rank < 1:
        raise TypeRuleError(f"{x} has no last axis")
    for p in parameters:
        if p is not None and (p.rank != 1 or not same_dim(p.shape[0], x.shape[-1])):
            raise TypeRuleError(f"{p} is no parameter of the last axis of {x}")
        if p is not None and p.dtype not in (x.dtype, DType.f32):
            raise TypeRuleError(f"parameters of {x} have its dtype or f32, unlike {p}; cast them")


def _rope(x: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
    left, right = x.chunk(2, -1)
    return x * cosine + torch.cat((-right, left), -1) * sine


@op(_rope)
def rope(x: TensorType, cosine: TensorType, sine: TensorType) -> TensorType:
    """Rotary position embedding with halves rotated (arXiv 2104.09864): x * cos + rotate_half(x) * sin.

    x [B, H, S, D]; cosine and sine broadcast to x, full width D.
    """
    check_float(x)
    check_same_dtype(x, cosine, sine)
    if x.rank != 4 or not isinstance(x.shape[-1], int) or x.shape[-1] % 2:
        raise TypeRuleError(f"rope takes rank 4 and an even last axis, not {x}")
    if not same_shape(broadcast(x.shape, cosine.shape, sine.shape), x.shape):
        raise TypeRuleError(f"cosine {cosine} and sine {sine} do not broadcast to x {x}")
    return x
