"""fold-batch-norm: batch_norm(conv(x, w)) -> conv(x, w * s, t)."""

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import chain
from typing import ClassVar

from planish.compiler.ir import Node, Program, Value
from planish.compiler.ops import add, batch_norm, conv, full, linear, mul, rsqrt, sub, sum_
from planish.compiler.ops.contract import conv_padding
from planish.compiler.pass_ import Change, Context, Contract, Exact
from planish.compiler.rewrite import Step, apply_steps
from planish.passes.matching import each_function, is_constant, reshaped

Uses = Mapping[Node, int]


@dataclass(frozen=True, slots=True)
class FoldBatchNorm:
    """Removes batch norms: they become part of the weights of the convolution or linear map beside them.

    `batch_norm(conv(x, w, b))` becomes `conv(x, w * s, b * s + t)` with `s = scale / sqrt(variance + eps)` and
    `t = bias - mean * s`; a batch norm in front of a convolution is folded where nothing is padded. One whose
    neighbour has other users stays.
    """

    name: ClassVar[str] = "fold-batch-norm"
    contract: ClassVar[Contract] = Exact()

    def apply(self, program: Program, context: Context) -> Change:
        return each_function(program, lambda graph: apply_steps(graph, _STEPS))


def _after(node: Node, uses: Uses) -> Value | str | None:
    y = node.operands[2].node
    if y.op not in (conv, linear):
        return None
    if uses.get(y, 0) > 1:
        return f"the {y.op.name} before it has another user"
    x, w, *bias = y.inputs
    assert w is not None
    if not _constants(node) or not is_constant(w):
        return "its parameters are computed from the inputs"
    if w.dtype is not node.types[0].dtype:
        return f"the weight before it is {w.dtype}"
    if uses.get(w.node, 0) > 1:
        return "the weight before it has another user and would be stored twice"
    scale, shift = _affine(node)
    column = reshaped(scale, (w.shape[0], *(1,) * (w.type.rank - 1)), node.scope)
    if bias:
        shift = add(mul(bias[0], scale, scope=node.scope), shift, scope=node.scope)
    return y.op(x, mul(w, column, scope=node.scope), shift, scope=y.scope, **y.attrs)


def _before(node: Node, uses: Uses) -> Value | str | None:
    x, w, *bias = node.inputs
    assert x is not None
    assert w is not None
    norm = x.node
    if norm.op is not batch_norm or not _constants(norm) or not is_constant(w):
        return None
    if uses.get(norm, 0) > 1:
        return "the batch norm before it has another user"
    if node.op is conv and (any(chain(*conv_padding(node.attrs))) or node.attrs["groups"] != 1):
        return "padding or groups of the convolution after it change what its shift adds"
    if uses.get(w.node, 0) > 1:
        return "the weight after it has another user and would be stored twice"
    if w.dtype is not norm.types[0].dtype:
        return f"the weight after it is {w.dtype}"
    scale, shift = _affine(norm)
    summed = tuple(range(1, w.type.rank))
    added = sum_(mul(w, shift, scope=norm.scope), axes=summed, scope=norm.scope)
    total = add(added, bias[0], scope=norm.scope) if bias else added
    return node.op(norm.operands[2], mul(w, scale, scope=norm.scope), total, scope=node.scope, **node.attrs)


def _constants(norm: Node) -> bool:
    return all(is_constant(v) for i, v in enumerate(norm.operands) if i != 2)


def _affine(norm: Node) -> tuple[Value, Value]:
    """s and t of `batch_norm(x) = x * s + t`, each [C]."""
    mean, variance, _, *affine = norm.inputs
    scope = norm.scope
    assert mean is not None
    eps = full(value=norm.attrs["eps"], dtype=mean.dtype, scope=scope)
    scale = rsqrt(add(variance, eps, scope=scope), scope=scope)
    if affine and affine[0] is not None:
        scale = mul(scale, affine[0], scope=scope)
    zero = full(shape=mean.shape, value=0.0, dtype=mean.dtype, scope=scope)
    bias = affine[1] if len(affine) > 1 and affine[1] is not None else zero
    return scale, sub(bias, mul(mean, scale, scope=scope), scope=scope)


_STEPS = (
    Step("batch norm after", (batch_norm,), _after),
    Step("batch norm before", (conv, linear), _before),
)
