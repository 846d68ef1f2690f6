"""aten's pooling: windows of one size, and windows that divide an axis."""

import functools
from collections.abc import Sequence
from typing import Any

import torch

from planish.compiler import ops
from planish.compiler.importers.aten_convolve import channels_first, channels_last, wide
from planish.compiler.importers.builder import Builder, Handler, Table, UncoveredError, is_static
from planish.compiler.importers.sizes import product
from planish.compiler.ir import Op, Value
from planish.compiler.types import Dim, DType, same_dim, simplify

aten = torch.ops.aten


def _pooled(b: Builder, op: Op, x: Value, spatial: int, **attrs: Any) -> Value:
    batched = x if x.type.rank == spatial + 2 else b.reshape(x, (1, *x.shape))
    result = channels_first(b, b.emit(op, channels_last(b, batched), **attrs))
    return result if batched is x else b.reshape(result, result.shape[1:])


def _max_pool(spatial: int) -> Handler:
    def build(
        b: Builder, x: Value, kernel: Any, stride: Any = (), padding: Any = 0, dilation: Any = 1, ceil: bool = False
    ) -> Value:
        if any(d != 1 for d in wide(dilation, spatial)) or not x.dtype.is_float:
            raise UncoveredError
        attrs = {"kernel": wide(kernel, spatial), "padding": wide(padding, spatial)}
        attrs["stride"] = wide(stride or kernel, spatial)
        return _pooled(b, ops.max_pool, _filled_up(b, x, **attrs) if ceil else x, spatial, **attrs)

    return build


def _filled_up(b: Builder, x: Value, kernel: Sequence[int], stride: Sequence[int], padding: Sequence[int]) -> Value:
    """x with minus infinity after its end where a last window is only partly inside (`ceil_mode`)."""
    after = [0] * x.type.rank
    for i, (k, s, p) in enumerate(zip(kernel, stride, padding, strict=True)):
        size = x.shape[x.type.rank - len(kernel) + i]
        if not isinstance(size, int):
            raise UncoveredError
        windows = -(-(size + 2 * p - k) // s) + 1
        windows -= (windows - 1) * s >= size + p
        after[x.type.rank - len(kernel) + i] = max(0, (windows - 1) * s + k - size - 2 * p)
    if not any(after):
        return x
    return b.emit(ops.pad, x, before=(0,) * x.type.rank, after=tuple(after), value=float("-inf"))


def _avg_pool(spatial: int) -> Handler:
    def build(
        b: Builder,
        x: Value,
        kernel: Any,
        stride: Any = (),
        padding: Any = 0,
        ceil: bool = False,
        count_padding: bool = True,
        divisor: int | None = None,
    ) -> Value:
        if ceil or divisor is not None:
            raise UncoveredError
        attrs = {"kernel": wide(kernel, spatial), "padding": wide(padding, spatial), "count_padding": count_padding}
        return _pooled(b, ops.avg_pool, x, spatial, stride=wide(stride or kernel, spatial), **attrs)

    return build


def _adaptive(op: Op, whole: Op, spatial: int) -> Handler:
    """Pooling to a given size: a reduction for size 1, a plain pooling where the size divides, else by axis."""

    def build(b: Builder, x: Value, size: Any) -> Value:
        wanted, axes = wide(size, spatial), tuple(range(x.type.rank - spatial, x.type.rank))
        wanted = tuple(x.shape[axis] if w is None else w for axis, w in zip(axes, wanted, strict=True))
        sizes = tuple(x.shape[axis] for axis in axes)
        if all(same_dim(w, 1) for w in wanted):
            return b.emit(whole, x, axes=axes, keep=True)
        if is_static(*wanted, *sizes) and not any(d % w for d, w in zip(sizes, wanted, strict=True)):
            kernel = tuple(d // w for d, w in zip(sizes, wanted, strict=True))
            attrs = {"count_padding": True} if op is ops.avg_pool else {}
            return _pooled(b, op, x, spatial, kernel=kernel, stride=kernel, padding=(0,) * spatial, **attrs)
        if op is not ops.avg_pool:
            return _uneven_max(b, x, axes, wanted)
        return _uneven_mean(b, x, spatial, wanted)

    return build


def _uneven_mean(b: Builder, x: Value, spatial: int, wanted: Sequence[Dim]) -> Value:
    """Means over windows of different sizes, axis by axis, as products with a matrix of weights."""
    batched = x if x.type.rank == spatial + 2 else b.reshape(x, (1, *x.shape))
    y = channels_last(b, batched)
    for axis, count in enumerate(wanted, start=1):
        if not same_dim(y.shape[axis], count):
            before, size, after = y.shape[:axis], y.shape[axis], y.shape[axis + 1 :]
            flat = b.reshape(y, (product(before), size, product(after)))
            means = b.emit(ops.matmul, b.cast(_shares(b, size, count), y.dtype), flat)
            y = b.reshape(means, (*before, count, *after))
    result = channels_first(b, y)
    return result if batched is x else b.reshape(result, result.shape[1:])


def _shares(b: Builder, size: Dim, count: Dim) -> Value:
    """f32 [count, size]: what each element counts for in each window's mean; window i is i * size // count to
    ceil((i + 1) * size / count)."""
    window = b.reshape(b.emit(ops.arange, length=count), (count, 1))
    starts, ends = _edge(b, window, size, 0, count), _edge(b, window, size, simplify(size + count - 1), count)
    place = b.emit(ops.arange, length=size)
    inside = b.emit(ops.logical_and, b.emit(ops.ge, place, starts), b.emit(ops.lt, place, ends))
    return b.emit(ops.div, b.cast(inside, DType.f32), b.cast(b.emit(ops.sub, ends, starts), DType.f32))


def _edge(b: Builder, window: Value, size: Dim, shift: Dim, count: Dim) -> Value:
    moved = b.emit(ops.add, b.emit(ops.mul, window, b.scalar(size, DType.i64)), b.scalar(shift, DType.i64))
    return b.emit(ops.floor_divide, moved, b.scalar(count, DType.i64))


def _uneven_max(b: Builder, x: Value, axes: Sequence[int], wanted: Sequence[Dim]) -> Value:
    """Maxima over windows of different sizes, axis by axis: of as many look-ups as the longest window has elements."""
    for axis, count in zip(axes, wanted, strict=True):
        size = x.shape[axis]
        if not isinstance(size, int) or not isinstance(count, int):
            raise UncoveredError
        windows = [(i * size // count, -(-(i + 1) * size // count)) for i in range(count)]
        longest = max(end - start for start, end in windows)
        taps = [torch.tensor([min(start + t, end - 1) for start, end in windows]) for t in range(longest)]
        parts = [b.emit(ops.index_select, x, b.constant(tap), axis=axis) for tap in taps]
        x = functools.reduce(lambda left, right: b.emit(ops.maximum, left, right), parts)
    return x


def _adaptive_max(spatial: int) -> Handler:
    """The maxima without their places."""
    pooled = _adaptive(ops.max_pool, ops.amax, spatial)
    return lambda b, x, size: (pooled(b, x, size), None)


TABLE: Table = {
    aten.max_pool1d.default: _max_pool(1),
    aten.max_pool2d.default: _max_pool(2),
    aten.max_pool3d.default: _max_pool(3),
    aten.avg_pool1d.default: _avg_pool(1),
    aten.avg_pool2d.default: _avg_pool(2),
    aten.avg_pool3d.default: _avg_pool(3),
    aten.adaptive_avg_pool1d.default: _adaptive(ops.avg_pool, ops.mean, 1),
    aten.adaptive_avg_pool2d.default: _adaptive(ops.avg_pool, ops.mean, 2),
    aten.adaptive_avg_pool3d.default: _adaptive(ops.avg_pool, ops.mean, 3),
    aten._adaptive_avg_pool2d.default: _adaptive(ops.avg_pool, ops.mean, 2),
    aten._adaptive_avg_pool3d.default: _adaptive(ops.avg_pool, ops.mean, 3),
    aten.adaptive_max_pool1d.default: _adaptive_max(1),
    aten.adaptive_max_pool2d.default: _adaptive_max(2),
    aten.adaptive_max_pool3d.default: _adaptive_max(3),
}
