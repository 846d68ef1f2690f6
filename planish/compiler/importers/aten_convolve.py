"""aten's convolutions, plain and transposed."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from planish.compiler import ops
from planish.compiler.importers.builder import Builder, Table
from planish.compiler.ir import Value
from planish.compiler.types import Dim, simplify

aten = torch.ops.aten


def _conv(
    b: Builder,
    x: Value,
    w: Value,
    bias: Value | None = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
    after: tuple[int, ...] | None = None,
) -> Value:
    """Channels first in and out: transposes around our channels-last op, which passes cancel."""
    spatial = w.type.rank - 2
    batched = x if x.type.rank == w.type.rank else b.reshape(x, (1, *x.shape))
    attrs = {"stride": wide(stride, spatial), "padding": wide(padding, spatial), "dilation": wide(dilation, spatial)}
    last = b.emit(ops.conv, channels_last(b, batched), channels_last(b, w), bias, **attrs, groups=groups, after=after)
    result = channels_first(b, last)
    return result if batched is x else b.reshape(result, result.shape[1:])


def _conv_string(
    b: Builder,
    x: Value,
    w: Value,
    bias: Value | None = None,
    stride: Any = 1,
    padding: str = "valid",
    dilation: Any = 1,
    groups: int = 1,
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
    """The output elements of each remainder by the stride are one convolution of x; w [I, O / groups, *kernel]."""
    spatial = w.type.rank - 2
    batched = x if x.type.rank == w.type.rank else b.reshape(x, (1, *x.shape))
    settings = (wide(v, spatial) for v in (stride, padding, output_padding, dilation))
    axes = [_Transposed(*one) for one in zip(w.shape[2:], *settings, strict=True)]
    steps = tuple(a.stride for a in axes)
    phases = _phases(b, channels_last(b, batched), _phase_weights(b, w, axes, groups), bias, axes, groups)
    woven = _woven(b, phases, steps)
    for axis, (one, size) in enumerate(zip(axes, batched.shape[2:], strict=True), start=1):
        woven = b.slice(woven, axis, one.start, simplify(one.start + one.length(size)))
    result = channels_first(b, woven)
    return result if batched is x else b.reshape(result, result.shape[1:])


@dataclass(frozen=True, slots=True)
class _Transposed:
    """One axis of a transposed convolution: output `q * stride + r` is the sum over j of x[q - j] w[j * stride + r]."""

    kernel: int
    stride: int
    padding: int
    output_padding: int
    dilation: int

    @property
    def extent(self) -> int:
        """Output elements that one element of x reaches."""
        return self.dilation * (self.kernel - 1) + 1

    @property
    def taps(self) -> int:
        """Elements of x that a phase multiplies; with zeros where the kernel does not fill the last stride."""
        return self.kernel if self.stride == 1 else -(-self.extent // self.stride)

    @property
    def spacing(self) -> int:
        """The dilation of the phases: where the axis has several, that of the kernel is spelled out with zeros."""
        return self.dilation if self.stride == 1 else 1

    @property
    def reach(self) -> int:
        return self.spacing * (self.taps - 1)

    @property
    def before(self) -> int:
        """Zeros in front of x: none for places that the padding cuts off."""
        return max(0, self.reach - self.padding // self.stride)

    @property
    def after(self) -> int:
        return max(0, -(-(self.extent + self.output_padding - self.padding) // self.stride) - 1)

    @property
    def start(self) -> int:
        """The first element of the woven phases that belongs to the output."""
        return self.padding - self.stride * (self.reach - self.before)

    def length(self, size: Dim) -> Dim:
        return simplify((size - 1) * self.stride - 2 * self.padding + self.extent + self.output_padding)


def _phase_weights(b: Builder, w: Value, axes: Sequence[_Transposed], groups: int) -> Value:
    """w [I, O / groups, *kernel] as [groups, *stride, O / groups, *taps, I / groups], each kernel back to front."""
    for i, one in enumerate(axes, start=2):
        if one.stride > 1:
            w = _spread(b, w, i, one.dilation)
    zeros = [one.taps * one.stride - size for one, size in zip(axes, w.shape[2:], strict=True)]
    if any(zeros):
        w = b.emit(ops.pad, w, before=(0,) * w.type.rank, after=(0, 0, *zeros))
    split = [size for one in axes for size in (one.taps, one.stride)]
    w = b.reshape(w, (groups, w.shape[0] // groups, w.shape[1], *split))
    taps, strides = range(3, w.type.rank, 2), range(4, w.type.rank, 2)
    return b.transpose(b.emit(ops.flip, w, axes=tuple(taps)), (0, *strides, 2, *taps, 1))


def _phases(b: Builder, x: Value, w: Value, bias: Value | None, axes: Sequence[_Transposed], groups: int) -> Value:
    """All phases of x [N, *spatial, I], channels last: [N, *spatial', *stride, O]."""
    attrs = {"stride": (1,) * len(axes), "padding": tuple(a.before for a in axes), "groups": groups}
    attrs |= {"dilation": tuple(a.spacing for a in axes), "after": tuple(a.after for a in axes)}
    steps, kernel = w.shape[1 : len(axes) + 1], w.shape[len(axes) + 1 :]
    count, channels = math.prod(steps), groups * kernel[0]
    flat = b.reshape(w, (groups, count, *kernel))
    if kernel[0] == kernel[-1] == 1 and groups > 1:  # each phase is depthwise
        weights = [b.reshape(b.slice(flat, 1, i, i + 1), (groups, *kernel[1:])) for i in range(count)]
        parts = [b.emit(ops.conv, x, each, bias, **attrs) for each in weights]
        return b.reshape(b.concat(parts, parts[0].type.rank - 1), (*parts[0].shape[:-1], *steps, channels))
    if bias is not None:
        spread = b.expand(b.reshape(bias, (groups, 1, kernel[0])), (groups, count, kernel[0]))
        bias = b.reshape(spread, (count * channels,))
    result = b.emit(ops.conv, x, b.reshape(flat, (count * channels, *kernel[1:])), bias, **attrs)
    lead = result.type.rank - 1
    opened = b.reshape(result, (*result.shape[:-1], groups, *steps, kernel[0]))
    turned = b.transpose(opened, (*range(lead), *range(lead + 1, lead + 1 + len(steps)), lead, lead + 1 + len(steps)))
    return b.reshape(turned, (*result.shape[:-1], *steps, channels))


def _woven(b: Builder, phases: Value, steps: Sequence[int]) -> Value:
    """[N, *spatial, *stride, O] -> [N, *(spatial * stride), O]."""
    n = len(steps)
    order = (0, *(place for i in range(n) for place in (1 + i, 1 + n + i)), 2 * n + 1)
    sizes = (simplify(d * s) for d, s in zip(phases.shape[1 : n + 1], steps, strict=True))
    return b.reshape(b.transpose(phases, order), (phases.shape[0], *sizes, phases.shape[-1]))


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


TABLE: Table = {
    **dict.fromkeys((aten.conv1d.default, aten.conv2d.default, aten.conv3d.default), _conv),
    **dict.fromkeys((aten.conv1d.padding, aten.conv2d.padding, aten.conv3d.padding), _conv_string),
    aten.conv_transpose1d.default: _conv_transposed,
    aten.conv_transpose2d.input: _conv_transposed,
    aten.conv_transpose3d.input: _conv_transposed,
    aten.convolution.default: _convolution,
    aten._convolution.default: _convolution,
}
