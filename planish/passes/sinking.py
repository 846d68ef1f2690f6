"""Transposes move towards the outputs: f(transpose(x)) -> transpose(f(x))."""

from collections.abc import Iterator, Mapping

from planish.compiler.ir import Node, Value
from planish.compiler.ops import OPS, concat, flip, pad, reshape, roll, slice_, softmax, transpose
from planish.compiler.rewrite import Step
from planish.compiler.types import Dim, Shape, elements, same_dim, same_shape, simplify
from planish.passes.matching import axes, is_constant, reshaped, transposed
from planish.passes.movements import ELEMENTWISE

Uses = Mapping[Node, int]
Order = tuple[int, ...]

_REDUCTIONS = tuple(op for op in OPS if "reduction" in op.traits)


def _order(value: Value | None) -> Order | None:
    """The order of a transpose of something that is computed."""
    if value is None or value.node.op is not transpose or is_constant(value):
        return None
    return axes(value.node.attrs["order"])


def _inverse(order: Order) -> Order:
    return tuple(sorted(range(len(order)), key=order.__getitem__))


def _elementwise(node: Node, uses: Uses) -> Value | None:
    rank = node.types[0].rank
    orders = {o for v in node.inputs if (o := _order(v)) is not None and len(o) == rank}
    for order in orders:
        inputs = tuple(None if v is None else _before(v, order, node.scope) for v in node.inputs)
        if all((a is None) == (b is None) for a, b in zip(inputs, node.inputs, strict=True)):
            return transposed(node.op(*inputs, scope=node.scope, **node.attrs), order, node.scope)
    return None


def _before(value: Value, order: Order, scope: str) -> Value | None:
    """The value that gives `value` when transposed by `order`, where that costs nothing; None otherwise."""
    if value.type.rank == 0:
        return value
    if _order(value) == order:
        return value.node.operands[0]
    back = _inverse(order)
    shape = (1,) * (len(order) - value.type.rank) + value.shape
    wide = [i for i in back if shape[i] != 1]
    if wide == sorted(wide):
        moved = tuple(shape[i] for i in back)
        kept = moved[_leading_units(moved) :] if len(wide) < 2 else moved
        return value if kept == value.shape else reshape(value, shape=kept or (1,), scope=scope)
    if not is_constant(value):
        return None
    full = value if shape == value.shape else reshape(value, shape=shape, scope=scope)
    return transposed(full, back, scope)


def _elementwise_of_reshape(node: Node, uses: Uses) -> Value | None:
    """An elementwise op whose operands are all reshaped alike, scalars aside, runs before the reshape."""
    wide = [v for v in node.operands if v.type.rank > 0]
    if not wide or any(v.node.op is not reshape for v in wide):
        return None
    inner = [v.node.operands[0] for v in wide]
    alike = all(same_shape(v.shape, node.types[0].shape) for v in wide)
    if not alike or any(not same_shape(v.shape, inner[0].shape) for v in inner):
        return None
    inputs = (v.node.operands[0] if v is not None and v.type.rank > 0 else v for v in node.inputs)
    return reshaped(node.op(*inputs, scope=node.scope, **node.attrs), node.types[0].shape, node.scope)


def _leading_units(shape: Shape) -> int:
    return next((i for i, d in enumerate(shape) if d != 1), len(shape))


def _reduction(node: Node, uses: Uses) -> Value | None:
    order = _order(node.inputs[0])
    if order is None:
        return None
    over = axes(node.attrs["axes"])
    inner = tuple(sorted(order[a] for a in over))
    small = node.op(node.operands[0].node.operands[0], axes=inner, keep=node.attrs["keep"], scope=node.scope)
    if node.attrs["keep"]:
        return transposed(small, order, node.scope)
    left = [order[a] for a in range(len(order)) if a not in over]
    return transposed(small, tuple(sorted(left).index(a) for a in left), node.scope)


def _softmax(node: Node, uses: Uses) -> Value | None:
    """Only where the axis comes to lie last, as kernels want it."""
    order, axis = _order(node.inputs[0]), node.attrs["axis"]
    assert isinstance(axis, int)
    if order is None or order[axis] != len(order) - 1:
        return None
    x = node.operands[0].node.operands[0]
    return transposed(node.op(x, axis=order[axis], scope=node.scope), order, node.scope)


def _concat(node: Node, uses: Uses) -> Value | None:
    orders = {o for v in node.inputs if (o := _order(v)) is not None}
    axis = node.attrs["axis"]
    assert isinstance(axis, int)
    if len(orders) != 1:
        return None
    order = orders.pop()
    inputs = [_whole(v, order, node.scope) for v in node.operands]
    if any(v is None for v in inputs):
        return None
    return transposed(concat(*inputs, axis=order[axis], scope=node.scope), order, node.scope)


def _whole(value: Value, order: Order, scope: str) -> Value | None:
    if _order(value) == order:
        return value.node.operands[0]
    return transposed(value, _inverse(order), scope) if is_constant(value) else None


def _movement(node: Node, uses: Uses) -> Value | None:
    order = _order(node.inputs[0])
    if order is None:
        return None
    back, attrs = _inverse(order), dict(node.attrs)
    if node.op is slice_:
        axis = attrs["axis"]
        assert isinstance(axis, int)
        attrs["axis"] = order[axis]
    elif node.op is pad:
        attrs |= {name: tuple(axes(attrs[name])[i] for i in back) for name in ("before", "after")}
    else:
        attrs["axes"] = tuple(order[a] for a in axes(attrs["axes"]))
    return transposed(node.op(node.operands[0].node.operands[0], scope=node.scope, **attrs), order, node.scope)


def _reshape(node: Node, uses: Uses) -> Value | None:
    """A reshape that merges neighbours which are neighbours before the transpose too, or that splits axes."""
    order = _order(node.inputs[0])
    if order is None:
        return None
    x = node.operands[0].node.operands[0]
    groups = list(_groups(node.operands[0].shape, node.types[0].shape))
    if not groups:
        return None
    placed = []
    for source, target in groups:
        inner = [order[a] for a in source if x.shape[order[a]] != 1]
        if inner != sorted(inner) or not _adjacent(inner, x.shape):
            return None
        placed.append((inner[0] if inner else -1, target))
    ranked = sorted(range(len(placed)), key=lambda i: (placed[i][0], i))
    shape = tuple(node.types[0].shape[t] for i in ranked for t in placed[i][1])
    position = {t: k for k, t in enumerate(t for i in ranked for t in placed[i][1])}
    moved = reshape(x, shape=shape, scope=node.scope)
    return transposed(moved, tuple(position[t] for t in range(len(shape))), node.scope)


def _adjacent(inner: list[int], shape: Shape) -> bool:
    return all(shape[a] == 1 for i in range(1, len(inner)) for a in range(inner[i - 1] + 1, inner[i]))


def _groups(before: Shape, after: Shape) -> Iterator[tuple[list[int], list[int]]]:
    """The smallest runs of axes of `before` and `after` with equal products; nothing where none are found."""
    found: list[tuple[list[int], list[int]]] = []
    i = j = 0
    while i < len(before) or j < len(after):
        source, target = [], []
        left: Dim = 1
        right: Dim = 1
        if i < len(before):
            source, left, i = [i], before[i], i + 1
        if j < len(after) and (not source or left != 1):
            target, right, j = [j], after[j], j + 1
        while not same_dim(left, right):
            if j < len(after) and (i == len(before) or _smaller(right, left)):
                target, right, j = [*target, j], simplify(right * after[j]), j + 1
            elif i < len(before):
                source, left, i = [*source, i], simplify(left * before[i]), i + 1
            else:
                return
        found.append((source, target))
    yield from found


def _smaller(left: Dim, right: Dim) -> bool:
    """Whether `right` is a multiple of `left`, so that `left` has to grow."""
    ratio = simplify(right * elements(()) / left) if not isinstance(left, int) or not isinstance(right, int) else None
    if ratio is None:
        assert isinstance(left, int)
        assert isinstance(right, int)
        return left < right
    return isinstance(ratio, int) or bool(ratio.is_polynomial())


SINK = (
    Step("transpose below elementwise", ELEMENTWISE, _elementwise),
    Step("reshape below elementwise", ELEMENTWISE, _elementwise_of_reshape),
    Step("transpose below reduction", _REDUCTIONS, _reduction),
    Step("transpose below softmax", (softmax,), _softmax),
    Step("transpose below concat", (concat,), _concat),
    Step("transpose below movement", (slice_, pad, roll, flip), _movement),
    Step("transpose below reshape", (reshape,), _reshape),
)
