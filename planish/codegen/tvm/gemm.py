"""Linear layers on CPUs: panels of packed weights, register tiles, and everything elementwise after them."""

from dataclasses import dataclass
from typing import ClassVar

import tvm
from tvm import tirx
from tvm.script.ir_builder import tirx as T  # noqa: N812 - TVM's own name for its script namespace

from planish.codegen.call import Call
from planish.codegen.tvm.gemm_finish import Finish, finishes, refuse_finish
from planish.codegen.tvm.gemm_grid import Grid, emit
from planish.codegen.tvm.gemm_rows import Copied, Direct, Rows, Run, copied_stride, row_fill
from planish.codegen.tvm.gemm_tile import Tile, choose_tile, instructions
from planish.codegen.tvm.isa import Isa
from planish.codegen.tvm.kernel import Kernel, KernelBuilder, kernel
from planish.codegen.tvm.packing import panels
from planish.codegen.view import View
from planish.compiler import ops
from planish.compiler.ir import Node, Op, Value
from planish.compiler.types import Dim, DType, elements, same_dim


@dataclass(frozen=True, slots=True)
class Gemm:
    """x [..., K] times a weight [N, K], plus bias and elementwise nodes; f32 and bf16, any sizes."""

    name: ClassVar[str] = "gemm"
    ops: ClassVar[tuple[Op, ...]] = (ops.linear,)

    def refuse(self, call: Call, isa: Isa) -> str | None:
        return refuse_operands(call) or refuse_finish(call)

    def build(self, call: Call, isa: Isa) -> Kernel:
        return build_product(call, isa, call.inputs[_operand(call, 0)])

    def fuses_after(self, anchor: Node, node: Node) -> bool:
        return finishes(anchor, node)

    def fuses_before(self, anchor: Node, node: Node) -> bool:
        return False


def refuse_operands(call: Call) -> str | None:
    """Why a contraction with a weight cannot read its operands, or None."""
    x, w, *bias = call.anchor.operands
    if w.node.op is not ops.weight:
        return f"the weight is computed by {w.node.op.name}"
    for role, value in (("x", x), ("the weight", w), *(("the bias", b) for b in bias)):
        if value not in call.inputs:
            return f"{role} is computed in the kernel"
    if x.dtype not in (DType.f32, DType.bf16):
        return f"it multiplies f32 and bf16, not {x.dtype}"
    if not all(isinstance(dim, int) for dim in w.shape):
        return "the weight has a dynamic size"
    if not same_dim(call.inputs[x].strides[-1], 1) and not same_dim(x.shape[-1], 1):
        return "the last axis of x is strided"
    return None


def build_product(call: Call, isa: Isa, view: View) -> Kernel:
    """The kernel of a call whose anchor is the product of the rows of `view` [..., K] and its weight as [N, K]."""
    w = _operand(call, 1)
    columns, depth = int(w.shape[0]), int(elements(w.shape[1:]))
    pairs = view.dtype is DType.bf16 and isa.bf16_dot
    tile = choose_tile(isa, columns, pairs)
    units = -(-depth // 2) if pairs else depth
    rows = elements(view.shape[:-1])
    stride = None if (depth % 2 and pairs) or (view.dtype is DType.bf16 and not pairs) else _row_stride(view)
    known = rows if isinstance(rows, int) else None
    packing = panels(columns, tile.width, pairs=pairs, widen=view.dtype is DType.bf16 and not pairs)
    with kernel(call, isa) as (k, done), instructions(tile):
        grid = Grid(k.dim(rows), known, columns, units, tile)
        scratch = tile_bytes(tile) + (0 if stride is not None else grid.block * copied_stride(units, isa.lanes) * 4)
        sums = k.scratch_buffer(tile.rows * tile.width, DType.f32)
        left = _left(k, view, grid, depth, stride)
        weights = packed_weights(k, w, tile, units * grid.panels * tile.width)
        emit(k, grid, left, weights, 0, sums, Finish(k, tile, sums, columns))
    return Kernel(done[0], scratch, {w: packing})


def _operand(call: Call, place: int) -> Value:
    return call.anchor.operands[place]


def _row_stride(view: View) -> int | None:
    """The constant distance of the rows of `view` where they can be read in place, else None.

    They cannot where every row of a tile starts in the same set of an L1 cache, which holds 8 to 12 lines.
    """
    rows = view.collapse(len(view.shape) - 1)
    if rows is None or not isinstance(stride := rows.strides[0], int):
        return None
    return None if stride and stride * view.dtype.itemsize % 4096 == 0 else stride


def _left(k: KernelBuilder, view: View, grid: Grid, depth: int, stride: int | None) -> Rows:
    (x, *_) = k.call.anchor.operands
    source = k.buffers[x]
    if stride is not None:
        return Direct(source, k.dim(view.offset), stride, grid.tile.pairs)
    lanes, pairs = grid.tile.lanes, grid.tile.pairs
    target = copied_buffer(k, grid, lanes)
    fill = row_fill(k, view, Run(source, target, view.dtype, lanes, pairs), depth)
    return Copied(target, copied_stride(grid.depth, lanes), fill)


def copied_buffer(k: KernelBuilder, grid: Grid, lanes: int) -> "tirx.Buffer":
    """Scratch memory, behind that of the tile, for the copied rows of a block."""
    dtype = DType.i32 if grid.tile.pairs else DType.f32
    return k.scratch_buffer(grid.block * copied_stride(grid.depth, lanes), dtype, tile_bytes(grid.tile))


def tile_bytes(tile: Tile) -> int:
    """Scratch memory of one tile, in whole cache lines."""
    return -(-tile.rows * tile.width * 4 // 64) * 64


def packed_weights(k: KernelBuilder, w: Value, tile: Tile, count: Dim) -> "tirx.Buffer":
    """The buffer of packed panels that the weight `w` is passed as."""
    pointer = tvm.ir.PointerType(tvm.ir.PrimType(tile.unit))
    data = T.bind(tvm.ir.Call("tirx.reinterpret", [k.buffers[w].data], ret_ty=pointer), pointer)
    return T.decl_buffer((k.dim(count),), tile.unit, data=data)
