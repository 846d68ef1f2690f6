"""aten's contractions: linear layers, matrix products, convolutions and attention."""

import math
from collections.abc import Sequence
from typing import Any

import torch

from planish.compiler import ops
from planish.compiler.importers.builder import Builder, Table, UncoveredError
from planish.compiler.importers.sizes import product
from planish.compiler.ir import Value
from planish.compiler.types import Dim, DType, same_dim

aten = torch.ops.aten


def _linear(b: Builder, x: Value, w: Value, bias: Value | None = None) -> Value:
    return b.emit(ops.linear, x, w, bias)


def _matmul(b: Builder, x: Value, y: Value) -> Value:
    left, right = x.type.rank == 1, y.type.rank == 1
    if not left and y.node.op is ops.weight and y.type.rank == 2:
        return b.emit(ops.linear, x, b.transpose(y, (1, 0)))
    x = b.reshape(x, (1, *x.shape)) if left else x
    y = b.reshape(y, (*y.shape, 1)) if right else y
    result = b.emit(ops.matmul, x, y)
    kept = [d for i, d in enumerate(result.shape) if not (left and i == len(result.shape) - 2)]
    return b.reshape(result, tuple(kept[:-1] if right else kept))


def _addmm(b: Builder, bias: Value, x: Value, y: Value, beta: Any = 1, alpha: Any = 1) -> Value:
    if beta == alpha == 1 and bias.type.rank == 1 and y.node.op is ops.weight:
        return b.emit(ops.linear, x, b.transpose(y, (1, 0)), bias)
    product_, bias = _scaled(b, b.emit(ops.matmul, x, y), alpha), _scaled(b, bias, beta)
    return b.emit(ops.add, product_, bias)


def _scaled(b: Builder, x: Value, factor: Any) -> Value:
    return x if factor == 1 else b.emit(ops.mul, x, b.scalar(factor, x.dtype))


def _conv(
    b: Builder,
    x: Value,
    w: Value,
    bias: Value | None,
    stride: Any,
    padding: Any,
    dilation: Any,
    groups: int,
    after: tuple[int, ...] | None = None,
) -> Value:
    """Channels first in and out: transposes around our channels-last op, which passes cancel."""
    spatial = w.type.rank - 2
    if spatial > 2:
        raise UncoveredError
    batched = x if x.type.rank == w.type.rank else b.reshape(x, (1, *x.shape))
    attrs = {"stride": wide(stride, spatial), "padding": wide(padding, spatial), "dilation": wide(dilation, spatial)}
    last = b.emit(ops.conv, channels_last(b, batched), channels_last(b, w), bias, **attrs, groups=groups, after=after)
    result = channels_first(b, last)
    return result if batched is x else b.reshape(result, result.shape[1:])


def _conv_string(
    b: Builder, x: Value, w: Value, bias: Value | None, stride: Any, padding: str, dilation: Any, groups: int
) -> Value:
    spatial = w.type.rank - 2
    if padding == "valid":
        return _conv(b, x, w, bias, stride, 0, dilation, groups)
    totals = [d * (k - 1) for d, k in zip(wide(dilation, spatial), w.shape[2:], strict=True)]
    after = tuple(t - t // 2 for t in totals) if any(t % 2 for t in totals) else None
    return _conv(b, x, w, bias, stride, [t // 2 for t in totals], dilation, groups, after)


def _conv_transposed(
    b: Builder,
    x: Value,
    w: Value,
    bias: Value | None = None,
    stride: Any = 1,
    padding: Any = 0,
    output_padding: Any = 0,
    groups: int = 1,
    dilation: Any = 1,
) -> Value:
    """A convolution of the input with zeros between its elements by the flipped weight; w [I, O / groups, *kernel]."""
    spatial = w.type.rank - 2
    steps, dilations = wide(stride, spatial), wide(dilation, spatial)
    if spatial > 2 or x.type.rank != w.type.rank:
        raise UncoveredError
    for axis, step in enumerate(steps, start=2):
        x = _spread(b, x, axis, step)
    edges = [d * (k - 1) - p for d, k, p in zip(dilations, w.shape[2:], wide(padding, spatial), strict=True)]
    after = [e + o for e, o in zip(edges, wide(output_padding, spatial), strict=True)]
    if min(*edges, *after) < 0:
        raise UncoveredError
    x = b.emit(ops.pad, x, before=(0, 0, *edges), after=(0, 0, *after))
    flipped = b.emit(ops.flip, w, axes=tuple(range(2, w.type.rank)))
    inputs, outputs, kernel = w.shape[0] // groups, w.shape[1], w.shape[2:]
    grouped = b.transpose(b.reshape(flipped, (groups, inputs, *w.shape[1:])), (0, 2, 1, *range(3, spatial + 3)))
    turned = b.reshape(grouped, (groups * outputs, inputs, *kernel))
    return _conv(b, x, turned, bias, 1, 0, dilations, groups)


def _spread(b: Builder, x: Value, axis: int, step: int) -> Value:
    """`step - 1` zeros between the elements of an axis."""
    if step == 1:
        return x
    before, size, after = x.shape[:axis], x.shape[axis], x.shape[axis + 1 :]
    opened = b.reshape(x, (*before, size, 1, *after))
    zeros = tuple(step - 1 if i == axis + 1 else 0 for i in range(opened.type.rank))
    padded = b.emit(ops.pad, opened, before=(0,) * opened.type.rank, after=zeros)
    return b.slice(b.reshape(padded, (*before, size * step, *after)), axis, 0, size * step - step + 1)


def _convolution(
    b: Builder,
    x: Value,
    w: Value,
    bias: Value | None,
    stride: Any,
    padding: Any,
    dilation: Any,
    transposed: bool,
    output_padding: Any,
    groups: int,
    *_: Any,
) -> Value:
    if transposed:
        return _conv_transposed(b, x, w, bias, stride, padding, output_padding, groups, dilation)
    return _conv(b, x, w, bias, stride, padding, dilation, groups)


def wide(sizes: Any, count: int) -> tuple[int, ...]:
    """One size an axis from one number, a list of one or a list of all."""
    listed = tuple(sizes) if isinstance(sizes, Sequence) else (sizes,)
    return listed * count if len(listed) == 1 else listed


def channels_last(b: Builder, x: Value) -> Value:
    """[N, C, *spatial] -> [N, *spatial, C]."""
    return b.transpose(x, (0, *range(2, x.type.rank), 1))


def channels_first(b: Builder, x: Value) -> Value:
    """[N, *spatial, C] -> [N, C, *spatial]."""
    return b.transpose(x, (0, x.type.rank - 1, *range(1, x.type.rank - 1)))


def _attention(
    b: Builder,
    q: Value,
    k: Value,
    v: Value,
    mask: Value | None = None,
    dropout: float = 0.0,
    causal: bool = False,
    scale: float | None = None,
    grouped: bool = False,
) -> Value:
    if scale is None:
        if not isinstance(q.shape[-1], int):
            raise UncoveredError
        scale = 1 / math.sqrt(q.shape[-1])
    if causal and not same_dim(q.shape[-2], k.shape[-2]):
        mask, causal = _upper_left(b, q.shape[-2], k.shape[-2]), False
    q4, k4, v4 = (_rank_four(b, t, q.type.rank) for t in (q, k, v))
    if mask is not None:
        mask = _mask(b, mask, q, q4)
    result = b.emit(ops.attention, q4, k4, v4, mask, causal=causal, scale=float(scale))
    return b.reshape(result, (*q.shape[:-1], v.shape[-1]))


def _upper_left(b: Builder, queries: Dim, keys: Dim) -> Value:
    """torch aligns causality with the first key when the lengths differ; ours with the last."""
    row = b.reshape(b.emit(ops.arange, length=queries), (queries, 1))
    return b.emit(ops.ge, row, b.emit(ops.arange, length=keys))


def _rank_four(b: Builder, x: Value, rank: int) -> Value:
    if rank == 4 and x.type.rank == 4:
        return x
    if x.type.rank != rank or rank < 2:
        raise UncoveredError
    lead = x.shape[:-2]
    shape = (1, 1) if rank == 2 else (lead[0], 1) if rank == 3 else (product(lead[:-1]), lead[-1])
    return b.reshape(x, (*shape, *x.shape[-2:]))


def _mask(b: Builder, mask: Value, q: Value, q4: Value) -> Value:
    mask = mask if mask.dtype is DType.bool else b.cast(mask, q.dtype)
    rank = q.type.rank
    if rank > 4:
        full = b.expand(mask, (*q.shape[:-2], *mask.shape[-2:]))
        return b.reshape(full, (*q4.shape[:2], *mask.shape[-2:]))
    if rank == 3 and mask.type.rank == 3:
        return b.reshape(mask, (mask.shape[0], 1, *mask.shape[1:]))
    return b.reshape(mask, (*(1,) * (4 - mask.type.rank), *mask.shape))


def _outer(b: Builder, x: Value, y: Value) -> Value:
    return b.emit(ops.mul, *b.promote(b.reshape(x, (x.shape[0], 1)), y))


TABLE: Table = {
    aten.linear.default: _linear,
    aten.matmul.default: _matmul,
    aten.mm.default: _matmul,
    aten.bmm.default: _matmul,
    aten.mv.default: _matmul,
    aten.dot.default: _matmul,
    aten.outer.default: _outer,
    aten.addmm.default: _addmm,
    aten.baddbmm.default: _addmm,
    aten.conv1d.default: lambda b, x, w, bias=None, s=1, p=0, d=1, g=1: _conv(b, x, w, bias, s, p, d, g),
    aten.conv2d.default: lambda b, x, w, bias=None, s=1, p=0, d=1, g=1: _conv(b, x, w, bias, s, p, d, g),
    aten.conv1d.padding: lambda b, x, w, bias=None, s=1, p="valid", d=1, g=1: _conv_string(b, x, w, bias, s, p, d, g),
    aten.conv2d.padding: lambda b, x, w, bias=None, s=1, p="valid", d=1, g=1: _conv_string(b, x, w, bias, s, p, d, g),
    aten.conv_transpose1d.default: _conv_transposed,
    aten.conv_transpose2d.input: _conv_transposed,
    aten.convolution.default: _convolution,
    aten._convolution.default: _convolution,
    aten.scaled_dot_product_attention.default: _attention,
}
