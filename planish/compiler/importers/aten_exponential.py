"""aten's exponentials and logarithms, and the activations made of them."""

import math
from typing import Any

import torch

from planish.compiler import ops
from planish.compiler.importers.aten_elementwise import add, mul, rsub, sub
from planish.compiler.importers.builder import Builder, Handler, Table
from planish.compiler.ir import Value

aten = torch.ops.aten


def _elu(b: Builder, x: Value, alpha: Any, scale: Any, input_scale: Any) -> Value:
    scaled = mul(b, x, input_scale)
    grown = b.emit(ops.sub, *b.promote(b.emit(ops.exp, scaled), 1))
    chosen = b.emit(ops.where, b.emit(ops.gt, *b.promote(x, 0)), x, mul(b, grown, alpha))
    return mul(b, chosen, scale)


def _softplus(b: Builder, x: Value, beta: Any, threshold: Any) -> Value:
    scaled = mul(b, x, beta)
    grown = b.emit(ops.log, b.emit(ops.add, *b.promote(b.emit(ops.exp, b.emit(ops.clamp, scaled, high=88.0)), 1)))
    result = b.emit(ops.where, b.emit(ops.gt, *b.promote(scaled, threshold)), scaled, grown)
    return b.emit(ops.div, *b.promote(result, beta))


def _mish(b: Builder, x: Value) -> Value:
    return b.emit(ops.mul, x, b.emit(ops.tanh, _softplus(b, x, 1, 20)))


def _log_sigmoid(b: Builder, x: Value) -> Value:
    return b.emit(ops.neg, _softplus(b, b.emit(ops.neg, x), 1, 20))


def _expm1(b: Builder, x: Value) -> Value:
    """exp(x) - 1; near 0 as 2 t / (1 - t) with t = tanh(x / 2), which loses no digits."""
    (x,) = b.promote(x, floating=True)
    half = b.emit(ops.tanh, mul(b, x, 0.5))
    near = b.emit(ops.div, mul(b, half, 2), rsub(b, half, 1))
    return b.emit(ops.where, _is_near_zero(b, x), near, sub(b, b.emit(ops.exp, x), 1))


def _log1p(b: Builder, x: Value) -> Value:
    """log(1 + x); what the sum rounds off near 0 is made good (Goldberg, ACM Computing Surveys 23(1), 1991)."""
    (x,) = b.promote(x, floating=True)
    grown = add(b, x, 1)
    plain, used = b.emit(ops.log, grown), sub(b, grown, 1)
    near = b.emit(ops.where, b.emit(ops.eq, *b.promote(used, 0)), x, b.emit(ops.div, mul(b, plain, x), used))
    return b.emit(ops.where, _is_near_zero(b, x), near, plain)


def _is_near_zero(b: Builder, x: Value) -> Value:
    return b.emit(ops.lt, *b.promote(b.emit(ops.abs_, x), 0.5))


def _log_base(base: float) -> Handler:
    return lambda b, x: mul(b, b.emit(ops.log, *b.promote(x, floating=True)), 1 / math.log(base))


TABLE: Table = {
    aten.log2.default: _log_base(2),
    aten.log10.default: _log_base(10),
    aten.exp2.default: lambda b, x: b.emit(ops.exp, mul(b, x, math.log(2))),
    aten.expm1.default: _expm1,
    aten.log1p.default: _log1p,
    aten.elu.default: lambda b, x, alpha=1, scale=1, inner=1: _elu(b, x, alpha, scale, inner),
    aten.selu.default: lambda b, x: _elu(b, x, 1.6732632423543772, 1.0507009873554805, 1),
    aten.celu.default: lambda b, x, alpha=1.0: _elu(b, x, alpha, 1, 1 / alpha),
    aten.softplus.default: lambda b, x, beta=1, threshold=20: _softplus(b, x, beta, threshold),
    aten.mish.default: _mish,
    aten.log_sigmoid.default: _log_sigmoid,
}
