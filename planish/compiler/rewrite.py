"""The only place that builds graphs from graphs: rules, and substitution of nodes."""

import inspect
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field

from planish.compiler.ir import Attr, Graph, Node, Op, Value


@dataclass(frozen=True, slots=True)
class Hit:
    """A rule that fired in `scope`, or that matched there and was refused for the reason `refused`."""

    rule: str
    scope: str
    refused: str | None = None


@dataclass(frozen=True, slots=True, eq=False)
class Match:
    """A place where a pattern fits: its root, and what each hole of the pattern stands for."""

    root: Node
    holes: Mapping[str, "Value | Attr"]
    nodes: tuple[Node, ...]

    @property
    def scope(self) -> str:
        return self.root.scope


@dataclass(frozen=True, slots=True)
class Hole:
    """A parameter of a pattern: any value as an operand, any attribute where an attribute stands."""

    name: str


@dataclass(frozen=True, slots=True)
class Pattern:
    """One op of a pattern over holes, patterns and constants."""

    op: Op
    inputs: "tuple[Pattern | Hole | None, ...]"
    attrs: Mapping[str, "Attr | Hole"]


class Ops:
    """What a pattern function builds with: `ops(linear, x, w)` makes a Pattern instead of a node."""

    def __call__(self, op: Op, *inputs: "Pattern | Hole | None", **attrs: "Attr | Hole") -> Pattern:
        return Pattern(op, inputs, attrs)


@dataclass(frozen=True, slots=True)
class Rule:
    """`pattern -> replacement`, unless `refuse` gives a reason.

    `pattern(ops, *holes)` is traced once; a hole binds by its parameter's name, and a hole that stands twice must
    match equal values. `replacement(match, **holes)` returns the new value of the pattern's root. Inner nodes of a
    match may have no other users unless `shared` is true. Operands of commutative ops match in both orders.
    Where `fits` is false the pattern does not match, and nothing is reported.
    """

    name: str
    pattern: Callable[..., Pattern]
    replacement: Callable[..., Value]
    refuse: Callable[..., str | None] = lambda match, **_: None
    shared: bool = False
    fits: Callable[..., bool] = lambda match, **_: True
    traced: Pattern = field(init=False)

    def __post_init__(self) -> None:
        _, *holes = inspect.signature(self.pattern).parameters
        object.__setattr__(self, "traced", self.pattern(Ops(), *map(Hole, holes)))


def apply_rules(graph: Graph, rules: tuple[Rule, ...]) -> tuple[Graph, tuple[Hit, ...]]:
    """Rewrite with the rules, first match first, until none fires; refusals are reported once a place."""
    hits: list[Hit] = []
    while True:
        refused: dict[Hit, None] = {}
        graph, fired = _sweep(graph, rules, refused)
        hits += fired
        if not fired:
            return graph, (*hits, *refused)


def _sweep(graph: Graph, rules: tuple[Rule, ...], refused: dict[Hit, None]) -> tuple[Graph, list[Hit]]:
    users, fired = _use_counts(graph), list[Hit]()

    def visit(node: Node) -> tuple[Value, ...] | None:
        for rule in rules:
            for found in find(rule, node):
                if not rule.shared and _read_elsewhere(found, users):
                    refused[Hit(rule.name, node.scope, "an inner value has another user")] = None
                    continue
                if (why := rule.refuse(found, **found.holes)) is not None:
                    refused[Hit(rule.name, node.scope, why)] = None
                    continue
                fired.append(Hit(rule.name, node.scope))
                value = rule.replacement(found, **found.holes)
                users[value.node] = users.get(value.node, 0) + users.get(node, 0)
                return (value,)
        return None

    return substitute(graph, visit, users), fired


def _use_counts(graph: Graph) -> dict[Node, int]:
    counts: dict[Node, int] = {}
    for node in graph.nodes():
        for value in node.operands:
            counts[value.node] = counts.get(value.node, 0) + 1
    for value in graph.outputs:
        counts[value.node] = counts.get(value.node, 0) + 1
    return counts


def substitute(
    graph: Graph, visit: Callable[[Node], tuple[Value, ...] | None], counts: dict[Node, int] | None = None
) -> Graph:
    """Rebuild the graph: `visit` sees each node with its new operands and returns what replaces its values, or None.

    Nodes that do not change stay the same objects. `counts`, when given, is carried over to rebuilt nodes.
    """
    new: dict[Value, Value] = {}
    for node in graph.nodes():
        inputs = tuple(None if v is None else new[v] for v in node.inputs)
        rebuilt = node if inputs == node.inputs else node.op.node(inputs, node.attrs, node.scope)
        if counts is not None and rebuilt is not node:
            counts[rebuilt] = counts.get(node, 0)
        values = visit(rebuilt) or rebuilt.values
        new.update(zip(node.values, values, strict=True))
    return Graph(graph.name, graph.inputs, tuple(new[v] for v in graph.outputs), graph.sizes)


def _read_elsewhere(match: Match, users: Mapping[Node, int]) -> bool:
    """Whether an inner node of the match has a user outside it."""
    nodes = dict.fromkeys(match.nodes)
    inside = Counter(v.node for n in nodes for v in n.operands)
    return any(users.get(n, 0) > inside[n] for n in nodes if n is not match.root)


@dataclass(frozen=True, slots=True)
class Step:
    """A rewrite of one node of `ops` that a pattern cannot say.

    `rewrite(node, uses)` returns the value that replaces the node's, the reason against it, or None where it does not
    apply; `uses` counts how often each node's results are read.
    """

    name: str
    ops: tuple[Op, ...]
    rewrite: "Callable[[Node, Mapping[Node, int]], Value | str | None]"


def apply_steps(graph: Graph, steps: tuple[Step, ...]) -> tuple[Graph, tuple[Hit, ...]]:
    """Rewrite with the steps, first match first, until none applies; refusals are reported once a place."""
    hits: list[Hit] = []
    by_op: dict[Op, list[Step]] = {}
    for step in steps:
        for op in step.ops:
            by_op.setdefault(op, []).append(step)
    while True:
        refused: dict[Hit, None] = {}
        graph, fired = _sweep_steps(graph, by_op, refused)
        hits += fired
        if not fired:
            return graph, (*hits, *refused)


def _sweep_steps(graph: Graph, by_op: Mapping[Op, list[Step]], refused: dict[Hit, None]) -> tuple[Graph, list[Hit]]:
    users, fired = _use_counts(graph), list[Hit]()

    def visit(node: Node) -> tuple[Value, ...] | None:
        value: Value | None = None
        while got := _first(node, by_op, users, refused):
            name, value = got
            fired.append(Hit(name, node.scope))
            known = value.node in users
            users[value.node] = users.get(value.node, 0) + users.get(node, 1)
            if known or len(value.node.types) > 1:
                break
            node = value.node
        return None if value is None else (value,)

    return substitute(graph, visit, users), fired


def _first(
    node: Node, by_op: Mapping[Op, list[Step]], users: Mapping[Node, int], refused: dict[Hit, None]
) -> tuple[str, Value] | None:
    for step in by_op.get(node.op, ()):
        result = step.rewrite(node, users)
        if isinstance(result, str):
            refused[Hit(step.name, node.scope, result)] = None
        elif result is not None:
            return step.name, result
    return None


def find(rule: Rule, node: Node) -> Iterator[Match]:
    """Every way in which the rule's pattern fits with `node` as its root."""
    for holes, nodes in _match_node(rule.traced, node, {}):
        match = Match(node, holes, nodes)
        if rule.fits(match, **holes):
            yield match


_Bound = tuple[dict[str, "Value | Attr"], tuple[Node, ...]]


def _match_node(pattern: Pattern, node: Node, holes: dict[str, "Value | Attr"]) -> Iterator[_Bound]:
    if node.op is not pattern.op:
        return
    bound = _match_attrs(pattern, node, holes)
    if bound is None:
        return
    wanted = pattern.inputs + (None,) * (len(node.inputs) - len(pattern.inputs))
    given = node.inputs + (None,) * (len(pattern.inputs) - len(node.inputs))
    orders = [wanted, wanted[::-1]] if "commutative" in node.op.traits and wanted[0] != wanted[1] else [wanted]
    for order in orders:
        yield from _match_operands(order, given, bound, (node,))


def _match_attrs(pattern: Pattern, node: Node, holes: dict[str, "Value | Attr"]) -> dict[str, "Value | Attr"] | None:
    bound = dict(holes)
    for name, wanted in pattern.attrs.items():
        actual = node.attrs[name]
        if isinstance(wanted, Hole):
            wanted = bound.setdefault(wanted.name, actual)
        if wanted != actual:
            return None
    return bound


def _match_operands(
    wanted: "tuple[Pattern | Hole | None, ...]",
    given: tuple[Value | None, ...],
    holes: dict[str, "Value | Attr"],
    nodes: tuple[Node, ...],
) -> Iterator[_Bound]:
    if not wanted:
        yield holes, nodes
        return
    first, value = wanted[0], given[0]
    if isinstance(first, Pattern):
        if value is not None and value.index == 0:
            for bound, inner in _match_node(first, value.node, holes):
                yield from _match_operands(wanted[1:], given[1:], bound, (*nodes, *inner))
    elif first is None:
        if value is None:
            yield from _match_operands(wanted[1:], given[1:], holes, nodes)
    elif holes.get(first.name, value) == value:
        yield from _match_operands(wanted[1:], given[1:], {**holes, first.name: value}, nodes)
