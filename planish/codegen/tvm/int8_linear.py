"""Linear layers over quantized activations and weights on CPUs: integer products, scaled group by group."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import tvm
from tvm import tirx
from tvm.script.ir_builder import tirx as T  # noqa: N812 - TVM's own name for its script namespace

from planish.codegen.call import Call
from planish.codegen.halves import fuses_slices
from planish.codegen.tvm.computed_row import refuse_norms
from planish.codegen.tvm.gemm_finish import Finish, finishes, refuse_finish
from planish.codegen.tvm.gemm_rows import unravel
from planish.codegen.tvm.int8_plan import Int8Plan, refuse_nodes
from planish.codegen.tvm.int8_rounding import rounds
from planish.codegen.tvm.int8_rows import QuantizedRows, quantized_rows, rows_bytes
from planish.codegen.tvm.int8_tile import Int8Tile
from planish.codegen.tvm.isa import Isa
from planish.codegen.tvm.kernel import TVM_DTYPE, Kernel, KernelBuilder, bind, kernel
from planish.codegen.tvm.tiles import index, quotient, remainder
from planish.compiler import ops
from planish.compiler.ir import Node, Op, Value
from planish.compiler.types import DType, same_dim, same_shape

_LINE_BYTES = 64
_READ_SOON = (T.int32(0), T.int32(3), T.int32(1))  # of llvm.prefetch: for reading, into L1, data
_WRITE_SOON = (T.int32(1), T.int32(3), T.int32(1))
_HEIGHTS = (6, 4, 2, 1)  # of tiles for the rows left over; the smallest that holds them all is computed


@dataclass(frozen=True, slots=True)
class Int8Linear:
    """dequantize(xq, xs) times dequantize(q, ws, zero?), plus bias and elementwise nodes, summed as integers by group.

    Codes of x are i8, those of the weight u8 or i8 of up to 8 bits, packed two a byte up to 4 bits. The groups of one
    are multiples of the other's, or whole rows. A single row of x is rounded here, and computed, a norm among others,
    where nothing else reads it. Elementwise nodes may also be those of two slices of the result, gate and up.
    """

    name: ClassVar[str] = "int8_linear"
    ops: ClassVar[tuple[Op, ...]] = (ops.linear,)

    def refuse(self, call: Call, isa: Isa) -> str | None:
        return _refuse(call) or refuse_finish(call)

    def build(self, call: Call, isa: Isa) -> Kernel:
        plan = Int8Plan(call, isa)
        sums_bytes = plan.tile.rows * plan.tile.width * 4
        with kernel(call, isa) as (k, done):
            sums = k.scratch_buffer(plan.tile.rows * plan.tile.width, DType.f32)
            rows = quantized_rows(k, plan, sums_bytes)
            tile = Int8Tile(plan, rows, _codes(k, plan), *_groups(k, plan), sums)
            _emit(k, plan, rows, tile, Finish(k, plan.tile, sums, plan.columns, halves=plan.halves))
        return Kernel(done[0], sums_bytes + rows_bytes(plan), plan.packings())

    def fuses_after(self, anchor: Node, node: Node) -> bool:
        return finishes(anchor, node)

    def fuses_before(self, anchor: Node, node: Node) -> bool:
        if refuse_nodes(anchor) is not None:
            return False
        return node in {value.node for value in anchor.operands[:2]} or rounds(anchor, node)

    def fuses_slices(self, anchor: Node, slices: Sequence[Node]) -> bool:
        return refuse_nodes(anchor) is None and fuses_slices(anchor, slices)


def _codes(k: KernelBuilder, plan: Int8Plan) -> "tirx.Buffer":
    return _packed(k, plan.w.operands[0], plan.panels * plan.stored // plan.unit * plan.tile.width, "int32")


def _groups(k: KernelBuilder, plan: Int8Plan) -> "tuple[tirx.Buffer, tirx.Buffer | None]":
    """The packed scales and zero points of the weight."""
    _, scale, *zero = plan.w.operands
    count = plan.panels * plan.w_groups * plan.tile.width
    dtype = "float32" if scale.dtype is DType.bf16 else TVM_DTYPE[scale.dtype]
    return _packed(k, scale, count, dtype), _packed(k, zero[0], count, "uint8") if zero else None


def _packed(k: KernelBuilder, value: Value, count: int, dtype: str) -> "tirx.Buffer":
    """The buffer that a packed weight is passed as."""
    pointer = tvm.ir.PointerType(tvm.ir.PrimType(dtype))
    data = T.bind(tvm.ir.Call("tirx.reinterpret", [k.buffers[value].data], ret_ty=pointer), pointer)
    return T.decl_buffer((k.dim(count),), dtype, data=data)


def _emit(k: KernelBuilder, plan: Int8Plan, rows: QuantizedRows, tile: Int8Tile, finish: Finish) -> None:
    """This task's tiles, which are counted block by block of rows, in a block panel by panel."""
    height, total = plan.tile.rows, bind(k.dim(plan.rows))
    row_tiles = bind(quotient(total + (height - 1), height))
    first, last = k.share(row_tiles * plan.panels)
    blocks = bind(quotient(row_tiles + (plan.block_tiles - 1), plan.block_tiles))
    most = bind(quotient(row_tiles + (blocks - 1), blocks))
    size = bind(most * plan.panels)
    start = bind(quotient(first, size))
    with T.serial(quotient(last + (size - 1), size) - start) as b:
        block = bind((start + b) * most * height)
        tiles = bind(tirx.min(most, row_tiles - (start + b) * most))
        low = bind(tirx.max(first - (start + b) * size, index(0)))
        high = bind(tirx.min(last - (start + b) * size, tiles * plan.panels))
        rows.prepare(block, bind(tirx.min(total, block + tiles * height)))
        with T.serial(high - low) as t:
            panel, row = bind(quotient(low + t, tiles)), bind(remainder(low + t, tiles) * height)
            count = bind(tirx.min(index(height), total - block - row))
            _fetch_results(k, plan, bind(block + row), bind(panel * plan.written))
            _heights(plan, tile, panel, row, count)
            finish(bind(block + row), count, bind(panel * plan.tile.width))


def _fetch_results(k: KernelBuilder, plan: Int8Plan, row: "tirx.PrimExpr", column: "tirx.PrimExpr") -> None:
    """Fetch the cache lines that the end of a tile reads and writes, for which it would wait as for many products."""
    call, tile = k.call, plan.tile
    read = [v for v in call.inputs if v not in call.anchor.operands and same_shape(v.shape, call.output.shape)]
    places = [(k.output, call.view, _WRITE_SOON), *((k.buffers[v], call.inputs[v], _READ_SOON) for v in read)]
    for i in range(min(tile.rows, plan.known_rows or tile.rows)):
        lead = unravel(k, bind(row + i), call.output.shape[:-1])
        for buffer, view, how in places:
            for v in range(0, plan.written, _LINE_BYTES // view.dtype.itemsize):
                address = T.address_of(buffer[bind(k.address(view, (*lead, bind(column + v))))])
                T.evaluate(T.call_llvm_intrin("void", "llvm.prefetch", address, *how))


def _heights(
    plan: Int8Plan, tile: Int8Tile, panel: "tirx.PrimExpr", row: "tirx.PrimExpr", count: "tirx.PrimExpr"
) -> None:
    """The tile of the least height that holds `count` rows; rows after them hold numbers that nobody reads."""
    known, whole = plan.known_rows, plan.tile.rows
    if known is None:
        heights = (whole, *(h for h in _HEIGHTS if h < whole))
    else:
        heights = tuple(h for h in (whole if known >= whole else 0, known % whole) if h)

    def fewer(heights: tuple[int, ...]) -> None:
        if len(heights) == 1:
            tile.emit(heights[0], panel, row)
            return
        with T.If(count > heights[1]):
            with T.Then():
                tile.emit(heights[0], panel, row)
            with T.Else():
                fewer(heights[1:])

    fewer(heights)


def _refuse(call: Call) -> str | None:
    """Why an integer product cannot read the operands of a call, or None."""
    if (why := refuse_nodes(call.anchor)) is not None:
        return why
    x, w = (value.node for value in call.anchor.operands[:2])
    for role, node in (("x", x), ("the weight", w)):
        if node not in call.nodes:
            return f"{role} is dequantized elsewhere"
    if any(operand not in call.inputs for operand in w.operands):
        return "the codes of the weight are computed in the kernel"
    others = [node for node in call.prologue if node not in (x, w) and not rounds(call.anchor, node)]
    inside = [operand in call.inputs for operand in x.operands]
    if others or any(inside) != all(inside):
        return "the codes of x are computed in the kernel, and not by it alone"
    read = x.operands[0] if all(inside) else x.operands[0].node.operands[0]
    view = call.inputs.get(read)
    if view is not None and not same_dim(view.strides[-1], 1) and not same_dim(view.shape[-1], 1):
        return "the last axis of x is strided"
    return refuse_norms(call)
