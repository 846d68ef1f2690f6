"""The IR: frozen nodes in an immutable graph, and programs of graphs over one set of weights."""

import inspect
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from planish.compiler.attributes import Attr as Attr
from planish.compiler.attributes import canonical, fits, kind_text
from planish.compiler.types import DType, Shape, Size, TensorType, same_shape
from planish.errors import TypeRuleError

if TYPE_CHECKING:
    import networkx
    import torch


@dataclass(frozen=True, slots=True, eq=False)
class Op:
    """One operation, declared once.

    `infer` is the type rule: its positional parameters are the operands (`TensorType`, `TensorType | None` for an
    optional one, `*args` for any number) and its keyword-only parameters are the attributes. `reference` is the
    meaning: the same parameters over torch tensors. Calling an op builds a node and returns its value (or values).
    """

    name: str
    infer: Callable[..., TensorType | tuple[TensorType, ...]]
    reference: Callable[..., "torch.Tensor | tuple[torch.Tensor, ...]"]
    traits: frozenset[str] = frozenset()
    operands: tuple[str, ...] = field(init=False)
    required: int = field(init=False)
    variadic: bool = field(init=False)
    defaults: Mapping[str, Attr] = field(init=False)
    kinds: Mapping[str, Any] = field(init=False)

    def __post_init__(self) -> None:
        parameters = inspect.signature(self.infer).parameters.values()
        positional = [p for p in parameters if p.kind is p.POSITIONAL_OR_KEYWORD]
        keywords = [p for p in parameters if p.kind is p.KEYWORD_ONLY]
        object.__setattr__(self, "operands", tuple(p.name for p in positional))
        object.__setattr__(self, "required", sum(p.default is p.empty for p in positional))
        object.__setattr__(self, "variadic", any(p.kind is p.VAR_POSITIONAL for p in parameters))
        object.__setattr__(self, "defaults", MappingProxyType({p.name: p.default for p in keywords}))
        object.__setattr__(self, "kinds", MappingProxyType({p.name: p.annotation for p in keywords}))

    def __call__(self, *inputs: "Value | None", scope: str = "", **attrs: Attr) -> "Value":
        """Build a node of this op and return its first value."""
        return self.node(inputs, attrs, scope).values[0]

    def node(self, inputs: "tuple[Value | None, ...]", attrs: Mapping[str, Attr], scope: str = "") -> "Node":
        """Build a node: fill in defaults, drop trailing absent operands, infer the types.

        Raises TypeRuleError naming the op and its scope when the operands or attributes do not fit.
        """
        inputs, attrs = self._trim(inputs), self._complete(attrs, scope)
        try:
            types = self.infer(*(None if v is None else v.type for v in inputs), **attrs)
        except TypeRuleError as error:
            raise TypeRuleError(f"{self.name}{_where(scope)}: {error}") from None
        return Node(self, inputs, attrs, types if isinstance(types, tuple) else (types,), scope)

    def _trim(self, inputs: "tuple[Value | None, ...]") -> "tuple[Value | None, ...]":
        while len(inputs) > self.required and not self.variadic and inputs[-1] is None:
            inputs = inputs[:-1]
        enough = self.required <= len(inputs) and (self.variadic or len(inputs) <= len(self.operands))
        needed = inputs if self.variadic else inputs[: self.required]
        if not enough or any(v is None for v in needed):
            raise TypeRuleError(f"{self.name} takes ({', '.join(self.operands)}), not {len(inputs)} operands")
        return inputs

    def _complete(self, attrs: Mapping[str, Attr], scope: str) -> Mapping[str, Attr]:
        for name in attrs:
            if name not in self.defaults:
                raise TypeRuleError(
                    f"{self.name}{_where(scope)} has no attribute '{name}'; it has {list(self.defaults)}"
                )
        full = {**self.defaults, **attrs}
        for name, value in full.items():
            if value is inspect.Parameter.empty:
                raise TypeRuleError(f"{self.name}{_where(scope)} needs the attribute '{name}'")
            full[name] = canonical(value)
            if not fits(full[name], kind := self.kinds[name]):
                raise TypeRuleError(f"{self.name}{_where(scope)}: '{name}' is {kind_text(kind)}, not {value!r}")
        return MappingProxyType({name: full[name] for name in self.defaults})

    def __repr__(self) -> str:
        return self.name


def _where(scope: str) -> str:
    return f" in '{scope}'" if scope else ""


def op(
    reference: Callable[..., "torch.Tensor | tuple[torch.Tensor, ...]"], *traits: str
) -> Callable[[Callable[..., TensorType | tuple[TensorType, ...]]], Op]:
    """Declare an op: `@op(reference, *traits)` over its type rule, whose name is the op's."""
    return lambda infer: Op(infer.__name__.rstrip("_"), infer, reference, frozenset(traits))


@dataclass(frozen=True, slots=True, eq=False)
class Node:
    """One application of an op; compared by identity. `scope` is the module path, such as `layers.3.attention`."""

    op: Op
    inputs: "tuple[Value | None, ...]"
    attrs: Mapping[str, Attr]
    types: tuple[TensorType, ...]
    scope: str = ""

    @property
    def values(self) -> "tuple[Value, ...]":
        return tuple(Value(self, i) for i in range(len(self.types)))

    @property
    def operands(self) -> "tuple[Value, ...]":
        """The inputs that are present."""
        return tuple(v for v in self.inputs if v is not None)

    def __repr__(self) -> str:
        return f"<{self.op.name} {', '.join(map(str, self.types))}{' # ' + self.scope if self.scope else ''}>"


@dataclass(frozen=True, slots=True)
class Value:
    """One result of a node."""

    node: Node
    index: int = 0

    @property
    def type(self) -> TensorType:
        return self.node.types[self.index]

    @property
    def shape(self) -> Shape:
        return self.type.shape

    @property
    def dtype(self) -> DType:
        return self.type.dtype


@dataclass(frozen=True, slots=True, eq=False)
class Graph:
    """A function: its nodes are what `outputs` reach, so dead code cannot exist.

    `inputs` are values of `input` nodes, in calling order; `sizes` declares every named size that a type uses.
    """

    name: str
    inputs: tuple[Value, ...]
    outputs: tuple[Value, ...]
    sizes: tuple[Size, ...] = ()

    def nodes(self) -> tuple[Node, ...]:
        """Inputs first, then every node that the outputs reach, operands before users, in a deterministic order."""
        order: dict[Node, None] = {v.node: None for v in self.inputs}
        for output in self.outputs:
            _visit(output.node, order)
        return tuple(order)

    def users(self) -> Mapping[Value, tuple[Node, ...]]:
        """The nodes that read each value; outputs count for nothing here."""
        found: dict[Value, list[Node]] = {}
        for node in self.nodes():
            for value in dict.fromkeys(node.operands):
                found.setdefault(value, []).append(node)
        return {value: tuple(nodes) for value, nodes in found.items()}

    def to_networkx(self) -> "networkx.DiGraph[Node]":
        """A DiGraph of the nodes with an edge from each operand's node to its user."""
        import networkx

        graph: networkx.DiGraph[Node] = networkx.DiGraph()
        for node in self.nodes():
            graph.add_node(node)
            graph.add_edges_from((v.node, node) for v in node.operands)
        return graph

    def hints(self) -> Mapping[str, int]:
        """The expected value of every named size."""
        return {size.name: size.hint for size in self.sizes}

    def __str__(self) -> str:
        from planish.compiler.text import graph_text

        return graph_text(self)


def _visit(root: Node, order: dict[Node, None]) -> None:
    stack: list[tuple[Node, Iterator[Value]]] = [(root, iter(root.operands))]
    if root in order:
        return
    while stack:
        node, rest = stack[-1]
        following = next((v.node for v in rest if v.node not in order), None)
        if following is None:
            order[node] = None
            stack.pop()
        else:
            stack.append((following, iter(following.operands)))


@dataclass(frozen=True, slots=True)
class Workload:
    """What the model will be called with: a value for named sizes, used wherever a decision needs one."""

    sizes: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, eq=False)
class Program:
    """Entry functions over one set of weights. Graphs name weights and never hold them.

    `notes` carries facts about the import that reports print, keyed by topic.
    """

    functions: Mapping[str, Graph]
    weights: Mapping[str, "torch.Tensor"]
    notes: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    @property
    def main(self) -> Graph:
        return self.functions["main"]

    def with_function(self, graph: Graph) -> "Program":
        return replace(self, functions={**self.functions, graph.name: graph})

    def with_weights(self, weights: Mapping[str, "torch.Tensor"]) -> "Program":
        return replace(self, weights=weights)

    def __str__(self) -> str:
        return "\n\n".join(str(graph) for graph in self.functions.values()) + "\n"


def same_type(left: TensorType, right: TensorType) -> bool:
    return left.dtype is right.dtype and same_shape(left.shape, right.shape)
