"""aten's constructors: ranges, filled tensors, triangles and sizes as tensors."""

from collections.abc import Sequence
from typing import Any

import sympy
import torch

from planish.compiler import ops
from planish.compiler.importers.builder import Builder, Handler, Table, UncoveredError
from planish.compiler.ir import Value
from planish.compiler.types import Dim, DType, simplify

aten = torch.ops.aten


def _arange(b: Builder, start: Any, end: Any, step: Any, dtype: torch.dtype | None) -> Value:
    numbers = (start, end, step)
    floating = any(isinstance(n, float) for n in numbers)
    natural = torch.get_default_dtype() if floating else torch.int64
    wanted = b.dtype(natural if dtype is None else dtype)
    if floating:
        if not all(float(n).is_integer() for n in numbers if not isinstance(n, sympy.Expr)):
            return _fractional_range(b, numbers, wanted)
        start, end, step = (n if isinstance(n, sympy.Expr) else int(n) for n in numbers)
    if not isinstance(step, int):
        raise UncoveredError
    length = b.larger(0, _count(start, end, step))
    exact = wanted if wanted.is_integer else DType.i64
    return b.cast(b.emit(ops.arange, length=length, start=start, step=step, dtype=exact), wanted)


def _count(start: Dim, end: Dim, step: int) -> Dim:
    distance = simplify(end - start) if step > 0 else simplify(start - end)
    return distance if abs(step) == 1 else simplify((distance + abs(step) - 1) // abs(step))


def _fractional_range(b: Builder, numbers: Sequence[Any], dtype: DType) -> Value:
    if any(isinstance(n, sympy.Expr) for n in numbers):
        raise UncoveredError
    return b.constant(torch.arange(*numbers, dtype=getattr(torch, {"f64": "float64"}.get(str(dtype), "float32"))))


def _fill(b: Builder, shape: Sequence[Dim], value: Any, dtype: DType) -> Value:
    if isinstance(value, Value | sympy.Expr):
        return b.expand(b.as_tensor(value, dtype), tuple(shape))
    number = float(value) if dtype.is_float else bool(value) if dtype is DType.bool else int(value)
    return b.emit(ops.full, shape=tuple(shape), value=number, dtype=dtype)


def _full(b: Builder, shape: Sequence[Dim], value: Any, dtype: torch.dtype | None = None) -> Value:
    natural = torch.bool if isinstance(value, bool) else torch.int64 if isinstance(value, int) else None
    return _fill(b, shape, value, b.dtype(dtype or natural or torch.get_default_dtype()))


def _filled(value: float) -> Handler:
    return lambda b, shape, dtype=None, *_: _fill(b, shape, value, b.dtype(dtype or torch.get_default_dtype()))


def _like(value: float) -> Handler:
    return lambda b, x, dtype=None, *_: _fill(b, x.shape, value, x.dtype if dtype is None else b.dtype(dtype))


def _full_like(b: Builder, x: Value, value: Any, dtype: torch.dtype | None = None, *_: Any) -> Value:
    return _fill(b, x.shape, value, x.dtype if dtype is None else b.dtype(dtype))


def _new(value: float) -> Handler:
    return lambda b, x, shape, dtype=None, *_: _fill(b, shape, value, x.dtype if dtype is None else b.dtype(dtype))


def _new_full(b: Builder, x: Value, shape: Sequence[Dim], value: Any, dtype: torch.dtype | None = None) -> Value:
    return _fill(b, shape, value, x.dtype if dtype is None else b.dtype(dtype))


def _scalar_tensor(b: Builder, value: Any, dtype: torch.dtype | None = None) -> Value:
    return b.scalar(value, b.dtype(dtype or torch.get_default_dtype()))


def _fill_tensor(b: Builder, x: Value, value: Any) -> Value:
    return _fill(b, x.shape, value, x.dtype)


def _triangle(b: Builder, x: Value, diagonal: int, lower: bool) -> Value:
    keep = _band(b, x.shape[-2], x.shape[-1], diagonal, lower)
    return b.emit(ops.where, keep, x, b.scalar(0, x.dtype))


def _band(b: Builder, rows: Dim, columns: Dim, diagonal: int, lower: bool) -> Value:
    row = b.reshape(b.emit(ops.arange, length=rows, start=diagonal), (rows, 1))
    return b.emit(ops.le if lower else ops.ge, b.emit(ops.arange, length=columns), row)


def _eye(b: Builder, rows: Dim, columns: Dim, dtype: torch.dtype | None = None) -> Value:
    row = b.reshape(b.emit(ops.arange, length=rows), (rows, 1))
    return b.cast(b.emit(ops.eq, row, b.emit(ops.arange, length=columns)), dtype or torch.get_default_dtype())


def _meshgrid(b: Builder, tensors: Sequence[Value], indexing: str = "ij") -> list[Value]:
    flat = [b.reshape(t, (1,)) if t.type.rank == 0 else t for t in tensors]
    order = list(range(len(flat)))
    if indexing == "xy" and len(flat) > 1:
        order[0], order[1] = 1, 0
    shape = tuple(flat[i].shape[0] for i in order)
    placed = [tuple(t.shape[0] if order[axis] == i else 1 for axis in range(len(flat))) for i, t in enumerate(flat)]
    return [b.expand(b.reshape(t, place), shape) for t, place in zip(flat, placed, strict=True)]


TABLE: Table = {
    aten.arange.default: lambda b, end, dtype=None: _arange(b, 0, end, 1, dtype),
    aten.arange.start: lambda b, start, end, dtype=None: _arange(b, start, end, 1, dtype),
    aten.arange.start_step: lambda b, start, end, step=1, dtype=None: _arange(b, start, end, step, dtype),
    aten.full.default: _full,
    aten.zeros.default: _filled(0),
    aten.ones.default: _filled(1),
    aten.empty.memory_format: _filled(0),
    aten.zeros_like.default: _like(0),
    aten.ones_like.default: _like(1),
    aten.empty_like.default: _like(0),
    aten.full_like.default: _full_like,
    aten.new_zeros.default: _new(0),
    aten.new_ones.default: _new(1),
    aten.new_empty.default: _new(0),
    aten.new_full.default: _new_full,
    aten.scalar_tensor.default: _scalar_tensor,
    aten.fill.Scalar: _fill_tensor,
    aten.fill.Tensor: _fill_tensor,
    aten.zero.default: lambda b, x: _fill_tensor(b, x, 0),
    aten.triu.default: lambda b, x, diagonal=0: _triangle(b, x, diagonal, lower=False),
    aten.tril.default: lambda b, x, diagonal=0: _triangle(b, x, diagonal, lower=True),
    aten.eye.default: lambda b, n, dtype=None: _eye(b, n, n, dtype),
    aten.eye.m: _eye,
    aten.meshgrid.default: _meshgrid,
    aten.meshgrid.indexing: _meshgrid,
}
