"""aten's normalizations and softmax."""

from collections.abc import Sequence
from typing import Any

import torch

from planish.compiler import ops
from planish.compiler.importers.aten_convolve import channels_first, channels_last
from planish.compiler.importers.builder import Builder, Handler, Table, UncoveredError, axis_of
from planish.compiler.importers.sizes import product
from planish.compiler.ir import Op, Value
from planish.compiler.types import Dim, DType

aten = torch.ops.aten


def _softmax(op: Op) -> Handler:
    def build(b: Builder, x: Value, dim: int, dtype: torch.dtype | bool | None = None) -> Value:
        wide = b.cast(x, dtype) if isinstance(dtype, torch.dtype) else x
        if x.type.rank == 0:
            raise UncoveredError
        return b.emit(op, *b.promote(wide, floating=True), axis=axis_of(dim, x.type.rank))

    return build


def _layer_norm(
    b: Builder,
    x: Value,
    shape: Sequence[Dim],
    w: Value | None = None,
    bias: Value | None = None,
    eps: float = 1e-5,
    *_: Any,
) -> Value:
    flat, w, bias = _one_axis(b, x, len(shape), w, bias)
    return b.reshape(b.emit(ops.layer_norm, flat, w, bias, eps=eps), x.shape)


def _rms_norm(b: Builder, x: Value, shape: Sequence[Dim], w: Value | None = None, eps: float | None = None) -> Value:
    flat, w, _ = _one_axis(b, x, len(shape), w, None)
    smallest = {DType.f64: torch.float64, DType.f32: torch.float32}.get(x.dtype, torch.float32)
    return b.reshape(b.emit(ops.rms_norm, flat, w, eps=torch.finfo(smallest).eps if eps is None else eps), x.shape)


def _one_axis(
    b: Builder, x: Value, count: int, w: Value | None, bias: Value | None
) -> tuple[Value, Value | None, Value | None]:
    """x with its last `count` axes as one, and the parameters as vectors."""
    size = product(x.shape[-count:])
    flat = b.reshape(x, (*x.shape[:-count], size))
    vectors = [p if p is None else b.reshape(p, (size,)) for p in (w, bias)]
    return flat, vectors[0], vectors[1]


def _native_layer_norm(
    b: Builder, x: Value, shape: Sequence[Dim], w: Value | None, bias: Value | None, eps: float
) -> tuple[Value, None, None]:
    return _layer_norm(b, x, shape, w, bias, eps), None, None


def _batch_norm(
    b: Builder,
    x: Value,
    w: Value | None,
    bias: Value | None,
    mean: Value | None,
    variance: Value | None,
    training: bool,
    _momentum: float,
    eps: float,
    *_: Any,
) -> Value:
    if training or mean is None or variance is None:
        raise UncoveredError
    return channels_first(b, b.emit(ops.batch_norm, mean, variance, channels_last(b, x), w, bias, eps=eps))


def _batch_norm_no_training(
    b: Builder,
    x: Value,
    w: Value | None,
    bias: Value | None,
    mean: Value,
    variance: Value,
    momentum: float,
    eps: float,
) -> tuple[Value, None, None]:
    return _batch_norm(b, x, w, bias, mean, variance, False, momentum, eps), None, None


def _native_batch_norm(b: Builder, *args: Any) -> tuple[Value, None, None]:
    return _batch_norm(b, *args), None, None


def _group_norm(
    b: Builder, x: Value, groups: int, w: Value | None = None, bias: Value | None = None, eps: float = 1e-5, *_: Any
) -> Value:
    return channels_first(b, b.emit(ops.group_norm, channels_last(b, x), w, bias, groups=groups, eps=eps))


def _instance_norm(
    b: Builder, x: Value, w: Value | None, bias: Value | None, mean: Any, variance: Any, statistics: bool, _m: float,
    eps: float, *_: Any
) -> Value:  # fmt: skip
    channels = x.shape[1]
    if not statistics or not isinstance(channels, int):
        raise UncoveredError
    return _group_norm(b, x, channels, w, bias, eps)


TABLE: Table = {
    aten.softmax.int: _softmax(ops.softmax),
    aten._softmax.default: _softmax(ops.softmax),
    aten.log_softmax.int: _softmax(ops.log_softmax),
    aten._log_softmax.default: _softmax(ops.log_softmax),
    aten.layer_norm.default: _layer_norm,
    aten.native_layer_norm.default: _native_layer_norm,
    aten.rms_norm.default: _rms_norm,
    aten.batch_norm.default: _batch_norm,
    aten._native_batch_norm_legit_no_training.default: _batch_norm_no_training,
    aten.native_batch_norm.default: _native_batch_norm,
    aten.group_norm.default: _group_norm,
    aten.instance_norm.default: _instance_norm,
}
