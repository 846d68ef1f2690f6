"""aten's reductions and scans."""

from collections.abc import Sequence
from typing import Any

import torch

from planish.compiler import ops
from planish.compiler.importers.builder import Builder, Handler, Table, UncoveredError, axes_of, axis_of
from planish.compiler.importers.sizes import product
from planish.compiler.ir import Op, Value
from planish.compiler.types import DType, simplify

aten = torch.ops.aten
Axes = int | Sequence[int] | None

_COMPARED = 256  # the longest axis whose elements are compared with each other: experts of a router, not a vocabulary


def _reduce(b: Builder, op: Op, x: Value, axes: Axes, keep: bool) -> Value:
    return x if x.type.rank == 0 else b.emit(op, x, axes=axes_of(axes, x.type.rank), keep=keep)


def _sum(op: Op) -> Handler:
    def build(b: Builder, x: Value, axes: Axes = None, keep: bool = False, dtype: torch.dtype | None = None) -> Value:
        if dtype is None and not x.dtype.is_float:
            dtype = torch.int64
        return _reduce(b, op, b.cast(x, dtype), axes, keep)

    return build


def _mean(b: Builder, x: Value, axes: Axes = None, keep: bool = False, dtype: torch.dtype | None = None) -> Value:
    return _reduce(b, ops.mean, b.cast(x, dtype), axes, keep)


def _extreme(op: Op) -> Handler:
    return lambda b, x, axes=None, keep=False: _reduce(b, op, x, axes, keep)


def _truth(op: Op) -> Handler:
    return lambda b, x, axes=None, keep=False: _reduce(b, op, b.cast(x, DType.bool), axes, keep)


def _extreme_with_place(op: Op, sign: int) -> Handler:
    def build(b: Builder, x: Value, dim: int, keep: bool = False) -> tuple[Value, Value]:
        place = x if sign > 0 else b.emit(ops.neg, x)
        return _reduce(b, op, x, dim, keep), _argmax(b, place, dim, keep)

    return build


def _argmax(b: Builder, x: Value, dim: int | None = None, keep: bool = False) -> Value:
    if x.type.rank == 0:
        return b.scalar(0, DType.i64)
    if dim is not None:
        return b.emit(ops.argmax, x, axis=axis_of(dim, x.type.rank), keep=keep)
    if keep:
        raise UncoveredError
    return b.emit(ops.argmax, b.reshape(x, (product(x.shape),)), axis=0)


def _argmin(b: Builder, x: Value, dim: int | None = None, keep: bool = False) -> Value:
    return _argmax(b, b.emit(ops.neg, x), dim, keep)


def _topk(
    b: Builder, x: Value, k: Any, dim: int = -1, largest: bool = True, ordered: bool = True
) -> tuple[Value, Value]:
    """The k largest of a short last axis by their ranks: how many others are before them, equal ones in order."""
    rank, size = x.type.rank, x.shape[-1] if x.type.rank else 0
    if rank == 0 or axis_of(dim, rank) != rank - 1 or not isinstance(k, int) or not isinstance(size, int):
        raise UncoveredError
    if not k or size > _COMPARED:
        raise UncoveredError
    here, other = b.reshape(x, (*x.shape, 1)), b.reshape(x, (*x.shape[:-1], 1, size))
    place = b.emit(ops.arange, length=size)
    earlier = b.emit(ops.lt, place, b.reshape(place, (size, 1)))
    tied = b.emit(ops.logical_and, b.emit(ops.eq, other, here), earlier)
    before = b.emit(ops.logical_or, b.emit(ops.gt if largest else ops.lt, other, here), tied)
    ranks = b.emit(ops.sum_, b.cast(before, DType.i64), axes=(rank,))
    wanted = b.reshape(b.emit(ops.arange, length=k), (k, 1))
    found = b.cast(b.emit(ops.eq, b.reshape(ranks, (*x.shape[:-1], 1, size)), wanted), DType.i32)
    index = b.emit(ops.argmax, found, axis=rank)
    return b.emit(ops.gather, x, index, axis=rank - 1), index


def _variance(b: Builder, x: Value, axes: Axes, correction: Any, keep: bool) -> Value:
    """sum((x - mean)^2) / (count - correction)."""
    places = axes_of(axes, x.type.rank)
    centred = b.emit(ops.sub, x, b.emit(ops.mean, x, axes=places, keep=True))
    square = b.emit(ops.mul, centred, centred)
    count = product(tuple(x.shape[i] for i in places))
    correction = 1 if correction is None else correction
    if correction == 0:
        return b.emit(ops.mean, square, axes=places, keep=keep)
    divisor = count - correction if isinstance(count, int) else simplify(count - int(correction))
    return b.emit(ops.div, b.emit(ops.sum_, square, axes=places, keep=keep), b.scalar(divisor, x.dtype))


def _var_list(b: Builder, x: Value, axes: Axes = None, correction: Any = None, keep: bool = False) -> Value:
    return _variance(b, x, axes, correction, keep)


def _var_flag(b: Builder, x: Value, axes: Axes = None, unbiased: bool = True, keep: bool = False) -> Value:
    return _variance(b, x, axes, int(unbiased), keep)


def _root(variance: Handler) -> Handler:
    return lambda b, *args: b.emit(ops.sqrt, variance(b, *args))


def _with_mean(b: Builder, x: Value, axes: Axes = None, correction: Any = None, keep: bool = False) -> Any:
    return _variance(b, x, axes, correction, keep), _mean(b, x, axes, keep)


def _both_extremes(b: Builder, x: Value, dim: int | None = None, keep: bool = False) -> tuple[Value, Value]:
    return _reduce(b, ops.amin, x, dim, keep), _reduce(b, ops.amax, x, dim, keep)


def _norm(b: Builder, x: Value, order: Any = 2, axes: Axes = None, keep: bool = False, dtype: Any = None) -> Value:
    x = b.cast(x, dtype)
    if order == 2:
        return b.emit(ops.sqrt, _reduce(b, ops.sum_, b.emit(ops.mul, x, x), axes, keep))
    size = b.emit(ops.abs_, x)
    if order == 1:
        return _reduce(b, ops.sum_, size, axes, keep)
    if order == float("inf"):
        return _reduce(b, ops.amax, size, axes, keep)
    powered = b.emit(ops.pow_, *b.promote(size, float(order)))
    return b.emit(ops.pow_, *b.promote(_reduce(b, ops.sum_, powered, axes, keep), 1 / float(order)))


def _logsumexp(b: Builder, x: Value, axes: Axes, keep: bool = False) -> Value:
    places = axes_of(axes, x.type.rank)
    top = b.emit(ops.amax, x, axes=places, keep=True)
    total = b.emit(ops.sum_, b.emit(ops.exp, b.emit(ops.sub, x, top)), axes=places, keep=keep)
    return b.emit(ops.add, b.emit(ops.log, total), b.reshape(top, total.shape))


def _cumsum(b: Builder, x: Value, dim: int, dtype: torch.dtype | None = None) -> Value:
    if dtype is None and not x.dtype.is_float:
        dtype = torch.int64
    x = b.cast(x, dtype)
    return x if x.type.rank == 0 else b.emit(ops.cumsum, x, axis=axis_of(dim, x.type.rank))


def _diff(
    b: Builder, x: Value, n: int = 1, dim: int = -1, before: Value | None = None, after: Value | None = None
) -> Value:
    axis = axis_of(dim, x.type.rank)
    x = b.concat([v for v in (before, x, after) if v is not None], axis)
    for _ in range(n):
        size = x.shape[axis]
        right, left = b.slice(x, axis, 1, size), b.slice(x, axis, 0, simplify(size - 1))
        x = b.emit(ops.ne if x.dtype is DType.bool else ops.sub, right, left)
    return x


def _any_all(op: Op) -> Handler:
    return lambda b, x, dims=None, keep=False: _reduce(b, op, b.cast(x, DType.bool), dims, keep)


TABLE: Table = {
    aten.sum.default: lambda b, x, dtype=None: _sum(ops.sum_)(b, x, None, False, dtype),
    aten.sum.dim_IntList: _sum(ops.sum_),
    aten.mean.default: lambda b, x, dtype=None: _mean(b, x, None, False, dtype),
    aten.mean.dim: _mean,
    aten.prod.default: lambda b, x, dtype=None: _sum(ops.prod)(b, x, None, False, dtype),
    aten.prod.dim_int: _sum(ops.prod),
    aten.amax.default: _extreme(ops.amax),
    aten.amin.default: _extreme(ops.amin),
    aten.max.default: _extreme(ops.amax),
    aten.min.default: _extreme(ops.amin),
    aten.max.dim: _extreme_with_place(ops.amax, 1),
    aten.min.dim: _extreme_with_place(ops.amin, -1),
    **{
        overload: _truth(op)
        for packet, op in ((aten.any, ops.any_), (aten.all, ops.all_))
        for overload in (packet.default, packet.dim, packet.dims)
    },
    aten.argmax.default: _argmax,
    aten.argmin.default: _argmin,
    aten.topk.default: _topk,
    aten.var.correction: _var_list,
    aten.var.dim: _var_flag,
    aten.var.default: lambda b, x, unbiased=True: _var_flag(b, x, None, unbiased),
    aten.std.correction: _root(_var_list),
    aten.std.dim: _root(_var_flag),
    aten.std.default: lambda b, x, unbiased=True: _root(_var_flag)(b, x, None, unbiased),
    aten.var_mean.correction: _with_mean,
    aten.var_mean.dim: lambda b, x, axes=None, unbiased=True, keep=False: _with_mean(b, x, axes, int(unbiased), keep),
    aten.aminmax.default: _both_extremes,
    aten.linalg_vector_norm.default: _norm,
    aten.norm.ScalarOpt_dim: _norm,
    aten.norm.Scalar: _norm,
    aten.logsumexp.default: _logsumexp,
    aten.cumsum.default: _cumsum,
    aten.diff.default: _diff,
}
