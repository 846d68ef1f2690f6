"""Attention whose softmax counts a sink: a score of each head that belongs to no key and is dropped again."""

from dataclasses import dataclass

from planish.compiler.ir import Value
from planish.compiler.ops import amax, concat, expand, reshape, slice_, softmax, sub
from planish.compiler.types import same_dim, same_shape
from planish.passes.matching import axes, reshaped


@dataclass(frozen=True, slots=True)
class Sinking:
    """The `probabilities` [B, H, S, T + 1] of `softmax(concat(scores, sink))` and its parts: `scores` [B, H, S, T] and
    `sink` [H]."""

    probabilities: Value
    scores: Value
    sink: Value


def without_sink(value: Value) -> Sinking | None:
    """The parts of `softmax(concat(scores, sink))[..., :-1]`, whose largest score may be taken off before; or None."""
    node, last = value.node, value.type.rank - 1
    if node.op is not slice_ or node.attrs["axis"] != last or node.attrs["start"] != 0 or node.attrs["step"] != 1:
        return None
    probabilities = node.operands[0]
    if probabilities.node.op is not softmax or probabilities.node.attrs["axis"] != last:
        return None
    joined = _without_largest(probabilities.node.operands[0])
    if joined.node.op is not concat or joined.node.attrs["axis"] != last or len(joined.node.operands) != 2:
        return None
    scores, column = joined.node.operands
    sink = _by_head(column)
    return None if sink is None or not same_shape(scores.shape, value.shape) else Sinking(probabilities, scores, sink)


def _without_largest(value: Value) -> Value:
    """x of `x - amax(x)` over the last axis: a softmax of both is the same."""
    if value.node.op is not sub:
        return value
    x, largest = value.node.operands
    while largest.node.op in (expand, reshape):
        largest = largest.node.operands[0]
    found = largest.node.op is amax and largest.node.operands[0] == x
    return x if found and axes(largest.node.attrs["axes"]) == (x.type.rank - 1,) else value


def _by_head(column: Value) -> Value | None:
    """The numbers [H] of a column [B, H, S, 1] that differs by head alone."""
    if column.type.rank != 4 or not same_dim(column.shape[3], 1):
        return None
    bare = column.node.operands[0] if column.node.op is expand else column
    heads = (1, column.shape[1], 1, 1)[4 - bare.type.rank :]
    return reshaped(bare, column.shape[1:2], column.node.scope) if same_shape(bare.shape, heads) else None
