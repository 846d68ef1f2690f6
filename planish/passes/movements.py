"""Movements that cancel with their neighbour or that the op after them does not need."""

from collections.abc import Mapping

from planish.compiler.ir import Node, Value, same_type
from planish.compiler.ops import (
    OPS,
    attention,
    concat,
    conv,
    expand,
    grouped_linear,
    linear,
    matmul,
    pad,
    reshape,
    slice_,
    transpose,
)
from planish.compiler.ops.contract import conv_padding, mask_of
from planish.compiler.ops.elementwise import broadcast
from planish.compiler.rewrite import Step
from planish.compiler.types import Dim, Shape, same_dim, same_shape, simplify
from planish.errors import TypeRuleError
from planish.passes.matching import axes, expanded, reshaped, transposed

Uses = Mapping[Node, int]

ELEMENTWISE = tuple(op for op in OPS if "elementwise" in op.traits)


def _nothing(node: Node, uses: Uses) -> Value | None:
    """A movement that gives its operand's own type; a transpose only in its own order."""
    x = node.operands[0]
    if node.op is transpose:
        return x if axes(node.attrs["order"]) == tuple(range(x.type.rank)) else None
    if node.op is slice_ and node.attrs["step"] != 1:
        return None
    return x if same_type(x.type, node.types[0]) else None


def _reshape(node: Node, uses: Uses) -> Value | None:
    x = node.operands[0]
    if x.node.op is reshape or (x.node.op is transpose and moves_only_units(x.node)):
        return reshape(x.node.operands[0], shape=node.types[0].shape, scope=node.scope)
    return None


def moves_only_units(node: Node) -> bool:
    """Whether a transpose keeps the order of all axes that are not of size 1: a reshape does the same."""
    shape = node.operands[0].shape
    wide = [i for i in axes(node.attrs["order"]) if shape[i] != 1]
    return wide == sorted(wide)


def _transpose(node: Node, uses: Uses) -> Value | None:
    x = node.operands[0]
    if x.node.op is transpose:
        return transposed(x, axes(node.attrs["order"]), node.scope)
    return reshape(x, shape=node.types[0].shape, scope=node.scope) if moves_only_units(node) else None


def _expand(node: Node, uses: Uses) -> Value | None:
    x = node.operands[0]
    return expand(x.node.operands[0], shape=node.types[0].shape, scope=node.scope) if x.node.op is expand else None


def _slice(node: Node, uses: Uses) -> Value | None:
    x = node.operands[0]
    if x.node.op is concat and x.node.attrs["axis"] == node.attrs["axis"] and node.attrs["step"] == 1:
        return _slice_of_concat(node, x.node)
    same = x.node.op is slice_ and x.node.attrs["axis"] == node.attrs["axis"]
    if not same or (x.node.attrs["step"], node.attrs["step"]) != (1, 1):
        return None
    offset = x.node.attrs["start"]
    start, stop = (simplify(_dim(node.attrs[n]) + _dim(offset)) for n in ("start", "stop"))
    return slice_(x.node.operands[0], axis=node.attrs["axis"], start=start, stop=stop, scope=node.scope)


def _slice_of_concat(node: Node, joined: Node) -> Value | None:
    """The one piece that the slice lies in, or a slice of it."""
    axis = node.attrs["axis"]
    assert isinstance(axis, int)
    start, stop, offset = _dim(node.attrs["start"]), _dim(node.attrs["stop"]), _dim(0)
    for piece in joined.operands:
        end = simplify(offset + piece.shape[axis])
        if same_dim(start, offset) and same_dim(stop, end):
            return piece
        if all(isinstance(d, int) for d in (start, stop, offset, end)) and offset <= start and stop <= end:
            return slice_(piece, axis=axis, start=start - offset, stop=stop - offset, scope=node.scope)
        offset = end
    return None


def _dim(attr: object) -> Dim:
    return attr


def _concat(node: Node, uses: Uses) -> Value | None:
    """One input is itself; an input that is a join along the same axis is joined at once."""
    if len(node.operands) == 1:
        return node.operands[0]
    axis = node.attrs["axis"]
    inner = [v.node.op is concat and v.node.attrs["axis"] == axis and uses.get(v.node, 0) == 1 for v in node.operands]
    if not any(inner):
        return None
    flat = [p for v, joined in zip(node.operands, inner, strict=True) for p in (v.node.operands if joined else (v,))]
    return concat(*flat, axis=axis, scope=node.scope)


def _pad_in_conv(node: Node, uses: Uses) -> Value | str | None:
    """A convolution pads zeros itself, also where the ends of an axis get different counts."""
    x = node.operands[0]
    order = axes(x.node.attrs["order"]) if x.node.op is transpose else tuple(range(x.type.rank))
    padded = (x.node.operands[0] if x.node.op is transpose else x).node
    if padded.op is not pad:
        return None
    if (value := padded.attrs["value"]) != 0:
        return f"a convolution pads zeros, and the padding before it is {value}"
    added = [tuple(axes(padded.attrs[side])[i] for i in order) for side in ("before", "after")]
    if any(side[0] or side[-1] for side in added):
        return "the padding before the convolution adds images or channels"
    before, after = (
        tuple(a + b for a, b in zip(own, side[1:-1], strict=True))
        for own, side in zip(conv_padding(node.attrs), added, strict=True)
    )
    attrs = {**node.attrs, "padding": before, "after": None if after == before else after}
    bare = transposed(padded.operands[0], order, node.scope) if x.node.op is transpose else padded.operands[0]
    return conv(bare, *node.inputs[1:], scope=node.scope, **attrs)


def _broadcasts(node: Node, uses: Uses) -> Value | None:
    """Elementwise ops broadcast by themselves: the expansion moves behind them, or is not needed."""
    bare = tuple(v.node.operands[0] if v is not None and v.node.op is expand else v for v in node.inputs)
    if bare == node.inputs:
        return None
    small = node.op(*bare, scope=node.scope, **node.attrs)
    return expanded(small, node.types[0].shape, node.scope)


def _mask_broadcasts(node: Node, uses: Uses) -> Value | None:
    mask = mask_of(node)
    if mask is None or mask.node.op is not expand:
        return None
    small = mask.node.operands[0]
    small = reshaped(small, (1,) * (4 - small.type.rank) + small.shape, node.scope)
    return attention(*node.inputs[:3], small, *node.inputs[4:], scope=node.scope, **node.attrs)


def _product_broadcasts(node: Node, uses: Uses) -> Value | None:
    """matmul broadcasts its leading axes by itself."""
    for i, value in enumerate(node.operands):
        small = value.node.operands[0] if value.node.op is expand else value
        if small is value or small.type.rank < 2 or not same_shape(small.shape[-2:], value.shape[-2:]):
            continue
        inputs = (small, node.operands[1]) if i == 0 else (node.operands[0], small)
        if same_shape(_lead(inputs), node.types[0].shape[:-2]):
            return matmul(*inputs, scope=node.scope)
    return None


def _lead(inputs: tuple[Value, Value]) -> Shape:
    try:
        return broadcast(*(v.shape[:-2] for v in inputs))
    except TypeRuleError:
        return ()


def _linear_of_reshape(node: Node, uses: Uses) -> Value | None:
    """A linear map sees the last axis only: a reshape of the others goes behind it."""
    x = node.operands[0]
    if x.node.op is not reshape:
        return None
    inner = x.node.operands[0]
    if inner.type.rank < 2 or not same_dim(inner.shape[-1], x.shape[-1]):
        return None
    return reshaped(linear(inner, *node.inputs[1:], scope=node.scope, **node.attrs), node.types[0].shape, node.scope)


def _grouped_of_reshape(node: Node, uses: Uses) -> Value | None:
    """The same for a grouped product, whose index takes the shape of the rows."""
    x, w, index = node.operands
    if x.node.op is not reshape:
        return None
    inner = x.node.operands[0]
    if inner.type.rank < 2 or not same_dim(inner.shape[-1], x.shape[-1]):
        return None
    index = reshaped(index, inner.shape[:-1], node.scope)
    result = grouped_linear(inner, w, index, scope=node.scope, **node.attrs)
    return reshaped(result, node.types[0].shape, node.scope)


_MOVEMENTS = (reshape, transpose, expand, slice_, pad)

CANCEL = (
    Step("movement that moves nothing", _MOVEMENTS, _nothing),
    Step("reshape of reshape", (reshape,), _reshape),
    Step("transpose of transpose", (transpose,), _transpose),
    Step("expand of expand", (expand,), _expand),
    Step("slice of slice or concat", (slice_,), _slice),
    Step("concat of concat", (concat,), _concat),
    Step("expand before broadcasting", ELEMENTWISE, _broadcasts),
    Step("expand before attention", (attention,), _mask_broadcasts),
    Step("expand before matmul", (matmul,), _product_broadcasts),
    Step("pad before convolution", (conv,), _pad_in_conv),
    Step("reshape before linear", (linear,), _linear_of_reshape),
    Step("reshape before grouped product", (grouped_linear,), _grouped_of_reshape),
)
