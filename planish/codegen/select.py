"""Selection: a template for every region, with copies or splits where no template takes it as it is."""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from planish.codegen.call import Call
from planish.codegen.empty import reads_empty, without_empty
from planish.codegen.layout import Place, resolve
from planish.codegen.regions import Region, fuse
from planish.codegen.template import AnyTemplate
from planish.codegen.view import View
from planish.compiler.ir import Graph, Node, Value, same_type
from planish.compiler.ops import opaque, reshape
from planish.compiler.rewrite import substitute
from planish.compiler.types import elements, same_dim
from planish.errors import TemplateError


@dataclass(frozen=True, slots=True)
class Miss:
    """A template that did not take a call, and why."""

    template: str
    reason: str


@dataclass(frozen=True, slots=True, eq=False)
class Choice:
    """A call and the template that computes it; `roots` names the value whose buffer each input of the call lies in."""

    call: Call
    template: AnyTemplate
    roots: Mapping[Value, Value]
    misses: tuple[Miss, ...] = ()


@dataclass(frozen=True, slots=True, eq=False)
class TorchCall:
    """An opaque node, which runs as torch between the kernels."""

    node: Node
    roots: Mapping[Value, Value]

    @property
    def scope(self) -> str:
        return self.node.scope


Work = Choice | TorchCall


@dataclass(frozen=True, slots=True, eq=False)
class Unserved:
    """A node that no template takes on this machine, and why."""

    node: Node
    misses: tuple[Miss, ...]

    @property
    def reasons(self) -> str:
        return "; ".join(f"{m.template}: {m.reason}" for m in self.misses) or "no template serves this op"


Fallback: TypeAlias = Callable[[Node], tuple[Value, ...]]


@dataclass(frozen=True, slots=True, eq=False)
class Selection:
    """The work of a graph in running order. `outputs` gives the value whose whole buffer is each result.

    `unserved` are the nodes of the graph as it was given that run in another form, because no template takes them.
    """

    graph: Graph
    work: tuple[Work, ...]
    outputs: tuple[Value, ...]
    unserved: tuple[Unserved, ...] = ()


def select(
    graph: Graph, templates: Sequence[AnyTemplate], machine: object, fallback: Fallback | None = None
) -> Selection:
    """Choose a kernel for everything that the graph computes; what has no elements is no work.

    `fallback` gives opaque values that stand for those of a node which no template takes. Without it a TemplateError
    names the op, its scope and every template's reason.
    """
    unserved: tuple[Unserved, ...] = ()
    graph = without_empty(graph)
    while True:
        selector = _Selector(resolve(graph), templates, machine)
        for region in fuse(graph, selector.places, templates):
            selector.add(region)
        outputs = selector.outputs(graph)
        missing = {each.node: each for each in selector.unserved}
        if not missing:
            return Selection(graph, tuple(selector.work), outputs, unserved)
        if fallback is None or missing.keys().isdisjoint(graph.nodes()):
            raise _no_kernel(selector.unserved[0])
        unserved += tuple(each for each in selector.unserved if each.node in graph.nodes())
        graph = _replaced(graph, missing.keys(), fallback)


def _no_kernel(unserved: Unserved) -> TemplateError:
    node = unserved.node
    return TemplateError(f"{node.op.name} in '{node.scope}' {node.types[0]} has no kernel here: {unserved.reasons}")


def _replaced(graph: Graph, nodes: Collection[Node], fallback: Fallback) -> Graph:
    """The graph with other values for those of `nodes`."""
    order = iter(graph.nodes())  # substitute visits the nodes in this order, rebuilt

    def visit(node: Node) -> tuple[Value, ...] | None:
        return fallback(node) if next(order) in nodes else None

    return substitute(graph, visit)


class _Selector:
    def __init__(self, places: Mapping[Value, Place], templates: Sequence[AnyTemplate], machine: object) -> None:
        self.places = dict(places)
        self.templates, self.machine = templates, machine
        self.work: list[Work] = []
        self.copies: dict[Value, Place] = {}
        self.unserved: list[Unserved] = []

    def add(self, region: Region) -> None:
        """Append what computes the region: as it is, with its strided inputs copied first, or node by node."""
        if region.anchor.op is opaque:
            self._add_torch(region.anchor)
            return
        inputs = {v: self.places[v] for v in region.inputs()}
        choice = self._choose(region, inputs)
        if isinstance(choice, tuple):
            contiguous = {v: self._copied(v, place) for v, place in inputs.items()}
            choice = self._choose(region, contiguous) if contiguous != inputs else choice
        if isinstance(choice, Choice):
            self.work.append(choice)
        elif region.apart:
            for each in region.apart:
                self.add(each)
        elif len(region.nodes) > 1:
            self._split(region)
        else:
            self.unserved.append(Unserved(region.anchor, choice))

    def _choose(self, region: Region, inputs: Mapping[Value, Place]) -> Choice | tuple[Miss, ...]:
        if (why := reads_empty(region.nodes)) is not None:
            return (Miss("every template", why),)
        call = self._call(region, inputs)
        misses: list[Miss] = []
        for template in self.templates:
            if region.anchor.op in template.ops:
                why = template.refuse(call, self.machine)
                if why is None:
                    roots = {v: place.root for v, place in inputs.items()}
                    return Choice(call, template, roots, tuple(misses))
                misses.append(Miss(template.name, why))
        return tuple(misses)

    def _call(self, region: Region, inputs: Mapping[Value, Place]) -> Call:
        views = {v: inputs[v].view for v in region.inputs()}
        beside = None if region.beside is None else self._call(region.beside, inputs)
        return Call(region.anchor, tuple(region.nodes), views, region.output, self.places[region.output].view, beside)

    def _copied(self, value: Value, place: Place) -> Place:
        """The value in a contiguous buffer, copied there by a kernel of its own if it is not yet."""
        return place if place.view.is_contiguous else self._copy(value)

    def _copy(self, value: Value) -> Place:
        if value not in self.copies:
            copy = reshape(value, shape=value.shape, scope=value.node.scope)
            self.copies[value] = self.places[copy] = Place(copy, View.contiguous(value.type))
            self.add(Region(copy.node, [copy.node]))
        return self.copies[value]

    def _split(self, region: Region) -> None:
        for node in region.nodes:
            value = Value(node)
            if value != region.output:
                self.places[value] = Place(value, View.contiguous(value.type))
            self.add(Region(node, [node]))

    def _add_torch(self, node: Node) -> None:
        self.work.append(TorchCall(node, {v: self._whole(v) for v in node.operands}))

    def _whole(self, value: Value) -> Value:
        """A value whose buffer is all of `value` and nothing else, as torch and results need it."""
        place = self.places[value]
        alike = place.view.is_contiguous and same_type(place.root.type, value.type)
        return place.root if alike else self._copy(value).root

    def outputs(self, graph: Graph) -> tuple[Value, ...]:
        """A buffer of its own for every result, copied where it is a view of a part, an input, or another result."""
        roots: list[Value] = []
        for value in graph.outputs:
            place = self.places[value]
            whole = place.view.is_contiguous and same_dim(elements(value.shape), elements(place.root.shape))
            own = whole and "leaf" not in place.root.node.op.traits and place.root not in roots
            roots.append(place.root if own else self._copy_again(value))
        return tuple(roots)

    def _copy_again(self, value: Value) -> Value:
        self.copies.pop(value, None)
        return self._copy(value).root
