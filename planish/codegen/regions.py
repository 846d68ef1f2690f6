"""Fusion: which nodes one kernel computes together."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from planish.codegen.layout import Place, is_free
from planish.codegen.template import AnyTemplate, FusesBeside, FusesSlices, WritesRead
from planish.compiler.ir import Graph, Node, Value
from planish.compiler.ops import (
    cast,
    dequantize,
    dim_value,
    full,
    layer_norm,
    pack_groups,
    quantization_scale,
    quantize,
    rms_norm,
    rope,
    slice_,
    unpack_groups,
)
from planish.compiler.types import elements, same_dim, same_shape

_REPEATED = (full, dim_value, dequantize, unpack_groups)
_CHEAP = (*_REPEATED, rope)
_ROUNDING = (quantize, quantization_scale, pack_groups)
_OF_ROWS = (layer_norm, rms_norm, *_ROUNDING)


@dataclass(eq=False, slots=True)
class Region:
    """Nodes for one kernel, operands first; `anchor` decides which templates may compute it. `beside` is another
    region that the kernel computes, too, and may have one itself; `apart` are the regions that compute the same
    without."""

    anchor: Node
    nodes: list[Node] = field(default_factory=list)
    beside: "Region | None" = None
    apart: "tuple[Region, ...]" = ()

    @property
    def output(self) -> Value:
        return Value(self.nodes[-1])

    def inputs(self) -> tuple[Value, ...]:
        """The values that the nodes read from outside, in order of first use."""
        inside = {value for node in self.nodes for value in node.values}
        more = () if self.beside is None else self.beside.inputs()
        return tuple(dict.fromkeys([*(v for n in self.nodes for v in n.operands if v not in inside), *more]))


def fuse(graph: Graph, places: Mapping[Value, Place], templates: Sequence[AnyTemplate]) -> tuple[Region, ...]:
    """Regions in an order in which each can run after those before it.

    Elementwise nodes join the kernel that computes their operand when nothing else reads it; whole elementwise regions
    are computed where they are read. Literals and dequantized codes are repeated in every region that can read them.
    """
    return _Fusion(graph, places, templates).run()


def first_template(anchor: Node, templates: Sequence[AnyTemplate]) -> AnyTemplate | None:
    """The first template that serves the anchor's op."""
    return next((t for t in templates if anchor.op in t.ops), None)


class _Fusion:
    def __init__(self, graph: Graph, places: Mapping[Value, Place], templates: Sequence[AnyTemplate]) -> None:
        self.graph, self.places, self.templates = graph, places, templates
        self.readers: dict[Value, int] = {}
        for node in graph.nodes():
            for value in node.operands:
                self.readers[value] = self.readers.get(value, 0) + 1
        for value in graph.outputs:
            self.readers[value] = self.readers.get(value, 0) + 1
        self.regions: dict[Value, Region] = {}
        self.order = {node: i for i, node in enumerate(graph.nodes())}

    def run(self) -> tuple[Region, ...]:
        for node in self.order:
            if "leaf" not in node.op.traits and node.op not in _REPEATED and not is_free(node, self.places):
                self._place(node)
        for region in tuple(self.regions.values()):
            self._join_product(region)
        for region in tuple(self.regions.values()):
            self._join_read(region)
        for region in tuple(self.regions.values()):
            self._join_scales(region)
        for value in self._stored():
            self.regions[value] = Region(value.node, [value.node])
        ordered = sorted(self.regions.values(), key=self._turn)
        for region in tuple(ordered):
            if (other := self._partner(region, ordered)) is not None:
                other.beside, other.apart = region, (region, Region(other.anchor, other.nodes))
                ordered.remove(region)
        return tuple(ordered)

    def _turn(self, region: Region) -> int:
        """Where the first of a region's results stands in the order of the graph."""
        own = self.order[region.nodes[-1]]
        return own if region.beside is None else min(own, self._turn(region.beside))

    def _partner(self, region: Region, ordered: Sequence[Region]) -> Region | None:
        """A later region that a template computes beside this one, before anything reads the result of this one."""
        template = first_template(region.anchor, self.templates)
        if not isinstance(template, FusesBeside) or region.beside is not None:
            return None
        for other in ordered[ordered.index(region) + 1 :]:
            if any(self.places[value].root == region.output for value in other.inputs()):
                return None
            if other.beside is None and template.fuses_beside(other.anchor, region.anchor):
                return other
        return None

    def _stored(self) -> tuple[Value, ...]:
        """What would be repeated, but is read from memory: through a view, as an output, or by a kernel without it."""
        read = {v for region in self.regions.values() for v in region.inputs()} | set(self.graph.outputs)
        roots = dict.fromkeys(self.places[v].root for v in read)
        return tuple(v for v in roots if v.node.op in _REPEATED)

    def _place(self, node: Node) -> None:
        region = self._host(node)
        if region is None:
            region = Region(node, [node])
        else:
            del self.regions[region.output]
            region.nodes.append(node)
        for value in node.operands:
            self._absorb(region, node, value)
        self.regions[region.output] = region

    def _join_product(self, region: Region) -> None:
        """Put a region that computes elementwise on slices of a contraction, which nothing else reads, behind it."""
        if (host := self._product_of(region)) is None:
            return
        slices = [v.node for v in region.inputs() if v.node.op is slice_]
        nodes = [*host.nodes, *slices, *(n for n in region.nodes if n not in host.nodes)]
        del self.regions[host.output]
        self.regions[region.output] = Region(host.anchor, nodes, apart=(host, region))

    def _product_of(self, region: Region) -> Region | None:
        """The region of the contraction that a template computes together with what this one computes on its slices."""
        slices = [v.node for v in region.inputs() if v.node.op is slice_]
        host = self.regions.get(slices[0].operands[0]) if slices else None
        gated = host is not None and host is not region and self._is_gated(region, host, slices)
        return host if gated else None

    def _is_gated(self, region: Region, host: Region, slices: Sequence[Node]) -> bool:
        whole = host.anchor.values[0]
        serving = [t for t in self.templates if host.anchor.op in t.ops and isinstance(t, FusesSlices)]
        uses = {s: sum(n.operands.count(Value(s)) for n in region.nodes) for s in slices}
        return (
            host.output == whole
            and self.readers[whole] == len(slices)
            and all(s.operands[0] == whole and self.readers[Value(s)] == uses[s] for s in slices)
            and all(same_shape(s.types[0].shape, region.output.shape) for s in slices)
            and all("elementwise" in n.op.traits or n.op in _REPEATED for n in region.nodes)
            and any(template.fuses_slices(host.anchor, slices) for template in serving)
        )

    def _join_read(self, region: Region) -> None:
        """Let a kernel compute what its anchor reads element by element, and write it for the others that read it."""
        anchor, value = region.anchor, region.anchor.operands[0] if region.anchor.operands else None
        template = first_template(anchor, self.templates)
        if value is None or not isinstance(template, WritesRead) or not template.writes_read(anchor):
            return
        while value.node in region.nodes and value.node.op is cast:
            value = value.node.operands[0]
        made = self.regions.get(value)
        if made is None or not all(template.fuses_before(anchor, n) for n in made.nodes):
            return
        if self._precede([v for v in region.inputs() if v != value], made):
            nodes = [*made.nodes, *(n for n in region.nodes if n not in made.nodes)]
            self.regions[region.output] = Region(anchor, nodes, Region(made.anchor, made.nodes), (made, region))
            del self.regions[value]

    def _precede(self, values: Sequence[Value], region: Region) -> bool:
        """Whether all values lie in memory when the region runs."""
        roots = [self.places[value].root.node for value in values]
        return all("leaf" in n.op.traits or self.order[n] < self.order[region.nodes[-1]] for n in roots)

    def _join_scales(self, region: Region) -> None:
        """Let one kernel make codes and their scales, and what both are made of: a norm, or elementwise nodes. It also
        writes that where others read it."""
        node = region.anchor
        first = self.regions.get(node.operands[1]) if node.op is quantize and region.nodes == [node] else None
        template = first_template(node, self.templates)
        if first is None or not isinstance(template, FusesBeside) or not template.fuses_beside(node, first.anchor):
            return
        x, scale = node.operands
        if first.nodes != [scale.node] or scale.node.operands[0] != x:
            return
        made, inner, beside = self.regions.get(x), list[Node](), None
        if made is not None and self._makes_rows(made, node, template):
            inner, beside = made.nodes, made.beside if self.readers[x] == 2 else made
            del self.regions[x]
        scales = Region(scale.node, [*inner, scale.node], beside)
        apart = (*([made] if made is not None and inner else []), first, region)
        self.regions[region.output] = Region(node, [*inner, scale.node, node], scales, apart)
        del self.regions[scale]

    def _makes_rows(self, region: Region, node: Node, template: AnyTemplate) -> bool:
        normed = region.anchor.op in (layer_norm, rms_norm)
        return normed or all(template.fuses_before(node, n) for n in region.nodes)

    def _host(self, node: Node) -> Region | None:
        """The region whose epilogue the node may join: a contraction if there is one, else the latest."""
        if "elementwise" not in node.op.traits:
            return None
        found = [self.regions[v] for v in node.operands if v in self.regions and self._joins(v, node)]
        return max(found, key=self._worth, default=None)

    def _worth(self, region: Region) -> tuple[bool, int]:
        return "contraction" in region.anchor.op.traits, self.order[region.nodes[-1]]

    def _joins(self, value: Value, node: Node) -> bool:
        region = self.regions[value]
        template = first_template(region.anchor, self.templates)
        return (
            self.readers[value] == 1
            and template is not None
            and "elementwise" not in region.anchor.op.traits
            and same_shape(value.shape, node.types[0].shape)
            and template.fuses_after(region.anchor, node)
        )

    def _absorb(self, region: Region, node: Node, value: Value) -> None:
        """Compute `value` inside the region, where it is repeated or an elementwise region read only by `node`."""
        if value.node in region.nodes:
            return
        if value.node.op in _REPEATED:
            inner = [value.node]
        elif value in self.regions and self._inlines(region, self.regions[value], value, node):
            inner = self.regions[value].nodes
        else:
            return
        if all(self._takes(region, node, n) for n in inner):
            at = region.nodes.index(node)
            region.nodes[at:at] = [n for n in inner if n not in region.nodes]
            self.regions.pop(value, None)
            if value.node.op in _ROUNDING or (value.node.op is dequantize and self.readers[value] == 1):
                for operand in value.node.operands:
                    self._absorb(region, value.node, operand)

    def _takes(self, region: Region, node: Node, inner: Node) -> bool:
        """Whether a template computes `inner` where `node` reads it; any that serves a contraction, else the first."""
        anchor = region.anchor
        if region.nodes.index(node) > region.nodes.index(anchor):
            template = first_template(anchor, self.templates)
            return template is not None and template.fuses_after(anchor, inner)
        serving = [t for t in self.templates if anchor.op in t.ops]
        few = serving if "contraction" in anchor.op.traits else serving[:1]
        return any(template.fuses_before(anchor, inner) for template in few)

    def _inlines(self, host: Region, region: Region, value: Value, node: Node) -> bool:
        """Whether computing the region again for every element that `node` reads costs nothing extra; a contraction's
        template knows, also where there is a norm or codes are made. A product computes its gate itself."""
        cheap = [n for n in region.nodes if "elementwise" in n.op.traits or n.op in _CHEAP]
        of_rows = [n for n in region.nodes if n.op in _OF_ROWS]
        rounding = node.op in (dequantize, *_ROUNDING)
        readers = sum(n.operands.count(value) for n in host.nodes) if rounding else 1
        return (
            self.readers[value] == readers
            and ("elementwise" in node.op.traits or self._product_of(region) is None)
            and len(cheap) + len(of_rows) == len(region.nodes)
            and (
                _reads_once(host.anchor if rounding else node)
                or (not of_rows and same_dim(elements(value.shape), elements(node.types[0].shape)))
            )
        )


def _reads_once(node: Node) -> bool:
    """Whether an op of another shape than its operand reads it once, or a template knows what it costs."""
    return not node.op.traits.isdisjoint(("contraction", "state"))
