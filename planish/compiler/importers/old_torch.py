"""What exporting needs of torch 2.12 and later, made up for where torch 2.11 runs."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import sympy
from torch.utils._sympy import functions


@contextmanager
def resolved_minima() -> Iterator[None]:
    """While open, the smaller of two multiples of one size is that multiple.

    torch 2.11 leaves Min(8*s, 16*s), the stride of repeated heads, as it is; it then asks whether that is 8*s, and says
    that not all values of the dynamic size s are allowed.
    """
    if hasattr(functions.MinMaxBase, "_collapse_known_multiplicative_terms"):
        yield
        return
    general: Any = functions.Min.__new__

    def resolved(cls: type, *terms: Any, **assumptions: Any) -> Any:
        found = _smaller(*map(sympy.sympify, terms)) if len(terms) == 2 else None
        return general(cls, *terms, **assumptions) if found is None else found

    functions.Min.__new__ = resolved  # type: ignore[method-assign]
    try:
        yield
    finally:
        del functions.Min.__new__


def _smaller(a: sympy.Expr, b: sympy.Expr) -> sympy.Expr | None:
    """The smaller of two numbers that are multiples of the same one, which is not negative, or None."""
    (first, one), (second, other) = a.as_coeff_Mul(), b.as_coeff_Mul()
    if one != other or not one.is_nonnegative:
        return None
    return a if first <= second else b
