"""Where every value of a graph lives: a buffer of its own, or a view of another value's."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import cast

from planish.codegen.view import View
from planish.compiler.ir import Graph, Node, Value
from planish.compiler.ops import attention, expand, reshape, slice_, transpose
from planish.compiler.types import Dim


@dataclass(frozen=True, slots=True)
class Place:
    """The value whose buffer holds the elements, and where in it they lie."""

    root: Value
    view: View


def resolve(graph: Graph) -> Mapping[Value, Place]:
    """A place for every value; a movement whose result needs no copy shares its operand's root."""
    users = graph.users()
    places: dict[Value, Place] = {}
    for node in graph.nodes():
        moved = _MOVES[node.op](places[node.operands[0]].view, node) if node.op in _MOVES else None
        if moved is not None:
            places[Value(node)] = replace(places[node.operands[0]], view=moved)
            continue
        for value in node.values:
            places[value] = Place(value, _stored(value, users))
    return places


def is_free(node: Node, places: Mapping[Value, Place]) -> bool:
    """Whether the node only relabels another value's buffer."""
    return node.op in _MOVES and places[Value(node)].root.node is not node


def _stored(value: Value, users: Mapping[Value, tuple[Node, ...]]) -> View:
    """Row-major, or in the order of the one transpose that reads an attention, so that it becomes free."""
    readers = users.get(value, ())
    if value.node.op is attention and len(readers) == 1 and readers[0].op is transpose:
        order = _order(readers[0])
        back = tuple(order.index(axis) for axis in range(len(order)))
        return View.contiguous(readers[0].types[0]).transpose(back)
    return View.contiguous(value.type)


def _order(node: Node) -> tuple[int, ...]:
    return cast("tuple[int, ...]", node.attrs["order"])


def _reshape(view: View, node: Node) -> View | None:
    return view.reshape(node.types[0].shape)


def _transpose(view: View, node: Node) -> View | None:
    return view.transpose(_order(node))


def _expand(view: View, node: Node) -> View | None:
    return view.expand(node.types[0].shape)


def _slice(view: View, node: Node) -> View | None:
    axis = cast(int, node.attrs["axis"])
    start, step = cast("Dim", node.attrs["start"]), cast(int, node.attrs["step"])
    return view.slice(axis, start, step, node.types[0].shape[axis])


_MOVES: dict[object, Callable[[View, Node], View | None]] = {
    reshape: _reshape,
    transpose: _transpose,
    expand: _expand,
    slice_: _slice,
}
