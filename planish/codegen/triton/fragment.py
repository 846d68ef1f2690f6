"""Fragments: Triton functions of a call's expressions, which a kernel calls on its blocks.

A fragment sees its place as blocks of indices, one for each group of neighbouring axes of the output, each with the
mask of what lies inside. What it reads beside that comes in one tuple, `extras`, whose members the launch fills.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import sympy

from planish.codegen.attributes import integer_of, integers_of
from planish.codegen.call import Call
from planish.codegen.triton.codes import dequantize, quantize, unpack_groups
from planish.codegen.triton.elementwise import TABLE, compute, compute_dtype, from_memory, number, to_memory
from planish.codegen.triton.kernel import Argument, Input, Number
from planish.codegen.triton.places import Place, address_text, axis_text, parts, regrouped
from planish.codegen.triton.sources import Generated
from planish.compiler import ops
from planish.compiler.ir import Node, Op, Value
from planish.compiler.types import Dim, dim_text, same_dim, symbol
from planish.errors import TemplateError


@dataclass(frozen=True, slots=True)
class Group:
    """Neighbouring axes of a value that a kernel walks with one index: `axes` of them, called `name`."""

    name: str
    axes: int

    @property
    def mask(self) -> str:
        return f"{self.name}_mask"


@dataclass(frozen=True, slots=True)
class Fragments:
    """The fragments of one call. `extras` holds the addresses of all its inputs and all sizes that it uses."""

    call: Call

    def read(self, name: str, value: Value, groups: Sequence[Group]) -> Generated:
        """`name(*groups, *masks, extras)`: the elements of `value`, 0 where they lie outside.

        Floats that lie in memory come as they lie there; what is computed is f32 for f16 and bf16.
        """
        writer = _Writer(self, {}, groups)
        stored = value in self.call.inputs and value.dtype.is_float
        text = writer.load(value, writer.start(value)) if stored else writer.at(value, writer.start(value))
        return self._function(name, [], groups, [], [*writer.lines, f"return {text}"])

    def rows(self, name: str, value: Value, group: Group) -> Generated:
        """`name(*group, extras)`: how many elements after its buffer's start the rows of an input begin, whose last
        axis is none of the group's."""
        writer = _Writer(self, {}, (group,))
        places = parts(group.name, value.shape[: group.axes])
        address = address_text(self.call.inputs[value], (*places, "0"), writer.dim)
        body = [*writer.lines, f"return {address} + 0 * {group.name}"]
        return self._function(name, [], (Group(group.name, group.axes),), [], body)

    def finish(self, name: str, groups: Sequence[Group], bias: Value | None = None) -> Generated:
        """`name(result, *groups, *masks, output, extras)`: store the call's output where it lies.

        `result` is the anchor's first result, in f32 for a float; `bias`, along its last axis, is added to it first.
        """
        known = {self.call.anchor.values[0]: "result"}
        return self._store(name, groups, known, {} if bias is None else {"result": (bias, 0)})

    def finish_slices(
        self, name: str, groups: Sequence[Group], slices: Mapping[Value, int], bias: Value | None = None
    ) -> Generated:
        """`name(given0, given1, *groups, *masks, output, extras)`: `finish` with slices of the anchor's result, given
        by where they begin on its last axis."""
        known = _named(slices)
        added = {} if bias is None else {text: (bias, slices[value]) for value, text in known.items()}
        return self._store(name, groups, known, added)

    def finish_given(self, name: str, groups: Sequence[Group], values: Sequence[Value]) -> Generated:
        """`name(given0, .., *groups, *masks, output, extras)`: `finish` with `values` given instead of the anchor's."""
        return self._store(name, groups, _named(values), {})

    def continued(self, name: str, value: Value, groups: Sequence[Group], given: Value) -> Generated:
        """`name(given0, *groups, *masks, extras)`: the elements of `value`, computed from `given`."""
        writer = _Writer(self, _named((given,)), groups)
        text = writer.at(value, writer.start(value))
        return self._function(name, ["given0"], groups, [], [*writer.lines, f"return {text}"])

    def store(self, name: str, groups: Sequence[Group]) -> Generated:
        """`name(*groups, *masks, output, extras)`: compute all of the call's output and store it where it lies."""
        return self._store(name, groups, {}, {})

    def _store(
        self,
        name: str,
        groups: Sequence[Group],
        known: Mapping[Value, str],
        added: Mapping[str, tuple[Value, int]],
    ) -> Generated:
        """`known` are values that the function is given; to these, by name, is `added` a bias from an index on."""
        value, view = self.call.output, self.call.view
        writer = _Writer(self, known, groups)
        for given, text in known.items():
            if text in added:
                bias, start = added[text]
                column = writer.start(given)[-1]
                place = column if start == 0 else f"({writer.axis(column)} + {start})"
                writer.lines.append(f"{text} = {text} + {writer.at(bias, (place,))}")
        stored = to_memory(writer.at(value, writer.start(value)), view.dtype)
        address = address_text(view, writer.start(value), self.dim)
        # lanes that the address does not tell apart must still be lanes of it, so that the mask fits
        address += "".join(f" + 0 * {g.name}" for g in groups if not _mentions(address, g.name))
        masked = f", mask={' & '.join(g.mask for g in groups)}" if groups else ""
        lines = [*writer.lines, f"tl.store(output + ({address}), {stored}{masked})"]
        return self._function(name, list(known.values()), groups, ["output"], lines)

    @property
    def extras(self) -> tuple[Argument, ...]:
        """What the launch passes as `extras`; a tuple of Triton must not be empty."""
        return self.extras_within(self.call)

    def extras_within(self, whole: Call) -> tuple[Argument, ...]:
        """The same as arguments of another call, which has all inputs of this one."""
        inputs = (Input(list(whole.inputs).index(value)) for value in self.call.inputs)
        return (*inputs, *(Number(symbol(name), wide=True) for name in self.call.sizes()), Number(0))

    def dim(self, dim: Dim) -> str:
        """The text of a dimension over literals and members of `extras`."""
        if isinstance(dim, int):
            return str(dim)
        return f"({dim_text(dim.xreplace({s: sympy.Symbol(f'size_{s.name}') for s in dim.free_symbols}))})"

    def pointer(self, value: Value) -> str:
        """The name of an input's address."""
        return f"input{list(self.call.inputs).index(value)}"

    def _function(
        self, name: str, before: list[str], groups: Sequence[Group], after: list[str], body: Sequence[str]
    ) -> Generated:
        inputs = (f"input{i}" for i in range(len(self.call.inputs)))
        members = [*inputs, *(f"size_{name}" for name in self.call.sizes()), "_"]
        parameters = [*before, *(g.name for g in groups), *(g.mask for g in groups), *after, "extras"]
        unpack = f"{', '.join(members)}{',' if len(members) == 1 else ''} = extras"
        head = f"def {name}({', '.join(parameters)}):"
        return Generated(name, "\n".join([head, *(f"    {line}" for line in (unpack, *body))]) + "\n")


def _named(values: Iterable[Value]) -> Mapping[Value, str]:
    return {value: f"given{i}" for i, value in enumerate(values)}


class _Writer:
    """Writes the lines that compute one value, each value at each place once."""

    def __init__(self, fragments: Fragments, known: Mapping[Value, str], groups: Sequence[Group]) -> None:
        self.fragments, self.known, self.groups = fragments, known, groups
        self.lines: list[str] = []
        self._done: dict[tuple[object, ...], str] = {}

    def start(self, value: Value) -> tuple[Place, ...]:
        """The places of all axes of a value that has the shape of the groups."""
        places: list[Place] = []
        for group in self.groups:
            places += parts(group.name, value.shape[len(places) : len(places) + group.axes])
        if len(places) != len(value.shape):
            raise TemplateError(f"{len(places)} indexed axes for a value of {len(value.shape)}")
        return tuple("0" if same_dim(d, 1) else p for d, p in zip(value.shape, places, strict=True))

    @property
    def dim(self) -> Callable[[Dim], str]:
        return self.fragments.dim

    def at(self, value: Value, places: tuple[Place, ...]) -> str:
        """The name of the block that holds the value's elements at the places."""
        places = tuple("0" if same_dim(d, 1) else p for d, p in zip(value.shape, places, strict=True))
        key = (value, *places)
        if key not in self._done:
            self._done[key] = self._evaluate(value, places)
        return self._done[key]

    def axis(self, place: Place) -> str:
        return axis_text(place, self.dim)

    def keep(self, text: str) -> str:
        """A variable with the value of the text."""
        name = f"v{len(self.lines)}"
        self.lines.append(f"{name} = {text}")
        return name

    def _evaluate(self, value: Value, places: tuple[Place, ...]) -> str:
        if value in self.known:
            if places != self.start(value):
                raise TemplateError(f"the result of {value.node.op.name} is asked for at another place than its own")
            return self.known[value]
        if value in self.fragments.call.inputs:
            return self.keep(from_memory(self.load(value, places), value.dtype))
        node = value.node
        if node.op in _MOVES:
            return _MOVES[node.op](self, node, places)
        if node.op not in TABLE:
            raise TemplateError(
                f"{node.op.name} in '{node.scope}' is no part of an expression; it needs its own kernel"
            )
        operands = [self.at(v, places[len(places) - len(v.shape) :]) for v in node.operands]
        return self.keep(compute(node, operands))

    def load(self, value: Value, places: tuple[Place, ...]) -> str:
        """An input's elements as they lie in memory."""
        view = self.fragments.call.inputs[value]
        address = address_text(view, places, self.dim)
        inside = [g.mask for g in self.groups if _mentions(address, g.name)]
        masked = f", mask={' & '.join(inside)}, other=0" if inside else ""
        return self.keep(f"tl.load({self.fragments.pointer(value)} + ({address}){masked})")


def _words(text: str) -> set[str]:
    return set("".join(c if c.isalnum() or c == "_" else " " for c in text).split())


def _mentions(text: str, name: str) -> bool:
    return name in _words(text)


def _reshape(w: _Writer, node: Node, places: tuple[Place, ...]) -> str:
    x = node.operands[0]
    return w.at(x, regrouped(places, node.types[0].shape, x.shape, w.dim))


def _transpose(w: _Writer, node: Node, places: tuple[Place, ...]) -> str:
    order = integers_of(node, "order")
    return w.at(node.operands[0], tuple(places[order.index(i)] for i in range(len(order))))


def _expand(w: _Writer, node: Node, places: tuple[Place, ...]) -> str:
    x = node.operands[0]
    return w.at(x, places[len(places) - len(x.shape) :])


def _slice(w: _Writer, node: Node, places: tuple[Place, ...]) -> str:
    axis, step, start = integer_of(node, "axis"), integer_of(node, "step"), node.attrs["start"]
    assert isinstance(start, int | sympy.Expr)
    index = w.axis(places[axis])
    index = index if step == 1 else f"({index} * {step})"
    index = index if same_dim(start, 0) else f"({index} + {w.dim(start)})"
    return w.at(node.operands[0], _put(places, axis, index))


def _flip(w: _Writer, node: Node, places: tuple[Place, ...]) -> str:
    for axis in integers_of(node, "axes"):
        last = w.dim(node.types[0].shape[axis])
        places = _put(places, axis, f"({last} - 1 - {w.axis(places[axis])})")
    return w.at(node.operands[0], places)


def _roll(w: _Writer, node: Node, places: tuple[Place, ...]) -> str:
    for axis, shift in zip(integers_of(node, "axes"), integers_of(node, "shifts"), strict=True):
        size = w.dim(node.types[0].shape[axis])
        back = f"(({size} - {shift}) % {size})" if shift <= 0 else f"({size} - {shift} % {size})"
        places = _put(places, axis, f"(({w.axis(places[axis])} + {back}) % {size})")
    return w.at(node.operands[0], places)


def _pad(w: _Writer, node: Node, places: tuple[Place, ...]) -> str:
    x, before, after = node.operands[0], integers_of(node, "before"), integers_of(node, "after")
    inside: list[str] = []
    for axis, (low, high) in enumerate(zip(before, after, strict=True)):
        if low or high:
            place, within = _bounded(w, f"({w.axis(places[axis])} - {low})", x.shape[axis])
            places, inside = _put(places, axis, place), [*inside, within]
    result = w.at(x, places)
    return w.keep(f"tl.where({' & '.join(inside)}, {result}, {number(node.attrs['value'], x.dtype)})")


def _concat(w: _Writer, node: Node, places: tuple[Place, ...]) -> str:
    axis = integer_of(node, "axis")
    start: Dim = 0
    result = ""
    for x in node.operands:
        place, within = _bounded(w, f"({w.axis(places[axis])} - {w.dim(start)})", x.shape[axis])
        part = w.at(x, _put(places, axis, place))
        result = w.keep(f"tl.where({within}, {part}, {result})") if result else part
        start = start + x.shape[axis]
    return result


def _bounded(w: _Writer, index: str, size: Dim) -> tuple[str, str]:
    """The index clamped to its axis, and whether it was inside."""
    last = f"({w.dim(size)} - 1)"
    index = w.keep(index)
    clamped = w.keep(f"tl.minimum(tl.maximum({index}, 0), {last})")
    return clamped, w.keep(f"{index} == {clamped}")


def _embedding(w: _Writer, node: Node, places: tuple[Place, ...]) -> str:
    table, rows = node.operands
    return w.at(table, (_picked(w, rows, places[:-1], table.shape[0]), places[-1]))


def _gather(w: _Writer, node: Node, places: tuple[Place, ...]) -> str:
    x, picks = node.operands
    axis = integer_of(node, "axis")
    return w.at(x, _put(places, axis, _picked(w, picks, places, x.shape[axis])))


def _index_select(w: _Writer, node: Node, places: tuple[Place, ...]) -> str:
    x, picks = node.operands
    axis, rank = integer_of(node, "axis"), len(picks.shape)
    place = _picked(w, picks, places[axis : axis + rank], x.shape[axis])
    return w.at(x, (*places[:axis], place, *places[axis + rank :]))


def _picked(w: _Writer, picks: Value, places: tuple[Place, ...], size: Dim) -> str:
    """The index that data gives, clamped to the axis."""
    return _bounded(w, f"{w.at(picks, places)}.to(tl.int64)", size)[0]


def _rope(w: _Writer, node: Node, places: tuple[Place, ...]) -> str:
    """x * cosine + (-right half, left half) * sine."""
    x, cosine, sine = node.operands
    half = node.types[0].shape[-1] // 2
    own = w.axis(places[-1])
    left = w.keep(f"{own} < {half}")
    other = w.at(x, (*places[:-1], w.keep(f"tl.where({left}, {own} + {half}, {own} - {half})")))
    turned = w.keep(f"tl.where({left}, -{other}, {other})")
    along, across = (w.at(v, places[len(places) - len(v.shape) :]) for v in (cosine, sine))
    return w.keep(f"{w.at(x, places)} * {along} + {turned} * {across}")


def _full(w: _Writer, node: Node, places: tuple[Place, ...]) -> str:
    value, dtype = node.attrs["value"], node.types[0].dtype
    if isinstance(value, sympy.Expr):
        return w.keep(f"tl.zeros((), tl.{compute_dtype(dtype)}) + {w.dim(value)}")
    return w.keep(number(value, dtype))


def _arange(w: _Writer, node: Node, places: tuple[Place, ...]) -> str:
    start, step = node.attrs["start"], integer_of(node, "step")
    assert isinstance(start, int | sympy.Expr)
    text = f"({w.dim(start)} + {w.axis(places[0])} * {step})"
    return w.keep(f"(tl.zeros((), tl.int64) + {text}).to(tl.{compute_dtype(node.types[0].dtype)})")


def _put(places: tuple[Place, ...], axis: int, place: Place) -> tuple[Place, ...]:
    return (*places[:axis], place, *places[axis + 1 :])


_MOVES: dict[Op, Callable[[_Writer, Node, tuple[Place, ...]], str]] = {
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
    ops.rope: _rope,
    ops.dequantize: dequantize,
    ops.quantize: quantize,
    ops.unpack_groups: unpack_groups,
    ops.full: _full,
    ops.arange: _arange,
    ops.dim_value: _full,
}
EVALUATED: tuple[Op, ...] = (*TABLE, *_MOVES)
