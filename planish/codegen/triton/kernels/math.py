"""Functions of elements that Triton does not have, or has only on some devices."""

import triton
import triton.language as tl


@triton.jit
def tanh(x):
    """Hyperbolic tangent of f32; without cancellation near zero."""
    small = tl.abs(x) < 0.125
    square = x * x
    series = x * (1.0 + square * (-1.0 / 3 + square * (2.0 / 15 + square * (-17.0 / 315 + square * (62.0 / 2835)))))
    shrunk = tl.exp(-2.0 * tl.abs(x))
    large = (1.0 - shrunk) / (1.0 + shrunk)
    return tl.where(small, series, tl.where(x < 0, -large, large))


@triton.jit
def sigmoid(x):
    """1 / (1 + exp(-x)) of f32."""
    return 1.0 / (1.0 + tl.exp(-x))


@triton.jit
def silu(x):
    """x * sigmoid(x)."""
    return x / (1.0 + tl.exp(-x))


@triton.jit
def gelu(x):
    """x * Phi(x)."""
    return 0.5 * x * (1.0 + tl.erf(x * 0.7071067811865476))


@triton.jit
def gelu_tanh(x):
    """The tanh form of gelu."""
    return x * sigmoid(1.5957691216057308 * (x + 0.044715 * x * x * x))


@triton.jit
def maximum(x, y):
    """The larger one; not-a-number where either is."""
    return tl.maximum(x, y, propagate_nan=tl.PropagateNan.ALL)


@triton.jit
def minimum(x, y):
    """The smaller one; not-a-number where either is."""
    return tl.minimum(x, y, propagate_nan=tl.PropagateNan.ALL)


@triton.jit
def round_even(x):
    """To the nearest integer, halves to the even one."""
    whole = tl.floor(x)
    rest = x - whole
    odd = whole - 2.0 * tl.floor(whole * 0.5)
    up = (rest > 0.5) | ((rest == 0.5) & (odd == 1.0))
    return tl.where(x == x, tl.where(up, whole + 1.0, whole), x)


@triton.jit
def power(x, y):
    """x to the power y of f32, as C's powf: signs of odd whole powers, 1 for y = 0 or x = 1."""
    whole = tl.floor(y) == y
    odd = whole & (y - 2.0 * tl.floor(y * 0.5) == 1.0)
    size = tl.exp2(y * tl.log2(tl.abs(x)))
    signed = tl.where(x < 0, tl.where(whole, tl.where(odd, -size, size), float("nan")), size)
    return tl.where((y == 0.0) | (x == 1.0), 1.0, signed)


@triton.jit
def floor_divide_float(x, y):
    """floor(x / y) with the remainder checked, as torch."""
    quotient = tl.floor(x / y)
    rest = x - quotient * y
    below = (rest != 0.0) & ((rest < 0.0) != (y < 0.0))
    return tl.where(below, quotient - 1.0, quotient)


@triton.jit
def remainder_float(x, y):
    """x - y * floor(x / y), with the sign of y."""
    rest = x - tl.floor(x / y) * y
    wrong = (rest != 0.0) & ((rest < 0.0) != (y < 0.0))
    return tl.where(wrong, rest + y, rest)


@triton.jit
def floor_divide_integer(x, y):
    """Rounded towards minus infinity; 0 for a divisor of 0."""
    safe = tl.where(y == 0, 1, y)
    quotient = x // safe
    rest = x - quotient * safe
    down = (rest != 0) & ((rest < 0) != (safe < 0))
    return tl.where(y == 0, 0, tl.where(down, quotient - 1, quotient))


@triton.jit
def remainder_integer(x, y):
    """With the sign of y; x itself for a divisor of 0."""
    safe = tl.where(y == 0, 1, y)
    rest = x - (x // safe) * safe
    down = (rest != 0) & ((rest < 0) != (safe < 0))
    return tl.where(y == 0, x, tl.where(down, rest + safe, rest))


@triton.jit
def from_f8(code):
    """The numbers of f8 codes, given as bytes, in f32: f16 has their fields with the exponent 8 lower."""
    bits = code.to(tl.int16) & 255
    half = (((bits & 0x80) << 8) | ((bits & 0x7F) << 7)).to(tl.int16).to(tl.float16, bitcast=True)
    return tl.where((bits & 0x7F) == 0x7F, float("nan"), half.to(tl.float32) * 256.0)


@triton.jit
def to_f8(x):
    """f32 rounded to f8, halves to even, as bytes: at most 448, and zeros without a sign, which AMD's f8 has not."""
    bits, size = x.to(tl.int32, bitcast=True), tl.abs(x)
    known = size.to(tl.int32, bitcast=True)
    normal = ((known + 0x7FFFF + ((known >> 20) & 1)) >> 20) - (120 << 3)
    # beside 2**14 the last bit of f32 is 2**-9, the smallest number of f8
    small = (size + 16384.0).to(tl.int32, bitcast=True) - 0x46800000
    code = tl.minimum(tl.where(size < 0.015625, small, normal), 0x7E)
    code = tl.where(x != x, 0x7F, code)
    return tl.where(code == 0, 0, code | ((bits >> 24) & 0x80)).to(tl.uint8)
