"""Reductions, scans and pooling. Pooling is channels-last: x [N, *spatial, C]."""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional

from planish.compiler.ir import Op, op
from planish.compiler.ops.checks import check_axes, check_computed, check_float, check_number, check_windows
from planish.compiler.types import Dim, DType, Shape, TensorType, floor_div, simplify
from planish.errors import TypeRuleError


def reduced(x: TensorType, axes: tuple[int, ...], keep: bool) -> Shape:
    """The shape after reducing at least one of the non-negative `axes`."""
    if not axes:
        raise TypeRuleError(f"reducing {x} needs an axis")
    check_axes(x, axes)
    return tuple(1 if i in axes else d for i, d in enumerate(x.shape) if keep or i not in axes)


def _reduction(name: str, reference: Callable[..., Tensor], result: DType | None = None) -> Op:
    def infer(x: TensorType, *, axes: tuple[int, ...], keep: bool = False) -> TensorType:
        check_computed(x)
        return TensorType(reduced(x, axes, keep), result or x.dtype)

    return Op(name, infer, reference, frozenset({"reduction"}))


def _prod(x: Tensor, *, axes: tuple[int, ...], keep: bool) -> Tensor:
    for axis in sorted(axes, reverse=True):
        x = torch.prod(x, axis, keepdim=keep, dtype=x.dtype)
    return x


sum_ = _reduction("sum", lambda x, *, axes, keep: torch.sum(x, axes, keepdim=keep, dtype=x.dtype))
amax = _reduction("amax", lambda x, *, axes, keep: torch.amax(x, axes, keepdim=keep))
amin = _reduction("amin", lambda x, *, axes, keep: torch.amin(x, axes, keepdim=keep))
prod = _reduction("prod", _prod)
any_ = _reduction("any", lambda x, *, axes, keep: torch.any(x != 0, axes, keepdim=keep), DType.bool)
all_ = _reduction("all", lambda x, *, axes, keep: torch.all(x != 0, axes, keepdim=keep), DType.bool)


def _mean(x: Tensor, *, axes: tuple[int, ...], keep: bool) -> Tensor:
    return torch.mean(x, axes, keepdim=keep)


@op(_mean, "reduction")
def mean(x: TensorType, *, axes: tuple[int, ...], keep: bool = False) -> TensorType:
    """The arithmetic mean over non-negative axes."""
    check_float(x)
    return x.with_shape(reduced(x, axes, keep))


def _argmax(x: Tensor, *, axis: int, keep: bool) -> Tensor:
    return torch.argmax(x, axis, keepdim=keep)


@op(_argmax)
def argmax(x: TensorType, *, axis: int, keep: bool = False) -> TensorType:
    """The first index of the largest element along a non-negative axis."""
    check_number(x)
    return TensorType(reduced(x, (axis,), keep), DType.i64)


def _cumsum(x: Tensor, *, axis: int) -> Tensor:
    return torch.cumsum(x, axis, dtype=x.dtype)


@op(_cumsum)
def cumsum(x: TensorType, *, axis: int) -> TensorType:
    """Running sums along a non-negative axis."""
    check_number(x)
    check_axes(x, (axis,))
    return x


def window_count(size: Dim, kernel: int, stride: int, padding: int, dilation: int = 1) -> Dim:
    """How many windows fit: floor((size + 2 padding - dilation (kernel - 1) - 1) / stride) + 1."""
    return simplify(floor_div(simplify(size + 2 * padding - dilation * (kernel - 1) - 1), stride) + 1)


def _pool(x: Tensor, pool: Callable[[Tensor], Tensor]) -> Tensor:
    """Apply a channels-first pooling function to a channels-last tensor."""
    return pool(x.movedim(-1, 1)).movedim(1, -1)


def _max_pool(x: Tensor, *, kernel: tuple[int, ...], stride: tuple[int, ...], padding: tuple[int, ...]) -> Tensor:
    function = (functional.max_pool1d, functional.max_pool2d, functional.max_pool3d)[x.ndim - 3]
    return _pool(x, lambda y: function(y, kernel, stride, padding))


@op(_max_pool)
def max_pool(x: TensorType, *, kernel: Shape, stride: Shape, padding: Shape) -> TensorType:
    """Largest element of each window; x [N, *spatial, C], padding counts as minus infinity."""
    return _pooled(x, kernel, stride, padding)


def _avg_pool(
    x: Tensor, *, kernel: tuple[int, ...], stride: tuple[int, ...], padding: tuple[int, ...], count_padding: bool
) -> Tensor:
    function = (functional.avg_pool1d, functional.avg_pool2d, functional.avg_pool3d)[x.ndim - 3]
    return _pool(x, lambda y: function(y, kernel, stride, padding, count_include_pad=count_padding))


@op(_avg_pool)
def avg_pool(x: TensorType, *, kernel: Shape, stride: Shape, padding: Shape, count_padding: bool = True) -> TensorType:
    """Mean of each window; x [N, *spatial, C]. `count_padding` divides by the whole window at the border too."""
    return _pooled(x, kernel, stride, padding)


def _pooled(x: TensorType, kernel: Shape, stride: Shape, padding: Shape) -> TensorType:
    check_float(x)
    check_windows(x, kernel, stride, padding)
    if any(2 * p > k for p, k in zip(padding, kernel, strict=True)):
        raise TypeRuleError(f"padding {list(padding)} is over half of the kernel {list(kernel)}")
    counts = (window_count(d, k, s, p) for d, k, s, p in zip(x.shape[1:-1], kernel, stride, padding, strict=True))
    return x.with_shape((x.shape[0], *counts, x.shape[-1]))
