"""What of a graph depends on tokens, what on positions alone, and whether only causal attention mixes tokens."""

import enum
from collections.abc import Mapping
from dataclasses import dataclass, field

import sympy

from planish.compiler.ir import Attr, Graph, Node, Value
from planish.compiler.ops import attention, embedding, expand, full, input_, opaque
from planish.compiler.ops.contract import mask_of
from planish.compiler.types import Dim, elements, same_dim
from planish.errors import PassError
from planish.passes.split_generation_lanes import Lane, lane_of


class Kind(enum.Enum):
    """What a node's results follow from."""

    constant = "weights and literals"
    uniform = "one number or weight, repeated for every token"
    position = "the positions of the tokens"
    token = "the tokens"


@dataclass(frozen=True, slots=True, eq=False)
class Tokens:
    """A graph whose tokens meet in causal attention only.

    `ids` is the input of token ids [rows, tokens]; `rows` is None where the batch is the constant 1. `lanes` and
    `row_lanes` tell where the two sizes lie in every value that depends on tokens, and in what these read of positions.
    `attending` are the attentions over tokens in their order.
    """

    graph: Graph
    ids: Value
    rows: sympy.Symbol | None
    tokens: sympy.Symbol
    kinds: Mapping[Node, Kind]
    lanes: Mapping[Value, Lane]
    row_lanes: Mapping[Value, Lane]
    attending: tuple[Node, ...]


def analyse(graph: Graph, ids: Value) -> Tokens:
    """The tokens of a graph; raises PassError naming the first op that mixes them outside causal attention."""
    rows, tokens = _sizes_of_ids(graph, ids)
    kinds = _kinds(graph, ids)
    walk = _Walk(rows, tokens, kinds)
    walk.lanes[ids] = Lane(1)
    if rows is not None:
        walk.row_lanes[ids] = Lane(0)
    for node in graph.nodes():
        if kinds[node] is Kind.token and node.op is not input_:
            walk.visit(node)
    return Tokens(graph, ids, rows, tokens, kinds, walk.lanes, walk.row_lanes, tuple(walk.attending))


def token_ids(graph: Graph) -> Value:
    """The input whose integers [rows, tokens] choose rows of an embedding; raises PassError where there is not one."""
    looked_up = [node.operands[1] for node in graph.nodes() if node.op is embedding]
    inputs = [
        v for v in graph.inputs if v.type.rank == 2 and not any(word in name_of(v) for word in ("mask", "position"))
    ]
    found = dict.fromkeys(v for value in looked_up for v in inputs if _follows(value, v))
    if len(found) != 1:
        names = [name_of(v) for v in found]
        raise PassError(f"split-generation: one input of token ids [rows, tokens] must feed an embedding, not {names}")
    return next(iter(found))


def name_of(value: Value) -> str:
    """The name of an input."""
    return str(value.node.attrs["name"])


def _follows(value: Value, source: Value) -> bool:
    """Whether a chain of first operands leads from the value to the source."""
    while value != source and value.node.operands:
        value = value.node.operands[0]
    return value == source and value.dtype.is_integer


def _sizes_of_ids(graph: Graph, ids: Value) -> tuple[sympy.Symbol | None, sympy.Symbol]:
    batch, sequence = ids.shape
    name = ids.node.attrs["name"]
    if not isinstance(sequence, sympy.Symbol):
        raise PassError(f"split-generation: the tokens of '{name}' are {sequence}, no named size; make axis 1 dynamic")
    if not isinstance(batch, sympy.Symbol) and batch != 1:
        raise PassError(f"split-generation: the batch of '{name}' is {batch}; make axis 0 dynamic or 1")
    rows = batch if isinstance(batch, sympy.Symbol) else None
    others = [size.name for size in graph.sizes if size.symbol not in (rows, sequence)]
    if others:
        raise PassError(f"split-generation: the sizes {others} are neither the batch nor the tokens of '{name}'")
    return rows, sequence


def _kinds(graph: Graph, ids: Value) -> dict[Node, Kind]:
    found: dict[Node, Kind] = {}
    for node in graph.nodes():
        inside = {found[v.node] for v in node.operands}
        if node is ids.node or Kind.token in inside:
            found[node] = Kind.token
        elif node.op in (full, expand) and inside <= {Kind.constant, Kind.uniform}:
            sized = Kind.uniform in inside or has_size(node)
            found[node] = Kind.uniform if sized else Kind.constant
        elif inside - {Kind.constant} or has_size(node):
            found[node] = Kind.position
        else:
            found[node] = Kind.constant
    return found


def has_size(node: Node) -> bool:
    """Whether a named size stands in the node's attributes or types."""
    return any(map(_sized, (*node.attrs.values(), *(of.shape for of in node.types))))


def _sized(attr: Attr) -> bool:
    return any(map(_sized, attr)) if isinstance(attr, tuple) else isinstance(attr, sympy.Expr)


@dataclass(slots=True)
class _Walk:
    rows: sympy.Symbol | None
    tokens: sympy.Symbol
    kinds: Mapping[Node, Kind]
    lanes: dict[Value, Lane] = field(default_factory=dict)
    row_lanes: dict[Value, Lane] = field(default_factory=dict)
    attending: list[Node] = field(default_factory=list)

    def visit(self, node: Node) -> None:
        """Find the lanes of one node's results."""
        if node.op is opaque:
            raise PassError(f"split-generation: {node.attrs['target']}{where(node)} may mix tokens: it runs as torch")
        for value in node.operands:
            if self.kinds[value.node] is Kind.position and value not in self.lanes:
                self._place(value, node)
        if self._attends(node):
            self.attending.append(node)
            self.lanes[Value(node)] = Lane(2)
        else:
            self._follow(node, self.lanes, self.tokens, "tokens")
        if self.rows is not None:
            self._follow(node, self.row_lanes, self.rows, "rows of the batch")

    def _follow(self, node: Node, lanes: dict[Value, Lane], size: sympy.Symbol, what: str) -> None:
        found = lane_of(node, lanes, size)
        if isinstance(found, str):
            raise PassError(f"split-generation: {node.op.name}{where(node)} mixes {what}: {found}")
        if found is not None:
            lanes.update(dict.fromkeys(node.values, found))

    def _place(self, value: Value, user: Node) -> None:
        """The lanes of a value of positions; the mask of an attention has its own rules."""
        held = [axis for axis, dim in enumerate(value.shape) if self.tokens in _symbols(dim)]
        if user.op is attention and value not in user.operands[:3]:
            return
        if len(held) > 1 or (held and not self._whole(value.shape[held[0]])):
            what = f"{user.op.name}{where(user)} reads {value.type}, which relates tokens to each other"
            raise PassError(f"split-generation: {what}: no table of positions can hold it")
        if held:
            self.lanes[value] = Lane(held[0])
        batch = [axis for axis, dim in enumerate(value.shape) if self.rows is not None and self.rows in _symbols(dim)]
        if batch:
            self.row_lanes[value] = Lane(batch[0], self.tokens if batch == held else 1)

    def _whole(self, dim: Dim) -> bool:
        allowed = [self.tokens] if self.rows is None else [self.tokens, elements((self.rows, self.tokens))]
        return any(same_dim(dim, size) for size in allowed)

    def _attends(self, node: Node) -> bool:
        """Whether the node is attention over tokens; raises PassError where it can have no cache."""
        if node.op is not attention:
            return False
        q, k, v = (self.lanes.get(value) for value in node.operands[:3])
        if k != Lane(2) and v != Lane(2):
            return False
        if not q == k == v == Lane(2):
            raise PassError(f"split-generation: attention{where(node)} pairs tokens with something else than tokens")
        if not node.attrs["causal"] and mask_of(node) is None:
            raise PassError(
                f"split-generation: attention{where(node)} is not causal: it sees later tokens, so no cache can hold it"
            )
        return True


def _symbols(dim: Dim) -> set[sympy.Basic]:
    return set() if isinstance(dim, int) else dim.free_symbols


def where(node: Node) -> str:
    """` in 'layers.0'`, nothing for a node without scope."""
    return f" in '{node.scope}'" if node.scope else ""


__all__ = ["Kind", "Tokens", "analyse", "has_size", "name_of", "token_ids", "where"]
