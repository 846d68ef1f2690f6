"""Attributes of nodes: their canonical form, and the kinds that an op's annotations ask for."""

from types import UnionType
from typing import Any, TypeAlias, get_args, get_origin

import sympy

from planish.compiler.types import DType, simplify

Attr: TypeAlias = "bool | int | float | str | DType | sympy.Expr | tuple[Attr, ...] | None"


def canonical(value: Any) -> Attr:
    """The attribute with lists as tuples and dimensions simplified, so that equal ones print alike."""
    if isinstance(value, list | tuple):
        return tuple(canonical(v) for v in value)
    return simplify(value) if isinstance(value, sympy.Expr) else value


def fits(value: Attr, kind: Any) -> bool:
    """Whether a canonical attribute is of the annotated kind."""
    if isinstance(kind, UnionType):
        return any(fits(value, part) for part in get_args(kind))
    if get_origin(kind) is tuple:
        return isinstance(value, tuple) and all(fits(v, get_args(kind)[0]) for v in value)
    if kind is int:
        return isinstance(value, int) and not isinstance(value, bool)
    if kind is float:
        return isinstance(value, int | float)
    return isinstance(value, kind)


def kind_text(kind: Any) -> str:
    """The annotated kind in words."""
    if isinstance(kind, UnionType):
        return " or ".join(kind_text(part) for part in get_args(kind))
    if get_origin(kind) is tuple:
        return f"a list of ({kind_text(get_args(kind)[0])})"
    return _WORDS[kind]


_WORDS = {
    bool: "true or false",
    int: "an integer",
    float: "a number",
    str: "a string",
    DType: "a dtype",
    sympy.Expr: "a dimension",
    type(None): "none",
}
