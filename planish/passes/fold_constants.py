"""fold-constants: f(weights, literals) -> a weight."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar

import sympy
import torch
from torch import Tensor

from planish.compiler.analysis import weight_names
from planish.compiler.evaluate import run_node
from planish.compiler.ir import Attr, Graph, Node, Program, Value
from planish.compiler.ops import conv, dim_value, expand, full, input_, opaque, reshape, weight
from planish.compiler.ops.structure import TORCH_DTYPE
from planish.compiler.pass_ import Change, Context, Contract, Exact
from planish.compiler.rewrite import Hit, substitute
from planish.compiler.weights import Recipe, Weights

_LARGE = 1 << 20  # bytes of a result from which on computing it again costs less than keeping it


@dataclass(frozen=True, slots=True)
class FoldConstants:
    """Computes once, ahead of time, everything that depends on weights and literals only.

    `linear(x, transpose(@w))` becomes `linear(x, @w.transpose)`; a result of one repeated number becomes a literal
    where elementwise ops read it. Weights that nothing reads any more are dropped. A result that would make the
    weights grow by more than `limit` bytes is refused, but for the weight of a convolution, which is packed. Large
    results are kept as recipes, computed when they are read.
    """

    limit: int = 1 << 20
    name: ClassVar[str] = "fold-constants"
    contract: ClassVar[Contract] = Exact()

    def apply(self, program: Program, context: Context) -> Change:
        folder = _Folder(Weights(program.weights), self.limit)
        for graph in program.functions.values():
            program = program.with_function(folder.fold(graph))
        return Change(program.with_weights(folder.weights.kept(weight_names(program))), tuple(folder.hits))


@dataclass(slots=True)
class _Folder:
    weights: Weights
    limit: int
    hits: list[Hit] = field(default_factory=list)
    known: dict[str, Value] = field(default_factory=dict)

    def fold(self, graph: Graph) -> Graph:
        constant = _constant_nodes(graph)
        readers = graph.users()
        roots = {
            n: readers.get(Value(n), ())
            for n in graph.nodes()
            if n in constant and n.op not in (weight, full, expand) and _is_root(n, graph, readers, constant)
        }
        folded = {n: value for n, users in roots.items() if (value := self._folded(n, users, readers))}
        return substitute(graph, lambda n: (folded[n],) if n in folded else None)

    def _folded(self, node: Node, users: tuple[Node, ...], readers: Mapping[Value, tuple[Node, ...]]) -> Value | None:
        inside = _ancestors(node)
        text = str(Graph("folded", (), (Value(node),)))
        if text in self.known:
            self.hits.append(Hit("fold", node.scope))
            return self.known[text]
        growth = _bytes(node) - sum(_bytes(n) for n in inside if n.op is weight and _only_in(n, inside, readers))
        if growth > self.limit and not any(_packs(user, Value(node)) for user in users):
            why = f"the weights would grow by {growth} bytes, over the limit of {self.limit}"
            self.hits.append(Hit("fold", node.scope, why))
            return None
        self.hits.append(Hit("fold", node.scope))
        recipe = _recipe(node, inside, self.weights)
        if users and all(map(_takes_literal, users)) and (number := _repeated(recipe.make())) is not None:
            return full(shape=node.types[0].shape, value=number, dtype=node.types[0].dtype, scope=node.scope)
        name = _fresh_name(node, inside, self.weights)
        self.weights = self.weights.joined({name: recipe if _bytes(node) >= _LARGE else recipe.make()})
        self.known[text] = weight(name=name, shape=recipe.shape, dtype=node.types[0].dtype)
        return self.known[text]


def _constant_nodes(graph: Graph) -> set[Node]:
    found: set[Node] = set()
    for node in graph.nodes():
        fixed = node.op not in (input_, opaque) and not any(map(_has_size, (*node.attrs.values(), *_shapes(node))))
        if fixed and len(node.types) == 1 and all(v.node in found for v in node.operands):
            found.add(node)
    return found


def _is_root(node: Node, graph: Graph, readers: Mapping[Value, tuple[Node, ...]], constant: set[Node]) -> bool:
    """Whether something that is not folded reads the node; an expansion is folded only as part of something else."""
    value = Value(node)
    if value in graph.outputs:
        return True
    users = readers.get(value, ())
    return any(u not in constant or (u.op is expand and _is_root(u, graph, readers, constant)) for u in users)


def _shapes(node: Node) -> tuple[Attr, ...]:
    return tuple(of.shape for of in node.types)


def _has_size(attr: Attr) -> bool:
    if isinstance(attr, tuple):
        return any(map(_has_size, attr))
    return isinstance(attr, sympy.Expr)


def _ancestors(node: Node) -> tuple[Node, ...]:
    """Everything that the node is computed from, itself last."""
    return Graph("", (), (Value(node),)).nodes()


def _only_in(node: Node, inside: tuple[Node, ...], readers: Mapping[Value, tuple[Node, ...]]) -> bool:
    return all(user in inside for user in readers[Value(node)])


def _bytes(node: Node) -> int:
    return node.types[0].dtype.itemsize * math.prod(_shape(node))


def _shape(node: Node) -> tuple[int, ...]:
    return tuple(int(str(dim)) for dim in node.types[0].shape)


def _recipe(node: Node, inside: tuple[Node, ...], weights: Weights) -> Recipe:
    """The result of the node, computed from the weights inside."""
    base = weights.kept(str(n.attrs["name"]) for n in inside if n.op is weight)
    return Recipe(_shape(node), TORCH_DTYPE[node.types[0].dtype], lambda: _evaluate(inside, base).contiguous())


@torch.no_grad()
def _evaluate(nodes: tuple[Node, ...], weights: Mapping[str, Tensor]) -> Tensor:
    values: dict[Value, Tensor] = {}
    for node in nodes:
        if node.op is weight:
            values[Value(node)] = weights[str(node.attrs["name"])]
        else:
            values[Value(node)] = run_node(node, values, {})[0]
    return values[Value(nodes[-1])]


def _repeated(result: Tensor) -> float | int | bool | None:
    if result.numel() == 0:
        return None
    first = result.reshape(-1)[0]
    number: float | int | bool = first.item()
    return number if bool((result == first).all()) else None


def _packs(user: Node, value: Value) -> bool:
    """Whether the user reads the value as a weight that has to be known ahead of time."""
    return user.op is conv and user.operands[1] == value


def _takes_literal(user: Node) -> bool:
    return "elementwise" in user.op.traits or user.op in (expand, reshape, dim_value)


def _fresh_name(node: Node, inside: tuple[Node, ...], taken: Weights) -> str:
    """The name of the largest float weight inside with the op's name; the scope where no weight is inside."""
    held = [n for n in inside if n.op is weight]
    base = (
        str(max(held, key=lambda n: (n.types[0].dtype.is_float, _bytes(n))).attrs["name"])
        if held
        else (node.scope or "constant")
    )
    name = f"{base}.{node.op.name}"
    numbered = (f"{name}.{i}" for i in range(2, 1 << 30))
    return name if name not in taken else next(n for n in numbered if n not in taken)
