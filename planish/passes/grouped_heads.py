"""Operands of attention that it can take as they were before: keys and values repeated for groups, scaled queries."""

from collections.abc import Mapping

from planish.compiler.ir import Node, Value
from planish.compiler.ops import attention, div, expand, mul, reshape, slice_, transpose
from planish.compiler.types import same_shape
from planish.passes.matching import literal, reshaped

Uses = Mapping[Node, int]


def drop_repeat(node: Node, uses: Uses) -> Value | str | None:
    """Keys and values without their repetition along the heads, where both are repeated alike."""
    k, v = (_unrepeated(value) for value in node.operands[1:3])
    if k is None and v is None:
        return None
    if k is None or v is None or k.shape[1] != v.shape[1]:
        return "keys and values are not repeated alike"
    return attention(node.inputs[0], k, v, *node.inputs[3:], scope=node.scope, **node.attrs)


def _unrepeated(value: Value) -> Value | None:
    """x of `reshape(expand(x[:, :, None], [B, G, n, T, D]), [B, G * n, T, D])`."""
    if value.node.op is not reshape or value.node.operands[0].node.op is not expand:
        return None
    wide = value.node.operands[0]
    narrow = wide.node.operands[0]
    if wide.type.rank != 5 or narrow.type.rank != 5 or narrow.shape[2] != 1:
        return None
    before = (*narrow.shape[:2], *narrow.shape[3:])
    kept = same_shape((*wide.shape[:2], *wide.shape[3:]), before)
    merged = same_shape(value.shape, (wide.shape[0], wide.shape[1] * wide.shape[2], *wide.shape[3:]))
    return reshaped(narrow, before, narrow.node.scope) if kept and merged else None


def scale_of_query(node: Node, uses: Uses) -> Value | str | None:
    """A number that scales queries or keys scales the scores."""
    for i in (0, 1):
        found = _unscaled(node.operands[i])
        if found is None:
            continue
        x, factor = found
        scale = node.attrs["scale"]
        assert isinstance(scale, float)
        inputs = (*node.inputs[:i], x, *node.inputs[i + 1 :])
        return attention(*inputs, scope=node.scope, **{**node.attrs, "scale": scale * factor})
    return None


def _unscaled(value: Value) -> tuple[Value, float] | None:
    """x and c of `c * x`, where movements may stand between."""
    node = value.node
    if node.op in (reshape, transpose, slice_):
        found = _unscaled(node.operands[0])
        return None if found is None else (node.op(found[0], scope=node.scope, **node.attrs), found[1])
    if node.op not in (mul, div):
        return None
    x, y = node.operands
    if node.op is mul and literal(x) is not None:
        x, y = y, x
    number = literal(y)
    if not number or not same_shape(x.shape, value.shape):
        return None
    return x, number if node.op is mul else 1 / number
