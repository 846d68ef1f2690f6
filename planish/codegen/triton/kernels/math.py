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
