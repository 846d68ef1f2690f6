"""Facts about graphs: arithmetic, traffic, lifetimes, dominators, the critical path, repeated blocks and cuts."""

import math
import re
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction

import networkx

from planish.compiler.ir import Graph, Node, Program, Value
from planish.compiler.ops import (
    attention,
    block_attention,
    conv,
    dequantize,
    embedding,
    gather,
    grouped_linear,
    index_select,
    linear,
    matmul,
    reshape,
    weight,
)
from planish.compiler.text import attr_text
from planish.compiler.types import TensorType, evaluate_dim
from planish.compiler.weights import Weights

Sizes = Mapping[str, int]

# Operations an element of the result, counting one for each + - * / and each transcendental function of the formula.
_WORK = {"softmax": 5, "log_softmax": 5, "layer_norm": 8, "rms_norm": 5, "group_norm": 8, "batch_norm": 4, "rope": 3}
_WORK |= {"gelu": 8, "silu": 4, "sigmoid": 3}


def flops(node: Node, sizes: Sizes) -> int:
    """Operations of one node: a multiply-add is two, an elementwise result is one (a formula counts its terms)."""
    if node.op in (attention, block_attention):
        return _attention_flops(node, sizes)
    result = _count(node.types[0], sizes)
    if node.op is grouped_linear:
        return 2 * result * _contracted(node, sizes)
    if node.op in (linear, matmul, conv):
        return 2 * result * _contracted(node, sizes) + (result if len(node.operands) > 2 else 0)
    if node.op.name in _WORK or "elementwise" in node.op.traits:
        return result * _WORK.get(node.op.name, 1)
    if "kernel" in node.attrs:
        return result * math.prod(_ints(node.attrs["kernel"]))
    if "reduction" in node.op.traits or node.op.name in ("argmax", "cumsum"):
        return _count(node.operands[0].type, sizes)
    return 0


def _contracted(node: Node, sizes: Sizes) -> int:
    if node.op is conv:
        return _count(node.operands[1].type, sizes) // evaluate_dim(node.operands[1].shape[0], sizes)
    return evaluate_dim(node.operands[0].shape[-1], sizes)


def _attention_flops(node: Node, sizes: Sizes) -> int:
    q, _, v = node.operands[:3]
    batch, heads, _, width = (evaluate_dim(d, sizes) for d in q.shape)
    out = evaluate_dim(v.shape[3], sizes)
    return batch * heads * _scores(node, sizes) * (2 * width + 2 * out + _WORK["softmax"])


def _scores(node: Node, sizes: Sizes) -> int:
    """Scores of one head; what an index of blocks holds is known only when it runs, so all its entries count."""
    queries, keys = (evaluate_dim(v.shape[2], sizes) for v in node.operands[:2])
    if node.op is block_attention:
        block = node.attrs["key_block"]
        assert isinstance(block, int)
        return queries * min(keys, evaluate_dim(node.operands[3].shape[3], sizes) * block)
    if not node.attrs["causal"]:
        return queries * keys
    window = node.attrs["window"] or keys
    assert isinstance(window, int)
    return sum(max(0, min(window, keys - queries + i + 1)) for i in range(queries))


def bytes_moved(node: Node, sizes: Sizes) -> int:
    """Bytes that a node reads and writes when it runs alone: operands and results once; views and leaves move none.

    A lookup reads only the rows that it picks, and a grouped product no more experts than it has rows.
    """
    if node.op is reshape or "leaf" in node.op.traits:
        return 0
    written = sum(_bytes(of, sizes) for of in node.types)
    if node.op in (embedding, gather, index_select):
        index = node.operands[1]
        return 2 * written + _bytes(index.type, sizes)
    if "movement" in node.op.traits:
        return 2 * written
    return written + sum(int(_bytes(v.type, sizes) * _share(node, v, sizes)) for v in dict.fromkeys(node.operands))


def _share(node: Node, operand: Value, sizes: Sizes) -> Fraction:
    """The largest part of an operand that a node may read: of experts, one for each row."""
    if node.op is not grouped_linear or operand != node.operands[1]:
        return Fraction(1)
    experts = evaluate_dim(operand.shape[0], sizes)
    return Fraction(min(experts, _count(node.operands[2].type, sizes)), experts)


def _count(of: TensorType, sizes: Sizes) -> int:
    return math.prod(evaluate_dim(d, sizes) for d in of.shape)


def _bytes(of: TensorType, sizes: Sizes) -> int:
    return _count(of, sizes) * of.dtype.itemsize


def _ints(attr: object) -> tuple[int, ...]:
    assert isinstance(attr, tuple)
    return attr


@dataclass(frozen=True, slots=True)
class Costs:
    """What a program costs to run once: computed nodes, bytes of the weights it reads, operations and bytes moved.

    `flops_by_dtype` splits the operations by the dtype of the first operand.
    """

    ops: int
    weight_bytes: int
    flops: int
    bytes_moved: int
    flops_by_dtype: Mapping[str, int]


def costs(program: Program, sizes: Sizes) -> Costs:
    """The costs of all functions; `sizes` overrides the hints of the graphs."""
    ops, moved, work = 0, 0, dict[str, int]()
    for graph in program.functions.values():
        known = {**graph.hints(), **sizes}
        for node in graph.nodes():
            if "leaf" not in node.op.traits:
                dtype = str((node.operands[0] if node.operands else Value(node)).dtype)
                ops += 1
                moved += bytes_moved(node, known)
                work[dtype] = work.get(dtype, 0) + flops(node, known)
    weights = Weights(program.weights)
    held = sum(weights.like(n).nbytes for n in weight_names(program))
    return Costs(ops, held, sum(work.values()), moved, {d: f for d, f in work.items() if f})


def least_costs(graph: Graph, sizes: Sizes) -> tuple[int, int]:
    """Operations of one call, and the bytes of its weights, inputs and results, each counted once."""
    known, nodes = {**graph.hints(), **sizes}, graph.nodes()
    ends = sum(_bytes(v.type, known) for v in (*graph.inputs, *graph.outputs))
    return sum(flops(n, known) for n in nodes), ends + _weight_bytes(nodes, known)


def step_bytes(graph: Graph, held: int, rows: int) -> int:
    """Bytes that a step of `decode` cannot do without: its weights once, and `held` tokens a row of the caches."""
    known = {**graph.hints(), "rows": rows}
    caches = [v.type for v in graph.inputs if str(v.node.attrs["name"]).startswith("cache.")]
    places = [evaluate_dim(of.shape[2], known) for of in caches]
    read = sum(_bytes(of, known) * min(held, n) // n for of, n in zip(caches, places, strict=True))
    return read + _weight_bytes(graph.nodes(), known)


def _weight_bytes(nodes: Sequence[Node], sizes: Sizes) -> int:
    """Bytes of weights that one call reads: codes by their bits, of tables and experts what its rows may choose."""
    users: dict[Node, list[Node]] = {}
    for node in nodes:
        for value in node.operands:
            users.setdefault(value.node, []).append(node)

    def read(node: Node) -> Fraction:
        """The largest part of a weight that one of its users reads; nothing of tables that are only looked up."""
        return max((part(user, node) for user in users.get(node, ())), default=Fraction(0))

    def part(user: Node, node: Node) -> Fraction:
        if user.op is dequantize:
            return read(user)
        return Fraction(0) if user.op is embedding else _share(user, Value(node), sizes)

    total = 0
    for node in nodes:
        if node.op is weight and (share := read(node)):
            codes = [u for u in users[node] if u.op is dequantize and u.operands[0].node is node]
            bits = int(str(codes[0].attrs["bits"])) if codes else 8
            total += int(_bytes(Value(node).type, sizes) * share) * bits // 8
    return total


def weight_names(program: Program) -> tuple[str, ...]:
    """The weights that the program's functions read, in order of first use."""
    nodes = (n for graph in program.functions.values() for n in graph.nodes() if n.op is weight)
    return tuple(dict.fromkeys(str(n.attrs["name"]) for n in nodes))


def liveness(graph: Graph) -> Mapping[Value, tuple[int, int]]:
    """The positions in `graph.nodes()` at which each value is made and last read; outputs live past the end."""
    nodes = graph.nodes()
    spans = {v: (i, i) for i, node in enumerate(nodes) for v in node.values}
    for i, node in enumerate(nodes):
        spans.update({v: (spans[v][0], i) for v in node.operands})
    spans.update({v: (spans[v][0], len(nodes)) for v in graph.outputs})
    return spans


def cuts(graph: Graph) -> tuple[Value, ...]:
    """Computed values where a graph falls in two: nothing else that an input reaches crosses there."""
    nodes, spans = graph.nodes(), liveness(graph)
    computed = _reached_from_inputs(graph)
    alive: set[Value] = set()
    found: list[Value] = []
    for i, node in enumerate(nodes):
        alive |= {v for v in node.values if v.node in computed and spans[v][1] > i}
        alive -= {v for v in alive if spans[v][1] <= i}
        if len(alive) == 1 and node in computed and not any(v in alive for v in graph.inputs):
            found.extend(v for v in alive if v.node is node)
    return tuple(found)


def _reached_from_inputs(graph: Graph) -> set[Node]:
    reached = {v.node for v in graph.inputs}
    for node in graph.nodes():
        if any(v.node in reached for v in node.operands):
            reached.add(node)
    return reached


def dominators(graph: Graph) -> Mapping[Node, Node]:
    """The immediate dominator of each node that an input reaches, where it is a node: all paths pass through it."""
    net: networkx.DiGraph[Node | str] = networkx.DiGraph()
    reached = _reached_from_inputs(graph)
    net.add_edges_from(("caller", v.node) for v in graph.inputs)
    net.add_edges_from((v.node, n) for n in graph.nodes() for v in n.operands if n in reached and v.node in reached)
    found = networkx.immediate_dominators(net, "caller")
    return {n: d for n, d in found.items() if isinstance(n, Node) and isinstance(d, Node) and n is not d}


def critical_path(graph: Graph, cost: Callable[[Node], float]) -> tuple[Node, ...]:
    """The chain of nodes whose costs add up to the most, first node first."""
    total: dict[Node, float] = {}
    before: dict[Node, Node | None] = {}
    for node in graph.nodes():
        before[node] = max((v.node for v in node.operands), key=total.__getitem__, default=None)
        total[node] = cost(node) + (total[previous] if (previous := before[node]) else 0.0)
    path: list[Node] = []
    node_or_none = max(total, key=total.__getitem__, default=None)
    while node_or_none is not None:
        path.append(node_or_none)
        node_or_none = before[node_or_none]
    return tuple(reversed(path))


@dataclass(frozen=True, slots=True)
class Block:
    """Scopes that hold the same computation on other weights."""

    fingerprint: str
    scopes: tuple[str, ...]


def repeated_blocks(graph: Graph) -> tuple[Block, ...]:
    """Numbered scopes (`layers.0`, `layers.1`) with equal Weisfeiler-Lehman hashes (Shervashidze et al., JMLR 2011).

    A group has at least two scopes; hashes see ops, attributes, types and wiring, but not the names of weights.
    """
    members: dict[str, list[Node]] = {}
    for node in graph.nodes():
        for scope in _numbered(node.scope):
            members.setdefault(scope, []).append(node)
    groups: dict[str, list[str]] = {}
    for scope, nodes in members.items():
        groups.setdefault(_fingerprint(nodes), []).append(scope)
    return tuple(Block(mark, tuple(scopes)) for mark, scopes in groups.items() if len(scopes) > 1)


def _numbered(scope: str) -> list[str]:
    return [scope[: m.end()] for m in re.finditer(r"\.\d+(?=\.|$)", scope)]


def _fingerprint(nodes: list[Node]) -> str:
    net: networkx.DiGraph[Node] = networkx.DiGraph()
    for node in nodes:
        net.add_node(node, label=_label(node))
        for i, value in enumerate(node.inputs):
            if value is not None:
                net.add_node(value.node, label=_label(value.node) if value.node in nodes else str(value.type))
                net.add_edge(node, value.node, label=f"{net.edges.get((node, value.node), {}).get('label', '')}{i}")
    with warnings.catch_warnings():
        # networkx 3.5 and later warn that directed hashes differ from those of 3.4; ours are never stored.
        warnings.simplefilter("ignore", UserWarning)
        mark: str = networkx.weisfeiler_lehman_graph_hash(net, node_attr="label", edge_attr="label", iterations=4)
    return mark


def _label(node: Node) -> str:
    attrs = {} if node.op is weight else node.attrs
    return f"{node.op.name} {[(k, attr_text(v)) for k, v in attrs.items()]} {', '.join(map(str, node.types))}"


__all__ = [
    "Block",
    "Costs",
    "bytes_moved",
    "costs",
    "critical_path",
    "cuts",
    "dominators",
    "flops",
    "liveness",
    "repeated_blocks",
    "weight_names",
]
