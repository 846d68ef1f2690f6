"""simplify-indices: positions >= 0 -> true, embedding(table, positions) -> slice(table)."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from planish.compiler.importers.sizes import at_most
from planish.compiler.ir import Graph, Node, Program, Value
from planish.compiler.ops import embedding, full, index_select, reshape, slice_
from planish.compiler.pass_ import Change, Context, Contract, Exact
from planish.compiler.rewrite import Hit, Step, apply_steps
from planish.compiler.types import DType, Shape, same_dim, simplify
from planish.passes.indices import COMPARISONS, Affine, Indices
from planish.passes.matching import each_function, expanded

_ARITHMETIC = ("add", "sub", "mul", "neg", "cast", "slice", "concat", "cumsum", "gather", "index_select", "reshape")


@dataclass(frozen=True, slots=True)
class SimplifyIndices:
    """Works out ahead of time what follows from positions alone, for every size that the model takes.

    A comparison of positions that always comes out the same becomes a literal, and so does an integer that never
    changes; a lookup of consecutive rows, `embedding(@table, arange(S))`, becomes `slice(@table, 0, S)`. Lookups by
    data stay, and so do lookups whose sizes may run past the table.
    """

    name: ClassVar[str] = "simplify-indices"
    contract: ClassVar[Contract] = Exact()

    def apply(self, program: Program, context: Context) -> Change:
        return each_function(program, lambda graph: _simplify(graph, program))


def _simplify(graph: Graph, program: Program) -> tuple[Graph, tuple[Hit, ...]]:
    indices = Indices(graph, program.weights)

    def decide(node: Node, uses: Mapping[Node, int]) -> Value | None:
        known = indices.decided(node)
        return None if known is None else _literal(node, known, DType.bool)

    def settle(node: Node, uses: Mapping[Node, int]) -> Value | None:
        form = indices.affine(Value(node)) if node.types[0].dtype.is_integer and len(node.types) == 1 else None
        fixed = form is not None and form.is_constant and isinstance(form.constant, int)
        return _literal(node, form.constant, node.types[0].dtype) if fixed and form is not None else None

    def look_up(node: Node, uses: Mapping[Node, int]) -> Value | str | None:
        return _look_up(node, indices, graph)

    moving = tuple(n.op for n in {n.op: n for n in graph.nodes() if n.op.name in _ARITHMETIC}.values())
    steps = (
        Step("decide comparison", COMPARISONS, decide),
        Step("settle integer", moving, settle),
        Step("slice instead of lookup", (embedding, index_select), look_up),
    )
    return apply_steps(graph, steps)


def _literal(node: Node, value: object, dtype: DType) -> Value:
    assert isinstance(value, bool | int)
    return full(shape=node.types[0].shape, value=value, dtype=dtype, scope=node.scope)


def _look_up(node: Node, indices: Indices, graph: Graph) -> Value | str | None:
    table, index = node.operands
    form = indices.affine(index)
    if form is None or node.attrs.get("axis", 0) != 0:
        return None
    moving = [i for i, c in enumerate(form.coefficients) if not same_dim(c, 0)]
    if len(moving) > 1 or any(not same_dim(form.coefficients[i], 1) for i in moving):
        return None
    length = index.shape[moving[0]] if moving else 1
    stop = simplify(form.constant + length)
    sizes = {size.name: size for size in graph.sizes}
    if not at_most(0, form.constant, sizes) or not at_most(stop, table.shape[0], sizes):
        return f"positions up to {stop} may lie outside the {table.shape[0]} rows of the table"
    rows = slice_(table, axis=0, start=form.constant, stop=stop, scope=node.scope)
    return _spread(rows, node, form, index.shape)


def _spread(rows: Value, node: Node, form: Affine, shape: Shape) -> Value:
    """The rows along their axis of the index, repeated along its other axes."""
    lead = tuple(1 if same_dim(c, 0) else d for c, d in zip(form.coefficients, shape, strict=True))
    placed = reshape(rows, shape=(*lead, *rows.shape[1:]), scope=node.scope)
    return expanded(placed, node.types[0].shape, node.scope)
