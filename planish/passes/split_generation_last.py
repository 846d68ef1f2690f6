"""Models that return the logits of the last token alone: what they compute of it is computed of every token."""

from planish.compiler.ir import Node, Value
from planish.compiler.ops import layer_norm, linear, reshape, rms_norm, slice_
from planish.compiler.types import Dim, same_shape, simplify
from planish.passes.matching import literal

_ALONG_LAST_AXIS = (linear, layer_norm, rms_norm)


def of_all_tokens(value: Value, tokens: Dim) -> Value | None:
    """The value [B, tokens, N] whose last token `value` [B, 1, N] or [B, N] is; None where it is none.

    Behind the place where the last token is taken, only ops that treat each token alone are followed.
    """
    node = value.node
    if _takes_last(node, tokens):
        return node.operands[0]
    if node.op is reshape and _of_one_token(node):
        return of_all_tokens(node.operands[0], tokens)
    if "elementwise" not in node.op.traits and node.op not in _ALONG_LAST_AXIS:
        return None
    followed = {v for v in node.operands if not _is_parameter(v)}
    found = of_all_tokens(next(iter(followed)), tokens) if len(followed) == 1 else None
    if found is None:
        return None
    inputs = tuple(found if v in followed else v for v in node.inputs)
    return node.op.node(inputs, node.attrs, node.scope).values[0]


def _takes_last(node: Node, tokens: Dim) -> bool:
    """Whether the node cuts the last of `tokens` out of axis 1 of a value [B, tokens, N]."""
    if node.op is not slice_ or node.operands[0].type.rank != 3 or node.attrs["axis"] != 1:
        return False
    return node.attrs["stop"] == tokens == node.operands[0].shape[1] and node.attrs["start"] == simplify(tokens - 1)


def _of_one_token(node: Node) -> bool:
    """Whether a reshape adds or drops the axis of a single token, and nothing else."""
    short, long = sorted((node.operands[0].shape, node.types[0].shape), key=len)
    return len(short) == 2 and len(long) == 3 and same_shape(long, (short[0], 1, short[1]))


def _is_parameter(value: Value) -> bool:
    """A number, or a weight."""
    return literal(value) is not None or value.node.op.name == "weight"
