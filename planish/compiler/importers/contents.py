"""What small tensors hold when it is known at import: the shape arithmetic that ONNX models do on tensors."""

from collections.abc import Callable, Mapping
from typing import Any

import numpy
import sympy
import torch

from planish.compiler import ops
from planish.compiler.importers.sizes import at_most, larger, smaller
from planish.compiler.ir import Node, Op, Value
from planish.compiler.ops.structure import TORCH_DTYPE
from planish.compiler.types import DType, Size, same_dim, simplify

LIMIT = 64
# An array of ints, floats, bools and size expressions.
Known = numpy.ndarray[Any, numpy.dtype[numpy.object_]]


class Contents:
    """Remembers the known contents of values; those with more than 64 elements count as unknown."""

    def __init__(self, weights: Mapping[str, torch.Tensor], sizes: Mapping[str, Size]) -> None:
        self._weights, self._sizes = weights, sizes
        self._memory: dict[Value, Known | None] = {}

    def of(self, value: Value) -> Known | None:
        """The elements of `value`, in its shape, or None where they depend on the inputs."""
        if value not in self._memory:
            self._memory[value] = self._find(value)
        return self._memory[value]

    def _find(self, value: Value) -> Known | None:
        node, shape = value.node, value.shape
        if value.index or any(not isinstance(d, int) for d in shape) or numpy.prod(shape, dtype=int) > LIMIT:
            return None
        if node.op is ops.weight:
            tensor = self._weights.get(str(node.attrs["name"]))
            return None if tensor is None else _objects(tensor)
        if node.op is ops.dim_value:
            return _array(node.attrs["value"])
        if node.op is ops.input_ or node.op is ops.opaque:
            return None
        parts = [None if v is None else self.of(v) for v in node.inputs]
        if any(part is None for part in parts):
            return None
        known = [part for part in parts if part is not None]
        if not any(isinstance(e, sympy.Basic) for part in known for e in part.flat):
            return _computed(node, known)
        symbolic = _SYMBOLIC.get(node.op)
        return None if symbolic is None else symbolic(self, node, *known)

    def equal(self, left: Any, right: Any) -> bool | None:
        """Whether two elements are equal for all sizes (True), for none (False), or it depends (None)."""
        if same_dim(left, right):
            return True
        apart = at_most(left + 1, right, self._sizes) or at_most(right + 1, left, self._sizes)
        return False if apart else None

    def below(self, left: Any, right: Any) -> bool | None:
        """Whether `left < right` for all sizes, for none, or it depends."""
        if at_most(left + 1, right, self._sizes):
            return True
        return False if at_most(right, left, self._sizes) else None

    def choose(self, condition: Any, left: Any, right: Any) -> Any:
        """`left` where the condition holds, else `right`; for `a >= b` between a and b, the larger; None if unclear."""
        if not isinstance(condition, sympy.core.relational.Relational):
            return left if condition else right
        if same_dim(left, right):
            return left
        pair = {sympy.sympify(left), sympy.sympify(right)}
        if pair != {condition.lhs, condition.rhs} or condition.rel_op not in ("<", "<=", ">", ">="):
            return None
        wants_larger = (condition.rel_op in (">", ">=")) == same_dim(left, condition.lhs)
        return (larger if wants_larger else smaller)(left, right, self._sizes)


def _array(element: Any) -> Known:
    array = numpy.empty((), dtype=object)
    array[()] = simplify(element) if isinstance(element, sympy.Expr) else element
    return array


def _objects(tensor: torch.Tensor) -> Known:
    array = numpy.empty(tuple(tensor.shape), dtype=object)
    array.ravel()[:] = tensor.flatten().tolist()
    return array


def _computed(node: Node, known: list[Known]) -> Known | None:
    """The result of an op on literals, by its own reference."""
    if any(isinstance(a, sympy.Expr) for a in node.attrs.values()):
        return None
    operands = zip(known, node.operands, strict=True)
    tensors = [torch.tensor(k.tolist(), dtype=TORCH_DTYPE[v.dtype]).reshape(k.shape) for k, v in operands]
    result = node.op.reference(*tensors, **node.attrs)
    return _objects(result) if isinstance(result, torch.Tensor) else None


def _elementwise(function: Callable[[Any, Any], Any]) -> Callable[..., Known | None]:
    def build(_: Contents, __: Node, x: Known, y: Known) -> Known | None:
        x, y = numpy.broadcast_arrays(x, y)
        return _collected(x.shape, [function(a, b) for a, b in zip(x.flat, y.flat, strict=True)])

    return build


def _comparison(name: str, expected: bool, relation: Callable[[Any, Any], Any]) -> Callable[..., Known | None]:
    """Elements that are True or False where that is certain, and relations of sympy where it depends on sizes."""

    def build(contents: Contents, _: Node, x: Known, y: Known) -> Known:
        x, y = numpy.broadcast_arrays(x, y)
        pairs = list(zip(x.flat, y.flat, strict=True))
        answers = [getattr(contents, name)(a, b) for a, b in pairs]
        decided = [relation(*p) if a is None else a is expected for a, p in zip(answers, pairs, strict=True)]
        return _collected(x.shape, decided)

    return build


def _collected(shape: tuple[int, ...], elements: list[Any]) -> Known:
    array = numpy.empty(shape, dtype=object)
    array.ravel()[:] = [simplify(e) if isinstance(e, sympy.Expr) else e for e in elements]
    return array


def _where(contents: Contents, _: Node, condition: Known, x: Known, y: Known) -> Known | None:
    condition, x, y = numpy.broadcast_arrays(condition, x, y)
    chosen = [contents.choose(c, a, b) for c, a, b in zip(condition.flat, x.flat, y.flat, strict=True)]
    return None if None in chosen else _collected(x.shape, chosen)


def _cast(_: Contents, node: Node, x: Known) -> Known | None:
    if node.types[0].dtype is DType.bool:
        return None
    return x if node.types[0].dtype.is_float else _collected(x.shape, [sympy.floor(e) for e in x.flat])


def _slice(_: Contents, node: Node, x: Known) -> Known:
    attrs: Mapping[str, Any] = node.attrs
    part: Known = x[(slice(None),) * attrs["axis"] + (slice(attrs["start"], attrs["stop"], attrs["step"]),)]
    return part


def _select(_: Contents, node: Node, x: Known, index: Known) -> Known:
    attrs: Mapping[str, Any] = node.attrs
    return numpy.take(x, index.astype(int), axis=attrs["axis"])


_SYMBOLIC: Mapping[Op, Callable[..., Known | None]] = {
    ops.reshape: lambda _, node, x: x.reshape(node.types[0].shape),
    ops.expand: lambda _, node, x: numpy.broadcast_to(x, node.types[0].shape),
    ops.transpose: lambda _, node, x: x.transpose(node.attrs["order"]),
    ops.concat: lambda _, node, *parts: numpy.concatenate(parts, axis=node.attrs["axis"]),
    ops.slice_: _slice,
    ops.index_select: _select,
    ops.cast: _cast,
    ops.where: _where,
    ops.add: _elementwise(lambda a, b: a + b),
    ops.sub: _elementwise(lambda a, b: a - b),
    ops.mul: _elementwise(lambda a, b: a * b),
    ops.floor_divide: _elementwise(lambda a, b: sympy.floor(sympy.sympify(a) / b)),
    ops.floor: lambda _, __, x: _collected(x.shape, [sympy.floor(e) for e in x.flat]),
    ops.div: _elementwise(lambda a, b: sympy.sympify(a) / b),
    ops.maximum: _elementwise(lambda a, b: sympy.Max(a, b)),
    ops.minimum: _elementwise(lambda a, b: sympy.Min(a, b)),
    ops.neg: lambda _, __, x: -x,
    ops.eq: _comparison("equal", True, sympy.Eq),
    ops.ne: _comparison("equal", False, sympy.Ne),
    ops.lt: _comparison("below", True, sympy.Lt),
    ops.ge: _comparison("below", False, sympy.Ge),
}
