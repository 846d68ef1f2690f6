"""Expressions: elements of a value computed where they are needed, down to what lies in memory or is known."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import TypeAlias

import sympy
from tvm import tirx
from tvm.script.ir_builder import tirx as T  # noqa: N812 - TVM's own name for its script namespace

from planish.codegen.attributes import integer_of, integers_of
from planish.codegen.tvm import vector_math as vm
from planish.codegen.tvm.bf16 import rounded, rounds_at_once
from planish.codegen.tvm.elementwise import TABLE, compute, compute_dtype, from_memory, to_memory
from planish.codegen.tvm.kernel import KernelBuilder, bind
from planish.codegen.tvm.place import (
    Place,
    at_reshape,
    bounded,
    fixed,
    moved,
    scaled,
    shifted,
    vector_of,
)
from planish.codegen.view import View
from planish.compiler import ops
from planish.compiler.ir import Node, Op, Value
from planish.compiler.types import Dim, DType, same_dim
from planish.errors import TemplateError

Known: TypeAlias = "Callable[[tuple[tirx.PrimExpr, ...], int], tirx.PrimExpr]"
_Index: TypeAlias = tuple[Place, ...]


class Expression:
    """Evaluates values of a call at an index, within an open kernel.

    Inputs of the call are loaded through their views; `known` gives other values, such as the anchor's result in
    registers, from an int64 index per axis and a count of lanes along the last axis. bool values are predicates, bf16
    and f16 are float32, everything else has its own dtype. Indices that come from data (embedding, gather,
    index_select) are clamped to the axis that they address, so that nothing outside a view is read.
    """

    def __init__(self, k: KernelBuilder, known: Mapping[Value, Known] | None = None) -> None:
        self.k = k
        self.known = dict(known or {})
        self._uses = _use_counts(k)
        self._memo: dict[tuple[object, ...], tuple[object, tirx.PrimExpr]] = {}

    def at(self, value: Value, index: "tuple[tirx.PrimExpr | int, ...]", lanes: int) -> "tirx.PrimExpr":
        """`lanes` consecutive elements along the last axis from `index`; a scalar for one lane.

        The output of the call is to be stored: what that rounds to bf16 is given as it is before.
        """
        self._memo = {}
        value = self._before_store(value)
        places = tuple(fixed(i) for i in index)
        if lanes > 1:
            places = (*places[:-1], Place(places[-1].base, 1))
        return self.along(value, places, lanes)

    def _before_store(self, value: Value) -> Value:
        """The operand of a cast from f32 to bf16 that gives the output, only as accurate as the result."""
        node, held = value.node, {*self.known, *self.k.call.inputs}
        if value != self.k.call.output or value in held or node.op is not ops.cast or value.dtype is not DType.bf16:
            return value
        exact = node.operands[0]
        if exact.dtype is not DType.f32:
            return value
        if exact in held or "elementwise" not in exact.node.op.traits:
            return exact
        return Value(replace(exact.node, types=(exact.type.with_dtype(DType.bf16),)))

    def along(self, value: Value, index: _Index, lanes: int) -> "tirx.PrimExpr":
        """The elements whose index each axis' place gives lane by lane."""
        index = tuple(fixed(0) if same_dim(d, 1) else p for d, p in zip(value.shape, index, strict=True))
        if lanes > 1 and all(p.is_fixed for p in index):
            return vm.splat(self.along(value, index, 1), lanes)
        key = (value, lanes, *(p.identity for p in index))
        if key not in self._memo:
            self._memo[key] = (index, self._evaluate(value, index, lanes))
        return self._memo[key][1]

    def _evaluate(self, value: Value, index: _Index, lanes: int) -> "tirx.PrimExpr":
        if value in self.known:
            return self._from_known(value, index, lanes)
        if value in self.k.call.inputs:
            return load(self.k, value, index, lanes)
        node = value.node
        if node.op in _MOVES:
            return _MOVES[node.op](self, node, index, lanes)
        if node.op not in TABLE:
            raise TemplateError(
                f"{node.op.name} in '{node.scope}' is no part of an expression; it needs its own kernel"
            )
        result = compute(node, self._operands(node, index, lanes))
        return vm.keep(result) if self._uses.get(value, 0) > 1 else result

    def _operands(self, node: Node, index: _Index, lanes: int) -> "list[tirx.PrimExpr]":
        """The operands at the places that broadcasting gives."""
        return [self.along(v, index[len(index) - len(v.shape) :], lanes) for v in node.operands]

    def _from_known(self, value: Value, index: _Index, lanes: int) -> "tirx.PrimExpr":
        straight = all(p.is_fixed for p in index[:-1]) and (lanes == 1 or index[-1].step == 1)
        if not straight:
            raise TemplateError(f"the result of {value.node.op.name} is asked for along another axis than its last")
        return vm.keep(self.known[value](tuple(p.base for p in index), lanes))


def load(k: KernelBuilder, value: Value, index: _Index, lanes: int) -> "tirx.PrimExpr":
    """Elements of an input of the call from its memory, as expressions see them."""
    view, buffer = k.call.inputs[value], k.buffers[value]
    place = fixed(k.dim(view.offset))
    for p, stride in zip(index, view.strides, strict=True):
        if not same_dim(stride, 0):
            place = moved(place, scaled(p, k.dim(stride)), lanes)
    if place.is_fixed:
        return vm.splat(from_memory(bind(buffer[place.base]), view.dtype), lanes)
    if place.irregular is not None:
        return from_memory(bind(buffer[place.irregular]), view.dtype)
    return from_memory(bind(buffer[T.ramp(place.base, place.stride, lanes)]), view.dtype)


def store(
    k: KernelBuilder, view: View, index: "tuple[tirx.PrimExpr | int, ...]", value: "tirx.PrimExpr", lanes: int
) -> None:
    """Write `lanes` elements along the last axis of the output, which lies at `view`, converted to its dtype."""
    at = k.address(view, tuple(index))
    if lanes > 1:
        step = k.dim(view.strides[-1]) if view.strides else tirx.const(1, "int64")
        at = T.ramp(at, step, lanes)
    narrow = view.dtype is DType.bf16 and rounds_at_once(k.isa, lanes)
    T.buffer_store(k.output, rounded(value, lanes) if narrow else to_memory(value, view.dtype), [at])


def _use_counts(k: KernelBuilder) -> dict[Value, int]:
    counts: dict[Value, int] = {}
    for node in k.call.nodes:
        for value in node.operands:
            counts[value] = counts.get(value, 0) + 1
    return counts


def _reshape(self: Expression, node: Node, index: _Index, lanes: int) -> "tirx.PrimExpr":
    x = node.operands[0]
    return self.along(x, at_reshape(self.k, node.types[0].shape, x.shape, index, lanes), lanes)


def _transpose(self: Expression, node: Node, index: _Index, lanes: int) -> "tirx.PrimExpr":
    order = node.attrs["order"]
    assert isinstance(order, tuple)
    back = sorted(range(len(order)), key=lambda i: order[i])
    return self.along(node.operands[0], tuple(index[i] for i in back), lanes)


def _expand(self: Expression, node: Node, index: _Index, lanes: int) -> "tirx.PrimExpr":
    return self._operands(node, index, lanes)[0]


def _slice(self: Expression, node: Node, index: _Index, lanes: int) -> "tirx.PrimExpr":
    axis, step = integer_of(node, "axis"), integer_of(node, "step")
    start = node.attrs["start"]
    assert isinstance(start, int | sympy.Expr)
    place = shifted(scaled(index[axis], self.k.dim(step)), self.k.dim(start), lanes)
    return self.along(node.operands[0], _put(index, axis, place), lanes)


def _flip(self: Expression, node: Node, index: _Index, lanes: int) -> "tirx.PrimExpr":
    for axis in integers_of(node, "axes"):
        last = self.k.dim(node.types[0].shape[axis]) - 1
        index = _put(index, axis, shifted(scaled(index[axis], self.k.dim(-1)), last, lanes))
    return self.along(node.operands[0], index, lanes)


def _roll(self: Expression, node: Node, index: _Index, lanes: int) -> "tirx.PrimExpr":
    for axis, shift in zip(integers_of(node, "axes"), integers_of(node, "shifts"), strict=True):
        size = self.k.dim(node.types[0].shape[axis])
        back = shifted(index[axis], bind(size - tirx.floormod(tirx.const(shift, "int64"), size)), lanes)
        index = _put(index, axis, _wrapped(back, size, lanes))
    return self.along(node.operands[0], index, lanes)


def _wrapped(place: Place, size: "tirx.PrimExpr", lanes: int) -> Place:
    """An index below twice the size, brought below it."""
    if place.is_fixed:
        base = bind(place.base)
        return fixed(bind(vm.select(base >= size, base - size, base)))
    i = vm.keep(vector_of(place, lanes))
    size = vm.splat(size, lanes)
    return Place(place.base, 0, vm.keep(vm.select(i >= size, i - size, i)))


def _pad(self: Expression, node: Node, index: _Index, lanes: int) -> "tirx.PrimExpr":
    x, before, after = node.operands[0], integers_of(node, "before"), integers_of(node, "after")
    inside: list[tirx.PrimExpr] = []
    for axis, (low, high) in enumerate(zip(before, after, strict=True)):
        if low or high:
            place = shifted(index[axis], self.k.dim(-low), lanes)
            place, within = bounded(place, self.k.dim(x.shape[axis]), lanes)
            index, inside = _put(index, axis, place), [*inside, within]
    result = self.along(x, index, lanes)
    filling = literal(self.k, node, lanes)
    for within in inside:
        result = _choose(within, result, filling)
    return result


def _choose(condition: "tirx.PrimExpr", yes: "tirx.PrimExpr", no: "tirx.PrimExpr") -> "tirx.PrimExpr":
    condition = vm.splat(condition, vm.lanes_of(yes))
    if vm.element_of(yes) == "bool":
        return vm.either(vm.both(condition, yes), vm.both(vm.negated(condition), no))
    return vm.keep(vm.select(condition, vm.keep(yes), vm.keep(no)))


def _concat(self: Expression, node: Node, index: _Index, lanes: int) -> "tirx.PrimExpr":
    axis = integer_of(node, "axis")
    start: Dim = 0
    result = None
    for x in node.operands:
        place, within = bounded(shifted(index[axis], self.k.dim(-start), lanes), self.k.dim(x.shape[axis]), lanes)
        part = self.along(x, _put(index, axis, place), lanes)
        result = part if result is None else _choose(within, part, result)
        start = start + x.shape[axis]
    assert result is not None
    return result


def _embedding(self: Expression, node: Node, index: _Index, lanes: int) -> "tirx.PrimExpr":
    table, rows = node.operands
    row = _picked(self, rows, index[:-1], table.shape[0], lanes)
    return self.along(table, (row, index[-1]), lanes)


def _gather(self: Expression, node: Node, index: _Index, lanes: int) -> "tirx.PrimExpr":
    x, picks = node.operands
    axis = integer_of(node, "axis")
    return self.along(x, _put(index, axis, _picked(self, picks, index, x.shape[axis], lanes)), lanes)


def _index_select(self: Expression, node: Node, index: _Index, lanes: int) -> "tirx.PrimExpr":
    x, picks = node.operands
    axis, rank = integer_of(node, "axis"), len(picks.shape)
    place = _picked(self, picks, index[axis : axis + rank], x.shape[axis], lanes)
    return self.along(x, (*index[:axis], place, *index[axis + rank :]), lanes)


def _picked(self: Expression, picks: Value, index: _Index, size: Dim, lanes: int) -> Place:
    """The index that data gives, clamped to the axis."""
    still = all(p.is_fixed for p in index)
    found = vm.keep(vm.cast(self.along(picks, index, 1 if still else lanes), "int64"))
    zero, last = (vm.splat(self.k.dim(d), vm.lanes_of(found)) for d in (0, size - 1))
    low = vm.keep(vm.select(found < zero, zero, found))
    inside = vm.keep(vm.select(low > last, last, low))
    return fixed(inside) if still else Place(self.k.dim(0), 0, inside)


def _scalar(self: Expression, node: Node, index: _Index, lanes: int) -> "tirx.PrimExpr":
    return literal(self.k, node, lanes)


def _arange(self: Expression, node: Node, index: _Index, lanes: int) -> "tirx.PrimExpr":
    start = node.attrs["start"]
    assert isinstance(start, int | sympy.Expr)
    place = shifted(scaled(index[0], self.k.dim(integer_of(node, "step"))), self.k.dim(start), lanes)
    return vm.cast(vector_of(place, lanes), compute_dtype(node.types[0].dtype))


def literal(k: KernelBuilder, node: Node, lanes: int) -> "tirx.PrimExpr":
    """The number that a full or dim_value holds, or that a pad fills with, in every lane."""
    value, dtype = node.attrs["value"], compute_dtype(node.types[0].dtype)
    if isinstance(value, sympy.Expr):
        return vm.splat(vm.cast(k.dim(value), dtype), lanes)
    assert isinstance(value, int | float)
    return vm.constant(value if dtype.startswith("float") else int(value), dtype, lanes)


def _put(index: _Index, axis: int, place: Place) -> _Index:
    return (*index[:axis], place, *index[axis + 1 :])


_MOVES: dict[Op, "Callable[[Expression, Node, _Index, int], tirx.PrimExpr]"] = {
    ops.reshape: _reshape,
    ops.transpose: _transpose,
    ops.expand: _expand,
    ops.slice_: _slice,
    ops.flip: _flip,
    ops.roll: _roll,
    ops.pad: _pad,
    ops.concat: _concat,
    ops.embedding: _embedding,
    ops.gather: _gather,
    ops.index_select: _index_select,
    ops.full: _scalar,
    ops.arange: _arange,
    ops.dim_value: _scalar,
}
EVALUATED: tuple[Op, ...] = (*TABLE, *_MOVES)
