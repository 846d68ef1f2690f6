"""The op table: every op, one file a family."""

from planish.compiler.ir import Op
from planish.compiler.ops.contract import attention, conv, linear, matmul
from planish.compiler.ops.elementwise import (
    abs_,
    add,
    cast,
    ceil,
    clamp,
    cos,
    div,
    eq,
    erf,
    exp,
    floor,
    floor_divide,
    ge,
    gelu,
    gt,
    isnan,
    le,
    log,
    logical_and,
    logical_not,
    logical_or,
    lt,
    maximum,
    minimum,
    mul,
    ne,
    neg,
    pow_,
    reciprocal,
    relu,
    remainder,
    round_,
    rsqrt,
    sigmoid,
    silu,
    sin,
    sqrt,
    sub,
    tanh,
    where,
)
from planish.compiler.ops.normalize import batch_norm, group_norm, layer_norm, log_softmax, rms_norm, rope, softmax
from planish.compiler.ops.reduce import (
    all_,
    amax,
    amin,
    any_,
    argmax,
    avg_pool,
    cumsum,
    max_pool,
    mean,
    prod,
    sum_,
)
from planish.compiler.ops.shape import (
    concat,
    embedding,
    expand,
    flip,
    gather,
    index_select,
    pad,
    reshape,
    roll,
    slice_,
    transpose,
)
from planish.compiler.ops.structure import arange, dim_value, full, input_, opaque, weight

OPS: tuple[Op, ...] = (
    *(input_, weight, full, arange, dim_value, opaque),
    *(neg, abs_, exp, log, sqrt, rsqrt, reciprocal, sin, cos, tanh, sigmoid, erf, relu, silu, gelu),
    *(floor, ceil, round_, logical_not, isnan, clamp, cast, where),
    *(add, sub, mul, div, floor_divide, remainder, pow_, maximum, minimum),
    *(eq, ne, lt, le, gt, ge, logical_and, logical_or),
    *(linear, matmul, conv, attention),
    *(softmax, log_softmax, layer_norm, rms_norm, batch_norm, group_norm, rope),
    *(sum_, mean, amax, amin, prod, any_, all_, argmax, cumsum, max_pool, avg_pool),
    *(reshape, transpose, expand, slice_, concat, pad, roll, flip, embedding, gather, index_select),
)
BY_NAME = {op.name: op for op in OPS}

__all__ = ["BY_NAME", "OPS"] + [name for name, value in list(globals().items()) if isinstance(value, Op)]
