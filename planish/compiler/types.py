"""Tensor types: a dtype and a shape whose dimensions are integers or expressions over named sizes."""

import builtins
import enum
import keyword
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import TypeAlias

import sympy

from planish.errors import TypeRuleError

Dim: TypeAlias = int | sympy.Expr
Shape: TypeAlias = tuple[Dim, ...]


class DType(enum.Enum):
    """Element types, valued by the name that texts and reports print.

    f8 is e4m3 of the OCP 8-bit floating point specification: up to 448, without infinities. It is stored, cast and, as
    codes, multiplied; no other arithmetic takes it.
    """

    f64 = "f64"
    f32 = "f32"
    f16 = "f16"
    bf16 = "bf16"
    f8 = "f8"
    i64 = "i64"
    i32 = "i32"
    i16 = "i16"
    i8 = "i8"
    u8 = "u8"
    bool = "bool"

    def __str__(self) -> str:
        return self.value

    def __repr__(self) -> str:
        return self.value

    @property
    def itemsize(self) -> int:
        """Bytes of one element."""
        return _ITEMSIZE[self]

    @property
    def is_float(self) -> builtins.bool:
        """Whether arithmetic takes it as a float; f8 is none of these."""
        return self in (DType.f64, DType.f32, DType.f16, DType.bf16)

    @property
    def is_integer(self) -> builtins.bool:
        return not self.is_float and self not in (DType.bool, DType.f8)


_ITEMSIZE = {
    DType.f64: 8,
    DType.f32: 4,
    DType.f16: 2,
    DType.bf16: 2,
    DType.f8: 1,
    DType.i64: 8,
    DType.i32: 4,
    DType.i16: 2,
    DType.i8: 1,
    DType.u8: 1,
    DType.bool: 1,
}


@dataclass(frozen=True, slots=True)
class Size:
    """A named size of a graph with the inclusive range that it may take at run time.

    `hint` is the value that cost estimates and default benchmarks use.
    """

    name: str
    low: int = 1
    high: int = 2**31 - 1
    hint: int = 1

    def __post_init__(self) -> None:
        if not self.name.isidentifier() or keyword.iskeyword(self.name):
            raise ValueError(f"a size needs an identifier as its name, not {self.name!r}")
        if not 0 <= self.low <= self.hint <= self.high:
            raise ValueError(f"size {self.name} needs low <= hint <= high, not {self.low}, {self.hint}, {self.high}")

    @property
    def symbol(self) -> sympy.Symbol:
        """The symbol that dimensions use for this size."""
        return symbol(self.name)


def symbol(name: str) -> sympy.Symbol:
    """The one sympy symbol that stands for the named size in every graph."""
    return sympy.Symbol(name, integer=True, positive=True)


@dataclass(frozen=True, slots=True)
class TensorType:
    """The type of a value: `shape` in row-major order and `dtype`."""

    shape: Shape
    dtype: DType

    def __post_init__(self) -> None:
        object.__setattr__(self, "shape", tuple(simplify(d) for d in self.shape))
        if any(isinstance(d, int) and d < 0 for d in self.shape):
            raise TypeRuleError(f"{self} has a negative dimension")

    @property
    def rank(self) -> int:
        return len(self.shape)

    def with_shape(self, shape: Shape) -> "TensorType":
        return TensorType(shape, self.dtype)

    def with_dtype(self, dtype: DType) -> "TensorType":
        return TensorType(self.shape, dtype)

    def __str__(self) -> str:
        return f"{self.dtype}[{', '.join(dim_text(d) for d in self.shape)}]"


def simplify(dim: Dim) -> Dim:
    """`dim` as a plain int where it is one; else expanded, with one form for equal divisions of divisions."""
    return dim if isinstance(dim, int) else _simplified(dim)


@lru_cache(maxsize=1 << 16)
def _simplified(dim: sympy.Expr) -> Dim:
    expanded = sympy.expand(dim)
    if expanded.has(sympy.floor):
        expanded = sympy.expand(expanded.replace(sympy.floor, _floor))
    return int(expanded) if expanded.is_Integer else expanded


def _floor(value: sympy.Expr) -> sympy.Expr:
    """The floor of a sum: `(x//a + b)//c` as `(x + a*b)//(a*c)`, and whole numbers outside: `(x - 1)//2 + 1` is
    `(x + 1)//2`."""
    value = sympy.expand(value)
    for term in sympy.Add.make_args(value):
        factor, inner = term.as_coeff_Mul()
        rest = sympy.expand((value - term) / factor)
        if isinstance(inner, sympy.floor) and (1 / factor).is_Integer and factor > 0 and rest.is_integer:
            return _floor(factor * (inner.args[0] + rest))
    whole = sympy.floor(value.as_coeff_Add()[0])
    return sympy.floor(value - whole) + whole


def same_dim(left: Dim, right: Dim) -> bool:
    """Whether two dimensions are equal for every value of their sizes."""
    if isinstance(left, int) and isinstance(right, int):
        return left == right
    return bool(simplify(sympy.sympify(left) - right) == 0)


def same_shape(left: Shape, right: Shape) -> bool:
    return len(left) == len(right) and all(same_dim(a, b) for a, b in zip(left, right, strict=True))


def elements(shape: Shape) -> Dim:
    """The product of the dimensions."""
    total: Dim = 1
    for dim in shape:
        total = total * dim
    return simplify(total)


def floor_div(left: Dim, right: int) -> Dim:
    """`left // right` for non-negative `left`."""
    if isinstance(left, int):
        return left // right
    return simplify(sympy.floor(left / sympy.Integer(right)))


def evaluate_dim(dim: Dim, sizes: Mapping[str, int]) -> int:
    """The value of `dim` with every named size replaced; raises KeyError on a missing one."""
    if isinstance(dim, int):
        return dim
    return int(dim.xreplace({s: sympy.Integer(sizes[s.name]) for s in dim.free_symbols}))


def evaluate_shape(shape: Shape, sizes: Mapping[str, int]) -> tuple[int, ...]:
    return tuple(evaluate_dim(d, sizes) for d in shape)


def dim_text(dim: Dim) -> str:
    """The text of a dimension: names, integers, `+ - * // %`, `max(a, b)`, `min(a, b)` and parentheses."""
    return str(dim) if isinstance(dim, int) else _text(dim, outer=0)


_SUM, _PRODUCT, _ATOM = 1, 2, 3


def _text(expr: sympy.Expr, outer: int) -> str:
    level, text = _level_and_text(expr)
    return f"({text})" if level < outer else text


def _level_and_text(expr: sympy.Expr) -> tuple[int, str]:
    if expr.is_Integer:
        return (_ATOM if expr >= 0 else _SUM), str(expr)
    if expr.is_Symbol:
        return _ATOM, expr.name
    if isinstance(expr, sympy.Add):
        terms = sorted(expr.args, key=lambda a: (a.could_extract_minus_sign(), a.is_Number, str(a)))
        text = _text(terms[0], _SUM)
        for term in terms[1:]:
            negative = term.could_extract_minus_sign()
            text += (" - " if negative else " + ") + _text(-term if negative else term, _PRODUCT)
        return _SUM, text
    if isinstance(expr, sympy.Mul):
        return _PRODUCT, "*".join(_text(a, _ATOM) for a in sorted(expr.args, key=lambda a: (not a.is_Number, str(a))))
    if isinstance(expr, sympy.Pow) and expr.exp.is_Integer and expr.exp > 0:
        return _PRODUCT, "*".join([_text(expr.base, _ATOM)] * int(expr.exp))
    if isinstance(expr, sympy.floor):
        top, bottom = sympy.fraction(sympy.together(expr.args[0]))
        return _PRODUCT, f"{_text(top, _ATOM)}//{_text(bottom, _ATOM)}"
    if isinstance(expr, sympy.Mod):
        return _PRODUCT, f"{_text(expr.args[0], _ATOM)}%{_text(expr.args[1], _ATOM)}"
    if isinstance(expr, sympy.Max | sympy.Min):
        word = "max" if isinstance(expr, sympy.Max) else "min"
        return _ATOM, f"{word}({', '.join(sorted(_text(a, 0) for a in expr.args))})"
    raise ValueError(f"{expr} is no dimension: only + - * // % max min over sizes are")
