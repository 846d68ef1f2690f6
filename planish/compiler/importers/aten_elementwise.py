"""aten's elementwise ops: arithmetic, comparisons, activations, casts and selection."""

import math
from typing import Any

import torch

from planish.compiler import ops
from planish.compiler.importers.builder import Builder, Handler, Table, UncoveredError, never_negative
from planish.compiler.ir import Op, Value
from planish.compiler.types import DType

aten = torch.ops.aten


def _unary(op: Op, *, floating: bool = False) -> Handler:
    def build(b: Builder, x: Value) -> Value:
        return b.emit(op, *b.promote(x, floating=floating))

    return build


def _compare(op: Op) -> Handler:
    return lambda b, x, y: b.emit(op, *b.promote(x, y))


def _binary(op: Op, *, floating: bool = False) -> Handler:
    return lambda b, x, y: b.emit(op, *b.promote(x, y, floating=floating))


def _is_number(value: Any, number: float) -> bool:
    return isinstance(value, int | float) and value == number


def add(b: Builder, x: Any, y: Any, alpha: Any = 1) -> Value:
    """x + alpha * y in the dtype that torch gives it; of bools, or."""
    if isinstance(x, Value) and x.dtype.is_integer and type(y) is int and y == 0:
        return x
    y = _scaled(b, y, alpha)
    return b.emit(ops.logical_or if b.promoted(x, y) is DType.bool else ops.add, *b.promote(x, y))


def sub(b: Builder, x: Any, y: Any, alpha: Any = 1) -> Value:
    """x - alpha * y."""
    if isinstance(x, Value) and x.dtype.is_integer and type(y) is int and y == 0:
        return x
    return b.emit(ops.sub, *b.promote(x, _scaled(b, y, alpha)))


def rsub(b: Builder, x: Any, y: Any, alpha: Any = 1) -> Value:
    """y - alpha * x."""
    return b.emit(ops.sub, *b.promote(y, _scaled(b, x, alpha)))


def _scaled(b: Builder, y: Any, alpha: Any) -> Any:
    if alpha == 1:
        return y
    return y * alpha if not isinstance(y, Value) else mul(b, y, alpha)


def mul(b: Builder, x: Any, y: Any) -> Value:
    """x * y; of bools, and."""
    if isinstance(x, Value) and _is_number(y, 1) and b.promoted(x, y) is x.dtype:
        return x
    return b.emit(ops.logical_and if b.promoted(x, y) is DType.bool else ops.mul, *b.promote(x, y))


def _div(b: Builder, x: Any, y: Any, rounding_mode: str | None = None) -> Value:
    if rounding_mode == "floor":
        return _floor_divide(b, x, y)
    if rounding_mode == "trunc":
        left, right = b.promote(x, y)
        if left.dtype.is_integer:
            return _truncated(b, left, right)
        return _trunc(b, b.emit(ops.div, left, right))
    return b.emit(ops.div, *b.promote(x, y, floating=True))


def _truncated(b: Builder, x: Value, y: Value) -> Value:
    """Integer division towards zero."""
    if never_negative(x) and never_negative(y):
        return b.emit(ops.floor_divide, x, y)
    size = b.emit(ops.floor_divide, b.emit(ops.abs_, x), b.emit(ops.abs_, y))
    zero = b.scalar(0, x.dtype)
    differ = b.emit(ops.ne, b.emit(ops.lt, x, zero), b.emit(ops.lt, y, zero))
    return b.emit(ops.where, differ, b.emit(ops.neg, size), size)


def _floor_divide(b: Builder, x: Any, y: Any) -> Value:
    return b.emit(ops.floor_divide, *b.promote(x, y))


def _trunc(b: Builder, x: Value) -> Value:
    if not x.dtype.is_float:
        return x
    negative = b.emit(ops.lt, x, b.scalar(0, x.dtype))
    return b.emit(ops.where, negative, b.emit(ops.ceil, x), b.emit(ops.floor, x))


def _rounding(op: Op) -> Handler:
    return lambda b, x: b.emit(op, x) if x.dtype.is_float else x


def _pow_scalar(b: Builder, x: Value, exponent: Any) -> Value:
    dtype = b.promoted(x, exponent)
    base = b.cast(x, dtype)
    if _is_number(exponent, 1):
        return base
    if _is_number(exponent, 2):
        return b.emit(ops.mul, base, base)
    if _is_number(exponent, 3):
        return b.emit(ops.mul, b.emit(ops.mul, base, base), base)
    if dtype.is_float and isinstance(exponent, int | float) and exponent in (0.5, -0.5, -1):
        return b.emit({0.5: ops.sqrt, -0.5: ops.rsqrt, -1: ops.reciprocal}[exponent], base)
    return b.emit(ops.pow_, base, b.scalar(exponent, dtype))


def _clamp(b: Builder, x: Value, low: Any = None, high: Any = None) -> Value:
    dtype = b.promoted(x, *(v for v in (low, high) if v is not None))
    if any(v is not None and not isinstance(v, bool | int | float) for v in (low, high)):
        return _clamp_tensors(b, b.cast(x, dtype), low, high)
    if not dtype.is_float:
        low, high = (v if v is None else int(v) for v in (low, high))
    return b.emit(ops.clamp, b.cast(x, dtype), low=low, high=high)


def _clamp_tensors(b: Builder, x: Value, low: Any, high: Any) -> Value:
    if low is not None:
        x = b.emit(ops.maximum, x, b.as_tensor(low, x.dtype))
    return x if high is None else b.emit(ops.minimum, x, b.as_tensor(high, x.dtype))


def _hard_sigmoid(b: Builder, x: Value) -> Value:
    lifted = b.emit(ops.clamp, b.emit(ops.add, *b.promote(x, 3.0)), low=0.0, high=6.0)
    return b.emit(ops.mul, *b.promote(lifted, 1 / 6))


def _hard_swish(b: Builder, x: Value) -> Value:
    return b.emit(ops.mul, x, _hard_sigmoid(b, x))


def _leaky_relu(b: Builder, x: Value, slope: float) -> Value:
    return b.emit(ops.where, b.emit(ops.gt, *b.promote(x, 0)), x, b.emit(ops.mul, *b.promote(x, slope)))


def _prelu(b: Builder, x: Value, slope: Value) -> Value:
    if slope.type.rank == 1 and x.type.rank > 2:
        slope = b.reshape(slope, (slope.shape[0], *(1 for _ in x.shape[2:])))
    return b.emit(ops.where, b.emit(ops.gt, *b.promote(x, 0)), x, b.emit(ops.mul, *b.promote(x, slope)))


def _sign(b: Builder, x: Value) -> Value:
    up = b.cast(b.emit(ops.gt, *b.promote(x, 0)), x.dtype)
    return b.emit(ops.sub, up, b.cast(b.emit(ops.lt, *b.promote(x, 0)), x.dtype))


def _square(b: Builder, x: Value) -> Value:
    return b.emit(ops.mul, x, x)


def _addcmul(b: Builder, x: Value, left: Value, right: Value, value: Any = 1) -> Value:
    return add(b, x, mul(b, left, right), value)


def _addcdiv(b: Builder, x: Value, left: Value, right: Value, value: Any = 1) -> Value:
    return add(b, x, _div(b, left, right), value)


def _lerp(b: Builder, x: Value, y: Value, weight: Any) -> Value:
    return add(b, x, mul(b, sub(b, y, x), weight))


def _glu(b: Builder, x: Value, dim: int = -1) -> Value:
    axis = dim % x.type.rank
    half = x.shape[axis] // 2
    left, right = b.slice(x, axis, 0, half), b.slice(x, axis, half, x.shape[axis])
    return b.emit(ops.mul, left, b.emit(ops.sigmoid, right))


def _logical(op: Op) -> Handler:
    return lambda b, x, y: b.emit(op, b.as_tensor(x, DType.bool), b.as_tensor(y, DType.bool))


def _bitwise(op: Op) -> Handler:
    def build(b: Builder, x: Value, y: Any) -> Value:
        if b.promoted(x, y) is not DType.bool:
            raise UncoveredError
        return b.emit(op, *b.promote(x, y))

    return build


def _bitwise_not(b: Builder, x: Value) -> Value:
    return b.emit(ops.logical_not, x) if x.dtype is DType.bool else sub(b, b.emit(ops.neg, x), 1)


def _where(b: Builder, condition: Value, x: Any, y: Any) -> Value:
    return b.emit(ops.where, b.cast(condition, DType.bool), *b.promote(x, y))


def _masked_fill(b: Builder, x: Value, mask: Value, value: Any) -> Value:
    return b.emit(ops.where, b.cast(mask, DType.bool), b.as_tensor(value, x.dtype), x)


def _to_dtype(b: Builder, x: Value, dtype: torch.dtype | None = None, *_: Any) -> Value:
    return b.cast(x, dtype)


def _to_device(b: Builder, x: Value, dtype: torch.dtype, *_: Any) -> Value:
    return b.cast(x, dtype)


def _as_other(b: Builder, x: Value, other: Value, *_: Any) -> Value:
    return b.cast(x, other.dtype)


def _identity(b: Builder, x: Value, *_: Any) -> Value:
    return x


def _copy(b: Builder, x: Value, source: Any, *_: Any) -> Value:
    return b.expand(b.as_tensor(source, x.dtype), x.shape)


def _dropout(b: Builder, x: Value, probability: float = 0.5, train: bool = False) -> Value:
    if train and probability > 0:
        raise UncoveredError
    return x


def _native_dropout(b: Builder, x: Value, probability: float, train: bool | None = True) -> tuple[Value, Value]:
    x = _dropout(b, x, probability, train is not False)
    return x, b.emit(ops.full, shape=x.shape, value=True, dtype=DType.bool)


def _gelu(b: Builder, x: Value, approximate: str = "none") -> Value:
    return b.emit(ops.gelu, x, approximate=approximate)


def _isinf(b: Builder, x: Value) -> Value:
    if not x.dtype.is_float:
        return b.emit(ops.full, shape=x.shape, value=False, dtype=DType.bool)
    return b.emit(ops.eq, b.emit(ops.abs_, x), b.scalar(math.inf, x.dtype))


def _nan_to_num(b: Builder, x: Value, nan: Any = None, high: Any = None, low: Any = None) -> Value:
    if not x.dtype.is_float:
        return x
    info = torch.finfo(
        getattr(torch, {"f64": "float64", "f32": "float32", "f16": "float16"}.get(str(x.dtype), "bfloat16"))
    )
    clean = b.emit(ops.where, b.emit(ops.isnan, x), b.scalar(nan or 0.0, x.dtype), x)
    return b.emit(ops.clamp, clean, low=info.min if low is None else low, high=info.max if high is None else high)


_IDENTITIES = (
    *(aten.contiguous.default, aten.clone.default, aten.detach.default, aten.detach_.default, aten.alias.default),
    *(aten.lift_fresh_copy.default, aten.lift_fresh.default, aten.positive.default),
    *(aten.resolve_conj.default, aten.resolve_neg.default),
)


def _tan(b: Builder, x: Value) -> Value:
    x = b.promote(x, floating=True)[0]
    return b.emit(ops.div, b.emit(ops.sin, x), b.emit(ops.cos, x))


TABLE: Table = {
    **dict.fromkeys(_IDENTITIES, _identity),
    **{
        getattr(aten, n).default: _unary(getattr(ops, n), floating=True)
        for n in ("exp", "log", "sqrt", "rsqrt", "reciprocal", "sin", "cos", "tanh", "sigmoid", "erf")
    },
    **{getattr(aten, n).default: _unary(getattr(ops, n)) for n in ("neg", "relu", "silu", "isnan")},
    aten.abs.default: _unary(ops.abs_),
    aten.special_erf.default: _unary(ops.erf, floating=True),
    aten.gelu.default: _gelu,
    aten.floor.default: _rounding(ops.floor),
    aten.ceil.default: _rounding(ops.ceil),
    aten.round.default: _rounding(ops.round_),
    aten.trunc.default: _trunc,
    aten.isinf.default: _isinf,
    aten.nan_to_num.default: _nan_to_num,
    aten.sign.default: _sign,
    aten.tan.default: _tan,
    aten.square.default: _square,
    aten.hardsigmoid.default: _hard_sigmoid,
    aten.hardswish.default: _hard_swish,
    aten.hardtanh.default: lambda b, x, low=-1.0, high=1.0: _clamp(b, x, low, high),
    aten.relu6.default: lambda b, x: _clamp(b, x, 0.0, 6.0),
    aten.leaky_relu.default: lambda b, x, slope=0.01: _leaky_relu(b, x, slope),
    aten.prelu.default: _prelu,
    aten.glu.default: _glu,
    aten.add.Tensor: add,
    aten.add.Scalar: add,
    aten.sub.Tensor: sub,
    aten.sub.Scalar: sub,
    aten.rsub.Scalar: rsub,
    aten.rsub.Tensor: rsub,
    aten.mul.Tensor: mul,
    aten.mul.Scalar: mul,
    aten.div.Tensor: _div,
    aten.div.Scalar: _div,
    aten.div.Tensor_mode: _div,
    aten.div.Scalar_mode: _div,
    aten.true_divide.Tensor: _div,
    aten.floor_divide.default: _floor_divide,
    aten.floor_divide.Scalar: _floor_divide,
    aten.remainder.Tensor: _binary(ops.remainder),
    aten.remainder.Scalar: _binary(ops.remainder),
    aten.pow.Tensor_Scalar: _pow_scalar,
    aten.pow.Tensor_Tensor: _binary(ops.pow_),
    aten.pow.Scalar: _binary(ops.pow_),
    aten.maximum.default: _binary(ops.maximum),
    aten.minimum.default: _binary(ops.minimum),
    aten.max.other: _binary(ops.maximum),
    aten.min.other: _binary(ops.minimum),
    aten.addcmul.default: _addcmul,
    aten.addcdiv.default: _addcdiv,
    aten.lerp.Scalar: _lerp,
    aten.lerp.Tensor: _lerp,
    aten.clamp.default: _clamp,
    aten.clamp.Tensor: _clamp,
    aten.clip.default: _clamp,
    aten.clamp_min.default: _clamp,
    aten.clamp_min.Tensor: _clamp,
    aten.clamp_max.default: lambda b, x, high: _clamp(b, x, None, high),
    aten.clamp_max.Tensor: lambda b, x, high: _clamp(b, x, None, high),
    **{
        getattr(getattr(aten, n), o): _compare(getattr(ops, n))
        for n in ("eq", "ne", "lt", "le", "gt", "ge")
        for o in ("Tensor", "Scalar")
    },
    aten.logical_and.default: _logical(ops.logical_and),
    aten.logical_or.default: _logical(ops.logical_or),
    aten.logical_xor.default: _logical(ops.ne),
    aten.logical_not.default: lambda b, x: b.emit(ops.logical_not, b.cast(x, DType.bool)),
    **{
        target: _bitwise(op)
        for name, op in (("and", ops.logical_and), ("or", ops.logical_or), ("xor", ops.ne))
        for target in (
            getattr(aten, f"bitwise_{name}").Tensor,
            getattr(aten, f"bitwise_{name}").Scalar,
            getattr(aten, f"__{name}__").Tensor,
            getattr(aten, f"__{name}__").Scalar,
        )
    },
    aten.bitwise_not.default: _bitwise_not,
    aten.where.self: _where,
    aten.where.ScalarOther: _where,
    aten.where.ScalarSelf: _where,
    aten.where.Scalar: _where,
    aten.masked_fill.Scalar: _masked_fill,
    aten.masked_fill.Tensor: _masked_fill,
    aten.to.dtype: _to_dtype,
    aten.to.dtype_layout: _to_dtype,
    aten.to.device: _to_device,
    aten.to.other: _as_other,
    aten.type_as.default: _as_other,
    aten._to_copy.default: _to_dtype,
    aten.copy.default: _copy,
    aten.dropout.default: _dropout,
    aten.dropout_.default: _dropout,
    aten.feature_dropout.default: _dropout,
    aten.native_dropout.default: _native_dropout,
}
