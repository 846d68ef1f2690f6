"""Calls: regions of a graph that one kernel computes."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import sympy

from planish.codegen.view import View
from planish.compiler.ir import Node, Value
from planish.compiler.types import Dim, DType, dim_text, same_dim


@dataclass(frozen=True, slots=True, eq=False)
class Call:
    """What one kernel computes: `nodes`, operands first, of which the last gives `output`.

    `anchor` is the node that the kernel is chosen for (a linear, a softmax, ...). Nodes before it are elementwise or
    movement and are computed while its operands are read; nodes after it are elementwise and are computed on its
    result before that is written. Every value between them has exactly one user, or is written too. `inputs` gives, in
    argument order, the values that are read from memory and where they lie; `view` says where the output is written.
    `beside` is a second call that the same kernel computes, which may have one beside itself: it reads no result of
    this one, may share nodes with it, and its inputs are among these.
    """

    anchor: Node
    nodes: tuple[Node, ...]
    inputs: Mapping[Value, View]
    output: Value
    view: View
    beside: "Call | None" = None

    @property
    def parts(self) -> "Iterator[Call]":
        """The call itself and those beside it, in the order of the results."""
        yield self
        if self.beside is not None:
            yield from self.beside.parts

    @property
    def results(self) -> Mapping[Value, View]:
        """What the kernel writes, and where: the output and that of the call beside."""
        return {part.output: part.view for part in self.parts}

    @property
    def label(self) -> str:
        """The ops that the kernel computes."""
        own = "+".join(node.op.name for node in self.nodes)
        return own if self.beside is None else f"{own}, {self.beside.label}"

    @property
    def scope(self) -> str:
        return self.anchor.scope

    @property
    def epilogue(self) -> tuple[Node, ...]:
        """The nodes after the anchor."""
        return self.nodes[self.nodes.index(self.anchor) + 1 :]

    @property
    def prologue(self) -> tuple[Node, ...]:
        """The nodes before the anchor."""
        return self.nodes[: self.nodes.index(self.anchor)]

    def sizes(self, *others: Dim) -> tuple[str, ...]:
        """The named sizes that the call's views and attributes and `others` use, in alphabetical order."""
        dims: list[object] = [*others, self.view.offset, *self.view.shape, *self.view.strides]
        for view in self.inputs.values():
            dims += [view.offset, *view.shape, *view.strides]
        for node in self.nodes:
            dims += [d for t in node.types for d in t.shape]
            dims += [a for v in node.attrs.values() for a in (v if isinstance(v, tuple) else (v,))]
        more = () if self.beside is None else self.beside.sizes()
        return tuple(sorted({s.name for d in dims if isinstance(d, sympy.Expr) for s in d.free_symbols} | set(more)))

    def stored(self, value: Value) -> Value:
        """What of an operand of the anchor lies in memory: itself, or what a node of the call converts."""
        return value if value in self.inputs else value.node.operands[0]

    def has_rows(self, value: Value) -> bool:
        """Whether rows of f32 of a value lie in memory, where they can be read again and again."""
        view = self.inputs.get(value)
        return view is not None and view.dtype is DType.f32 and same_dim(view.strides[-1], 1)

    def key(self) -> str:
        """A text that two calls share exactly when one kernel serves both: ops, attributes, types and views."""
        names: dict[Value, str] = {}
        lines = []
        for value, view in self.inputs.items():
            names[value] = f"i{len(names)}"
            lines.append(f"{names[value]}:{view}")
        for i, node in enumerate(self.nodes):
            operands = ", ".join("-" if v is None else names[v] for v in node.inputs)
            attrs = ", ".join(f"{k}={_attr(v)}" for k, v in node.attrs.items())
            mark = "*" if node is self.anchor else ""
            names.update({value: f"n{i}.{value.index}" for value in node.values})
            lines.append(f"n{i}{mark} = {node.op.name}({operands}){{{attrs}}} {', '.join(map(str, node.types))}")
        beside = () if self.beside is None else self._key_beside(self.beside)
        return "\n".join((*lines, f"{names[self.output]} -> {self.view}", *beside))

    def _key_beside(self, other: "Call") -> tuple[str, str]:
        shared = [list(self.inputs).index(value) for value in other.inputs]
        return f"beside, over {shared}", other.key()


def _attr(value: object) -> str:
    if isinstance(value, tuple):
        return "[" + ", ".join(_attr(v) for v in value) + "]"
    if hasattr(value, "free_symbols"):
        dim: Dim = value
        return dim_text(dim)
    return str(value)
