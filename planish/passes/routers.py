"""Which linear maps choose experts: those that an index of experts, or a choice of the largest, is computed from."""

from collections.abc import Iterator

from planish.compiler.ir import Graph, Node, Value
from planish.compiler.ops import argmax, attention, block_attention, conv, embedding, grouped_linear, linear, matmul

_MIXING = (attention, block_attention, conv, embedding, grouped_linear, matmul)


def routers(graph: Graph) -> frozenset[Node]:
    """The linear maps alone decide an index of `grouped_linear`, or which elements are the largest (`topk`).

    A choice that several linear maps enter is nobody's: it may be made of the residual stream.
    """
    found: set[Node] = set()
    for choice in dict.fromkeys(_choices(graph)):
        maps = _maps_behind(choice)
        if len(maps) == 1:
            found |= maps
    return frozenset(found)


def _choices(graph: Graph) -> Iterator[Value]:
    """Indices of experts, and places that `topk` became: the largest of integers, which are whether a rank is it."""
    for node in graph.nodes():
        if node.op is grouped_linear:
            yield node.operands[2]
        elif node.op is argmax and not node.operands[0].dtype.is_float:
            yield node.values[0]


def _maps_behind(choice: Value) -> set[Node]:
    maps, seen, stack = set[Node](), set[Node](), [choice.node]
    while stack:
        node = stack.pop()
        if node in seen or node.op in _MIXING:
            continue
        seen.add(node)
        if node.op is linear:
            maps.add(node)
        else:
            stack.extend(value.node for value in node.operands)
    return maps
