"""x^y on f32 scalars and vectors, as TIR without calls to a math library."""

import math

from tvm import tirx

from planish.codegen.tvm.vector_math import (
    EXPONENTIAL,
    absolute,
    bits,
    both,
    cast,
    differ,
    either,
    equal,
    fma,
    intrinsic,
    is_nan,
    keep,
    like,
    mantissa_of,
    negated,
    polynomial,
    select,
)


def power(x: "tirx.PrimExpr", y: "tirx.PrimExpr") -> "tirx.PrimExpr":
    """x^y within 1.5 ulp, with C's rules for zeros, infinities and negative x.

    y * log2(x) is kept in float64, where the series of log((1 + s) / (1 - s)) converges in eight terms.
    """
    size = keep(absolute(x))
    mantissa, exponent = mantissa_of(size)
    m = keep(cast(mantissa, "float64"))
    s = keep((m - like(m, 1.0)) / (m + like(m, 1.0)))
    series = polynomial(keep(s * s), [2.0 / math.log(2.0) / k for k in range(15, 0, -2)])
    t = keep(cast(y, "float64") * fma(series, s, cast(exponent, "float64")))
    t = keep(select(t > like(t, 300.0), like(t, 300.0), t))
    t = keep(select(t < like(t, -300.0), like(t, -300.0), t))
    count = keep(intrinsic("llvm.rint", t))
    result = _exponential(cast(t - count, "float32"), cast(count, "int32"))
    return _power_corners(x, y, size, result)


def _exponential(fraction: "tirx.PrimExpr", n: "tirx.PrimExpr") -> "tirx.PrimExpr":
    """2^(fraction + n) for |fraction| <= 1/2 and |n| <= 300."""
    result = polynomial(keep(fraction * like(fraction, math.log(2.0))), EXPONENTIAL)
    rest = keep(n)
    for _ in range(3):
        step = select(rest < like(rest, -100), like(rest, -100), rest)
        step = keep(select(rest > like(rest, 100), like(rest, 100), step))
        result, rest = keep(result * _two_to(step)), keep(rest - step)
    return result


def _power_corners(
    x: "tirx.PrimExpr", y: "tirx.PrimExpr", size: "tirx.PrimExpr", result: "tirx.PrimExpr"
) -> "tirx.PrimExpr":
    zero, one, infinity = like(x, 0.0), like(x, 1.0), like(x, math.inf)
    grows = keep(tirx.bitwise_xor(y < zero, size > one))
    result = select(equal(size, zero), select(y < zero, infinity, zero), result)
    result = select(equal(size, infinity), select(y < zero, zero, infinity), result)
    extreme = select(equal(size, one), one, select(grows, infinity, zero))
    result = keep(select(equal(absolute(y), infinity), extreme, result))
    whole = keep(equal(intrinsic("llvm.floor", y), y))
    halved = keep(y * like(y, 0.5))
    odd = keep(both(whole, both(differ(intrinsic("llvm.floor", halved), halved), absolute(y) < infinity)))
    result = keep(select(both(odd, bits(x, "int32") < like(bits(x, "int32"), 0)), -result, result))
    finite_negative = both(x < zero, x > -infinity)
    result = keep(select(both(finite_negative, negated(whole)), like(x, math.nan), result))
    result = keep(select(either(is_nan(x), is_nan(y)), like(x, math.nan), result))
    return keep(select(either(equal(y, zero), equal(x, one)), one, result))


def _two_to(n: "tirx.PrimExpr") -> "tirx.PrimExpr":
    """2^n for -126 <= n <= 127, by the exponent bits."""
    return bits((n + like(n, 127)) << like(n, 23), "float32")
