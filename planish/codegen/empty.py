"""Values without elements, of which no kernel knows: f(empty) -> a literal."""

from collections.abc import Iterable, Mapping

from planish.compiler.ir import Graph, Node, Op, Value
from planish.compiler.ops import all_, any_, concat, full, linear, matmul, mean, prod, sum_
from planish.compiler.rewrite import substitute

# what an op gives of no elements at all
_OF_NOTHING: Mapping[Op, float | bool] = {
    sum_: 0,
    prod: 1,
    mean: float("nan"),
    any_: False,
    all_: True,
    matmul: 0,
}


def without_empty(graph: Graph) -> Graph:
    """The graph with literals for what has an axis of size 0, and for sums over such; empty pieces are not joined."""
    if not any(_is_empty(value) for node in graph.nodes() for value in node.values):
        return graph
    return substitute(graph, _rewritten)


def reads_empty(nodes: Iterable[Node]) -> str | None:
    """Why no kernel takes the nodes; None where no operand is empty, or those of a linear map alone."""
    operands = (value for node in nodes if node.op is not linear for value in node.operands)
    found = next(filter(_is_empty, operands), None)
    return None if found is None else f"it reads {found.type}, which has no elements; leave it out of the model"


def _rewritten(node: Node) -> tuple[Value, ...] | None:
    value, *others = node.values
    if others or "leaf" in node.op.traits:
        return None
    if _is_empty(value):
        return (_literal(value, 0),)
    if not any(map(_is_empty, node.operands)):
        return None
    if node.op is concat:
        pieces = [value for value in node.operands if not _is_empty(value)]
        return (concat(*pieces, scope=node.scope, **node.attrs),)
    return (_literal(value, _OF_NOTHING[node.op]),) if node.op in _OF_NOTHING else None


def _literal(value: Value, number: float) -> Value:
    return full(shape=value.shape, value=number, dtype=value.dtype, scope=value.node.scope)


def _is_empty(value: Value) -> bool:
    return 0 in value.shape
