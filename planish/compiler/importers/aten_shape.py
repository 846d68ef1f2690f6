"""aten's shape ops: views, axes, slices, joins, padding and repeats."""

import itertools
import sys
from collections.abc import Sequence
from typing import Any

import torch

from planish.compiler import ops
from planish.compiler.importers.builder import Builder, Table, UncoveredError, axes_of, axis_of, is_static
from planish.compiler.importers.sizes import product, quotient
from planish.compiler.ir import Value
from planish.compiler.types import Dim, DType, Shape, same_dim, simplify

aten = torch.ops.aten


def _view(b: Builder, x: Value, shape: Sequence[Dim]) -> Value:
    return b.reshape(x, resolved(x.shape, shape))


def resolved(old: Shape, shape: Sequence[Dim]) -> Shape:
    """`shape` with its -1 replaced by what the elements of `old` leave for it."""
    if not any(d == -1 for d in shape):
        return tuple(shape)
    rest = product(tuple(d for d in shape if d != -1))
    return tuple(quotient(product(old), rest) if d == -1 else d for d in shape)


def _flatten(b: Builder, x: Value, start: int = 0, end: int = -1) -> Value:
    first, last = axis_of(start, x.type.rank), axis_of(end, x.type.rank)
    return b.reshape(x, (*x.shape[:first], product(x.shape[first : last + 1]), *x.shape[last + 1 :]))


def _unflatten(b: Builder, x: Value, dim: int, sizes: Sequence[Dim]) -> Value:
    axis = axis_of(dim, x.type.rank)
    return b.reshape(x, (*x.shape[:axis], *resolved((x.shape[axis],), sizes), *x.shape[axis + 1 :]))


def _unsqueeze(b: Builder, x: Value, dim: int) -> Value:
    axis = axis_of(dim, x.type.rank + 1)
    return b.reshape(x, (*x.shape[:axis], 1, *x.shape[axis:]))


def _squeeze(b: Builder, x: Value, dim: int | Sequence[int] | None = None) -> Value:
    axes = range(x.type.rank) if dim is None else axes_of(dim, x.type.rank)
    return b.reshape(x, tuple(d for i, d in enumerate(x.shape) if i not in axes or d != 1))


def _permute(b: Builder, x: Value, dims: Sequence[int]) -> Value:
    return b.transpose(x, [axis_of(d, x.type.rank) for d in dims])


def _swap(b: Builder, x: Value, first: int, second: int) -> Value:
    order = list(range(x.type.rank))
    first, second = axis_of(first, x.type.rank), axis_of(second, x.type.rank)
    if order:
        order[first], order[second] = second, first
    return b.transpose(x, order)


def _matrix_transpose(b: Builder, x: Value) -> Value:
    return x if x.type.rank < 2 else _swap(b, x, -2, -1)


def _reverse_axes(b: Builder, x: Value) -> Value:
    return b.transpose(x, list(reversed(range(x.type.rank))))


def _movedim(b: Builder, x: Value, source: int | Sequence[int], destination: int | Sequence[int]) -> Value:
    pairs = zip(_listed(source), _listed(destination), strict=True)
    placed = {axis_of(d, x.type.rank): axis_of(s, x.type.rank) for s, d in pairs}
    rest = iter(i for i in range(x.type.rank) if i not in placed.values())
    return b.transpose(x, [placed[i] if i in placed else next(rest) for i in range(x.type.rank)])


def _listed(value: int | Sequence[int]) -> Sequence[int]:
    return (value,) if isinstance(value, int) else value


def _expand(b: Builder, x: Value, shape: Sequence[Dim], *_: Any) -> Value:
    lead = len(shape) - x.type.rank
    return b.expand(x, tuple(x.shape[i - lead] if d == -1 else d for i, d in enumerate(shape)))


def _expand_as(b: Builder, x: Value, other: Value) -> Value:
    return b.expand(x, other.shape)


def _repeat(b: Builder, x: Value, repeats: Sequence[Dim]) -> Value:
    """Each axis [d] becomes [r, d], then [r * d]."""
    shape = (*(1,) * (len(repeats) - x.type.rank), *x.shape)
    pairs = list(zip(repeats, shape, strict=True))
    opened = b.reshape(x, tuple(part for _, d in pairs for part in (1, d)))
    spread = b.expand(opened, tuple(part for pair in pairs for part in pair))
    return b.reshape(spread, tuple(simplify(r * d) for r, d in pairs))


def _tile(b: Builder, x: Value, repeats: Sequence[Dim]) -> Value:
    return _repeat(b, x, (*(1,) * (x.type.rank - len(repeats)), *repeats))


def _repeat_interleave(b: Builder, x: Value, repeats: Any, dim: int | None = None, *_: Any) -> Value:
    if isinstance(repeats, Value):
        raise UncoveredError
    if dim is None:
        x, dim = b.reshape(x, (product(x.shape),)), 0
    axis = axis_of(dim, x.type.rank)
    before, size, after = x.shape[:axis], x.shape[axis], x.shape[axis + 1 :]
    spread = b.expand(b.reshape(x, (*before, size, 1, *after)), (*before, size, repeats, *after))
    return b.reshape(spread, (*before, simplify(size * repeats), *after))


def _select(b: Builder, x: Value, dim: int, index: Dim) -> Value:
    if isinstance(index, Value):
        raise UncoveredError
    axis = axis_of(dim, x.type.rank)
    start = simplify(x.shape[axis] + index) if b.at_most(index, -1) else index
    part = b.slice(x, axis, start, simplify(start + 1))
    return b.reshape(part, (*x.shape[:axis], *x.shape[axis + 1 :]))


def _slice(
    b: Builder, x: Value, dim: int = 0, start: Dim | None = None, end: Dim | None = None, step: int = 1
) -> Value:
    axis = axis_of(dim, x.type.rank)
    first, last = slice_bounds(b, x.shape[axis], start, end)
    return b.slice(x, axis, first, last, step)


def slice_bounds(b: Builder, size: Dim, start: Dim | None, end: Dim | None) -> tuple[Dim, Dim]:
    """Bounds inside 0..size from torch's, which may be negative, absent or beyond the end."""
    first = _bound(b, size, 0 if start is None else start)
    last = size if end is None or end == sys.maxsize else _bound(b, size, end)
    return first, b.larger(first, last)


def _bound(b: Builder, size: Dim, bound: Dim) -> Dim:
    if b.at_most(bound, -1):
        return b.larger(0, simplify(size + bound))
    return b.smaller(bound, size)


def _narrow(b: Builder, x: Value, dim: int, start: Dim, length: Dim) -> Value:
    axis = axis_of(dim, x.type.rank)
    start = simplify(x.shape[axis] + start) if b.at_most(start, -1) else start
    return b.slice(x, axis, start, simplify(start + length))


def _split(b: Builder, x: Value, sizes: Dim | Sequence[Dim], dim: int = 0) -> list[Value]:
    axis = axis_of(dim, x.type.rank)
    if not isinstance(sizes, Sequence):
        return _split_every(b, x, sizes, axis)
    starts = [simplify(sum(sizes[:i], start=0)) for i in range(len(sizes) + 1)]
    return [b.slice(x, axis, first, last) for first, last in itertools.pairwise(starts)]


def _split_every(b: Builder, x: Value, size: Dim, axis: int) -> list[Value]:
    count = quotient(simplify(x.shape[axis] + size - 1), 1) if size == 1 else None
    pieces = -(-x.shape[axis] // size) if is_static(size, x.shape[axis]) else quotient(x.shape[axis], size)
    if count is not None:
        pieces = x.shape[axis]
    if not isinstance(pieces, int):
        raise UncoveredError
    ends = [simplify(size * (i + 1)) for i in range(pieces - 1)] + [x.shape[axis]]
    return [b.slice(x, axis, simplify(size * i), end) for i, end in enumerate(ends)]


def _chunk(b: Builder, x: Value, chunks: int, dim: int = 0) -> list[Value]:
    size = x.shape[axis_of(dim, x.type.rank)]
    return _split_every(
        b, x, -(-size // chunks) if isinstance(size, int) else quotient(size, chunks), axis_of(dim, x.type.rank)
    )


def _unbind(b: Builder, x: Value, dim: int = 0) -> list[Value]:
    size = x.shape[axis_of(dim, x.type.rank)]
    if not isinstance(size, int):
        raise UncoveredError
    return [_select(b, x, dim, i) for i in range(size)]


def _cat(b: Builder, values: Sequence[Value], dim: int = 0) -> Value:
    ranked = [v for v in values if v.shape != (0,)] or list(values[:1])
    axis, parts = axis_of(dim, ranked[0].type.rank), b.promote(*ranked)
    return b.concat([v for v in parts if v.shape[axis] != 0] or parts[:1], axis)


def _stack(b: Builder, values: Sequence[Value], dim: int = 0) -> Value:
    axis = axis_of(dim, values[0].type.rank + 1)
    return b.concat([_unsqueeze(b, v, axis) for v in b.promote(*values)], axis)


def _constant_pad(b: Builder, x: Value, pairs: Sequence[Dim], value: Any = 0) -> Value:
    rank = x.type.rank
    before, after = [0] * rank, [0] * rank
    for i in range(len(pairs) // 2):
        axis, low, high = rank - 1 - i, pairs[2 * i], pairs[2 * i + 1]
        if not isinstance(low, int) or not isinstance(high, int):
            return _pad_symbolic(b, x, pairs, value)
        size = x.shape[axis]
        x = b.slice(x, axis, max(0, -low), simplify(size - max(0, -high)))
        before[axis], after[axis] = max(0, low), max(0, high)
    if not any((*before, *after)):
        return x
    return b.emit(ops.pad, x, before=tuple(before), after=tuple(after), value=float(value or 0))


def _pad_symbolic(b: Builder, x: Value, pairs: Sequence[Dim], value: Any) -> Value:
    for i in range(len(pairs) // 2):
        axis = x.type.rank - 1 - i
        sides = [_filled(b, x, axis, count, value or 0) for count in pairs[2 * i : 2 * i + 2]]
        x = b.concat([v for v in (sides[0], x, sides[1]) if v is not None], axis)
    return x


def _filled(b: Builder, x: Value, axis: int, count: Dim, value: Any) -> Value | None:
    if same_dim(count, 0):
        return None
    if not b.at_most(0, count):
        raise UncoveredError
    shape = (*x.shape[:axis], count, *x.shape[axis + 1 :])
    number = float(value) if x.dtype.is_float else bool(value) if x.dtype is DType.bool else int(value)
    return b.emit(ops.full, shape=shape, value=number, dtype=x.dtype)


def _pad(b: Builder, x: Value, pairs: Sequence[Dim], mode: str = "constant", value: Any = None) -> Value:
    if mode == "constant":
        return _constant_pad(b, x, pairs, value)
    for i in range(len(pairs) // 2):
        x = _pad_axis(b, x, x.type.rank - 1 - i, pairs[2 * i], pairs[2 * i + 1], mode)
    return x


def _pad_axis(b: Builder, x: Value, axis: int, low: Dim, high: Dim, mode: str) -> Value:
    """Reflected, repeated or wrapped borders of one axis, by joining parts of it."""
    if not isinstance(low, int) or not isinstance(high, int) or min(low, high) < 0:
        raise UncoveredError
    size = x.shape[axis]
    ends = {
        "reflect": ((1, 1 + low), (size - 1 - high, size - 1)),
        "replicate": ((0, 1), (size - 1, size)),
        "circular": ((size - low, size), (0, high)),
    }[mode]
    parts = [x]
    for count, (start, stop), place in ((low, ends[0], 0), (high, ends[1], 2)):
        if count:
            part = b.slice(x, axis, simplify(start), simplify(stop))
            parts.insert(place, _border(b, part, axis, count, mode))
    return b.concat(parts, axis)


def _border(b: Builder, part: Value, axis: int, count: int, mode: str) -> Value:
    if mode == "reflect":
        return b.emit(ops.flip, part, axes=(axis,))
    return part if mode == "circular" else b.expand(part, (*part.shape[:axis], count, *part.shape[axis + 1 :]))


def _roll(b: Builder, x: Value, shifts: int | Sequence[int], dims: int | Sequence[int] = ()) -> Value:
    shifts, axes = tuple(_listed(shifts)), tuple(axis_of(d, x.type.rank) for d in _listed(dims))
    if not is_static(*shifts):
        raise UncoveredError
    if not axes:
        flat = b.reshape(x, (product(x.shape),))
        return b.reshape(b.emit(ops.roll, flat, shifts=shifts, axes=(0,)), x.shape)
    return b.emit(ops.roll, x, shifts=shifts, axes=axes)


def _flip(b: Builder, x: Value, dims: Sequence[int]) -> Value:
    return b.emit(ops.flip, x, axes=axes_of(dims, x.type.rank)) if dims else x


def _select_scatter(b: Builder, x: Value, source: Value, dim: int, index: Dim) -> Value:
    axis = axis_of(dim, x.type.rank)
    start = simplify(x.shape[axis] + index) if b.at_most(index, -1) else index
    return _replace(b, x, _unsqueeze(b, source, axis), axis, start, simplify(start + 1))


def _slice_scatter(
    b: Builder, x: Value, source: Value, dim: int = 0, start: Dim | None = None, end: Dim | None = None, step: int = 1
) -> Value:
    if step != 1:
        raise UncoveredError
    axis = axis_of(dim, x.type.rank)
    return _replace(b, x, source, axis, *slice_bounds(b, x.shape[axis], start, end))


def _replace(b: Builder, x: Value, source: Value, axis: int, start: Dim, stop: Dim) -> Value:
    size = x.shape[axis]
    middle = b.expand(b.cast(source, x.dtype), (*x.shape[:axis], simplify(stop - start), *x.shape[axis + 1 :]))
    before = [] if same_dim(start, 0) else [b.slice(x, axis, 0, start)]
    after = [] if same_dim(stop, size) else [b.slice(x, axis, stop, size)]
    return b.concat([*before, middle, *after], axis)


def _pixel_shuffle(b: Builder, x: Value, factor: int) -> Value:
    *lead, channels, high, wide = x.shape
    opened = b.reshape(x, (*lead, quotient(channels, factor**2), factor, factor, high, wide))
    n = len(lead)
    moved = b.transpose(opened, (*range(n), n, n + 3, n + 1, n + 4, n + 2))
    return b.reshape(moved, (*lead, quotient(channels, factor**2), simplify(high * factor), simplify(wide * factor)))


TABLE: Table = {
    aten.size.default: lambda b, x: list(x.shape),
    aten.view.default: _view,
    aten._unsafe_view.default: _view,
    aten.reshape.default: _view,
    aten.view_as.default: lambda b, x, other: b.reshape(x, other.shape),
    aten.reshape_as.default: lambda b, x, other: b.reshape(x, other.shape),
    aten.flatten.using_ints: _flatten,
    aten.unflatten.int: _unflatten,
    aten.unsqueeze.default: _unsqueeze,
    aten.squeeze.default: _squeeze,
    aten.squeeze.dim: _squeeze,
    aten.squeeze.dims: _squeeze,
    aten.permute.default: _permute,
    aten.transpose.int: _swap,
    aten.swapaxes.default: _swap,
    aten.swapdims.default: _swap,
    aten.t.default: _matrix_transpose,
    aten.numpy_T.default: _reverse_axes,
    aten.mT.default: _matrix_transpose,
    aten.adjoint.default: _matrix_transpose,
    aten.movedim.int: _movedim,
    aten.movedim.intlist: _movedim,
    aten.expand.default: _expand,
    aten.expand_as.default: _expand_as,
    aten.broadcast_to.default: _expand,
    aten.repeat.default: _repeat,
    aten.tile.default: _tile,
    aten.repeat_interleave.self_int: _repeat_interleave,
    aten.select.int: _select,
    aten.slice.Tensor: _slice,
    aten.narrow.default: _narrow,
    aten.split.Tensor: _split,
    aten.split.sizes: _split,
    aten.split_with_sizes.default: _split,
    aten.chunk.default: _chunk,
    aten.unbind.int: _unbind,
    aten.cat.default: _cat,
    aten.concat.default: _cat,
    aten.concatenate.default: _cat,
    aten.stack.default: _stack,
    aten.pad.default: _pad,
    aten.constant_pad_nd.default: _constant_pad,
    **{
        getattr(aten, f"{mode}_pad{n}d").default: lambda b, x, pairs, mode=name: _pad(b, x, pairs, mode)
        for mode, name in (("reflection", "reflect"), ("replication", "replicate"))
        for n in (1, 2, 3)
    },
    aten.roll.default: _roll,
    aten.flip.default: _flip,
    aten.select_scatter.default: _select_scatter,
    aten.slice_scatter.default: _slice_scatter,
    aten.pixel_shuffle.default: _pixel_shuffle,
}
