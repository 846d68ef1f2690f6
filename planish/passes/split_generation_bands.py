"""What masks of positions mean where their form does not tell: they are evaluated for the whole context."""

from collections.abc import Mapping

import torch
from torch import Tensor

from planish.compiler.evaluate import run_node
from planish.compiler.ir import Graph, Value
from planish.compiler.ops import input_, weight
from planish.passes.split_generation_analysis import Tokens

_MOST = 4096  # positions of which all pairs are compared


def seen_back(mask: Value, tokens: Tokens, weights: Mapping[str, Tensor], context: int, *, causal: bool) -> int | None:
    """How many latest keys a query sees, itself included, where a bool mask [.., S, S] keeps those and no others.

    `context` where each query sees all keys before it. None where the mask depends on tokens, or keeps other keys in a
    text of `context` tokens or of half as many. With `causal` later keys are hidden besides.
    """
    graph = Graph("mask", (), (mask,))
    if context > _MOST or any(node.op is input_ for node in graph.nodes()):
        return None
    half, whole = (
        _width(_evaluated(graph, tokens, weights, length), causal=causal) for length in (-(-context // 2), context)
    )
    if half is None or whole is None:
        return None
    return whole if half == min(whole, -(-context // 2)) else None


@torch.no_grad()
def _evaluated(graph: Graph, tokens: Tokens, weights: Mapping[str, Tensor], length: int) -> Tensor:
    sizes = {tokens.tokens.name: length} | ({} if tokens.rows is None else {tokens.rows.name: 1})
    values: dict[Value, Tensor] = {}
    for node in graph.nodes():
        if node.op is weight:
            values[Value(node)] = weights[str(node.attrs["name"])]
        else:
            values.update(zip(node.values, run_node(node, values, sizes), strict=True))
    return values[graph.outputs[0]]


def _width(mask: Tensor, *, causal: bool) -> int | None:
    """The width of the band below the diagonal that a mask [.., S, S] is."""
    length = mask.shape[-1]
    if mask.numel() != length * length:
        return None
    matrix = mask.reshape(length, length).tril() if causal else mask.reshape(length, length)
    width = int(matrix[-1].sum())
    return width if width and torch.equal(matrix, torch.ones_like(matrix).tril().triu(1 - width)) else None
