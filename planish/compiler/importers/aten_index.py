"""aten's lookups: embedding, gather and indexing by tensors."""

from collections.abc import Mapping, Sequence
from typing import Any, cast

import torch

from planish.compiler import ops
from planish.compiler.importers.builder import Builder, Table, UncoveredError, axis_of, never_negative
from planish.compiler.importers.sizes import product
from planish.compiler.ir import Value
from planish.compiler.types import Dim, DType, Shape, same_dim, same_shape, simplify

aten = torch.ops.aten
_MOST_SCATTERED = 16


def _embedding(b: Builder, table: Value, index: Value, *_: Any) -> Value:
    return b.emit(ops.embedding, table, index)


def _gather(b: Builder, x: Value, dim: int, index: Value, *_: Any) -> Value:
    if x.type.rank == 0:
        return x
    return b.emit(ops.gather, x, index, axis=axis_of(dim, x.type.rank))


def _index_select(b: Builder, x: Value, dim: int, index: Value) -> Value:
    vector = b.reshape(index, (1,)) if index.type.rank == 0 else index
    return b.emit(ops.index_select, x, vector, axis=axis_of(dim, x.type.rank))


def _take(b: Builder, x: Value, index: Value) -> Value:
    flat = b.reshape(x, (product(x.shape),))
    return b.emit(ops.index_select, flat, _wrapped(b, index, flat.shape[0]), axis=0)


def _index(b: Builder, x: Value, indices: Sequence[Value | None]) -> Value:
    """x[indices] with integer tensors on adjacent axes; masks and separate axes are left to torch."""
    places = [i for i, index in enumerate(indices) if index is not None]
    tensors = [index for index in indices if index is not None]
    if places != list(range(places[0], places[-1] + 1)) or not all(t.dtype.is_integer for t in tensors):
        raise UncoveredError
    if len(places) == 1:
        return _index_one(b, x, places[0], tensors[0])
    shape = b.broadcast(*(t.shape for t in tensors))
    if _disjoint(tensors, shape):
        return _index_outer(b, x, places[0], tensors, shape)
    return _index_flat(b, x, places[0], tensors)


def _index_one(b: Builder, x: Value, axis: int, index: Value) -> Value:
    if _counts_all(index, x.shape[axis]):
        return b.reshape(x, (*x.shape[:axis], *index.shape, *x.shape[axis + 1 :]))
    return b.emit(ops.index_select, x, _wrapped(b, index, x.shape[axis]), axis=axis)


def _disjoint(tensors: Sequence[Value], shape: Shape) -> bool:
    """Whether no axis of the result varies in more than one index, so that each selects for itself."""
    return all(sum(_size_at(t, axis, shape) != 1 for t in tensors) <= 1 for axis in range(len(shape)))


def _size_at(tensor: Value, axis: int, shape: Shape) -> Dim:
    place = axis - len(shape) + tensor.type.rank
    return tensor.shape[place] if place >= 0 else 1


def _index_outer(b: Builder, x: Value, first: int, tensors: Sequence[Value], shape: Shape) -> Value:
    """One index_select an axis, then the selected axes in the order of the result."""
    axes: list[int] = []
    for i, tensor in enumerate(tensors):
        x = _index_one(b, x, first + i, b.reshape(tensor, (product(tensor.shape),)))
        axes += [axis for axis in range(len(shape)) if _size_at(tensor, axis, shape) != 1]
    dims = [simplify(product(t.shape)) for t in tensors]
    before, after = x.shape[:first], x.shape[first + len(dims) :]
    opened = b.reshape(x, (*before, *(shape[axis] for axis in axes), *after))
    order = sorted(range(len(axes)), key=lambda i: axes[i])
    tail = range(first + len(axes), opened.type.rank)
    moved = b.transpose(opened, (*range(first), *(first + i for i in order), *tail))
    return b.reshape(moved, (*before, *shape, *after))


def _index_flat(b: Builder, x: Value, first: int, tensors: Sequence[Value]) -> Value:
    """The indexed axes as one, and one index computed from all."""
    sizes = x.shape[first : first + len(tensors)]
    flat = b.reshape(x, (*x.shape[:first], product(sizes), *x.shape[first + len(tensors) :]))
    place = _wrapped(b, b.cast(tensors[0], DType.i64), sizes[0])
    for tensor, size in zip(tensors[1:], sizes[1:], strict=True):
        scaled = b.emit(ops.mul, place, b.scalar(size, DType.i64))
        place = b.emit(ops.add, scaled, _wrapped(b, b.cast(tensor, DType.i64), size))
    return b.emit(ops.index_select, flat, place, axis=first)


def _wrapped(b: Builder, index: Value, size: Dim) -> Value:
    """The index with negative entries counted from the end."""
    if never_negative(index):
        return index
    negative = b.emit(ops.lt, index, b.scalar(0, index.dtype))
    return b.emit(ops.where, negative, b.emit(ops.add, index, b.scalar(size, index.dtype)), index)


def _counts_all(index: Value, size: Dim) -> bool:
    """Whether the index is 0, 1, ..., size - 1 in one of its axes and has no other, so that it selects everything."""
    node = index.node
    while node.op is ops.reshape and node.inputs[0] is not None:
        node = node.inputs[0].node
    attrs = cast(Mapping[str, Any], node.attrs)
    return node.op is ops.arange and attrs["start"] == 0 and attrs["step"] == 1 and same_dim(attrs["length"], size)


def _index_put(b: Builder, x: Value, indices: Sequence[Value | None], values: Value, accumulate: bool = False) -> Value:
    """x[mask] = scalar; other writes are left to torch."""
    mask = indices[0]
    if accumulate or len(indices) != 1 or mask is None or mask.dtype is not DType.bool or product(values.shape) != 1:
        raise UncoveredError
    mask = b.reshape(mask, (*mask.shape, *(1 for _ in range(x.type.rank - mask.type.rank))))
    return b.emit(ops.where, mask, b.reshape(b.cast(values, x.dtype), ()), x)


def _scatter(b: Builder, x: Value, dim: int, index: Value, source: Any) -> Value:
    """`x` with what few indices of an axis name replaced, one after another; many are left to torch."""
    axis = axis_of(dim, x.type.rank)
    count = index.shape[axis] if index.type.rank else None
    others = [same_dim(a, b) for i, (a, b) in enumerate(zip(x.shape, index.shape, strict=True)) if i != axis]
    fits = not isinstance(source, Value) or same_shape(source.shape, index.shape)
    if not isinstance(count, int) or count > _MOST_SCATTERED or not all(others) or not fits:
        raise UncoveredError
    size = x.shape[axis]
    shape = tuple(size if i == axis else 1 for i in range(x.type.rank))
    places = b.reshape(b.emit(ops.arange, length=size, dtype=index.dtype), shape)
    for i in range(count):
        chosen = b.emit(ops.eq, places, b.slice(index, axis, i, i + 1))
        value = b.slice(source, axis, i, i + 1) if isinstance(source, Value) else b.scalar(source, x.dtype)
        x = b.emit(ops.where, chosen, value, x)
    return x


TABLE: Table = {
    aten.embedding.default: _embedding,
    aten.gather.default: _gather,
    aten.index_select.default: _index_select,
    aten.take.default: _take,
    aten.index.Tensor: _index,
    aten.index_put.default: _index_put,
    aten.scatter.value: _scatter,
    aten.scatter.src: _scatter,
    aten.take_along_dim.default: lambda b, x, index, dim=None: _take_along(b, x, index, dim),
}


def _take_along(b: Builder, x: Value, index: Value, dim: int | None) -> Value:
    if dim is None:
        return _take(b, x, index)
    axis = axis_of(dim, x.type.rank)
    lead = b.broadcast((*x.shape[:axis], 1, *x.shape[axis + 1 :]), (*index.shape[:axis], 1, *index.shape[axis + 1 :]))
    spread = b.expand(x, (*lead[:axis], x.shape[axis], *lead[axis + 1 :]))
    wide = b.expand(index, (*lead[:axis], index.shape[axis], *lead[axis + 1 :]))
    return b.emit(ops.gather, spread, wide, axis=axis)
