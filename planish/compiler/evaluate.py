"""The reference evaluator: every op by its torch meaning, one after another."""

from collections.abc import Callable, Mapping, Sequence

import sympy
import torch
from torch import Tensor

from planish.compiler.ir import Attr, Graph, Node, Value
from planish.compiler.ops.contract import linear
from planish.compiler.ops.quantize import dequantize
from planish.compiler.ops.shape import embedding
from planish.compiler.ops.structure import FROM_TORCH, input_, weight
from planish.compiler.types import dim_text, elements, evaluate_dim
from planish.errors import InputError
from planish.runtime.dims import Dimension, SizeRange, SizeSolver

_PART = 1 << 20  # numbers of a weight in codes that are there at once


def run_node(node: Node, values: Mapping[Value, Tensor], sizes: Mapping[str, int]) -> tuple[Tensor, ...]:
    """The results of one node."""
    operands = (None if v is None else values[v] for v in node.inputs)
    results = node.op.reference(*operands, **{k: concrete(a, sizes) for k, a in node.attrs.items()})
    return results if isinstance(results, tuple) else (results,)


Run = Callable[[Node, Mapping[Value, Tensor], Mapping[str, int]], tuple[Tensor, ...]]
"""Gives the results of a node from the values that it reads and the named sizes."""


@torch.no_grad()
def evaluate(
    graph: Graph, inputs: Sequence[Tensor], weights: Mapping[str, Tensor], *, run: Run = run_node
) -> tuple[Tensor, ...]:
    """The outputs of the graph for `inputs`, in calling order, computed by each op's reference in torch.

    Codes of weights become numbers anew for each node that reads them, of large weights a part at a time: a table at
    both ends is neither whole nor kept in between. `run` computes all other nodes.
    """
    sizes = bind_sizes(graph, inputs)
    values: dict[Value, Tensor] = dict(zip(graph.inputs, inputs, strict=True))
    last_use = {v: i for i, n in enumerate(graph.nodes()) for v in n.operands}
    for i, node in enumerate(graph.nodes()):
        if node.op is input_ or _is_constant(node):
            continue
        values.update(zip(node.values, _results(node, values, weights, sizes, run), strict=True))
        for v in node.operands:
            if last_use[v] == i and v not in graph.outputs:
                values.pop(v, None)
    return tuple(_constant(v.node, weights) if _is_constant(v.node) else values[v] for v in graph.outputs)


def _results(
    node: Node, values: Mapping[Value, Tensor], weights: Mapping[str, Tensor], sizes: Mapping[str, int], run: Run
) -> tuple[Tensor, ...]:
    """The results of one node; a linear map by large codes part by part of its rows, a look-up of those it reads."""
    codes = _large_codes(node)
    plain = {v: _constant(v.node, weights) for v in node.operands if _is_constant(v.node) and v != codes}
    read = {**values, **plain}
    if codes is None:
        return run(node, read, sizes)
    table = {v: _constant(v.node, weights) for v in codes.node.operands}
    if node.op is embedding:
        used, index = torch.unique(read[node.operands[1]], return_inverse=True)
        return run(node, {**read, codes: _numbers(codes.node, table, used), node.operands[1]: index}, sizes)
    parts = []
    rows, step = len(table[codes.node.operands[0]]), max(1, _PART // int(str(codes.shape[1])))
    for part in (slice(i, i + step) for i in range(0, rows, step)):
        biases = {v: read[v][part] for v in node.operands[2:]}
        parts.append(run(node, {**read, **biases, codes: _numbers(codes.node, table, part)}, sizes)[0])
    return (torch.cat(parts, -1),)


def _large_codes(node: Node) -> Value | None:
    """What codes stand for in a linear map or a look-up, where that is large."""
    places = {linear: 1, embedding: 0}
    value = node.operands[places[node.op]] if node.op in places else None
    coded = value is not None and value.node.op is dequantize and _is_constant(value.node)
    return value if value is not None and coded and int(str(elements(value.shape))) > _PART else None


def _numbers(node: Node, table: Mapping[Value, Tensor], rows: slice | Tensor) -> Tensor:
    """What some rows of codes stand for."""
    return run_node(node, {value: content[rows] for value, content in table.items()}, {})[0]


def _is_constant(node: Node) -> bool:
    """Whether the node is a weight, or the numbers that codes among the weights stand for."""
    return node.op is weight or (node.op is dequantize and all(v.node.op is weight for v in node.operands))


def _constant(node: Node, weights: Mapping[str, Tensor]) -> Tensor:
    if node.op is weight:
        return weights[str(node.attrs["name"])]
    return run_node(node, {v: _constant(v.node, weights) for v in node.operands}, {})[0]


def concrete(attr: Attr, sizes: Mapping[str, int]) -> Attr:
    """The attribute with every named size replaced by its value."""
    if isinstance(attr, tuple):
        return tuple(concrete(a, sizes) for a in attr)
    return evaluate_dim(attr, sizes) if isinstance(attr, sympy.Expr) else attr


def bind_sizes(graph: Graph, inputs: Sequence[Tensor]) -> Mapping[str, int]:
    """The named sizes that the shapes of `inputs` give, by the rules of the runtime.

    Raises InputError where the number, the types or the shapes of the inputs are not the graph's, and ParseError where
    no dimension of an input determines a size.
    """
    if len(inputs) != len(graph.inputs):
        raise InputError(f"{graph.name} takes {len(graph.inputs)} inputs, not {len(inputs)}")
    names = [str(value.node.attrs["name"]) for value in graph.inputs]
    for name, value, tensor in zip(names, graph.inputs, inputs, strict=True):
        if FROM_TORCH.get(tensor.dtype) is not value.dtype:
            raise InputError(f"input '{name}' is {tensor.dtype}{list(tensor.shape)}, not {value.type}")
    dims = [[Dimension.parse(dim_text(d)) for d in value.shape] for value in graph.inputs]
    used = {name for shape in dims for dim in shape for name in dim.names}
    ranges = [SizeRange(s.name, s.low, s.high, s.hint) for s in graph.sizes if s.name in used]
    return SizeSolver(ranges, names, dims).solve([tuple(tensor.shape) for tensor in inputs])
