"""Elementary functions on f32 scalars and vectors of any lane count, as TIR without calls to a math library.

Every function takes a float32 expression and gives one of the same lanes; it must be called inside an open kernel,
since intermediate results are bound to variables. Errors are bounds seen against float64 over the whole range.
Polynomials for log, tanh, sin and cos are those of Cephes' single precision library (netlib.org/cephes).
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from tvm import tirx
from tvm.script.ir_builder import tirx as T  # noqa: N812 - TVM's own name for its script namespace

from planish.codegen.tvm.kernel import bind, ramp


def lanes_of(x: "tirx.PrimExpr") -> int:
    """How many lanes the expression has."""
    return int(x.ty.dtype.lanes)


def element_of(x: "tirx.PrimExpr") -> str:
    """The TVM dtype of one lane."""
    return str(x.ty.dtype).split("x")[0]


def splat(value: "tirx.PrimExpr", lanes: int) -> "tirx.PrimExpr":
    """A scalar in every lane; an expression that has the lanes already as it is."""
    return value if lanes == 1 or lanes_of(value) == lanes else T.broadcast(value, lanes)


def constant(value: float, dtype: str, lanes: int) -> "tirx.PrimExpr":
    """A literal in every lane."""
    return splat(tirx.const(value, dtype), lanes)


def like(x: "tirx.PrimExpr", value: float) -> "tirx.PrimExpr":
    """A literal of the dtype and lanes of `x`."""
    return constant(value, element_of(x), lanes_of(x))


def cast(x: "tirx.PrimExpr", dtype: str) -> "tirx.PrimExpr":
    """The value of every lane as another TVM dtype."""
    return x.astype(_wide(dtype, lanes_of(x)))


def bits(x: "tirx.PrimExpr", dtype: str) -> "tirx.PrimExpr":
    """The bits of every lane as another TVM dtype of the same width."""
    return T.reinterpret(_wide(dtype, lanes_of(x)), x)


def intrinsic(name: str, *args: "tirx.PrimExpr") -> "tirx.PrimExpr":
    """An LLVM intrinsic without effects whose result has the type of its first operand."""
    return T.call_llvm_pure_intrin(_wide(element_of(args[0]), lanes_of(args[0])), name, *args)


def fma(a: "tirx.PrimExpr", b: "tirx.PrimExpr", c: "tirx.PrimExpr") -> "tirx.PrimExpr":
    """a * b + c, rounded once."""
    return intrinsic("llvm.fma", a, b, c)


def select(condition: "tirx.PrimExpr", yes: "tirx.PrimExpr", no: "tirx.PrimExpr") -> "tirx.PrimExpr":
    """`yes` in the lanes where the condition holds, else `no`; both are computed."""
    return tirx.Select(splat(condition, lanes_of(yes)), yes, no)


def both(a: "tirx.PrimExpr", b: "tirx.PrimExpr") -> "tirx.PrimExpr":
    """Logical and of two predicates; TVM's own `And` fails on bound vectors."""
    return tirx.bitwise_and(a, b)


def either(a: "tirx.PrimExpr", b: "tirx.PrimExpr") -> "tirx.PrimExpr":
    """Logical or of two predicates."""
    return tirx.bitwise_or(a, b)


def negated(a: "tirx.PrimExpr") -> "tirx.PrimExpr":
    """Logical not of a predicate."""
    return tirx.bitwise_xor(a, splat(tirx.const(True, "bool"), lanes_of(a)))


def equal(a: "tirx.PrimExpr", b: "tirx.PrimExpr") -> "tirx.PrimExpr":
    """a == b lane by lane; TVM's `==` gives an object that is no expression yet."""
    return tirx.EQ(a, b)


def differ(a: "tirx.PrimExpr", b: "tirx.PrimExpr") -> "tirx.PrimExpr":
    """a != b lane by lane."""
    return tirx.NE(a, b)


def keep(x: "tirx.PrimExpr") -> "tirx.PrimExpr":
    """The value as a variable, by way of memory that LLVM promotes to a register.

    TVM's analyzer puts the definitions of bound variables back into every expression that it looks at, which takes
    time exponential in the length of a formula; it does not look behind a load. Predicates are given back as they are.
    """
    if isinstance(x, tirx.Var) or element_of(x) == "bool":
        return x
    lanes = lanes_of(x)
    slot = T.alloc_buffer((lanes,), element_of(x))
    T.buffer_store(slot, x, [ramp(0, lanes)])
    return bind(slot[ramp(0, lanes)])


def is_nan(x: "tirx.PrimExpr") -> "tirx.PrimExpr":
    """Whether lanes are not a number, by their bits: TVM simplifies `x != x` away."""
    wide = element_of(x) == "float64"
    raw = bits(x, "int64" if wide else "int32")
    size = tirx.bitwise_and(raw, like(raw, 0x7FFFFFFFFFFFFFFF if wide else 0x7FFFFFFF))
    return size > like(raw, 0x7FF0000000000000 if wide else 0x7F800000)


def maximum(x: "tirx.PrimExpr", y: "tirx.PrimExpr") -> "tirx.PrimExpr":
    """The larger one; not-a-number if either is, as torch has it."""
    larger = x > y
    return select(either(larger, is_nan(x)) if is_float(x) else larger, x, y)


def minimum(x: "tirx.PrimExpr", y: "tirx.PrimExpr") -> "tirx.PrimExpr":
    """The smaller one; not-a-number if either is, as torch has it."""
    smaller = x < y
    return select(either(smaller, is_nan(x)) if is_float(x) else smaller, x, y)


def fast_maximum(x: "tirx.PrimExpr", y: "tirx.PrimExpr") -> "tirx.PrimExpr":
    """The larger one in a single instruction; `y` if either is not a number."""
    return select(x > y, x, y)


def absolute(x: "tirx.PrimExpr") -> "tirx.PrimExpr":
    """|x|."""
    return intrinsic("llvm.fabs", x) if is_float(x) else select(x < like(x, 0), -x, x)


def copy_sign(x: "tirx.PrimExpr", sign: "tirx.PrimExpr") -> "tirx.PrimExpr":
    """|x| with the sign of another value."""
    return intrinsic("llvm.copysign", x, sign)


def square_root(x: "tirx.PrimExpr") -> "tirx.PrimExpr":
    """The square root, rounded correctly."""
    return intrinsic("llvm.sqrt", x)


def exp(x: "tirx.PrimExpr") -> "tirx.PrimExpr":
    """e^x within 1.5 ulp; infinity above 88.72, and 0 below -87.33, where results would be denormal."""
    low, high = like(x, -87.33), like(x, 88.72283)
    x = keep(x)
    capped = keep(select(x > high, high, x))
    capped = keep(select(capped < low, low, capped))
    result = keep(_exponential(capped, EXPONENTIAL))
    result = select(x > high, like(x, math.inf), result)
    return keep(select(x < low, like(x, 0.0), keep(result)))


def exp_nonpositive(x: "tirx.PrimExpr") -> "tirx.PrimExpr":
    """e^x for x <= 0 within 3 ulp above -10 and 5 ulp below, cheaper than `exp`; a denormal number or 0 below -87.33.

    At the least argument the multiple of log(2) is 127 and the rest not negative, so that the exponent bits end at 0.
    """
    low = like(x, -88.0296)
    capped = keep(fast_maximum(low, keep(x)))
    return keep(_exponential(capped, _EXPONENTIAL_SHORT))


def _exponential(x: "tirx.PrimExpr", coefficients: Sequence[float]) -> "tirx.PrimExpr":
    """e^x where that is a normal number: x less a multiple of log(2), which goes into the exponent bits.

    The multiple is rounded by adding 1.5 * 2^23, which leaves it in the low bits of the sum. The short polynomial goes
    with log(2) in one part.
    """
    magic = like(x, 12582912.0)
    shifted = keep(fma(x, like(x, math.log2(math.e)), magic))
    count = keep(shifted - magic)
    if len(coefficients) == len(EXPONENTIAL):
        rest = keep(fma(count, like(x, 2.12194440e-4), keep(fma(count, like(x, -0.693359375), x))))
    else:
        rest = keep(fma(count, like(x, -math.log(2.0)), x))
    return scaled_by_two(polynomial(rest, coefficients), shifted)


def scaled_by_two(x: "tirx.PrimExpr", shifted: "tirx.PrimExpr") -> "tirx.PrimExpr":
    """x * 2^n for the n in the low bits of `shifted`, added to the exponent bits."""
    n = bits(shifted, "int32")
    return bits(bits(x, "int32") + (n << like(n, 23)), "float32")


# minimax fits of e^r for |r| <= log(2) / 2 by relative error: 1.9e-9 and 7.6e-8
EXPONENTIAL = (
    *(1.3836741897372362e-3, 8.374898362956526e-3, 4.166823180382914e-2, 1.666641919034865e-1),
    *(4.999999203230812e-1, 1.0, 1.0),
)
_EXPONENTIAL_SHORT = (
    *(8.297583761762832e-3, 4.191587662576313e-2, 1.666757835866246e-1),
    *(4.9998890467993357e-1, 9.999996901457441e-1, 1.0),
)


# minimax fit of the relative error on [-1/2, 1/2], highest power first
POWER_OF_TWO = (1.327647013e-3, 9.675540961e-3, 5.550713092e-2, 2.402212024e-1, 6.931469440e-1, 1.000000119)


def power_of_two(x: "tirx.PrimExpr", fit: tuple[float, ...] = POWER_OF_TWO) -> "tirx.PrimExpr":
    """2^x for x <= 0, within 3e-7 of it unless another `fit` of 2^x on [-1/2, 1/2] is given; 0 below 2^-126.

    What is not a number stays so.

    Adding 1.5 * 2^23 + 127 rounds x to an integer n and leaves n + 127, the exponent of 2^n, in the low bits.
    """
    x = keep(fast_maximum(like(x, -127.0), x))
    # TVM would cancel x + c - c, but does not look into an fma
    shifted = keep(fma(x, like(x, 1.0), like(x, 12582912.0 + 127.0)))
    rest = keep(x - (shifted - like(x, 12582912.0 + 127.0)))
    raw = bits(shifted, "int32")
    return bits(raw << like(raw, 23), "float32") * polynomial(rest, fit)


def polynomial(x: "tirx.PrimExpr", coefficients: Sequence[float]) -> "tirx.PrimExpr":
    """Horner's rule, highest power first."""
    total = like(x, coefficients[0])
    for c in coefficients[1:]:
        total = fma(total, x, like(x, c))
    return keep(total)


def log(x: "tirx.PrimExpr") -> "tirx.PrimExpr":
    """Natural logarithm within 1.5 ulp; -inf at 0 and not-a-number below."""
    mantissa, exponent = mantissa_of(x)
    m = keep(mantissa - like(x, 1.0))
    z = keep(m * m)
    y = keep(polynomial(m, _LOG) * m * z)
    y = keep(fma(exponent, like(x, -2.12194440e-4), y))
    y = keep(fma(z, like(x, -0.5), y))
    result = keep(fma(exponent, like(x, 0.693359375), m + y))
    result = select(equal(x, like(x, 0.0)), like(x, -math.inf), result)
    result = select(equal(x, like(x, math.inf)), x, result)
    return keep(select(either(x < like(x, 0.0), is_nan(x)), like(x, math.nan), result))


_LOG = (
    *(7.0376836292e-2, -1.1514610310e-1, 1.1676998740e-1, -1.2420140846e-1, 1.4249322787e-1),
    *(-1.6668057665e-1, 2.0000714765e-1, -2.4999993993e-1, 3.3333331174e-1),
)


def mantissa_of(x: "tirx.PrimExpr") -> "tuple[tirx.PrimExpr, tirx.PrimExpr]":
    """`(m, e)`, both f32, with x = m * 2^e and sqrt(1/2) <= m < sqrt(2); denormals are scaled up first."""
    small = keep(x < like(x, 1.17549435e-38))
    scaled = keep(select(small, x * like(x, 33554432.0), x))
    raw = keep(bits(scaled, "int32"))
    low = keep((raw - like(raw, 0x3F3504F3)) >> like(raw, 23))  # 0x3F3504F3 is sqrt(1/2)
    mantissa = keep(bits(raw - (low << like(raw, 23)), "float32"))
    exponent = cast(low, "float32") - select(small, like(x, 25.0), like(x, 0.0))
    return mantissa, keep(exponent)


def tanh(x: "tirx.PrimExpr") -> "tirx.PrimExpr":
    """Hyperbolic tangent within 2.5 ulp."""
    return tangent(x, _TANH, exp)


def tangent(
    x: "tirx.PrimExpr", near_zero: Sequence[float], power: "Callable[[tirx.PrimExpr], tirx.PrimExpr]"
) -> "tirx.PrimExpr":
    """Hyperbolic tangent of f32: x + x^3 p(x^2) with the given polynomial up to 5/8, beyond by the given e^x."""
    size = keep(absolute(x))
    z = keep(x * x)
    near = keep(fma(polynomial(z, near_zero) * z, x, x))
    capped = select(size > like(x, 9.5), like(x, 9.5), size)
    far = like(x, 1.0) - like(x, 2.0) / (power(capped + capped) + like(x, 1.0))
    return keep(select(size < like(x, 0.625), near, copy_sign(select(is_nan(x), x, far), x)))


_TANH = (-5.70498872745e-3, 2.06390887954e-2, -5.37397155531e-2, 1.33314422036e-1, -3.33332819422e-1)


def sigmoid(x: "tirx.PrimExpr") -> "tirx.PrimExpr":
    """1 / (1 + e^-x) within 2.5 ulp where that is a normal number, 0 below -88.7."""
    return keep(like(x, 1.0) / (like(x, 1.0) + exp(-x)))


def silu(x: "tirx.PrimExpr") -> "tirx.PrimExpr":
    """x / (1 + e^-x)."""
    return keep(x / (like(x, 1.0) + exp(-x)))


def erf(x: "tirx.PrimExpr") -> "tirx.PrimExpr":
    """Error function within 1.5 ulp.

    N. Juffa's minimax fits below and above |x| = 475/512 (stackoverflow.com/a/35148199).
    """
    size = keep(absolute(x))
    z = keep(x * x)
    near = keep(fma(polynomial(z, _ERF_NEAR), x, x))
    capped = keep(select(size > like(x, 4.0), like(x, 4.0), size))
    far = polynomial(capped, _ERF_FAR)
    far = keep(like(x, 1.0) - exp_nonpositive(keep(fma(far, capped, -capped))))
    return keep(select(size > like(x, 0.927734375), copy_sign(far, x), near))


_ERF_NEAR = (-5.96761703e-4, 4.99119423e-3, -2.67681349e-2, 1.12819925e-1, -3.76125336e-1, 1.28379166e-1)
_ERF_FAR = (
    *(-1.72853470e-5, 3.83197126e-4, -3.88396438e-3, 2.42546219e-2),
    *(-1.06777877e-1, -6.34846687e-1, -1.28717512e-1),
)


def gelu(x: "tirx.PrimExpr") -> "tirx.PrimExpr":
    """x * (1 + erf(x / sqrt(2))) / 2 within 1.5e-7 of the larger of 1 and |x|.

    Equal to max(x, 0) - |x| * h with h = erfc(|x| / sqrt(2)) / 2, of whose binary logarithm the polynomial is a
    minimax fit on 0..6, weighted by the error that it makes in the result (5.1e-8); beyond, h only has to vanish.
    """
    x = keep(x)
    size = keep(absolute(x))
    size = keep(select(size > like(x, 14.0), like(x, 14.0), size))
    power = polynomial(size, _GELU)
    shifted = keep(power + like(x, 12582912.0))
    rest = keep(power - keep(shifted - like(x, 12582912.0)))
    tail = keep(scaled_by_two(polynomial(rest, _EXPONENTIAL_BINARY), shifted))
    return keep(fma(-size, tail, keep(select(x < like(x, 0.0), like(x, 0.0), x))))


_GELU = (
    *(3.30927408e-5, -7.69219065e-4, 8.08071449e-3, -5.34121011e-2),
    *(-4.58770976e-1, -1.1512017, -9.99993061e-1),
)
# a minimax fit of 2^r for |r| <= 1/2 by relative error: 7.6e-8
_EXPONENTIAL_BINARY = (
    *(1.3276357867345906e-3, 9.675655513099233e-3, 5.550714482392014e-2),
    *(2.4022117617913422e-1, 6.931469657853423e-1, 1.0),
)


def gelu_tanh(x: "tirx.PrimExpr") -> "tirx.PrimExpr":
    """x * (1 + tanh(sqrt(2/pi) * (x + 0.044715 x^3))) / 2, as x * sigmoid of twice the tangent's argument."""
    inner = keep(fma(keep(x * x), like(x, 0.044715), like(x, 1.0)) * x)
    scaled = keep(inner * like(x, -2.0 * math.sqrt(2.0 / math.pi)))
    return keep(x / (like(x, 1.0) + exp(scaled)))


def sin(x: "tirx.PrimExpr") -> "tirx.PrimExpr":
    """Sine, within 2e-7 for |x| <= 1e5; not-a-number for infinities."""
    return sine(x, 0, _SINE)


def cos(x: "tirx.PrimExpr") -> "tirx.PrimExpr":
    """Cosine, within 2e-7 for |x| <= 1e5; not-a-number for infinities."""
    return sine(x, 1, _SINE)


@dataclass(frozen=True, slots=True)
class Sine:
    """Constants of a dtype: what rounds to an integer when added, pi/2 in parts, and the polynomials by x^2.

    sin(x) is x + x^3 p(x^2) and cos(x) is 1 - x^2 / 2 + x^4 q(x^2) for |x| <= pi/4.
    """

    magic: float
    half_pi: tuple[float, ...]
    sine: tuple[float, ...]
    cosine: tuple[float, ...]


def sine(x: "tirx.PrimExpr", quarter: int, constants: Sine) -> "tirx.PrimExpr":
    """sin(x + quarter * pi/2): reduced by pi/2 in parts (Cody and Waite), then one of two polynomials."""
    magic, dtype = like(x, constants.magic), element_of(x)
    shifted = keep(fma(x, like(x, 2.0 / math.pi), magic))
    count = keep(shifted - magic)
    r = keep(x)
    for part in constants.half_pi:
        r = keep(fma(count, like(x, -part), r))
    z = keep(r * r)
    even = keep(fma(keep(polynomial(z, constants.sine) * z), r, r))
    odd = keep(fma(keep(polynomial(z, constants.cosine) * z), z, fma(z, like(x, -0.5), like(x, 1.0))))
    raw = bits(shifted, dtype.replace("float", "int"))
    quadrant = keep(raw + like(raw, quarter))
    turned = equal(tirx.bitwise_and(quadrant, like(raw, 1)), like(raw, 1))
    sign = tirx.bitwise_and(quadrant, like(raw, 2)) << like(raw, int(dtype.removeprefix("float")) - 2)
    return keep(bits(tirx.bitwise_xor(bits(select(turned, odd, even), element_of(raw)), sign), dtype))


_SINE = Sine(
    12582912.0,
    (1.57079637050628662109375, -4.37113900018624283e-8, -1.71512451306e-15),
    (-1.9515295891e-4, 8.3321608736e-3, -1.6666654611e-1),
    (2.443315711809948e-5, -1.388731625493765e-3, 4.166664568298827e-2),
)


def is_float(x: "tirx.PrimExpr") -> bool:
    """Whether lanes are floating-point numbers."""
    return element_of(x).startswith("float")


def _wide(dtype: str, lanes: int) -> str:
    return dtype if lanes == 1 else f"{dtype}x{lanes}"
