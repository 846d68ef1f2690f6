"""Where tokens lie in each value, op by op, and which ops would mix them."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache

import sympy

from planish.compiler import ops
from planish.compiler.ir import Node, Op, Value
from planish.compiler.types import Dim, Shape, elements, same_dim
from planish.passes.matching import axes


@dataclass(frozen=True, slots=True)
class Lane:
    """The place of one size in a value: its axis, and how many elements of that axis lie inside one step of it.

    An axis of `batch * sequence * 2` elements holds the sequence with `inner` 2.
    """

    axis: int
    inner: Dim = 1


def lane_of(node: Node, lanes: Mapping[Value, Lane], size: sympy.Symbol) -> Lane | str | None:
    """The lane of a node's results, from those of its operands; None where no operand has one.

    A string says why the op would mix the positions of the lane.
    """
    given = [None if v is None else lanes.get(v) for v in node.inputs]
    if all(lane is None for lane in given):
        return None
    if rule := _RULES.get(node.op):
        return rule(node, given, size)
    if "elementwise" in node.op.traits:
        return _aligned(node, given, size)
    if "reduction" in node.op.traits:
        return _reduced(node, given, size)
    return f"nothing is known of how {node.op.name} treats positions"


def _aligned(node: Node, given: list[Lane | None], size: sympy.Symbol) -> Lane | str:
    """Operands broadcast: their lanes fall on one axis of the result."""
    rank = node.types[0].rank
    pairs = zip(node.inputs, given, strict=True)
    places = [Lane(lane.axis + rank - v.type.rank, lane.inner) for v, lane in pairs if v is not None and lane]
    first = places[0]
    if any(p.axis != first.axis or not same_dim(p.inner, first.inner) for p in places):
        return "its operands hold them on different axes"
    return first


def _first(node: Node, given: list[Lane | None], forbidden: tuple[int, ...]) -> Lane | str:
    """The lane of the first operand, where no other operand has one and the op works within `forbidden` axes."""
    lane = given[0]
    if lane is None or any(other is not None for other in given[1:]):
        return "a parameter of it depends on them"
    return "it works along them" if lane.axis in forbidden else lane


def _last(node: Node, given: list[Lane | None], size: sympy.Symbol) -> Lane | str:
    return _first(node, given, (node.operands[0].type.rank - 1,))


def _rope(node: Node, given: list[Lane | None], size: sympy.Symbol) -> Lane | str:
    lane = _aligned(node, given, size)
    return "it works along them" if isinstance(lane, Lane) and lane.axis == 3 else lane


def _images(node: Node, given: list[Lane | None], size: sympy.Symbol) -> Lane | str:
    """Channels-last images: only the batch axis is left alone."""
    return _first(node, given, tuple(range(1, node.operands[0].type.rank)))


def _along(node: Node, given: list[Lane | None], size: sympy.Symbol) -> Lane | str:
    axis = node.attrs["axis"]
    assert isinstance(axis, int)
    return _first(node, given, (axis,))


def _over(node: Node, given: list[Lane | None], size: sympy.Symbol) -> Lane | str:
    return _first(node, given, axes(node.attrs["axes"]))


def _argmax(node: Node, given: list[Lane | None], size: sympy.Symbol) -> Lane | str:
    axis = node.attrs["axis"]
    assert isinstance(axis, int)
    return _without(node, _first(node, given, (axis,)), (axis,))


def _reduced(node: Node, given: list[Lane | None], size: sympy.Symbol) -> Lane | str:
    gone = axes(node.attrs["axes"])
    return _without(node, _first(node, given, gone), gone)


def _without(node: Node, lane: Lane | str, gone: tuple[int, ...]) -> Lane | str:
    if isinstance(lane, str) or node.attrs["keep"]:
        return lane
    return Lane(lane.axis - sum(a < lane.axis for a in gone), lane.inner)


def _matmul(node: Node, given: list[Lane | None], size: sympy.Symbol) -> Lane | str:
    x, y = node.operands
    rank = node.types[0].rank
    if given[0] is not None and given[0].axis == x.type.rank - 1:
        return "it sums over them"
    if given[1] is not None and given[1].axis >= y.type.rank - 2:
        return "it multiplies one by another" if given[0] is not None else "it sums over them"
    lane = _aligned(node, given, size)
    row = isinstance(lane, Lane) and lane.axis == rank - 2
    return "it multiplies one by another" if row and given[1] is not None else lane


def _reshape(node: Node, given: list[Lane | None], size: sympy.Symbol) -> Lane | str:
    lane = given[0]
    assert lane is not None
    moved = _moved(lane, node.operands[0].shape, node.types[0].shape, size)
    return moved or "it cuts them into pieces"


@lru_cache(maxsize=4096)
def _moved(lane: Lane, before: Shape, after: Shape, size: sympy.Symbol) -> Lane | None:
    """The axis of `after` that holds whole steps of the size, each as many elements as before."""
    step = elements((lane.inner, *before[lane.axis + 1 :]))
    for axis in reversed(range(len(after))):
        inside = elements(after[axis + 1 :])
        inner, outer = _quotient(step, inside), _quotient(elements((inside, after[axis])), elements((step, size)))
        if inner is not None and outer is not None:
            return Lane(axis, inner)
    return None


def _quotient(left: Dim, right: Dim) -> Dim | None:
    """`left / right` where it is a polynomial with integer coefficients."""
    if isinstance(left, int) and isinstance(right, int):
        return left // right if right and left % right == 0 else None
    numerator, denominator = sympy.fraction(sympy.cancel(sympy.sympify(left) / right))
    whole = denominator == 1
    return (int(numerator) if numerator.is_Integer else numerator) if whole else None


def _transpose(node: Node, given: list[Lane | None], size: sympy.Symbol) -> Lane | str:
    lane = given[0]
    assert lane is not None
    return Lane(axes(node.attrs["order"]).index(lane.axis), lane.inner)


def _slice(node: Node, given: list[Lane | None], size: sympy.Symbol) -> Lane | str:
    lane, x = given[0], node.operands[0]
    assert lane is not None
    whole = same_dim(node.types[0].shape[lane.axis], x.shape[lane.axis])
    return lane if whole else "it takes some of them"


def _concat(node: Node, given: list[Lane | None], size: sympy.Symbol) -> Lane | str:
    lane = _aligned(node, given, size)
    return "it joins along them" if isinstance(lane, Lane) and lane.axis == node.attrs["axis"] else lane


def _pad(node: Node, given: list[Lane | None], size: sympy.Symbol) -> Lane | str:
    lane = given[0]
    assert lane is not None
    added = axes(node.attrs["before"])[lane.axis] or axes(node.attrs["after"])[lane.axis]
    return "it adds to them" if added else lane


def _embedding(node: Node, given: list[Lane | None], size: sympy.Symbol) -> Lane | str:
    table, index = given
    return index if index is not None and table is None else "it looks up in a table that depends on them"


def _gather(node: Node, given: list[Lane | None], size: sympy.Symbol) -> Lane | str:
    lane = _aligned(node, given, size)
    if not isinstance(lane, Lane):
        return lane
    if lane.axis == node.attrs["axis"] and given[0] is not None:
        return "it picks among them"
    return lane if None not in given or lane.axis == node.attrs["axis"] else "it picks for some of them"


def _index_select(node: Node, given: list[Lane | None], size: sympy.Symbol) -> Lane | str:
    (x, index), axis = given, node.attrs["axis"]
    assert isinstance(axis, int)
    if x is None and index is not None:
        return Lane(axis + index.axis, index.inner)
    if x is None or index is not None or x.axis == axis:
        return "it picks among them"
    return x if x.axis < axis else Lane(x.axis + node.operands[1].type.rank - 1, x.inner)


def _grouped(node: Node, given: list[Lane | None], size: sympy.Symbol) -> Lane | str:
    """Rows and their experts lie on the same leading axes."""
    x, w, index = given
    if w is not None:
        return "a parameter of it depends on them"
    if x is not None and x.axis == node.operands[0].type.rank - 1:
        return "it works along them"
    first, *others = [lane for lane in (x, index) if lane is not None]
    if any(lane.axis != first.axis or not same_dim(lane.inner, first.inner) for lane in others):
        return "its operands hold them on different axes"
    return first


def _attention(node: Node, given: list[Lane | None], size: sympy.Symbol) -> Lane | str:
    """Attention within each position: all operands hold the lane on a leading axis, or keys and values nowhere."""
    if any(lane is not None and lane.axis > 1 for lane in given[1:]):
        return "it attends over them"
    lane = given[0]
    return _aligned(node, given, size) if lane is not None else "it attends over them"


_RULES: Mapping[Op, Callable[[Node, list[Lane | None], sympy.Symbol], Lane | str]] = {
    **dict.fromkeys((ops.linear, ops.layer_norm, ops.rms_norm, ops.quantization_scale), _last),
    **dict.fromkeys((ops.conv, ops.group_norm, ops.max_pool, ops.avg_pool), _images),
    **dict.fromkeys((ops.softmax, ops.log_softmax, ops.cumsum), _along),
    **dict.fromkeys((ops.roll, ops.flip), _over),
    ops.expand: _aligned,
    ops.argmax: _argmax,
    ops.matmul: _matmul,
    ops.grouped_linear: _grouped,
    ops.reshape: _reshape,
    ops.transpose: _transpose,
    ops.slice_: _slice,
    ops.concat: _concat,
    ops.pad: _pad,
    ops.embedding: _embedding,
    ops.gather: _gather,
    ops.index_select: _index_select,
    ops.rope: _rope,
    ops.attention: _attention,
}
