"""aten's contractions: linear layers, matrix products, convolutions and attention."""

import math
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
    aten.scaled_dot_product_attention.default: _attention,
}
