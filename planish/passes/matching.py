"""What passes ask of values and build from them: literals, constants, peeled movements."""

from collections.abc import Callable

from planish.compiler.ir import Graph, Program, Value
from planish.compiler.ops import arange, expand, full, logical_and, opaque, reshape, transpose, weight
from planish.compiler.pass_ import Change
from planish.compiler.rewrite import Hit
from planish.compiler.types import Shape, same_shape


def each_function(program: Program, rewrite: Callable[[Graph], tuple[Graph, tuple[Hit, ...]]]) -> Change:
    """The program with every function rewritten, and all hits."""
    hits: tuple[Hit, ...] = ()
    for graph in program.functions.values():
        after, found = rewrite(graph)
        program, hits = program.with_function(after), hits + found
    return Change(program, hits)


def literal(value: Value | None) -> float | int | bool | None:
    """The number that every element of the value is, where it is a literal."""
    if value is None or value.node.op is not full:
        return None
    number = value.node.attrs["value"]
    assert isinstance(number, bool | int | float)
    return number


def is_number(value: Value | None, number: float, tolerance: float = 0.0) -> bool:
    """Whether the value is the literal `number`, up to a relative `tolerance`."""
    found = literal(value)
    return found is not None and abs(found - number) <= tolerance * abs(number)


def is_constant(value: Value) -> bool:
    """Whether the value depends on weights and literals only, and on no named size."""
    stack, seen = [value.node], set()
    while stack:
        node = stack.pop()
        if node in seen:
            continue
        seen.add(node)
        if node.op is opaque or ("leaf" in node.op.traits and node.op is not weight):
            return False
        if not all(isinstance(d, int) for of in node.types for d in of.shape):
            return False
        stack.extend(v.node for v in node.operands)
    return value.node.op is not arange or isinstance(value.node.attrs["start"], int)


def reshaped(value: Value, shape: Shape, scope: str) -> Value:
    """The value under another shape; nothing where it has it, one reshape where it is one already."""
    while value.node.op is reshape and value.node.inputs[0] is not None and not same_shape(value.shape, shape):
        value = value.node.inputs[0]
    return value if same_shape(value.shape, shape) else reshape(value, shape=shape, scope=scope)


def transposed(value: Value, order: tuple[int, ...], scope: str) -> Value:
    """The value with its axes in another order; one transpose where it is one already, nothing where none is left."""
    if value.node.op is transpose:
        inner = axes(value.node.attrs["order"])
        value, order = value.node.operands[0], tuple(inner[i] for i in order)
    return value if order == tuple(range(value.type.rank)) else transpose(value, order=order, scope=scope)


def swapped(value: Value, scope: str) -> Value:
    """The value with its last two axes exchanged."""
    rank = value.type.rank
    return transposed(value, (*range(rank - 2), rank - 1, rank - 2), scope)


def expanded(value: Value, shape: Shape, scope: str) -> Value:
    """The value repeated to `shape`; nothing where it has it."""
    return value if same_shape(value.shape, shape) else expand(value, shape=shape, scope=scope)


def axes(attr: object) -> tuple[int, ...]:
    """An attribute that lists integers."""
    assert isinstance(attr, tuple)
    return attr


def conjunction(terms: list[Value], scope: str) -> Value | None:
    """All terms joined with `logical_and`, None without terms."""
    result: Value | None = None
    for term in terms:
        result = term if result is None else logical_and(result, term, scope=scope)
    return result
