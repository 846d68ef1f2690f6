"""Sizes of an exported program: symbols of torch as named sizes, its expressions as dimensions, and their bounds."""

import math
from collections.abc import Callable, Mapping
from functools import reduce
from typing import Any

import sympy
import torch
from torch.utils._sympy import functions

from planish.compiler.types import Dim, Shape, Size, simplify
from planish.errors import ImportGraphError

Bounds = tuple[float, float]


def _floor_division(left: sympy.Expr, right: sympy.Expr) -> sympy.Expr:
    return sympy.floor(left / right)


def _ceiling_division(left: sympy.Expr, right: sympy.Expr) -> sympy.Expr:
    return sympy.floor((left + right - 1) / right)


_FUNCTIONS: Mapping[type, Callable[..., sympy.Expr]] = {
    functions.FloorDiv: _floor_division,
    functions.CleanDiv: _floor_division,
    functions.CeilDiv: _ceiling_division,
    functions.Mod: sympy.Mod,
    functions.PythonMod: sympy.Mod,
    functions.Max: sympy.Max,
    functions.Min: sympy.Min,
    functions.IntTrueDiv: lambda left, right: left / right,
    functions.FloatTrueDiv: lambda left, right: left / right,
    functions.ToFloat: lambda x: x,
    functions.TruncToInt: sympy.floor,
    functions.FloorToInt: sympy.floor,
    functions.CeilToInt: lambda x: -sympy.floor(-x),
    functions.Identity: lambda x: x,
    functions.PowByNatural: lambda base, power: base**power,
    sympy.Add: sympy.Add,
    sympy.Mul: sympy.Mul,
    sympy.Pow: sympy.Pow,
    sympy.Max: sympy.Max,
    sympy.Min: sympy.Min,
    sympy.Mod: sympy.Mod,
    sympy.floor: sympy.floor,
}


def dim_from_torch(value: Any, names: Mapping[str, sympy.Expr], where: str) -> Dim:
    """An int or torch.SymInt as a dimension, with torch's symbols replaced through `names`.

    Raises ImportGraphError when the value depends on the data or on a function that dimensions lack.
    """
    if isinstance(value, torch.SymInt):
        return simplify(_translate(value.node.expr, names, where))
    return int(value)


def _translate(expr: sympy.Expr, names: Mapping[str, sympy.Expr], where: str) -> sympy.Expr:
    if expr.is_Number:
        return sympy.Rational(float(expr)) if expr.is_Float else expr
    if expr.is_Symbol:
        if expr.name in names:
            return names[expr.name]
        raise ImportGraphError(
            f"{where} gives a size that depends on the data; a program needs sizes that follow from the input shapes: "
            "return a mask instead, or compile the part before it"
        )
    function = _FUNCTIONS.get(type(expr))
    if function is None:
        raise ImportGraphError(f"{where} computes the size {expr}, which is more than + - * // % max and min")
    return function(*(_translate(arg, names, where) for arg in expr.args))


def bounds(dim: Dim, sizes: Mapping[str, Size]) -> Bounds:
    """The least and the greatest value that `dim` can take, by interval arithmetic (so maybe wider)."""
    if isinstance(dim, int) or dim.is_Number:
        return float(dim), float(dim)
    if dim.is_Symbol:
        return float(sizes[dim.name].low), float(sizes[dim.name].high)
    parts = [bounds(arg, sizes) for arg in dim.args]
    if isinstance(dim, sympy.Add):
        return sum(low for low, _ in parts), sum(high for _, high in parts)
    if isinstance(dim, sympy.Mul):
        return _product(parts)
    if isinstance(dim, sympy.floor):
        return math.floor(parts[0][0]), math.floor(parts[0][1])
    if isinstance(dim, sympy.Max):
        return max(low for low, _ in parts), max(high for _, high in parts)
    if isinstance(dim, sympy.Min):
        return min(low for low, _ in parts), min(high for _, high in parts)
    if isinstance(dim, sympy.Mod):
        return 0.0, parts[1][1] - 1
    if isinstance(dim, sympy.Pow) and dim.exp.is_Integer and dim.exp > 0:
        return _product([parts[0]] * int(dim.exp))
    return -math.inf, math.inf


def _product(parts: list[Bounds]) -> Bounds:
    low, high = 1.0, 1.0
    for a, b in parts:
        corners = (low * a, low * b, high * a, high * b)
        low, high = min(corners), max(corners)
    return low, high


def at_most(left: Dim, right: Dim, sizes: Mapping[str, Size]) -> bool:
    """Whether `left <= right` is certain for all values of the sizes."""
    return bounds(simplify(right - left), sizes)[0] >= 0


def smaller(left: Dim, right: Dim, sizes: Mapping[str, Size]) -> Dim:
    """The smaller of two dimensions, without `min` where it is certain which."""
    if at_most(left, right, sizes):
        return left
    return right if at_most(right, left, sizes) else simplify(sympy.Min(left, right))


def larger(left: Dim, right: Dim, sizes: Mapping[str, Size]) -> Dim:
    """The larger of two dimensions, without `max` where it is certain which."""
    if at_most(left, right, sizes):
        return right
    return left if at_most(right, left, sizes) else simplify(sympy.Max(left, right))


def decided(dim: Dim, sizes: Mapping[str, Size]) -> Dim:
    """The dimension without `max` and `min` where it is certain which."""
    if isinstance(dim, int) or not dim.has(sympy.Max, sympy.Min):
        return dim
    for op, choose in ((sympy.Max, larger), (sympy.Min, smaller)):
        dim = dim.replace(
            op, lambda *args, choose=choose: reduce(lambda a, b: sympy.sympify(choose(a, b, sizes)), args)
        )
    return simplify(dim)


def quotient(total: Dim, part: Dim) -> Dim:
    """`total / part` where it is known to be whole."""
    if isinstance(total, int) and isinstance(part, int):
        return total // part if part else 0
    return simplify(sympy.cancel(sympy.sympify(total) / part))


def product(shape: Shape) -> Dim:
    """The product of the dimensions without expanding it."""
    total: Dim = 1
    for dim in shape:
        total = total * dim
    return total
