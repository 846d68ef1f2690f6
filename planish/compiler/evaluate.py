"""The reference evaluator: every op by its torch meaning, one after another."""

from collections.abc import Mapping, Sequence

import sympy
import torch
from torch import Tensor

from planish.compiler.ir import Attr, Graph, Node, Value
from planish.compiler.ops.structure import FROM_TORCH, input_, weight
from planish.compiler.types import dim_text, evaluate_dim
from planish.errors import InputError
from planish.runtime.dims import Dimension, SizeRange, SizeSolver


@torch.no_grad()
def evaluate(graph: Graph, inputs: Sequence[Tensor], weights: Mapping[str, Tensor]) -> tuple[Tensor, ...]:
    """The outputs of the graph for `inputs`, in calling order, computed by each op's reference in torch."""
    sizes = bind_sizes(graph, inputs)
    values: dict[Value, Tensor] = dict(zip(graph.inputs, inputs, strict=True))
    last_use = {v: i for i, n in enumerate(graph.nodes()) for v in n.operands}
    for i, node in enumerate(graph.nodes()):
        if node.op is weight:
            values[Value(node)] = weights[str(node.attrs["name"])]
        elif node.op is not input_:
            values.update(zip(node.values, run_node(node, values, sizes), strict=True))
        for v in node.operands:
            if last_use[v] == i and v not in graph.outputs:
                values.pop(v, None)
    return tuple(values[v] for v in graph.outputs)


def run_node(node: Node, values: Mapping[Value, Tensor], sizes: Mapping[str, int]) -> tuple[Tensor, ...]:
    """The results of one node."""
    operands = (None if v is None else values[v] for v in node.inputs)
    results = node.op.reference(*operands, **{k: concrete(a, sizes) for k, a in node.attrs.items()})
    return results if isinstance(results, tuple) else (results,)


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
