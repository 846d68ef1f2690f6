"""Grouped products on CPUs: the rows of each expert together, times its weights where they lie."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, cast

from tvm import tirx
from tvm.script.ir_builder import tirx as T  # noqa: N812 - TVM's own name for its script namespace

from planish.codegen.call import Call
from planish.codegen.halves import fuses_slices, halves_of
from planish.codegen.tvm.experts import Part, Routing
from planish.codegen.tvm.gemm_finish import Finish, finishes, refuse_finish
from planish.codegen.tvm.gemm_grid import Grid, emit
from planish.codegen.tvm.gemm_product import refuse_operands, rounds, tile_bytes, tile_of
from planish.codegen.tvm.gemm_rows import Copied, Run, copied_stride, row_fill
from planish.codegen.tvm.isa import Isa
from planish.codegen.tvm.kernel import Kernel, kernel
from planish.codegen.tvm.packing import by_expert, in_turns, panels
from planish.codegen.tvm.quantized_linear import few_rows, refuse_codes, refuse_rows
from planish.codegen.tvm.quantized_panels import ManyRows
from planish.codegen.tvm.quantized_rows import MOST_ROWS
from planish.codegen.tvm.quantized_weight import CodedWeight, Levels
from planish.compiler import ops
from planish.compiler.ir import Node, Op, Value
from planish.compiler.types import DType, elements


@dataclass(frozen=True, slots=True)
class GroupedLinear:
    """Rows x [..., K] times the weights of their experts [E, N, K], stored or as codes, plus elementwise nodes.

    Elementwise nodes may also be those of two slices of the result, gate and up. Every task sorts the rows by expert
    for itself; then all tasks share the work of one expert after another. Experts that no row chooses are not read.
    """

    name: ClassVar[str] = "grouped-linear"
    ops: ClassVar[tuple[Op, ...]] = (ops.grouped_linear,)

    def refuse(self, call: Call, isa: Isa) -> str | None:
        if call.anchor.operands[1].node.op is not ops.dequantize:
            return refuse_operands(call, isa) or refuse_finish(call)
        others = [node.op.name for node in call.prologue if not self.fuses_before(call.anchor, node)]
        if others or call.anchor.operands[0] not in call.inputs:
            return "x is computed in the kernel"
        return refuse_codes(call) or refuse_rows(call) or refuse_finish(call)

    def build(self, call: Call, isa: Isa) -> Kernel:
        coded = call.anchor.operands[1].node.op is ops.dequantize
        return _of_codes(call, isa) if coded else _of_floats(call, isa)

    def fuses_after(self, anchor: Node, node: Node) -> bool:
        return finishes(anchor, node)

    def fuses_before(self, anchor: Node, node: Node) -> bool:
        return rounds(anchor, node) or (node.op is ops.dequantize and Value(node) == anchor.operands[1])

    def fuses_slices(self, anchor: Node, slices: Sequence[Node]) -> bool:
        return fuses_slices(anchor, slices)


def _of_floats(call: Call, isa: Isa) -> Kernel:
    """The kernel over stored weights."""
    (x, w, index), stored = call.anchor.operands, call.stored(call.anchor.operands[0])
    experts, depth = cast(int, w.shape[0]), cast(int, w.shape[2])
    pairs = x.dtype is DType.bf16 and isa.bf16_dot
    dtype = DType.f64 if x.dtype is DType.f64 else DType.f32
    tile, units = tile_of(call, isa, cast(int, w.shape[1]), pairs, dtype), -(-depth // 2) if pairs else depth
    halves = halves_of(call, tile.width // 2)
    columns = cast(int, w.shape[1]) if halves is None else halves.columns
    widen = w.dtype in (DType.bf16, DType.f16) and not pairs
    packing = in_turns(panels(columns, tile.width, pairs=pairs, widen=widen), halves)
    grid, stride = Grid(tirx.const(0, "int64"), None, columns, units, tile), copied_stride(units, tile.lanes)
    routing = Routing(index, experts, tile_bytes(tile) + grid.block * stride * dtype.itemsize)
    with kernel(call, isa, routing.scratch_bytes) as (k, done):
        sums = k.scratch_buffer(tile.rows * tile.width, dtype)
        target = k.scratch_buffer(grid.block * stride, DType.i32 if pairs else dtype, tile_bytes(tile))
        run = Run(k.buffers[stored], target, stored.dtype, tile.lanes, pairs)
        fill = row_fill(k, call.inputs[stored], run, depth)
        weights = k.seen(w, tile.unit, experts * grid.panels * units * tile.width)

        def product(part: Part, rows: "tirx.PrimExpr") -> None:
            left, origin = Copied(target, stride, part.filled(fill)), part.stored(T.int64(0)) * (units * tile.width)
            finish = Finish(k, tile, sums, columns, part=part, halves=halves)
            emit(k, Grid(rows, None, columns, units, tile), left, weights, origin, sums, finish)

        routing.each(k, grid.panels, product)
    return Kernel(done[0], routing.scratch_bytes, {w: by_expert(packing)})


def _of_codes(call: Call, isa: Isa) -> Kernel:
    """The kernel over codes, which are read once for few rows of an expert and unpacked for many."""
    x, w, index = call.anchor.operands
    weight, view, rows = CodedWeight.of(w.node, isa, call), call.inputs[x], elements(index.shape)
    known = rows if isinstance(rows, int) else None
    few = few_rows(weight, isa, x, view, None, min(known or MOST_ROWS, MOST_ROWS))
    many = ManyRows(weight, isa, x, view, None, gathered=True)
    always = (known is not None and known <= MOST_ROWS) or (weight.dot and not many.pairs)
    routing = Routing(index, weight.experts, max(few.scratch_bytes, 0 if always else many.scratch_bytes))
    with kernel(call, isa, routing.scratch_bytes) as (k, done):
        levels = Levels(k, weight)

        def product(part: Part, count: "tirx.PrimExpr") -> None:
            if always:
                few.emit(k, count, levels, part)
                return
            with T.If(count <= MOST_ROWS):
                with T.Then():
                    few.emit(k, count, levels, part)
                with T.Else():
                    many.emit(k, count, levels, part)

        routing.each(k, weight.panels, product)
    return Kernel(done[0], routing.scratch_bytes, weight.packings())
