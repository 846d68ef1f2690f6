"""fuse-norms: x * rsqrt(mean(x * x) + eps) * w -> rms_norm(x, w), and alike for layer_norm."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from planish.compiler.ir import Node, Program, Value
from planish.compiler.ops import add, div, full, layer_norm, mean, mul, pow_, reciprocal, rms_norm, rsqrt, sqrt, sub
from planish.compiler.pass_ import Change, Context, Contract, Exact
from planish.compiler.rewrite import Step, apply_steps
from planish.compiler.types import same_dim, same_shape
from planish.passes.matching import axes, each_function, is_constant, is_number, literal, reshaped

Uses = Mapping[Node, int]


@dataclass(frozen=True, slots=True)
class FuseNorms:
    """Makes one `rms_norm` or `layer_norm` of a normalization that the model spells out.

    `x * rsqrt(mean(x * x) + eps)` becomes `rms_norm(x)`, `(x - mean(x)) / sqrt(mean((x - mean(x))^2) + eps)` becomes
    `layer_norm(x)`, and a scale and a bias after them become their operands. It takes the last axis only, and leaves
    norms whose statistics something else reads.
    """

    name: ClassVar[str] = "fuse-norms"
    contract: ClassVar[Contract] = Exact()

    def apply(self, program: Program, context: Context) -> Change:
        return each_function(program, lambda graph: apply_steps(graph, _STEPS))


def _normalize(node: Node, uses: Uses) -> Value | str | None:
    """`y * rsqrt(mean(y^2) + eps)` or `y / sqrt(mean(y^2) + eps)`."""
    for y, factor in _products(node):
        scale = _statistics(factor, inverse=node.op is mul)
        if scale is None or scale[0] != y or not same_shape(y.shape, node.types[0].shape):
            continue
        if any(uses.get(v.node, 0) > 1 for v in scale[2]):
            return "its statistics have another user"
        x = _centered(y)
        if x is None:
            return rms_norm(y, eps=scale[1], scope=node.scope)
        return layer_norm(x, eps=scale[1], scope=node.scope)
    return None


def _products(node: Node) -> list[tuple[Value, Value]]:
    x, y = node.operands
    return [(x, y), (y, x)] if node.op is mul else [(x, y)]


def _statistics(factor: Value, *, inverse: bool) -> tuple[Value, float, list[Value]] | None:
    """y, eps and the inner values of `rsqrt(mean(y^2) + eps)` (`inverse`) or of `sqrt(mean(y^2) + eps)`."""
    inner, path = factor, [factor]
    if inverse and inner.node.op is reciprocal:
        inner = inner.node.operands[0]
        path.append(inner)
        root = sqrt
    else:
        root = rsqrt if inverse else sqrt
    if inner.node.op is not root or inner.node.operands[0].node.op is not add:
        return None
    total = inner.node.operands[0]
    moment, eps = total.node.operands
    if literal(moment) is not None:
        moment, eps = eps, moment
    number = literal(eps)
    y = _mean_square(moment)
    if y is None or number is None:
        return None
    return y, float(number), [*path, total, moment, moment.node.operands[0]]


def _mean_square(moment: Value) -> Value | None:
    """y of `mean(y * y)` or `mean(y^2)` over the last axis, kept."""
    if not _is_last_mean(moment):
        return None
    square = moment.node.operands[0].node
    if square.op is mul and square.operands[0] == square.operands[1]:
        return square.operands[0]
    return square.operands[0] if square.op is pow_ and is_number(square.operands[1], 2.0) else None


def _is_last_mean(value: Value) -> bool:
    if value.node.op is not mean or not value.node.attrs["keep"]:
        return False
    return axes(value.node.attrs["axes"]) == (value.type.rank - 1,)


def _centered(y: Value) -> Value | None:
    """x of `x - mean(x)`."""
    if y.node.op is not sub:
        return None
    x, average = y.node.operands
    return x if _is_last_mean(average) and average.node.operands[0] == x else None


def _scale(node: Node, uses: Uses) -> Value | str | None:
    for norm, w in _products(node):
        if norm.node.op in (rms_norm, layer_norm) and _is_parameter(w, norm):
            if uses.get(norm.node, 0) > 1:
                return "the norm without its scale has another user"
            if len(norm.node.inputs) > 1:
                return None if norm.node.op is rms_norm else "the norm has a scale already"
            weight = reshaped(w, (norm.shape[-1],), node.scope)
            return norm.node.op(norm.node.inputs[0], weight, scope=node.scope, **norm.node.attrs)
    return None


def _shift(node: Node, uses: Uses) -> Value | str | None:
    for norm, b in (node.operands, node.operands[::-1]):
        if norm.node.op is layer_norm and len(norm.node.inputs) < 3 and _is_parameter(b, norm):
            if uses.get(norm.node, 0) > 1:
                return "the norm without its bias has another user"
            w = norm.node.inputs[1] if len(norm.node.inputs) > 1 else None
            if w is None:
                w = full(shape=(norm.shape[-1],), value=1.0, dtype=norm.dtype, scope=node.scope)
            bias = reshaped(b, (norm.shape[-1],), node.scope)
            return layer_norm(norm.node.inputs[0], w, bias, scope=node.scope, **norm.node.attrs)
    return None


def _is_parameter(w: Value, norm: Value) -> bool:
    """Whether `w` is a constant vector along the last axis."""
    unit = all(d == 1 for d in w.shape[:-1])
    return unit and w.type.rank > 0 and same_dim(w.shape[-1], norm.shape[-1]) and is_constant(w)


_STEPS = (
    Step("normalize", (mul, div), _normalize),
    Step("scale of norm", (mul,), _scale),
    Step("bias of norm", (add,), _shift),
)
