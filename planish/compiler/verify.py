"""What must hold of every program: sizes declared, weights present, every type re-inferred and equal."""

import sympy

from planish.compiler.ir import Attr, Graph, Node, Program, Value, same_type
from planish.compiler.ops.structure import FROM_TORCH, input_, weight
from planish.compiler.weights import Weights
from planish.errors import TypeRuleError, VerifyError


def verify(program: Program) -> None:
    """Raise VerifyError naming the function, the op and its scope at the first broken invariant."""
    for graph in program.functions.values():
        verify_graph(graph)
        for node in graph.nodes():
            if node.op is weight:
                _verify_weight(node, program, graph)


def verify_graph(graph: Graph) -> None:
    """The invariants of one graph, weights aside."""
    declared = {size.symbol for size in graph.sizes}
    for value in graph.inputs:
        if value.node.op is not input_:
            raise VerifyError(f"{graph.name}: the input {value.node} is no input node")
    names = [str(v.node.attrs["name"]) for v in graph.inputs]
    if len(set(names)) != len(names):
        raise VerifyError(f"{graph.name}: two inputs share a name among {names}")
    for node in graph.nodes():
        if node.op is input_ and Value(node) not in graph.inputs:
            raise VerifyError(f"{graph.name}: {node.attrs['name']} is read but is no input of the graph")
        _verify_types(node, graph)
        if unknown := _sizes((*(of.shape for of in node.types), *node.attrs.values())) - declared:
            name = min(map(str, unknown))
            raise VerifyError(f"{graph.name}: {node} uses the size {name} that the graph does not declare")


def _sizes(attr: Attr) -> set[sympy.Symbol]:
    if isinstance(attr, tuple):
        return {size for part in attr for size in _sizes(part)}
    return attr.free_symbols if isinstance(attr, sympy.Expr) else set()


def _verify_types(node: Node, graph: Graph) -> None:
    try:
        again = node.op.node(node.inputs, node.attrs).types
    except TypeRuleError as error:
        raise VerifyError(f"{graph.name}: {node}: {error}") from None
    if len(again) != len(node.types) or not all(map(same_type, again, node.types)):
        raise VerifyError(f"{graph.name}: {node} should have the type {', '.join(map(str, again))}")


def _verify_weight(node: Node, program: Program, graph: Graph) -> None:
    name = str(node.attrs["name"])
    if name not in program.weights:
        raise VerifyError(f"{graph.name}: the program has no weight '{name}'")
    tensor = Weights(program.weights).like(name)
    if tuple(tensor.shape) != node.types[0].shape or FROM_TORCH.get(tensor.dtype) is not node.types[0].dtype:
        raise VerifyError(f"{graph.name}: weight '{name}' is {tensor.dtype}{list(tensor.shape)}, not {node.types[0]}")
