"""Attention spelled out: from a product of probabilities and values back to queries, keys, scale and masks."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from planish.compiler.ir import Node, Value
from planish.compiler.ops import (
    add,
    attention,
    cast,
    div,
    full,
    logical_not,
    matmul,
    mul,
    reshape,
    softmax,
    tanh,
    where,
)
from planish.compiler.ops.elementwise import broadcast
from planish.compiler.types import DType, Shape, elements, same_dim, same_shape
from planish.errors import TypeRuleError
from planish.passes.attention_sinks import without_sink
from planish.passes.matching import literal, reshaped, swapped

Uses = Mapping[Node, int]


@dataclass(slots=True)
class _Scores:
    """What is found on the way from the softmax up to `matmul(q, k^T)`."""

    scale: float = 1.0
    masks: list[Value] = field(default_factory=list)
    leads: list[Shape] = field(default_factory=list)
    product: Node | None = None
    cap: float | None = None
    sink: Value | None = None
    inner: list[Value] = field(default_factory=list)


def fuse(node: Node, uses: Uses) -> Value | str | None:
    """The attention that a matmul of probabilities and values ends, or why it is none."""
    found = fuse_capped(node, uses)
    if not isinstance(found, tuple):
        return found
    return found[0] if found[1] is None else f"its scores are capped at {found[1]:g} by tanh"


def fuse_capped(node: Node, uses: Uses) -> tuple[Value, float | None] | str | None:
    """As `fuse`, with the cap of scores that run through `cap * tanh(scores / cap)` before their mask."""
    probabilities, v = _through_views(node.operands[0]), node.operands[1]
    sinking = without_sink(probabilities)
    probabilities = probabilities if sinking is None else sinking.probabilities
    if _is_cast_softmax(probabilities):
        return f"its softmax runs in {probabilities.node.operands[0].dtype}, its product in {v.dtype}"
    if probabilities.node.op is not softmax or probabilities.node.attrs["axis"] != probabilities.type.rank - 1:
        return None
    scores = _Scores() if sinking is None else _Scores(sink=sinking.sink, inner=[node.operands[0]])
    _walk(probabilities.node.operands[0] if sinking is None else sinking.scores, scores, node.scope)
    if scores.product is None:
        return None
    scores.inner.append(probabilities)
    if any(uses.get(value.node, 0) > 1 for value in scores.inner):
        return "its scores or probabilities have another user"
    built = _build(node, scores, scores.product, v)
    return built if isinstance(built, str) else (built, scores.cap)


def _is_cast_softmax(value: Value) -> bool:
    return value.node.op is cast and value.node.operands[0].node.op is softmax


def _through_views(value: Value) -> Value:
    """The value before reshapes that keep the last two axes."""
    while value.node.op is reshape and _keeps_last_two(value):
        value = value.node.operands[0]
    return value


def _keeps_last_two(value: Value) -> bool:
    inner = value.node.operands[0]
    return min(inner.type.rank, value.type.rank) > 1 and same_shape(inner.shape[-2:], value.shape[-2:])


def _walk(value: Value, scores: _Scores, scope: str) -> bool:
    """Collect scale and masks from `value` inwards; whether the product of q and k was reached."""
    node = value.node
    if node.op is matmul:
        scores.product = node
    elif node.op is reshape and _keeps_last_two(value):
        scores.leads.append(value.shape[:-2])
        if not _walk(node.operands[0], scores, scope):
            return False
    elif node.op in (mul, div):
        if not _walk_scaled(node, scores, scope):
            return False
    elif node.op is add:
        if not _walk_masked(node, node.operands[0], node.operands[1], scores, scope):
            return False
    elif node.op is where:
        if not _walk_filled(node, scores, scope):
            return False
    else:
        return False
    scores.inner.append(value)
    return True


def _walk_scaled(node: Node, scores: _Scores, scope: str) -> bool:
    x, y = node.operands
    if node.op is mul and literal(x) is not None:
        x, y = y, x
    number = literal(y)
    if not number or not same_shape(x.shape, node.types[0].shape):
        return False
    if node.op is mul and x.node.op is tanh:
        return _walk_capped(x, float(number), scores, scope)
    factor = number if node.op is mul else 1 / number
    outside = len(scores.masks)
    if not _walk(x, scores, scope):
        return False
    scores.masks[outside:] = [_times(m, factor, scope) for m in scores.masks[outside:]]
    scores.scale *= factor
    return True


def _times(mask: Value, factor: float, scope: str) -> Value:
    """The mask scaled; a choice between two numbers stays one, so that what it means can still be seen."""
    numbers = [literal(v) for v in mask.node.operands[1:]] if mask.node.op is where else []
    if any(number is None for number in numbers) or not numbers:
        return mul(mask, full(value=factor, dtype=mask.dtype, scope=scope), scope=scope)
    scaled = (full(value=float(n) * factor, dtype=mask.dtype, scope=scope) for n in numbers if n is not None)
    return where(mask.node.operands[0], *scaled, scope=scope)


def _walk_capped(x: Value, cap: float, scores: _Scores, scope: str) -> bool:
    """Scores that `cap * tanh(scores / cap)` keeps between -cap and cap; a scale inside, but no mask."""
    masked, scale = len(scores.masks), scores.scale
    if scores.cap is not None or scale != 1 or not _walk(x.node.operands[0], scores, scope):
        return False
    scores.inner.append(x)
    scores.cap, scores.scale = cap, scores.scale * cap
    return len(scores.masks) == masked


def _walk_masked(node: Node, x: Value, mask: Value, scores: _Scores, scope: str) -> bool:
    for inner, other in ((x, mask), (mask, x)):
        if not same_shape(inner.shape, node.types[0].shape):
            continue
        held = (scores.scale, list(scores.masks), list(scores.leads), list(scores.inner))
        scores.masks.append(other)
        if _walk(inner, scores, scope):
            return True
        scores.scale, scores.masks, scores.leads, scores.inner = held
    return False


def _walk_filled(node: Node, scores: _Scores, scope: str) -> bool:
    """`where(keep, scores, lowest)` and `where(drop, lowest, scores)` add `lowest` where scores are dropped."""
    condition, x, y = node.operands
    keeps = literal(y) is not None
    inner, fill = (x, literal(y)) if keeps else (y, literal(x))
    if fill is None or fill > -1e30 or not same_shape(inner.shape, node.types[0].shape):
        return False
    keep = condition if keeps else logical_not(condition, scope=scope)
    of = inner.dtype
    zero, low = (full(value=float(f), dtype=of, scope=scope) for f in (0.0, fill))
    scores.masks.append(where(keep, zero, low, scope=scope))
    return _walk(inner, scores, scope)


def _build(node: Node, scores: _Scores, product: Node, v: Value) -> Value | str:
    q, k = product.operands[0], swapped(product.operands[1], node.scope)
    if not (same_shape(q.shape[:-2], k.shape[:-2]) and _same_heads(k.shape[:-2], v.shape[:-2])):
        return f"q {q.type}, k {k.type} and v {v.type} have not the same leading axes"
    leads = (*scores.leads, product.types[0].shape[:-2])
    lead: Shape | None = next((s for s in leads if len(s) == 2), _two_axes(leads[-1]))
    if lead is None:
        return f"its scores {product.types[0]} have more than two leading axes"
    masks = [_mask(m, lead, product.types[0].shape[-2:], node.scope) for m in scores.masks]
    if any(m is None for m in masks):
        return "a mask does not broadcast to the scores"
    mask: Value | None = None
    for m in masks:
        mask = m if mask is None else add(m, mask, scope=node.scope)
    if scores.sink is not None and not same_shape(scores.sink.shape, lead[1:]):
        return f"its sink {scores.sink.type} is not one for each of {lead[1]} heads"
    q, k, v = (reshaped(t, (*lead, *t.shape[-2:]), node.scope) for t in (q, k, v))
    result = attention(q, k, v, mask, None, scores.sink, scale=scores.scale, scope=node.scope)
    return reshaped(result, node.types[0].shape, node.scope)


def _same_heads(left: Shape, right: Shape) -> bool:
    return same_dim(elements(left), elements(right))


def _two_axes(lead: Shape) -> Shape | None:
    return (*(1,) * (1 - len(lead)), *lead, 1) if len(lead) < 2 else None


def _mask(mask: Value, lead: Shape, last: Shape, scope: str) -> Value | None:
    """A mask of any rank as one of rank 4 that broadcasts to `[*lead, *last]`."""
    tail, front = mask.shape[-2:], mask.shape[:-2]
    if mask.dtype is DType.bool or len(front) > 2:
        return None
    if len(front) == 1 and not same_dim(front[0], lead[1]) and front[0] != 1:
        front = lead if same_dim(front[0], elements(lead)) else (*front, 1)
    shape = (1,) * (2 - len(front)) + front + (1,) * (2 - len(tail)) + tail
    try:
        broadcast(shape, (*lead, *last))
    except TypeRuleError:
        return None
    return reshaped(mask, shape, scope)
