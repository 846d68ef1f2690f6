"""merge-common-subexpressions: f(x), f(x) -> one f(x)."""

from collections.abc import Hashable, Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from planish.compiler.ir import Graph, Node, Program, Value
from planish.compiler.ops import input_, opaque, weight
from planish.compiler.pass_ import Change, Context, Contract, Exact
from planish.compiler.rewrite import Hit, substitute
from planish.compiler.text import attr_text
from planish.compiler.weights import Weights
from planish.passes.matching import each_function


@dataclass(frozen=True, slots=True)
class MergeCommonSubexpressions:
    """Computes once what the model computes several times, such as the mask of every layer.

    `y = f(x); z = f(x)` becomes `y = f(x); z = y`; operands of commutative ops compare in any order, and weights of
    equal type and content are one weight. It leaves inputs and opaque ops (which may draw random numbers) alone.
    """

    name: ClassVar[str] = "merge-common-subexpressions"
    contract: ClassVar[Contract] = Exact()

    def apply(self, program: Program, context: Context) -> Change:
        same = _equal_weights(program.weights)
        change = each_function(program, lambda graph: _merge(graph, same))
        kept = Weights(program.weights).kept(name for name in program.weights if same[name] == name)
        return Change(change.program.with_weights(kept), change.hits)


def _merge(graph: Graph, same: Mapping[str, str]) -> tuple[Graph, tuple[Hit, ...]]:
    seen: dict[Hashable, Node] = {}
    hits: list[Hit] = []

    def visit(node: Node) -> tuple[Value, ...] | None:
        if node.op in (input_, opaque):
            return None
        key = _key(node, same)
        first = seen.setdefault(key, _named(node, same))
        if first is node:
            return None
        hits.append(Hit("merge weights" if node.op is weight else "merge", node.scope))
        return first.values

    return substitute(graph, visit), tuple(hits)


def _named(node: Node, same: Mapping[str, str]) -> Node:
    """A weight under the first name that has its content; other nodes as they are."""
    if node.op is not weight or same.get(name := str(node.attrs["name"]), name) == name:
        return node
    return weight.node((), {**node.attrs, "name": same[name]}, node.scope)


def _key(node: Node, same: Mapping[str, str]) -> Hashable:
    if node.op is weight:
        name = str(node.attrs["name"])
        return weight, same.get(name, name)
    inputs: Hashable = node.inputs
    if "commutative" in node.op.traits:
        inputs = frozenset(node.inputs)
    attrs = tuple(attr_text(a) for a in node.attrs.values())
    return node.op, inputs, attrs, str(node.types[0])


def _equal_weights(weights: Mapping[str, Tensor]) -> Mapping[str, str]:
    """Each weight's name with the first name of an equal one."""
    groups: dict[Hashable, list[str]] = {}
    found: dict[str, str] = {}
    for name, tensor in weights.items():
        group = groups.setdefault(_sample(tensor), [])
        found[name] = next((other for other in group if _equal(weights[other], tensor)), name)
        if found[name] == name:
            group.append(name)
    return found


def _sample(tensor: Tensor) -> Hashable:
    """Type and a few elements: equal for equal tensors."""
    flat = tensor.reshape(-1) if tensor.is_contiguous() else tensor[:1].reshape(-1)
    picked = flat[:: max(1, flat.numel() // 8)][:8]
    return tensor.dtype, tuple(tensor.shape), tensor.is_contiguous(), tuple(picked.tolist())


def _equal(left: Tensor, right: Tensor) -> bool:
    return left.data_ptr() == right.data_ptr() or torch.equal(left, right)
