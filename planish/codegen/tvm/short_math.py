"""Elementary functions for values that are rounded to bf16 next: a relative error of 2^-11 where `vector_math` has ulp.

Half a unit in the last place of bf16 is 2^-9 of the value or more. The functions have the names, the ranges and the
special values of those in `vector_math`, which says how to call them.
"""

import math

from tvm import tirx

from planish.codegen.tvm.vector_math import (
    absolute,
    fma,
    keep,
    like,
    polynomial,
    scaled_by_two,
    select,
    tangent,
)

_MAGIC = 12582912.0  # 1.5 * 2^23: a sum with it has the whole part of the other in its low bits

# minimax fits by relative error: 2^r for |r| <= 1/2 (7.5e-5), and (tanh(x) - x) / x^3 by x^2 for |x| <= 5/8 (3.5e-6)
TWO_TO = (0.05517147389873387, 0.24261111925790987, 0.6932610381502451, 0.9999280801229206)
_TANH = (-0.04051531141670615, 0.13048305320286183, -0.33315513502472915)
# log2(erfc(x / sqrt(2)) / 2) for 0 <= x <= 11: within 2.5e-4 of the argument of the logarithm up to 4.5
_GELU = (
    *(-0.0002270340759587156, 0.004822492392639725, -0.04449320963516405),
    *(-0.46974095700580326, -1.1462758841586227, -1.0003546873329783),
)


def exp(x: "tirx.PrimExpr") -> "tirx.PrimExpr":
    """e^x; infinity above 88.72, and 0 below -87.33, where results would be denormal."""
    low, high = like(x, -87.33), like(x, 88.72283)
    x = keep(x)
    capped = keep(select(x > high, high, x))
    capped = keep(select(capped < low, low, capped))
    scale = like(x, math.log2(math.e))
    shifted = keep(fma(capped, scale, like(x, _MAGIC)))
    rest = keep(fma(capped, scale, -keep(shifted - like(x, _MAGIC))))
    result = keep(scaled_by_two(polynomial(rest, TWO_TO), shifted))
    result = select(x > high, like(x, math.inf), result)
    return keep(select(x < low, like(x, 0.0), keep(result)))


def tanh(x: "tirx.PrimExpr") -> "tirx.PrimExpr":
    """Hyperbolic tangent."""
    return tangent(x, _TANH, exp)


def sigmoid(x: "tirx.PrimExpr") -> "tirx.PrimExpr":
    """1 / (1 + e^-x)."""
    return keep(like(x, 1.0) / (like(x, 1.0) + exp(-x)))


def silu(x: "tirx.PrimExpr") -> "tirx.PrimExpr":
    """x / (1 + e^-x)."""
    return keep(x / (like(x, 1.0) + exp(-x)))


def gelu(x: "tirx.PrimExpr") -> "tirx.PrimExpr":
    """x * (1 + erf(x / sqrt(2))) / 2 with its relative error down to x = -4.5, by the formula of `vector_math.gelu`."""
    x = keep(x)
    size = keep(absolute(x))
    size = keep(select(size > like(x, 11.0), like(x, 11.0), size))
    power = polynomial(size, _GELU)
    shifted = keep(power + like(x, _MAGIC))
    rest = keep(power - keep(shifted - like(x, _MAGIC)))
    tail = keep(scaled_by_two(polynomial(rest, TWO_TO), shifted))
    return keep(fma(-size, tail, keep(select(x < like(x, 0.0), like(x, 0.0), x))))


def gelu_tanh(x: "tirx.PrimExpr") -> "tirx.PrimExpr":
    """x * (1 + tanh(sqrt(2/pi) * (x + 0.044715 x^3))) / 2, as x * sigmoid of twice the tangent's argument."""
    inner = keep(fma(keep(x * x), like(x, 0.044715), like(x, 1.0)) * x)
    return keep(x / (like(x, 1.0) + exp(keep(inner * like(x, -2.0 * math.sqrt(2.0 / math.pi))))))
