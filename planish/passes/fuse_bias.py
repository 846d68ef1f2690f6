"""fuse-bias: linear(x, w) + b -> linear(x, w, b), linear(x, w) * s -> linear(x, w * s), x @ w -> linear(x, w^T)."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from planish.compiler.ir import Node, Program, Value
from planish.compiler.ops import add, conv, div, linear, matmul, mul, neg, reshape, sub
from planish.compiler.pass_ import Change, Context, Contract, Exact
from planish.compiler.rewrite import Step, apply_steps
from planish.compiler.types import same_dim
from planish.passes.matching import each_function, is_constant, reshaped, swapped

Uses = Mapping[Node, int]


@dataclass(frozen=True, slots=True)
class FuseBias:
    """Moves constant sums and factors after a linear map or a convolution into its weights.

    `linear(x, w) + b` becomes `linear(x, w, b)`, `linear(x, w, b) * s` becomes `linear(x, w * s, b * s)`, and a
    product with a constant matrix becomes `linear`. Weights that something else reads are not scaled: that would
    store them twice.
    """

    name: ClassVar[str] = "fuse-bias"
    contract: ClassVar[Contract] = Exact()

    def apply(self, program: Program, context: Context) -> Change:
        return each_function(program, lambda graph: apply_steps(graph, _STEPS))


def _matrix(node: Node, uses: Uses) -> Value | None:
    x, y = node.operands
    if y.type.rank != 2 or not is_constant(y) or is_constant(x):
        return None
    return linear(x, swapped(y, node.scope), scope=node.scope)


def _bias(node: Node, uses: Uses) -> Value | str | None:
    for y, b in _pairs(node, add):
        maps = _map_under(y)
        if maps is None or not _is_vector(b, y):
            continue
        if any(uses.get(n, 0) > 1 for n in (maps, y.node)):
            return "the sum without its bias has another user"
        bias = reshaped(b, (y.shape[-1],), node.scope)
        bias = neg(bias, scope=node.scope) if node.op is sub else bias
        if len(maps.inputs) > 2:
            bias = add(maps.inputs[2], bias, scope=node.scope)
        result = maps.op(*maps.inputs[:2], bias, scope=maps.scope, **maps.attrs)
        return reshaped(result, node.types[0].shape, node.scope)
    return None


def _factor(node: Node, uses: Uses) -> Value | str | None:
    for y, s in _pairs(node, mul):
        maps = _map_under(y)
        if maps is None or not (s.type.rank == 0 or _is_vector(s, y)) or not is_constant(s):
            continue
        x, w, *bias = maps.inputs
        assert w is not None
        if w.dtype is not s.dtype:
            return f"its weight is {w.dtype} and the factor {s.dtype}"
        if not all(is_constant(p) for p in (w, *bias) if p is not None):
            return None
        if any(uses.get(n, 0) > 1 for n in (maps, y.node)):
            return "the product without its factor has another user"
        if uses.get(w.node, 0) > 1:
            return "its weight has another user and would be stored twice"
        column = s if s.type.rank == 0 else reshaped(s, (y.shape[-1], *(1,) * (w.type.rank - 1)), node.scope)
        row = s if s.type.rank == 0 else reshaped(s, (y.shape[-1],), node.scope)
        scaled = [node.op(w, column, scope=node.scope), *(node.op(b, row, scope=node.scope) for b in bias)]
        return reshaped(maps.op(x, *scaled, scope=maps.scope, **maps.attrs), node.types[0].shape, node.scope)
    return None


def _pairs(node: Node, commutative: object) -> list[tuple[Value, Value]]:
    x, y = node.operands
    return [(x, y), (y, x)] if node.op is commutative else [(x, y)]


def _map_under(value: Value) -> Node | None:
    """The linear map or convolution that the value is, up to a reshape that keeps the last axis."""
    if value.node.op is reshape:
        inner = value.node.operands[0]
        if inner.node.op is not linear or value.type.rank < 1 or not same_dim(inner.shape[-1], value.shape[-1]):
            return None
        value = inner
    return value.node if value.node.op in (linear, conv) else None


def _is_vector(b: Value, y: Value) -> bool:
    """Whether `b` is a constant along the last axis of y alone."""
    unit = b.type.rank <= y.type.rank and all(d == 1 for d in b.shape[:-1])
    return unit and b.type.rank > 0 and same_dim(b.shape[-1], y.shape[-1]) and is_constant(b)


_STEPS = (
    Step("matmul with a weight", (matmul,), _matrix),
    Step("bias", (add, sub), _bias),
    Step("factor", (mul, div), _factor),
)
