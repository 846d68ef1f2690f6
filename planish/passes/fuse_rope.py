"""fuse-rope: x * cos + concat(-right(x), left(x)) * sin -> rope(x, cos, sin)."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from planish.compiler.ir import Node, Program, Value
from planish.compiler.ops import add, concat, mul, neg, rope, slice_
from planish.compiler.pass_ import Change, Context, Contract, Exact
from planish.compiler.rewrite import Step, apply_steps
from planish.compiler.types import same_shape
from planish.passes.matching import each_function

Uses = Mapping[Node, int]


@dataclass(frozen=True, slots=True)
class FuseRope:
    """Makes one `rope` of rotary positions that the model spells out.

    `x * cos + concat(-x[half:], x[:half]) * sin` becomes `rope(x, cos, sin)`. It takes tensors of rank 4 whose halves
    rotate; interleaved pairs stay as they are.
    """

    name: ClassVar[str] = "fuse-rope"
    contract: ClassVar[Contract] = Exact()

    def apply(self, program: Program, context: Context) -> Change:
        return each_function(program, lambda graph: apply_steps(graph, (Step("rope", (add,), _rope),)))


def _rope(node: Node, uses: Uses) -> Value | str | None:
    for plain, turned in (node.operands, node.operands[::-1]):
        if plain.node.op is not mul or turned.node.op is not mul:
            continue
        for half, sine in (turned.node.operands, turned.node.operands[::-1]):
            x = _rotated(half)
            if x is None or x not in plain.node.operands:
                continue
            first, second = plain.node.operands
            cosine = second if x == first else first
            return _refusal(node, x, (plain, turned, half), uses) or rope(x, cosine, sine, scope=node.scope)
    return None


def _refusal(node: Node, x: Value, inner: tuple[Value, ...], uses: Uses) -> str | None:
    if x.type.rank != 4 or not same_shape(x.shape, node.types[0].shape):
        return f"rope takes rank 4 and keeps its shape, not {x.type}"
    return "an inner value has another user" if any(uses.get(v.node, 0) > 1 for v in inner) else None


def _rotated(value: Value) -> Value | None:
    """x of `concat(-x[half:], x[:half])` along the last axis."""
    node, last = value.node, value.type.rank - 1
    if node.op is not concat or len(node.operands) != 2 or node.attrs["axis"] != last:
        return None
    right, left = node.operands
    right = right.node.operands[0] if right.node.op is neg else right
    if node.operands[0] == right or left.node.op is not slice_ or right.node.op is not slice_:
        return None
    x, width = left.node.operands[0], value.shape[last]
    if not isinstance(width, int) or right.node.operands[0] != x or x.shape[-1] != width:
        return None
    bounds = [tuple(v.node.attrs[name] for name in ("axis", "start", "stop", "step")) for v in (left, right)]
    return x if bounds == [(last, 0, width // 2, 1), (last, width // 2, width, 1)] else None
