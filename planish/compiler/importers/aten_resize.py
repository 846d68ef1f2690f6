"""aten's resizing of images and signals: every axis by itself, each output element from a few of the input's."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import sympy
import torch

from planish.compiler import ops
from planish.compiler.importers.aten_convolve import channels_first, channels_last
from planish.compiler.importers.builder import Builder, Handler, Table, UncoveredError
from planish.compiler.importers.sizes import quotient
from planish.compiler.ir import Value
from planish.compiler.types import Dim, DType, same_dim, simplify

aten = torch.ops.aten

_FEW_CHANNELS = 8  # with fewer, vectors run along the width
_MOST_TAPS = 16  # input elements of one output element, beyond which torch's own kernel is used


@dataclass(frozen=True, slots=True)
class _Axis:
    """One axis: its sizes before and after, and how many output elements an input element was asked to become."""

    size: Dim
    wanted: Dim
    factor: float | None = None
    corners: bool = False

    @property
    def is_static(self) -> bool:
        return isinstance(self.size, int) and isinstance(self.wanted, int)

    def step(self, b: Builder) -> Any:
        """Input elements between two output elements: a number, or f32 [] where sizes are dynamic."""
        if self.factor and not self.corners:
            return 1 / self.factor
        gaps = int(self.corners)
        above, below = simplify(self.size - gaps), simplify(self.wanted - gaps)
        if isinstance(below, int) and below == 0:
            return 0.0
        ratio = sympy.cancel(sympy.sympify(above) / below)
        if ratio.is_Number:
            return float(ratio)
        return b.emit(ops.div, b.scalar(above, DType.f32), b.scalar(b.larger(1, below), DType.f32))

    def source(self, b: Builder) -> Value:
        """Where each output element lies among the input's, f32 [wanted], as torch rounds it."""
        place = b.cast(b.emit(ops.arange, length=self.wanted), DType.f32)
        step = b.as_tensor(self.step(b), DType.f32)
        if self.corners:
            return b.emit(ops.mul, place, step)
        middle = b.emit(ops.mul, b.emit(ops.add, *b.promote(place, 0.5)), step)
        return b.emit(ops.sub, *b.promote(middle, 0.5))


Tap = tuple[Value, Value | None]  # which element of the axis, i64 [wanted], and its weight, f32 [wanted]


def _place(b: Builder, axis: _Axis, index: Value, shift: int) -> Value:
    """The index f32 [wanted] plus `shift` as i64, kept inside the axis."""
    moved = b.emit(ops.add, *b.promote(b.cast(index, DType.i64), shift))
    last = b.scalar(simplify(axis.size - 1), DType.i64)
    return b.emit(ops.minimum, b.emit(ops.maximum, moved, b.scalar(0, DType.i64)), last)


def _linear(b: Builder, axis: _Axis) -> list[Tap]:
    source = b.emit(ops.clamp, axis.source(b), low=0.0)
    first = b.emit(ops.floor, source)
    second = b.emit(ops.sub, source, first)
    return [
        (_place(b, axis, first, 0), b.emit(ops.sub, *b.promote(1.0, second))),
        (_place(b, axis, first, 1), second),
    ]


def _cubic(b: Builder, axis: _Axis) -> list[Tap]:
    """Keys' cubic with a = -0.75, as torch has it."""
    source = axis.source(b)
    first = b.emit(ops.floor, source)
    t = b.emit(ops.sub, source, first)
    rest = b.emit(ops.sub, *b.promote(1.0, t))
    weights = (_outer(b, t), _inner(b, t), _inner(b, rest), _outer(b, rest))
    return [(_place(b, axis, first, shift), w) for shift, w in zip(range(-1, 3), weights, strict=True)]


def _polynomial(b: Builder, x: Value, *coefficients: float) -> Value:
    """Coefficients from the highest power down."""
    total = b.scalar(coefficients[0], x.dtype)
    for coefficient in coefficients[1:]:
        total = b.emit(ops.add, *b.promote(b.emit(ops.mul, total, x), coefficient))
    return total


def _inner(b: Builder, distance: Value, a: float = -0.75) -> Value:
    return _polynomial(b, distance, a + 2, -(a + 3), 0.0, 1.0)


def _outer(b: Builder, distance: Value, a: float = -0.75) -> Value:
    """The weight of an element at 1 + distance."""
    return _polynomial(b, b.emit(ops.add, *b.promote(distance, 1.0)), a, -5 * a, 8 * a, -4 * a)


def _nearest(b: Builder, axis: _Axis, *, exact: bool = False) -> list[Tap]:
    place = b.cast(b.emit(ops.arange, length=axis.wanted), DType.f32)
    place = b.emit(ops.add, *b.promote(place, 0.5)) if exact else place
    source = b.emit(ops.mul, place, b.as_tensor(axis.step(b), DType.f32))
    return [(_place(b, axis, b.emit(ops.floor, source), 0), None)]


def _smoothed(width: int) -> Any:
    """Antialiased resizing as PIL does it: a triangle (`width` 2) or a cubic (4) as wide as the step."""

    def taps(b: Builder, axis: _Axis) -> list[Tap]:
        step = axis.step(b)
        if not axis.is_static or not isinstance(step, float):
            raise UncoveredError
        size, wanted = int(axis.size), int(axis.wanted)
        stretch = max(step, 1.0)
        centers = [(i + 0.5) * step for i in range(wanted)]
        spans = [_span(center, width / 2 * stretch, size) for center in centers]
        count = max(stop - start for start, stop in spans)
        if count > _MOST_TAPS:
            raise UncoveredError
        weights = torch.zeros(count, wanted)
        for i, (center, (start, stop)) in enumerate(zip(centers, spans, strict=True)):
            values = torch.tensor([_filter((j - center + 0.5) / stretch, width) for j in range(start, stop)])
            weights[: stop - start, i] = values / values.sum()
        starts = torch.tensor([start for start, _ in spans])
        return [(b.constant((starts + t).clamp(max=size - 1)), b.constant(weights[t])) for t in range(count)]

    return taps


def _span(center: float, support: float, size: int) -> tuple[int, int]:
    return max(int(center - support + 0.5), 0), min(int(center + support + 0.5), size)


def _filter(x: float, width: int, a: float = -0.5) -> float:
    x = abs(x)
    if width == 2:
        return max(0.0, 1 - x)
    if x < 1:
        return ((a + 2) * x - (a + 3)) * x * x + 1
    return (((x - 5) * x + 8) * x - 4) * a if x < 2 else 0.0


def _resized(taps: Any, *, has_corners: bool = True) -> Handler:
    """The handler of a kind of resizing, of both spellings: with a list of factors, and with one an axis."""

    def build(b: Builder, x: Value, size: Sequence[Dim] | None, *rest: Any) -> Value:
        corners, factors = (bool(rest[0]), rest[1:]) if has_corners else (False, rest)
        axes = _axes(x, size, factors, corners)
        if not x.dtype.is_float and has_corners:
            raise UncoveredError
        if not has_corners and all(_repeats(axis) for axis in axes):
            return _repeated(b, x, axes)
        last = not isinstance(x.shape[1], int) or x.shape[1] >= _FEW_CHANNELS
        y = channels_last(b, x) if last else x
        y = b.cast(y, DType.f32) if has_corners and x.dtype in (DType.bf16, DType.f16) else y
        for place, axis in enumerate(axes, start=1 if last else 2):
            if not same_dim(axis.size, axis.wanted) or axis.factor not in (None, 1):
                y = _sum(b, y, place, taps(b, axis))
        y = b.cast(y, x.dtype)
        return channels_first(b, y) if last else y

    return build


def _axes(x: Value, size: Sequence[Dim] | None, factors: Sequence[Any], corners: bool) -> list[_Axis]:
    spatial = x.shape[2:]
    given = factors[0] if factors and isinstance(factors[0], Sequence) else factors
    scales: list[Any] = list(given) if given and given[0] is not None else [None] * len(spatial)
    if size:
        return [_Axis(*axis, corners) for axis in zip(spatial, size, scales, strict=True)]
    wanted = [_scaled(d, float(s)) for d, s in zip(spatial, scales, strict=True)]
    return [_Axis(*axis, corners) for axis in zip(spatial, wanted, scales, strict=True)]


def _scaled(size: Dim, factor: float) -> Dim:
    if factor.is_integer():
        return simplify(size * int(factor))
    if not isinstance(size, int):
        raise UncoveredError
    return math.floor(size * factor)


def _repeats(axis: _Axis) -> bool:
    """Whether nearest elements are whole repeats."""
    factor = quotient(axis.wanted, axis.size)
    whole = isinstance(factor, int) and same_dim(simplify(axis.size * factor), axis.wanted)
    return whole and (axis.factor is None or axis.factor == factor)


def _repeated(b: Builder, x: Value, axes: Sequence[_Axis]) -> Value:
    for place, axis in enumerate(axes, start=2):
        factor, lead, rest = quotient(axis.wanted, axis.size), x.shape[: place + 1], x.shape[place + 1 :]
        spread = b.expand(b.reshape(x, (*lead, 1, *rest)), (*lead, factor, *rest))
        x = b.reshape(spread, (*lead[:-1], axis.wanted, *rest))
    return x


def _sum(b: Builder, x: Value, place: int, taps: Sequence[Tap]) -> Value:
    """The axis `place` resized: the sum over taps of the chosen elements times their weights."""
    total: Value | None = None
    for index, weight in taps:
        part = b.emit(ops.index_select, x, index, axis=place)
        if weight is not None:
            column = b.reshape(b.cast(weight, x.dtype), (weight.shape[0], *(1,) * (x.type.rank - place - 1)))
            part = b.emit(ops.mul, part, column)
        total = part if total is None else b.emit(ops.add, total, part)
    assert total is not None
    return total


_KINDS = {
    **dict.fromkeys(("upsample_linear1d", "upsample_bilinear2d", "upsample_trilinear3d"), _resized(_linear)),
    "upsample_bicubic2d": _resized(_cubic),
    "_upsample_bilinear2d_aa": _resized(_smoothed(2)),
    "_upsample_bicubic2d_aa": _resized(_smoothed(4)),
    **{f"upsample_nearest{n}d": _resized(_nearest, has_corners=False) for n in (1, 2, 3)},
    **{
        f"_upsample_nearest_exact{n}d": _resized(lambda b, axis: _nearest(b, axis, exact=True), has_corners=False)
        for n in (1, 2, 3)
    },
}
TABLE: Table = {
    getattr(getattr(aten, name), overload): handler
    for name, handler in _KINDS.items()
    for overload in ("vec", "default")
}
