"""simplify-arithmetic: x + 0 -> x, x * 1 -> x, where(true, x, y) -> x, cast to the same dtype -> x."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import ClassVar

from planish.compiler.ir import Node, Program, Value, same_type
from planish.compiler.ops import (
    add,
    cast,
    clamp,
    dim_value,
    div,
    expand,
    full,
    logical_and,
    logical_not,
    logical_or,
    maximum,
    minimum,
    mul,
    neg,
    pow_,
    relu,
    reshape,
    slice_,
    sub,
    transpose,
    where,
)
from planish.compiler.ops.elementwise import broadcast
from planish.compiler.pass_ import Change, Context, Contract, Exact
from planish.compiler.rewrite import Step, apply_steps
from planish.compiler.types import DType, same_shape
from planish.errors import TypeRuleError
from planish.passes.matching import each_function, expanded, is_number, literal


@dataclass(frozen=True, slots=True)
class SimplifyArithmetic:
    """Drops arithmetic that changes nothing, such as dropout, casts to the same dtype and masks that keep everything.

    `x + 0`, `x * 1`, `where(true, x, y)`, `x and true` and `cast` to x's own dtype become `x`; a literal is cast,
    reshaped and expanded at once. It does not reorder arithmetic: `(x + 1) + 2` stays as it is.
    """

    name: ClassVar[str] = "simplify-arithmetic"
    contract: ClassVar[Contract] = Exact()

    def apply(self, program: Program, context: Context) -> Change:
        return each_function(program, lambda graph: apply_steps(graph, _STEPS))


def _like(value: Value, node: Node) -> Value:
    return expanded(value, node.types[0].shape, node.scope)


def _neutral_right(number: float) -> Callable[[Node, Mapping[Node, int]], Value | None]:
    def rewrite(node: Node, uses: Mapping[Node, int]) -> Value | None:
        x, y = node.operands
        return _like(x, node) if is_number(y, number) else None

    return rewrite


def _neutral(number: float) -> Callable[[Node, Mapping[Node, int]], Value | None]:
    def rewrite(node: Node, uses: Mapping[Node, int]) -> Value | None:
        x, y = node.operands
        if is_number(y, number):
            return _like(x, node)
        return _like(y, node) if is_number(x, number) else None

    return rewrite


def _logical(node: Node, uses: Mapping[Node, int]) -> Value | None:
    """`x and true` and `x or false` are x; `x and false` is false, `x or true` is true."""
    if any(v.dtype is not DType.bool for v in node.operands):
        return None
    neutral = node.op is logical_and
    for x, y in (node.operands, node.operands[::-1]):
        if literal(y) is neutral or x == y:
            return _like(x, node)
        if literal(y) is (not neutral):
            return full(shape=node.types[0].shape, value=not neutral, dtype=DType.bool, scope=node.scope)
    return None


def _twice(node: Node, uses: Mapping[Node, int]) -> Value | None:
    """`neg(neg(x))` and `not(not(x))` are x."""
    inner = node.operands[0].node
    same = inner.op is node.op and inner.operands[0].dtype is node.types[0].dtype
    return inner.operands[0] if same else None


def _select(node: Node, uses: Mapping[Node, int]) -> Value | None:
    condition, x, y = node.operands
    known = literal(condition)
    if known is not None:
        return _like(x if known else y, node)
    same = literal(x) is not None and literal(x) == literal(y)
    return _like(x, node) if x == y or same else None


def _same_cast(node: Node, uses: Mapping[Node, int]) -> Value | None:
    x = node.operands[0]
    return x if same_type(x.type, node.types[0]) else None


def _truth(node: Node, uses: Mapping[Node, int]) -> Value | None:
    """A choice between a number and 0 as a bool is its condition, or the opposite."""
    choice = node.operands[0].node
    if node.types[0].dtype is not DType.bool or choice.op is not where:
        return None
    condition, *numbers = choice.operands
    outcomes = [None if literal(v) is None else bool(literal(v)) for v in numbers]
    if outcomes == [True, False]:
        return _like(condition, node)
    return _like(logical_not(condition, scope=node.scope), node) if outcomes == [False, True] else None


def _literal(node: Node, uses: Mapping[Node, int]) -> Value | None:
    """Movements and casts of a literal are literals."""
    number, of = literal(node.operands[0]), node.types[0]
    if number is None:
        return None
    if node.op is cast:
        number = float(number) if of.dtype.is_float else bool(number) if of.dtype is DType.bool else int(number)
    return full(shape=of.shape, value=number, dtype=of.dtype, scope=node.scope)


def _scalar_operand(node: Node, uses: Mapping[Node, int]) -> Value | None:
    """A literal that an elementwise op broadcasts anyway is a scalar."""
    for i, value in enumerate(node.inputs):
        if literal(value) is not None and value is not None and value.type.rank > 0:
            number = full(value=value.node.attrs["value"], dtype=value.dtype, scope=value.node.scope)
            inputs = (*node.inputs[:i], number, *node.inputs[i + 1 :])
            if same_shape(_broadcast(inputs), node.types[0].shape):
                return node.op(*inputs, scope=node.scope, **node.attrs)
    return None


def _broadcast(inputs: tuple[Value | None, ...]) -> tuple[object, ...]:
    try:
        return broadcast(*(v.shape for v in inputs if v is not None))
    except TypeRuleError:
        return ()


def _known_size(node: Node, uses: Mapping[Node, int]) -> Value | None:
    value = node.attrs["value"]
    known = isinstance(value, int)
    return full(value=value, dtype=node.types[0].dtype, scope=node.scope) if known else None


def _clamped(node: Node, uses: Mapping[Node, int]) -> Value | None:
    """`max(x, 0)` is relu; `clamp` without bounds is x; `clamp` at 0 alone is relu."""
    if node.op is clamp:
        low, high = node.attrs["low"], node.attrs["high"]
        if low is None and high is None:
            return node.operands[0]
        is_relu = low == 0 and high is None and node.types[0].dtype.is_float
        return relu(node.operands[0], scope=node.scope) if is_relu else None
    for x, y in (node.operands, node.operands[::-1]):
        if is_number(y, 0.0) and x.dtype.is_float and same_shape(x.shape, node.types[0].shape):
            return relu(x, scope=node.scope)
    return None


_BINARY = (add, sub, mul, div, pow_, maximum, minimum, logical_and, logical_or)

_STEPS = (
    Step("literal", (cast, reshape, expand, transpose, slice_), _literal),
    Step("scalar literal", (*_BINARY, where), _scalar_operand),
    Step("add nothing", (add,), _neutral(0.0)),
    Step("subtract nothing", (sub,), _neutral_right(0.0)),
    Step("multiply by one", (mul,), _neutral(1.0)),
    Step("divide by one", (div,), _neutral_right(1.0)),
    Step("to the first power", (pow_,), _neutral_right(1.0)),
    Step("known condition", (where,), _select),
    Step("known truth", (logical_and, logical_or), _logical),
    Step("undo", (neg, logical_not), _twice),
    Step("same cast", (cast,), _same_cast),
    Step("truth of a choice", (cast,), _truth),
    Step("known size", (dim_value,), _known_size),
    Step("relu", (clamp, maximum), _clamped),
)
