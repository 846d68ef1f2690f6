"""Integer tensors as affine functions of their own indices, and what comparisons of them decide."""

from collections.abc import Mapping
from dataclasses import dataclass

import sympy
from torch import Tensor

from planish.compiler.importers.sizes import bounds
from planish.compiler.ir import Graph, Node, Value
from planish.compiler.ops import (
    add,
    arange,
    cast,
    concat,
    cumsum,
    dim_value,
    eq,
    expand,
    full,
    gather,
    ge,
    gt,
    index_select,
    le,
    lt,
    mul,
    ne,
    neg,
    reshape,
    slice_,
    sub,
    transpose,
    weight,
)
from planish.compiler.types import Dim, DType, Shape, Size, same_dim, simplify
from planish.passes.matching import axes, literal

COMPARISONS = (eq, ne, lt, le, gt, ge)


@dataclass(frozen=True, slots=True)
class Affine:
    """The element at index i is `constant + sum(coefficients[a] * i[a])`; an axis of size 1 has the coefficient 0."""

    coefficients: tuple[Dim, ...]
    constant: Dim

    @property
    def is_constant(self) -> bool:
        return all(same_dim(c, 0) for c in self.coefficients)


class Indices:
    """Affine forms of the integer values of one graph."""

    def __init__(self, graph: Graph, weights: Mapping[str, Tensor]) -> None:
        self._sizes: Mapping[str, Size] = {size.name: size for size in graph.sizes}
        self._weights = weights
        self._known: dict[Value, Affine | None] = {}

    def affine(self, value: Value) -> Affine | None:
        """The affine form of an integer value, None where it has none that is found."""
        if value not in self._known:
            self._known[value] = None
            form = self._form(value) if value.dtype.is_integer else None
            self._known[value] = None if form is None else _without_unit_axes(form, value.shape)
        return self._known[value]

    def difference(self, comparison: Node) -> Affine | None:
        """Left minus right operand of a comparison, over the axes of its result."""
        left, right = map(self.affine, comparison.operands)
        if left is None or right is None:
            return None
        shape = comparison.types[0].shape
        return _sum(_aligned(left, len(shape)), _aligned(right, len(shape)), -1)

    def decided(self, comparison: Node) -> bool | None:
        """What the comparison gives for all elements and sizes, None where that differs or is unknown."""
        form = self.difference(comparison)
        if form is None:
            return None
        low, high = self._range(form, comparison.types[0].shape)
        outcomes = {
            le: (high <= 0, low > 0),
            lt: (high < 0, low >= 0),
            ge: (low >= 0, high < 0),
            gt: (low > 0, high <= 0),
        }
        equal, apart = low == high == 0, low > 0 or high < 0
        outcomes |= {eq: (equal, apart), ne: (apart, equal)}
        holds, fails = outcomes[comparison.op]
        return True if holds else False if fails else None

    def _range(self, form: Affine, shape: Shape) -> tuple[float, float]:
        """Bounds of the elements over all indices and sizes."""
        low = high = form.constant
        for coefficient, dim in zip(form.coefficients, shape, strict=True):
            last = simplify(sympy.sympify(coefficient) * (dim - 1))
            sign = bounds(coefficient, self._sizes)
            low = simplify(low + last) if sign[1] <= 0 else low if sign[0] >= 0 else -sympy.oo
            high = simplify(high + last) if sign[0] >= 0 else high if sign[1] <= 0 else sympy.oo
        return bounds(low, self._sizes)[0], bounds(high, self._sizes)[1]

    def _form(self, value: Value) -> Affine | None:
        node = value.node
        rank = value.type.rank
        if node.op is weight:
            return _form_of_content(self._weights[str(node.attrs["name"])])
        if node.op in (full, dim_value):
            return Affine((0,) * rank, _dim(node.attrs["value"]))
        if node.op is arange:
            return Affine((_dim(node.attrs["step"]),), _dim(node.attrs["start"]))
        if node.op is cast:
            return self._form_of_cast(node)
        if node.op is concat:
            return self._form_of_concat(node)
        if node.op in (gather, index_select):
            source = self.affine(node.operands[0])
            fixed = source is not None and source.is_constant
            return Affine((0,) * rank, source.constant) if fixed and source is not None else None
        forms = [self.affine(v) for v in node.operands]
        known = [f for f in forms if f is not None]
        return self._form_of_op(node, known, rank) if len(known) == len(forms) and known else None

    def _form_of_op(self, node: Node, forms: list[Affine], rank: int) -> Affine | None:
        first = forms[0]
        if node.op in (add, sub):
            return _sum(_aligned(first, rank), _aligned(forms[1], rank), 1 if node.op is add else -1)
        if node.op is mul:
            return _product(_aligned(first, rank), _aligned(forms[1], rank))
        if node.op is neg:
            return _scaled(first, -1)
        if node.op is expand:
            return _aligned(first, rank)
        if node.op is reshape:
            return _reshaped(first, node.operands[0].shape, node.types[0].shape)
        if node.op is transpose:
            return Affine(tuple(first.coefficients[i] for i in axes(node.attrs["order"])), first.constant)
        if node.op is slice_:
            return _sliced(first, node)
        if node.op is cumsum and first.is_constant:
            axis = node.attrs["axis"]
            steps = tuple(first.constant if i == axis else 0 for i in range(rank))
            return Affine(steps, first.constant)
        return None

    def _form_of_cast(self, node: Node) -> Affine | None:
        x = node.operands[0]
        if x.dtype is DType.bool:
            known = self.decided(x.node) if x.node.op in COMPARISONS else literal(x)
            return None if known is None else Affine((0,) * x.type.rank, int(known))
        wide = node.types[0].dtype in (DType.i64, DType.i32)
        return self.affine(x) if wide else None

    def _form_of_concat(self, node: Node) -> Affine | None:
        """One element before a run that continues it."""
        if len(node.operands) != 2:
            return None
        axis = node.attrs["axis"]
        assert isinstance(axis, int)
        head, tail = map(self.affine, node.operands)
        if head is None or tail is None or node.operands[0].shape[axis] != 1:
            return None
        joined = Affine(tail.coefficients, simplify(tail.constant - tail.coefficients[axis]))
        others = zip(head.coefficients, joined.coefficients, strict=True)
        same = all(same_dim(a, b) for i, (a, b) in enumerate(others) if i != axis)
        return joined if same and same_dim(head.constant, joined.constant) else None


def _dim(attr: object) -> Dim:
    assert isinstance(attr, int | sympy.Expr)
    return attr


def _without_unit_axes(form: Affine, shape: Shape) -> Affine:
    pairs = zip(form.coefficients, shape, strict=True)
    return Affine(tuple(0 if d == 1 else simplify(c) for c, d in pairs), simplify(form.constant))


def _aligned(form: Affine, rank: int) -> Affine:
    return Affine((0,) * (rank - len(form.coefficients)) + form.coefficients, form.constant)


def _scaled(form: Affine, factor: Dim) -> Affine:
    return Affine(tuple(simplify(c * factor) for c in form.coefficients), simplify(form.constant * factor))


def _sum(left: Affine, right: Affine, sign: int) -> Affine:
    pairs = zip(left.coefficients, right.coefficients, strict=True)
    return Affine(tuple(simplify(a + sign * b) for a, b in pairs), simplify(left.constant + sign * right.constant))


def _product(left: Affine, right: Affine) -> Affine | None:
    if right.is_constant:
        return _scaled(left, right.constant)
    return _scaled(right, left.constant) if left.is_constant else None


def _reshaped(form: Affine, before: Shape, after: Shape) -> Affine | None:
    """A reshape that only adds or drops axes of size 1, or any reshape of a constant."""
    if form.is_constant:
        return Affine((0,) * len(after), form.constant)
    wide = [(c, d) for c, d in zip(form.coefficients, before, strict=True) if d != 1]
    kept = [d for d in after if d != 1]
    if len(kept) != len(wide) or not all(same_dim(d, w) for d, (_, w) in zip(kept, wide, strict=True)):
        return None
    rest = iter(wide)
    return Affine(tuple(0 if d == 1 else next(rest)[0] for d in after), form.constant)


def _sliced(form: Affine, node: Node) -> Affine:
    axis, start, step = node.attrs["axis"], _dim(node.attrs["start"]), _dim(node.attrs["step"])
    assert isinstance(axis, int)
    slope = form.coefficients[axis]
    steps = tuple(simplify(c * step) if i == axis else c for i, c in enumerate(form.coefficients))
    return Affine(steps, simplify(form.constant + slope * start))


def _form_of_content(tensor: Tensor) -> Affine | None:
    """The form of a weight whose elements follow one."""
    if tensor.numel() == 0:
        return None
    start = int(tensor.reshape(-1)[0])
    steps: list[Dim] = []
    line = tensor
    for axis in range(tensor.ndim):
        along = line.movedim(axis, 0).reshape(line.shape[axis], -1)
        steps.append(int(along[1, 0]) - start if len(along) > 1 else 0)
    expected = line.new_full((), start)
    for axis, step in enumerate(steps):
        shape = [1] * tensor.ndim
        shape[axis] = tensor.shape[axis]
        expected = expected + step * line.new_ones(tensor.shape[axis]).cumsum(0).sub(1).reshape(shape).to(tensor.dtype)
    return Affine(tuple(steps), start) if bool((expected == tensor).all()) else None
