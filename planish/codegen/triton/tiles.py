"""Counts of blocks and powers of two, which tiles of Triton are."""

import sympy

from planish.compiler.types import Dim, floor_div, simplify


def blocks(size: Dim, block: int) -> Dim:
    """How many blocks cover `size`."""
    return floor_div(simplify(size + (block - 1)), block)


def power_of_two(number: int) -> int:
    """The smallest power of two that is at least `number`."""
    return 1 << max(0, number - 1).bit_length()


def product(*dims: Dim) -> Dim:
    """The product of dimensions."""
    total: Dim = sympy.Integer(1)
    for dim in dims:
        total = total * dim
    return simplify(total)
