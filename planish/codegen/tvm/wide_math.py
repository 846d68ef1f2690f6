"""Elementary functions on f64 scalars and vectors, as TIR without calls to a math library.

The names are those of `vector_math`. Series are Taylor's, cut where the next term is below 2^-54 of the result; errors
are bounds seen against mpmath over the whole range.
"""

import math

from tvm import tirx

from planish.codegen.tvm.vector_math import (
    Sine,
    absolute,
    bits,
    cast,
    copy_sign,
    either,
    equal,
    fma,
    is_nan,
    keep,
    like,
    polynomial,
    select,
    sine,
)

_MAGIC = 6755399441055744.0  # 1.5 * 2^52: adding it rounds to an integer, which stays in the low bits
# log(2) and pi/2 in parts whose products with small integers are exact (fdlibm, netlib.org/fdlibm)
_LOG_TWO = (6.93147180369123816490e-01, 1.90821492927058770002e-10)
_EXPONENTIAL = tuple(1.0 / math.factorial(n) for n in range(14, 0, -1))  # of (e^r - 1) / r for |r| <= log(2) / 2
_LOGARITHM = tuple(2.0 / n for n in range(23, 1, -2))  # of log((1 + s) / (1 - s)) / s - 2 in powers of s^2
_SINE = Sine(
    _MAGIC,
    (1.57079632673412561417e00, 6.07710050630396597660e-11, 2.0222662487959506e-21),
    tuple((-1.0) ** n / math.factorial(2 * n + 1) for n in range(9, 0, -1)),
    tuple((-1.0) ** n / math.factorial(2 * n) for n in range(9, 1, -1)),
)
_ERF = tuple(2.0 / math.sqrt(math.pi) * (-1.0) ** n / math.factorial(n) / (2 * n + 1) for n in range(20, -1, -1))


def exp(x: "tirx.PrimExpr") -> "tirx.PrimExpr":
    """e^x within 2 ulp; infinity above 709.78, and 0 below -708.39, where results would be denormal."""
    high, low = like(x, 709.782712893384), like(x, -708.39)
    x = keep(x)
    capped = keep(select(x > high, high, x))
    capped = keep(select(capped < low, low, capped))
    less_one, count = _reduced(capped)
    half = keep(count >> like(count, 1))  # in two steps, since 2^1024 is no number
    result = keep((less_one + like(x, 1.0)) * _two_to(half) * _two_to(count - half))
    result = select(x > high, like(x, math.inf), result)
    return keep(select(x < low, like(x, 0.0), keep(result)))


def _reduced(x: "tirx.PrimExpr") -> "tuple[tirx.PrimExpr, tirx.PrimExpr]":
    """`(e^r - 1, n)` with x = n log(2) + r and |r| <= log(2) / 2; n is an int64."""
    shifted = keep(fma(x, like(x, math.log2(math.e)), like(x, _MAGIC)))
    count = keep(shifted - like(x, _MAGIC))
    rest = keep(fma(count, like(x, -_LOG_TWO[1]), keep(fma(count, like(x, -_LOG_TWO[0]), x))))
    raw = bits(shifted, "int64")
    return keep(polynomial(rest, _EXPONENTIAL) * rest), keep(raw - bits(like(x, _MAGIC), "int64"))


def _two_to(n: "tirx.PrimExpr") -> "tirx.PrimExpr":
    """2^n for -1022 <= n <= 1023, by the exponent bits."""
    return bits((n + like(n, 1023)) << like(n, 52), "float64")


def _exp_less_one(x: "tirx.PrimExpr") -> "tirx.PrimExpr":
    """e^x - 1 within 2 ulp for 0 <= x <= 700."""
    less_one, count = _reduced(x)
    scale = keep(_two_to(count))
    return keep(fma(scale, less_one, scale - like(x, 1.0)))


def log(x: "tirx.PrimExpr") -> "tirx.PrimExpr":
    """Natural logarithm within 2 ulp; -inf at 0 and not-a-number below. Denormals are scaled up first."""
    x = keep(x)
    small = keep(x < like(x, 2.2250738585072014e-308))
    scaled = keep(select(small, x * like(x, 2.0**54), x))
    raw = keep(bits(scaled, "int64"))
    exponent = keep((raw - like(raw, 0x3FE6A09E667F3BCD)) >> like(raw, 52))  # the bits of sqrt(1/2)
    m = keep(bits(raw - (exponent << like(raw, 52)), "float64") - like(x, 1.0))
    n = keep(cast(exponent, "float64") - select(small, like(x, 54.0), like(x, 0.0)))
    s = keep(m / (m + like(x, 2.0)))
    z = keep(s * s)
    half = keep(m * m * like(x, 0.5))
    # log(1 + m) = m - m^2/2 + s * (m^2/2 + series), which keeps m whole (fdlibm's form)
    tail = keep(fma(s, half + keep(polynomial(z, _LOGARITHM) * z), n * like(x, _LOG_TWO[1])))
    result = keep(fma(n, like(x, _LOG_TWO[0]), m - (half - tail)))
    result = select(equal(x, like(x, 0.0)), like(x, -math.inf), result)
    result = select(equal(x, like(x, math.inf)), x, result)
    return keep(select(either(x < like(x, 0.0), is_nan(x)), like(x, math.nan), result))


def tanh(x: "tirx.PrimExpr") -> "tirx.PrimExpr":
    """Hyperbolic tangent within 3 ulp, as E / (E + 2) with E = e^(2|x|) - 1."""
    x = keep(x)
    size = keep(absolute(x))
    twice = keep(select(size > like(x, 20.0), like(x, 40.0), size + size))
    power = _exp_less_one(twice)
    return keep(select(is_nan(x), x, copy_sign(keep(power / (power + like(x, 2.0))), x)))


def sigmoid(x: "tirx.PrimExpr") -> "tirx.PrimExpr":
    """1 / (1 + e^-x) within 3 ulp where that is a normal number, 0 below -709.78."""
    return keep(like(x, 1.0) / (like(x, 1.0) + exp(-x)))


def silu(x: "tirx.PrimExpr") -> "tirx.PrimExpr":
    """x / (1 + e^-x)."""
    return keep(x / (like(x, 1.0) + exp(-x)))


def erf(x: "tirx.PrimExpr") -> "tirx.PrimExpr":
    """Error function within 4 ulp: its series up to 1, above it 1 - erfc(x) with erfc(x) = e^(-x^2) * p(t)."""
    x = keep(x)
    size = keep(absolute(x))
    capped = keep(select(size > like(x, 6.0), like(x, 6.0), size))
    near = keep(polynomial(keep(capped * capped), _ERF) * x)
    t = keep((capped - like(x, 2.0)) / (capped + like(x, 2.0)))
    far = keep(like(x, 1.0) - keep(exp(-keep(capped * capped)) * polynomial(t, _ERFC)))
    far = select(is_nan(x), x, copy_sign(far, x))
    return keep(select(size > like(x, 1.0), keep(far), near))


# e^(x^2) erfc(x) for 1 <= x <= 6 in powers of t = (x - 2) / (x + 2), interpolated at Chebyshev's points
_ERFC = (
    *(-1.1352571477273627e-06, 1.272567661840228e-06, 4.011749647325067e-06, 1.3058577122278017e-06),
    *(-1.3998283772784976e-05, -2.7562209161129353e-05, 2.7527175557227246e-05, 0.00017435947400205157),
    *(4.355558686575482e-05, -0.0009819769411038642, -0.00084714325299195, 0.006997461736971578),
    *(0.0037328924043978336, -0.07897858101570611, 0.24165819424246585, -0.4271858474139585),
    0.25539567631050575,
)


def gelu(x: "tirx.PrimExpr") -> "tirx.PrimExpr":
    """x * (1 + erf(x / sqrt(2))) / 2 within 2^-52 of the larger of 1 and |x|."""
    x = keep(x)
    return keep(x * like(x, 0.5) * (like(x, 1.0) + erf(x * like(x, math.sqrt(0.5)))))


def gelu_tanh(x: "tirx.PrimExpr") -> "tirx.PrimExpr":
    """x * (1 + tanh(sqrt(2/pi) * (x + 0.044715 x^3))) / 2, as x * sigmoid of twice the tangent's argument."""
    x = keep(x)
    inner = keep(fma(keep(x * x), like(x, 0.044715), like(x, 1.0)) * x)
    return keep(x / (like(x, 1.0) + exp(inner * like(x, -2.0 * math.sqrt(2.0 / math.pi)))))


def sin(x: "tirx.PrimExpr") -> "tirx.PrimExpr":
    """Sine, within 2e-16 for |x| <= 1e5; not-a-number for infinities."""
    return sine(x, 0, _SINE)


def cos(x: "tirx.PrimExpr") -> "tirx.PrimExpr":
    """Cosine, within 2e-16 for |x| <= 1e5; not-a-number for infinities."""
    return sine(x, 1, _SINE)
