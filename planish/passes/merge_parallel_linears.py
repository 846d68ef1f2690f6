"""merge-parallel-linears: linear(x, q), linear(x, k), linear(x, v) -> slices of linear(x, [q; k; v])."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from planish.compiler.ir import Graph, Node, Program, Value
from planish.compiler.ops import concat, full, linear, slice_, weight
from planish.compiler.pass_ import Change, Context, Contract, Exact
from planish.compiler.rewrite import Hit, substitute
from planish.passes.matching import each_function


@dataclass(frozen=True, slots=True)
class MergeParallelLinears:
    """Computes linear maps of one input at once: queries, keys and values; gate and up.

    `a = linear(x, p); b = linear(x, q)` becomes `y = linear(x, concat(p, q))` with `a` and `b` as slices of y; a
    missing bias becomes zeros. Only maps of one module and with weights of their own are merged, so that nothing is
    stored twice.
    """

    name: ClassVar[str] = "merge-parallel-linears"
    contract: ClassVar[Contract] = Exact()

    def apply(self, program: Program, context: Context) -> Change:
        return each_function(program, _merge)


def _merge(graph: Graph) -> tuple[Graph, tuple[Hit, ...]]:
    hits: list[Hit] = []
    groups = _groups(graph, hits)
    member = {node.inputs[1]: group for group in groups for node in group}
    merged: dict[Value | None, Value] = {}

    def visit(node: Node) -> tuple[Value, ...] | None:
        group = member.get(node.inputs[1]) if node.op is linear else None
        if group is None:
            return None
        key = group[0].inputs[1]
        if key not in merged:
            merged[key] = _joined(group, node.inputs[0])
            hits.append(Hit("merge", merged[key].node.scope))
        return (_piece(merged[key], group, node),)

    return substitute(graph, visit), tuple(hits)


def _groups(graph: Graph, hits: list[Hit]) -> list[list[Node]]:
    """Linear maps that share input, module and dtype, where there are at least two."""
    found: dict[tuple[Value, str, object], list[Node]] = {}
    users = graph.users()
    for node in graph.nodes():
        if node.op is linear:
            found.setdefault((node.operands[0], node.scope.rpartition(".")[0], node.attrs["dtype"]), []).append(node)
    return [kept for group in found.values() if len(group) > 1 and len(kept := _own(group, users, hits)) > 1]


def _own(group: list[Node], users: Mapping[Value, tuple[Node, ...]], hits: list[Hit]) -> list[Node]:
    """The maps whose weights are plain and read by nothing else."""
    kept: list[Node] = []
    for node in group:
        parts = node.operands[1:]
        if any(v.node.op is not weight for v in parts):
            hits.append(Hit("merge", node.scope, "its weight is computed, not stored"))
        elif any(len(users[v]) > 1 for v in parts):
            hits.append(Hit("merge", node.scope, "its weight has another user and would be stored twice"))
        else:
            kept.append(node)
    return kept


def _joined(group: list[Node], x: Value | None) -> Value:
    scope = group[0].scope.rpartition(".")[0]
    w = concat(*(node.operands[1] for node in group), axis=0, scope=scope)
    biased = any(len(node.operands) > 2 for node in group)
    b = concat(*(_bias(node) for node in group), axis=0, scope=scope) if biased else None
    return linear(x, w, b, scope=scope, **group[0].attrs)


def _bias(node: Node) -> Value:
    if len(node.operands) > 2:
        return node.operands[2]
    return full(shape=node.operands[1].shape[:1], value=0.0, dtype=node.types[0].dtype, scope=node.scope)


def _piece(whole: Value, group: list[Node], node: Node) -> Value:
    start = 0
    for other in group:
        width = other.operands[1].shape[0]
        assert isinstance(width, int)
        if other.inputs[1] == node.inputs[1]:
            return slice_(whole, axis=whole.type.rank - 1, start=start, stop=start + width, scope=node.scope)
        start += width
    raise AssertionError(f"{node} is not in its group")
