"""Elementwise work as it lies in memory: views over one shape, with axes merged where all of them allow it."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import TypeAlias, cast

from planish.codegen.call import Call
from planish.codegen.tvm.elementwise import TABLE
from planish.codegen.view import View
from planish.compiler import ops
from planish.compiler.ir import Node, Op, Value
from planish.compiler.types import Dim, Shape, elements, same_dim, same_shape, simplify

Move: TypeAlias = tuple[Op, tuple[object, ...]]
Chain: TypeAlias = tuple[Move, ...]


@dataclass(frozen=True, slots=True, eq=False)
class Leaf:
    """An input of the call, seen over the shape of the fabric."""

    value: Value
    view: View


@dataclass(frozen=True, slots=True, eq=False)
class Literal:
    """A scalar that needs no memory: `node` is a full, dim_value or pad."""

    node: Node


@dataclass(frozen=True, slots=True, eq=False)
class Apply:
    """An elementwise node on other threads."""

    node: Node
    operands: "tuple[Thread, ...]"


Thread: TypeAlias = Leaf | Literal | Apply


@dataclass(frozen=True, slots=True, eq=False)
class Fabric:
    """`root` computed at every position of `shape` and written through `out`."""

    shape: Shape
    root: Thread
    out: View

    @property
    def leaves(self) -> tuple[Leaf, ...]:
        """The operands that are read, each once."""
        return tuple(dict.fromkeys(_leaves(self.root)))

    def over(self, shape: Shape, change: Callable[[View], View]) -> "Fabric":
        """The same work with every view changed to lie over `shape`."""
        return Fabric(shape, _replaced(self.root, change, {}), change(self.out))


def weave(call: Call) -> tuple[Fabric, ...] | None:
    """The call as fabrics that together write its output, or None where an index is no sum of strides.

    A concatenation or padding of which the output is computed element by element gives one fabric per part.
    """
    for parts in (_parts(call), _reshaped(call)):
        woven = [_weave(call, part) for part in parts]
        if woven and None not in woven:
            return tuple(_merged(cast(Fabric, fabric)) for fabric in woven)
    return None


@dataclass(frozen=True, slots=True, eq=False)
class _Part:
    """The box of the output that `moves` cut out, in which `chosen` nodes stand for one operand (or their fill)."""

    shape: Shape
    moves: Chain
    chosen: Mapping[Node, Value | None] = field(default_factory=dict)


def _parts(call: Call) -> tuple[_Part, ...]:
    shape = call.output.shape
    split = next((n for n in _surface(call) if n.op in (ops.concat, ops.pad)), None)
    if split is None:
        return (_Part(shape, ()),)
    return _concat_parts(split) if split.op is ops.concat else _pad_parts(split)


def _surface(call: Call) -> list[Node]:
    """The nodes from the output down to the first that are not elementwise, all of the output's shape."""
    found: list[Node] = []
    waiting = [call.output]
    while waiting:
        value = waiting.pop()
        if value in call.inputs or value.node in found or not same_shape(value.shape, call.output.shape):
            continue
        found.append(value.node)
        waiting += value.node.operands if value.node.op in TABLE else ()
    return found


def _concat_parts(node: Node) -> tuple[_Part, ...]:
    axis = cast(int, node.attrs["axis"])
    parts: list[_Part] = []
    start: Dim = 0
    for x in node.operands:
        moves = ((ops.slice_, (axis, start, 1, x.shape[axis])),)
        parts.append(_Part(x.shape, moves, {node: x}))
        start = simplify(start + x.shape[axis])
    return tuple(parts)


def _pad_parts(node: Node) -> tuple[_Part, ...]:
    """The inner box, and for each axis the bands before and after it over what earlier axes left."""
    x = node.operands[0]
    before, after = (cast("tuple[int, ...]", node.attrs[name]) for name in ("before", "after"))
    box: list[tuple[Dim, Dim]] = [(0, d) for d in node.types[0].shape]
    parts: list[_Part] = []
    for axis, (low, high) in enumerate(zip(before, after, strict=True)):
        inner = x.shape[axis]
        for start, count in ((0, low), (simplify(inner + low), high)):
            if count:
                parts.append(_box_part([*box[:axis], (start, count), *box[axis + 1 :]], {node: None}))
        box[axis] = (low, inner)
    return (*parts, _box_part(box, {node: x}))


def _box_part(box: list[tuple[Dim, Dim]], chosen: Mapping[Node, Value | None]) -> _Part:
    moves = tuple((ops.slice_, (axis, start, 1, count)) for axis, (start, count) in enumerate(box))
    return _Part(tuple(count for _, count in box), moves, chosen)


def _reshaped(call: Call) -> tuple[_Part, ...]:
    """The output under the shape that a reshape starts from, so that its source need not be contiguous."""
    total = elements(call.output.shape)
    sources = (n.operands[0].shape for n in call.nodes if n.op is ops.reshape)
    shape = next((s for s in sources if same_dim(elements(s), total) and call.view.reshape(s)), None)
    return () if shape is None else (_Part(shape, ((ops.reshape, shape),)),)


def _weave(call: Call, part: _Part) -> Fabric | None:
    out: View | None = call.view
    for move in part.moves:
        out = None if out is None else _APPLY[move[0]](out, *move[1:])
    root = _thread(call, part, call.output, part.moves, {})
    return None if out is None or root is None else Fabric(part.shape, root, out)


_Memo: TypeAlias = "dict[tuple[Value, Chain], Thread | None]"


def _thread(call: Call, part: _Part, value: Value, chain: Chain, memo: _Memo) -> Thread | None:
    key = (value, chain)
    if key not in memo:
        memo[key] = _spin(call, part, value, chain, memo)
    return memo[key]


def _spin(call: Call, part: _Part, value: Value, chain: Chain, memo: _Memo) -> Thread | None:
    node = value.node
    if value in call.inputs:
        view = _moved(call.inputs[value], chain)
        return None if view is None else Leaf(value, view)
    if node in part.chosen:
        chosen = part.chosen[node]
        if chain != part.moves:
            return None
        return Literal(node) if chosen is None else _thread(call, part, chosen, (), memo)
    if node.op in (ops.full, ops.dim_value):
        return Literal(node)
    if node.op in _STEPS:
        return _thread(call, part, node.operands[0], (_STEPS[node.op](node), *chain), memo)
    if node.op not in TABLE:
        return None
    shape = node.types[0].shape
    wide = ((ops.expand, shape), *chain)
    operands = [_thread(call, part, v, chain if same_shape(v.shape, shape) else wide, memo) for v in node.operands]
    return None if None in operands else Apply(node, tuple(cast("list[Thread]", operands)))


def _moved(view: View, chain: Chain) -> View | None:
    moved: View | None = view
    for i, (op, arguments) in enumerate(chain):
        if op is ops.reshape and i + 1 < len(chain) and chain[i + 1][0] is ops.reshape:
            continue  # the next reshape says what this one would
        moved = None if moved is None else _APPLY[op](moved, arguments)
    return moved


_APPLY: dict[Op, Callable[..., View | None]] = {
    ops.reshape: lambda view, shape: view.reshape(shape),
    ops.transpose: lambda view, order: view.transpose(order),
    ops.expand: lambda view, shape: view.expand(shape),
    ops.slice_: lambda view, arguments: view.slice(*arguments),
}
_STEPS: dict[Op, Callable[[Node], Move]] = {
    ops.reshape: lambda node: (ops.reshape, node.types[0].shape),
    ops.transpose: lambda node: (ops.transpose, cast("tuple[object, ...]", node.attrs["order"])),
    ops.expand: lambda node: (ops.expand, node.types[0].shape),
    ops.slice_: lambda node: (
        ops.slice_,
        (
            node.attrs["axis"],
            node.attrs["start"],
            node.attrs["step"],
            node.types[0].shape[cast(int, node.attrs["axis"])],
        ),
    ),
}


def _leaves(thread: Thread) -> list[Leaf]:
    if isinstance(thread, Leaf):
        return [thread]
    return [leaf for operand in thread.operands for leaf in _leaves(operand)] if isinstance(thread, Apply) else []


def _merged(fabric: Fabric) -> Fabric:
    """The fabric with its axes in the order of the output's memory, ones dropped and neighbours joined."""
    views = [fabric.out, *(leaf.view for leaf in fabric.leaves)]
    axes = [i for i, d in enumerate(fabric.shape) if not same_dim(d, 1)]
    axes.sort(key=lambda i: same_dim(fabric.out.strides[i], 1))
    groups: list[list[int]] = []
    for axis in axes:
        if groups and all(_follows(view, groups[-1][-1], axis) for view in views):
            groups[-1].append(axis)
        else:
            groups.append([axis])
    shape = tuple(elements(tuple(fabric.shape[i] for i in group)) for group in groups)

    def merge(view: View) -> View:
        return replace(view, shape=shape, strides=tuple(view.strides[group[-1]] for group in groups))

    return fabric.over(shape, merge)


def _follows(view: View, outer: int, inner: int) -> bool:
    return same_dim(view.strides[outer], simplify(view.strides[inner] * view.shape[inner]))


def _replaced(thread: Thread, merge: Callable[[View], View], memo: dict[Thread, Thread]) -> Thread:
    if thread not in memo:
        if isinstance(thread, Leaf):
            memo[thread] = Leaf(thread.value, merge(thread.view))
        elif isinstance(thread, Apply):
            memo[thread] = Apply(thread.node, tuple(_replaced(t, merge, memo) for t in thread.operands))
        else:
            memo[thread] = thread
    return memo[thread]
