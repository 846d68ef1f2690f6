"""fuse-activations: x * sigmoid(x) -> silu(x), x / 2 * (1 + erf(x / sqrt(2))) -> gelu(x), and the tanh form."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import ClassVar

from planish.compiler.ir import Node, Op, Program, Value
from planish.compiler.ops import add, clamp, div, erf, gelu, maximum, minimum, mul, pow_, relu, sigmoid, silu, tanh
from planish.compiler.pass_ import Change, Context, Contract, Exact
from planish.compiler.rewrite import Step, apply_steps
from planish.compiler.types import same_shape
from planish.passes.matching import each_function, is_number, literal

Uses = Mapping[Node, int]


@dataclass(frozen=True, slots=True)
class FuseActivations:
    """Makes one op of an activation that the model spells out.

    `x * sigmoid(x)` becomes `silu(x)`; `0.5 * x * (1 + erf(x / sqrt(2)))` and the form with tanh become `gelu(x)`;
    `min(max(x, a), b)` with literal bounds becomes `clamp(x)`. Constants must agree to 1e-5; a sigmoid of a scaled x
    (quick GELU) stays as it is.
    """

    name: ClassVar[str] = "fuse-activations"
    contract: ClassVar[Contract] = Exact()

    def apply(self, program: Program, context: Context) -> Change:
        return each_function(program, lambda graph: apply_steps(graph, _STEPS))


def _silu(node: Node, uses: Uses) -> Value | None:
    for x, y in (node.operands, node.operands[::-1]):
        if y.node.op is sigmoid and y.node.operands[0] == x:
            return silu(x, scope=node.scope)
    return None


def _gelu(node: Node, uses: Uses) -> Value | str | None:
    """A product of x, 0.5 and `1 + erf(..)` or `1 + tanh(..)`, in any order."""
    number, factors = _product(Value(node), uses)
    if len(factors) != 2 or not _near(number, 0.5):
        return None
    for x, gate in (factors, factors[::-1]):
        inner = _one_plus(gate)
        if inner is None or not same_shape(x.shape, node.types[0].shape):
            continue
        if inner.node.op is erf and _is_scaled(inner.node.operands[0], x, math.sqrt(0.5)):
            return gelu(x, scope=node.scope)
        if inner.node.op is tanh and _is_tanh_argument(inner.node.operands[0], x):
            return gelu(x, approximate="tanh", scope=node.scope)
    return None


def _product(value: Value, uses: Uses) -> tuple[float, list[Value]]:
    """The number and the other factors that `value` is a product of; a factor with other users is not opened."""
    number, factors, stack = 1.0, list[Value](), [value]
    while stack:
        factor = stack.pop()
        known = literal(factor)
        if known is not None:
            number *= known
        elif factor.node.op is mul and (factor == value or uses.get(factor.node, 0) == 1):
            stack.extend(factor.node.operands)
        elif factor.node.op is div and literal(factor.node.operands[1]):
            number /= float(literal(factor.node.operands[1]) or 1.0)
            stack.append(factor.node.operands[0])
        else:
            factors.append(factor)
    return number, factors


def _one_plus(gate: Value) -> Value | None:
    if gate.node.op is not add:
        return None
    x, y = gate.node.operands
    return x if is_number(y, 1.0) else y if is_number(x, 1.0) else None


def _is_scaled(value: Value, x: Value, factor: float) -> bool:
    """Whether the value is `factor * x`."""
    number, factors = _product(value, {})
    return factors == [x] and _near(number, factor)


def _is_tanh_argument(value: Value, x: Value) -> bool:
    """Whether the value is `sqrt(2 / pi) * (x + 0.044715 x^3)`, factored or not."""
    number, factors = _product(value, {})
    inner = factors[0] if len(factors) == 1 else None
    return inner is not None and inner.node.op is add and _near(number, math.sqrt(2 / math.pi)) and _is_cubic(inner, x)


def _is_cubic(total: Value, x: Value) -> bool:
    for linear_part, cubic in (total.node.operands, total.node.operands[::-1]):
        number, power = _power(cubic, x)
        if linear_part == x and power == 3 and _near(number, 0.044715):
            return True
    return False


def _power(value: Value, x: Value) -> tuple[float, int]:
    """c and n of `c * x^n`; n is 0 where the value is none."""
    if value == x:
        return 1.0, 1
    known = literal(value)
    if known is not None:
        return float(known), 0
    if value.node.op is mul:
        (a, n), (b, m) = (_power(v, x) for v in value.node.operands)
        return a * b, n + m
    exponent = literal(value.node.operands[1]) if value.node.op is pow_ else None
    return (1.0, int(exponent)) if exponent is not None and value.node.operands[0] == x else (math.nan, 0)


def _near(number: float, wanted: float) -> bool:
    return abs(number - wanted) <= 1e-5 * abs(wanted)


def _bound(name: str) -> Callable[[Node, Uses], Value | None]:
    def rewrite(node: Node, uses: Uses) -> Value | None:
        for x, bound in (node.operands, node.operands[::-1]):
            number = literal(bound)
            if number is not None and literal(x) is None and same_shape(x.shape, node.types[0].shape):
                return clamp(x, scope=node.scope, **{name: number})
        return None

    return rewrite


def _both_bounds(node: Node, uses: Uses) -> Value | None:
    """`min(max(x, a), b)` with a <= b is one clamp; relu counts as max(x, 0)."""
    inner = node.operands[0].node
    low, high = node.attrs["low"], node.attrs["high"]
    if low is not None or not isinstance(high, int | float) or uses.get(inner, 0) > 1:
        return None
    if inner.op is relu:
        return clamp(inner.operands[0], low=0.0, high=high, scope=node.scope) if high >= 0 else None
    bottom = inner.attrs["low"] if inner.op is clamp and inner.attrs["high"] is None else None
    fits = isinstance(bottom, int | float) and bottom <= high
    return clamp(inner.operands[0], low=bottom, high=high, scope=node.scope) if fits else None


_SPELLED: tuple[Op, ...] = (mul, div)

_STEPS = (
    Step("silu", (mul,), _silu),
    Step("gelu", _SPELLED, _gelu),
    Step("clamp from above", (minimum,), _bound("high")),
    Step("clamp from below", (maximum,), _bound("low")),
    Step("clamp on both sides", (clamp,), _both_bounds),
)
