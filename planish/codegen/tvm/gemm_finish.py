"""The end of a matrix product: bias, the elementwise nodes after it, and the store."""

from dataclasses import dataclass

from tvm import tirx
from tvm.script.ir_builder import tirx as T  # noqa: N812 - TVM's own name for its script namespace

from planish.codegen.call import Call
from planish.codegen.halves import Halves, halves_of
from planish.codegen.tvm.experts import WHOLE, Part
from planish.codegen.tvm.expression import Expression, Known, store
from planish.codegen.tvm.gemm_rows import unravel
from planish.codegen.tvm.gemm_tile import Tile
from planish.codegen.tvm.kernel import KernelBuilder, bind, ramp
from planish.codegen.view import View
from planish.compiler import ops
from planish.compiler.ir import Node, Value
from planish.compiler.types import Shape, same_dim, same_shape


@dataclass(frozen=True, slots=True)
class Finish:
    """Writes tiles that lie in `sums` ([rows][width] f32) to the output of the call.

    A row is a position in all axes but the last, of which columns `first` to `first + columns - 1` are these. Of a
    `part` of the product, rows are counted within it. With `halves` the columns are those of two slices, in turns of
    half a tile, and a tile is written as half of its columns.
    """

    k: KernelBuilder
    tile: Tile
    sums: "tirx.Buffer"
    columns: int
    first: "tirx.PrimExpr | int" = 0
    part: Part = WHOLE
    halves: Halves | None = None

    @property
    def _width(self) -> int:
        """Columns that a tile is written as."""
        return self.tile.width if self.halves is None else self.halves.turn

    @property
    def _columns(self) -> int:
        """Columns that are written."""
        return self.columns if self.halves is None else self.halves.width

    def __call__(self, row: "tirx.PrimExpr", rows: "tirx.PrimExpr", column: "tirx.PrimExpr") -> None:
        """Write `rows` rows from row `row` on of the tile that begins at column `column` of the product."""
        lanes, width = self.tile.lanes, self._width
        column = column if self.halves is None else bind(T.truncdiv(column, tirx.const(2, "int64")))
        whole: tirx.PrimExpr = tirx.const(width // lanes, "int64")
        if self._columns % width:
            whole = bind(tirx.min(whole, T.truncdiv(self._columns - column, tirx.const(lanes, "int64"))))
        with T.serial(rows) as r:
            lead = self._lead(self.part.row(bind(row + r)))
            with T.serial(whole) as v:
                self._write(lead, r, bind(v * lanes), column, lanes)
            self._rest(lead, r, column)

    def _rest(self, lead: "tuple[tirx.PrimExpr, ...]", r: "tirx.PrimExpr", column: "tirx.PrimExpr") -> None:
        """The columns after the last whole vector, which are fewer in the last panel where panels do not divide."""
        width, tail = self._width, self._columns % self._width
        if not tail:
            self._parts(lead, r, column, width)
        elif width % self.tile.lanes or tail % self.tile.lanes:
            with T.If(column + width <= self._columns):
                with T.Then():
                    T.evaluate(0)
                    self._parts(lead, r, column, width)
                with T.Else():
                    T.evaluate(0)
                    self._parts(lead, r, column, tail)

    def _parts(
        self, lead: "tuple[tirx.PrimExpr, ...]", r: "tirx.PrimExpr", column: "tirx.PrimExpr", columns: int
    ) -> None:
        """The columns from the last whole vector to `columns`, in ever smaller vectors."""
        done, lanes = columns // self.tile.lanes * self.tile.lanes, self.tile.lanes
        while done < columns:
            lanes //= 2
            if done + lanes <= columns:
                self._write(lead, r, tirx.const(done, "int64"), column, lanes)
                done += lanes

    def _lead(self, row: "tirx.PrimExpr") -> "tuple[tirx.PrimExpr, ...]":
        """The index of a row over all axes but the last; the row itself on the last of them where that is as good."""
        axes = self.k.call.output.shape[:-1]
        if len(axes) > 1 and not same_dim(axes[-1], 1) and _rows_in_line(self.k.call):
            return (*(tirx.const(0, "int64") for _ in axes[1:]), row)
        return unravel(self.k, row, axes)

    def _write(
        self,
        lead: "tuple[tirx.PrimExpr, ...]",
        r: "tirx.PrimExpr",
        within: "tirx.PrimExpr",
        column: "tirx.PrimExpr",
        lanes: int,
    ) -> None:
        call, place = self.k.call, bind(self.first + column + within)
        start = bind(r * self.tile.width + within)
        if self.halves is None:
            known = {call.anchor.values[0]: self._total(start, place)}
        else:
            places = [(bind(start + i * self.halves.turn), bind(place + at)) for i, at in enumerate(self.halves.starts)]
            known = {v: self._total(*at) for v, at in zip(self.halves.values, places, strict=True)}
        index = (*lead, place)
        store(self.k, call.view, index, Expression(self.k, known).at(call.output, index, lanes), lanes)

    def _total(self, start: "tirx.PrimExpr", column: "tirx.PrimExpr") -> Known:
        """What gives the sums from `start` on, with the bias of the columns from `column` on."""
        bias = _bias(self.k.call.anchor)

        def total(index: "tuple[tirx.PrimExpr, ...]", lanes: int) -> "tirx.PrimExpr":
            sums = self.sums[ramp(start, lanes)]
            return sums if bias is None else sums + Expression(self.k).at(bias, (column,), lanes)

        return total


def _bias(anchor: Node) -> Value | None:
    return anchor.inputs[2] if len(anchor.inputs) > 2 and anchor.op is not ops.grouped_linear else None


def _rows_in_line(call: Call) -> bool:
    """Whether everything that the nodes after the anchor read and write lies at one stride from row to row."""
    operands, results = set(call.anchor.operands), {call.anchor, *(value.node for value in results_of(call))}
    others = [(v.shape, view) for v, view in call.inputs.items() if v not in operands]
    movement = [n for n in call.nodes if n not in results and not n.op.traits & {"elementwise"} and n.inputs]
    places = [(call.output.shape, call.view), *others]
    return not movement and all(_in_line(shape, view, call.output.shape) for shape, view in places)


def _in_line(shape: Shape, view: View, whole: Shape) -> bool:
    if all(same_dim(d, 1) for d in shape[:-1]):
        return True
    rows = view.collapse(len(shape) - 1) if same_shape(shape, whole) else None
    return rows is not None and same_dim(rows.strides[0], view.strides[-2])


def refuse_finish(call: Call) -> str | None:
    """Why the nodes of a call around its contraction cannot be computed on the tiles of its result."""
    results = results_of(call)
    reached = {*call.anchor.values, *results}
    for node in call.nodes:
        if not reached.isdisjoint(node.values) or reached.isdisjoint(node.operands):
            continue
        if not finishes(results[0].node, node):
            return f"{node.op.name} is not computed element by element on the result of {call.anchor.op.name}"
        reached.update(node.values)
    if call.output not in reached:
        return "the output does not depend on the contraction"
    if not same_dim(call.view.strides[-1], 1) and not same_dim(call.view.shape[-1], 1):
        return "the last axis of the output is strided"
    return None


def results_of(call: Call) -> tuple[Value, ...]:
    """What nodes after the anchor are computed from: its result, or two slices of it that a kernel takes together."""
    halves = halves_of(call, 1)
    return call.anchor.values if halves is None else halves.values


def finishes(anchor: Node, node: Node) -> bool:
    """Whether `node` is computed element by element on the result of `anchor`."""
    return "elementwise" in node.op.traits and same_shape(node.types[0].shape, anchor.types[0].shape)
