"""Dimension expressions over named sizes, and the sizes that given input shapes imply."""

import ast
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

from planish.errors import InputError, ParseError

Sizes: TypeAlias = Mapping[str, int]
Evaluate: TypeAlias = Callable[[Sizes], int]
# An expression that is linear in one unknown: (coefficient, constant), both over known sizes.
Linear: TypeAlias = tuple[Evaluate, Evaluate]

_BINARY: dict[type[ast.operator], Callable[[int, int], int]] = {
    ast.Add: lambda a, b: a + b,
    ast.Sub: lambda a, b: a - b,
    ast.Mult: lambda a, b: a * b,
    ast.FloorDiv: lambda a, b: a // b,
    ast.Mod: lambda a, b: a % b,
}
_CALLS: dict[str, Callable[..., int]] = {"max": max, "min": min}


@dataclass(frozen=True, slots=True)
class Dimension:
    """One dimension of a shape: an integer or an expression over named sizes.

    Grammar: integers, names, `+ - * // %`, `max(a, b)`, `min(a, b)` and parentheses.
    """

    text: str
    names: frozenset[str]
    evaluate: Evaluate = field(compare=False, repr=False)

    @classmethod
    def parse(cls, source: int | str) -> "Dimension":
        """The dimension that `source` writes; raises ParseError with the part outside the grammar."""
        if isinstance(source, int) and not isinstance(source, bool):
            return cls(str(source), frozenset(), _constant(source))
        text = str(source)
        tree = _tree(text)
        return cls(text, _names(tree), _compile(tree, text))

    @property
    def constant(self) -> int | None:
        """The value where no named size is involved."""
        return None if self.names else self.evaluate({})

    @property
    def is_name(self) -> bool:
        return self.names == {self.text}

    def linear_in(self, unknown: str) -> Linear | None:
        """The dimension as `coefficient * unknown + constant`, or None where it is not linear in it."""
        return _linear(_tree(self.text), unknown, self.text)

    def __str__(self) -> str:
        return self.text


@dataclass(frozen=True, slots=True)
class SizeRange:
    """A named size with the inclusive range that the code was generated for; `hint` is its usual value."""

    name: str
    low: int
    high: int
    hint: int

    def __post_init__(self) -> None:
        if not self.name.isidentifier():
            raise ParseError(f"a size needs an identifier as its name, not {self.name!r}")
        if not 0 <= self.low <= self.hint <= self.high:
            raise ParseError(f"size {self.name} needs low <= hint <= high, not {self.low}, {self.hint}, {self.high}")


@dataclass(frozen=True, slots=True)
class _Binding:
    """How one size follows from one dimension of one input, given the sizes bound before it."""

    size: SizeRange
    operand: int
    axis: int
    linear: Linear


class SizeSolver:
    """Finds every named size from the shapes of the inputs and checks all other dimensions against them.

    A dimension that is a plain name binds it; where a name stands in no such place, a dimension that is
    linear in it, `a * S + b`, does. Raises ParseError when the inputs do not determine a size.
    """

    def __init__(self, sizes: Sequence[SizeRange], names: Sequence[str], shapes: Sequence[Sequence[Dimension]]) -> None:
        self.names = tuple(names)
        self.shapes = tuple(tuple(shape) for shape in shapes)
        self.bindings = _plan_bindings(tuple(sizes), self.shapes)

    def solve(self, given: Sequence[tuple[int, ...]]) -> dict[str, int]:
        """The sizes, in their declared order of binding, that `given` shapes (one an input) imply.

        Raises InputError with the input, the dimension, the expected and the given value.
        """
        for name, shape, actual in zip(self.names, self.shapes, given, strict=True):
            if len(shape) != len(actual):
                raise InputError(
                    f"input '{name}' needs {len(shape)} dimensions [{_listed(shape)}], was given {len(actual)} "
                    f"[{_listed(actual)}]"
                )
        sizes: dict[str, int] = {}
        for binding in self.bindings:
            sizes[binding.size.name] = self._bind(binding, sizes, given)
        self._check(sizes, given)
        return sizes

    def _bind(self, binding: _Binding, sizes: Sizes, given: Sequence[tuple[int, ...]]) -> int:
        coefficient, constant = (part(sizes) for part in binding.linear)
        actual = given[binding.operand][binding.axis]
        name, dimension = self.names[binding.operand], self.shapes[binding.operand][binding.axis]
        if coefficient == 0 or (actual - constant) % coefficient:
            raise InputError(
                f"dimension {binding.axis} of input '{name}' is {actual}, but must be {dimension} for a whole "
                f"{binding.size.name}"
            )
        value, size = (actual - constant) // coefficient, binding.size
        if not size.low <= value <= size.high:
            raise InputError(
                f"size {size.name} of input '{name}' is {value}, outside the declared {size.low}..{size.high}; "
                "compile with a wider dynamic range"
            )
        return value

    def _check(self, sizes: Sizes, given: Sequence[tuple[int, ...]]) -> None:
        for operand, (shape, actual) in enumerate(zip(self.shapes, given, strict=True)):
            for axis, (dimension, value) in enumerate(zip(shape, actual, strict=True)):
                expected = dimension.evaluate(sizes)
                if expected != value:
                    raise self._mismatch(operand, axis, expected, given)

    def _mismatch(self, operand: int, axis: int, expected: int, given: Sequence[tuple[int, ...]]) -> InputError:
        name, dimension = self.names[operand], self.shapes[operand][axis]
        origin = "".join(
            f" ({b.size.name} comes from dimension {b.axis} of input '{self.names[b.operand]}')"
            for b in self.bindings
            if b.size.name in dimension.names
        )
        needed = f"{expected}" if not dimension.names else f"{dimension} = {expected}{origin}"
        return InputError(f"dimension {axis} of input '{name}' is {given[operand][axis]}, expected {needed}")


def _plan_bindings(sizes: tuple[SizeRange, ...], shapes: tuple[tuple[Dimension, ...], ...]) -> tuple[_Binding, ...]:
    places = [(i, axis, d) for i, shape in enumerate(shapes) for axis, d in enumerate(shape) if d.names]
    unbound = {size.name: size for size in sizes}
    known = set(unbound)
    for operand, axis, dimension in places:
        if extra := dimension.names - known:
            raise ParseError(f"dimension {axis} of input {operand}, '{dimension}', uses the undeclared {min(extra)}")
    bindings: list[_Binding] = []
    # Plain names first, so that a mistaken input is reported by the size that people know it by.
    for plain in (True, False):
        while found := _next_binding(places, unbound, plain):
            del unbound[found.size.name]
            bindings.append(found)
    if unbound:
        raise ParseError(f"no input dimension determines size {min(unbound)}; make it the whole of one dimension")
    return tuple(bindings)


def _next_binding(
    places: Sequence[tuple[int, int, Dimension]], unbound: Mapping[str, SizeRange], plain: bool
) -> _Binding | None:
    for operand, axis, dimension in places:
        unknown = dimension.names & unbound.keys()
        if len(unknown) != 1 or (plain and not dimension.is_name):
            continue
        (name,) = unknown
        if linear := dimension.linear_in(name):
            return _Binding(unbound[name], operand, axis, linear)
    return None


def _tree(text: str) -> ast.expr:
    try:
        return ast.parse(text, mode="eval").body
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise ParseError(f"'{text}' is no dimension; write integers, names, + - * // % max min and ( )") from error


def _names(tree: ast.expr) -> frozenset[str]:
    calls = {node.func for node in ast.walk(tree) if isinstance(node, ast.Call)}
    return frozenset(node.id for node in ast.walk(tree) if isinstance(node, ast.Name) and node not in calls)


def _compile(node: ast.expr, text: str) -> Evaluate:
    match node:
        case ast.Constant(value=int(value)) if not isinstance(value, bool):
            return _constant(value)
        case ast.Name(id=name):
            return lambda sizes: sizes[name]
        case ast.UnaryOp(op=ast.USub(), operand=operand):
            inner = _compile(operand, text)
            return lambda sizes: -inner(sizes)
        case ast.BinOp(left=left, op=op, right=right) if type(op) in _BINARY:
            return _apply(_BINARY[type(op)], (_compile(left, text), _compile(right, text)))
        case ast.Call(func=ast.Name(id=name), args=args, keywords=[]) if name in _CALLS and len(args) >= 2:
            return _apply(_CALLS[name], tuple(_compile(argument, text) for argument in args))
    part = ast.unparse(node)
    raise ParseError(f"'{part}' in dimension '{text}' is outside integers, names, + - * // % max min and ( )")


def _linear(node: ast.expr, unknown: str, text: str) -> Linear | None:
    if unknown not in _names(node):
        return _constant(0), _compile(node, text)
    match node:
        case ast.Name():
            return _constant(1), _constant(0)
        case ast.UnaryOp(op=ast.USub(), operand=operand) if inner := _linear(operand, unknown, text):
            return _scale(inner, _constant(-1))
        case ast.BinOp(left=left, op=ast.Add() | ast.Sub(), right=right):
            parts = (_linear(left, unknown, text), _linear(right, unknown, text))
            if parts[0] and parts[1]:
                combine = _BINARY[type(node.op)]
                return _apply(combine, (parts[0][0], parts[1][0])), _apply(combine, (parts[0][1], parts[1][1]))
        case ast.BinOp(left=left, op=ast.Mult(), right=right):
            outer, factor = (right, left) if unknown in _names(right) else (left, right)
            if unknown not in _names(factor) and (inner := _linear(outer, unknown, text)):
                return _scale(inner, _compile(factor, text))
    return None


def _scale(linear: Linear, factor: Evaluate) -> Linear:
    return _apply(_BINARY[ast.Mult], (linear[0], factor)), _apply(_BINARY[ast.Mult], (linear[1], factor))


def _constant(value: int) -> Evaluate:
    return lambda sizes: value


def _apply(operation: Callable[..., int], parts: tuple[Evaluate, ...]) -> Evaluate:
    if len(parts) == 2:
        left, right = parts
        return lambda sizes: operation(left(sizes), right(sizes))
    return lambda sizes: operation(*(part(sizes) for part in parts))


def _listed(shape: Sequence[Dimension] | tuple[int, ...]) -> str:
    return ", ".join(str(dimension) for dimension in shape)
