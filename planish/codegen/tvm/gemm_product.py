"""Kernels of products with a packed weight: what linear layers and convolutions share."""

from collections.abc import Callable
from dataclasses import dataclass, replace

from tvm import tirx
from tvm.script.ir_builder import tirx as T  # noqa: N812 - TVM's own name for its script namespace

from planish.codegen.call import Call
from planish.codegen.halves import halves_of
from planish.codegen.tvm.gemm_finish import Finish, results_of
from planish.codegen.tvm.gemm_grid import Grid, emit
from planish.codegen.tvm.gemm_rows import Copied, Direct, Rows, Run, copied_stride, row_fill
from planish.codegen.tvm.gemm_tile import Tile, choose_tile
from planish.codegen.tvm.isa import Isa
from planish.codegen.tvm.kernel import Kernel, KernelBuilder, kernel
from planish.codegen.tvm.packing import in_turns, panels
from planish.codegen.view import View
from planish.compiler import ops
from planish.compiler.ir import Node, Value
from planish.compiler.types import Dim, DType, elements, same_dim

Fill = Callable[["tirx.PrimExpr", "tirx.PrimExpr"], None]

_PARTS = 4  # of sums over rows that are copied anyway, so that short patches are as precise as long ones


@dataclass(frozen=True, slots=True)
class Product:
    """Rows of `depth` elements of the anchor's first operand times its weight as [N, depth], in `groups`.

    With `pairs` two bf16 values are one unit. Group g takes columns g * N / groups onwards from rows of its own.
    """

    call: Call
    isa: Isa
    rows: Dim
    groups: int = 1
    pairs: bool = False

    @property
    def x(self) -> Value:
        """The rows as they lie in memory."""
        return self.call.stored(self.call.anchor.operands[0])

    @property
    def w(self) -> Value:
        return self.call.anchor.operands[1]

    @property
    def dtype(self) -> DType:
        """What products are summed in."""
        return DType.f64 if self.x.dtype is DType.f64 else DType.f32

    @property
    def depth(self) -> int:
        return int(elements(self.w.shape[1:]))

    @property
    def columns(self) -> int:
        """Columns of one group."""
        return int(self.w.shape[0]) // self.groups

    @property
    def units(self) -> int:
        return -(-self.depth // 2) if self.pairs else self.depth

    def direct(self, view: View, stride: int) -> Kernel:
        """The kernel that reads rows in place: `view` [..., depth], rows `stride` apart."""
        return self._build(lambda k, grid, _: Direct(k.buffers[self.x], k.dim(view.offset), stride, self.pairs), False)

    def copied(self, fill: "Callable[[KernelBuilder, Run, tirx.PrimExpr], Fill]") -> Kernel:
        """The kernel that copies rows first: `fill(k, run, group)` gives what copies one."""

        def left(k: KernelBuilder, grid: Grid, group: "tirx.PrimExpr") -> Rows:
            stride = copied_stride(grid.depth, grid.tile.lanes)
            dtype = DType.i32 if self.pairs else self.dtype
            target = k.scratch_buffer(grid.block * stride, dtype, tile_bytes(grid.tile))
            run = Run(k.buffers[self.x], target, self.x.dtype, grid.tile.lanes, self.pairs)
            return Copied(target, stride, fill(k, run, group))

        return self._build(left, True)

    def _build(self, left: "Callable[[KernelBuilder, Grid, tirx.PrimExpr], Rows]", copies: bool) -> Kernel:
        tile = tile_of(self.call, self.isa, self.columns, self.pairs, self.dtype)
        tile = replace(tile, parts=_PARTS) if copies else tile
        halves = halves_of(self.call, tile.width // 2)
        columns = self.columns if halves is None else halves.columns
        widen = self.w.dtype in (DType.bf16, DType.f16) and not self.pairs
        packing = in_turns(panels(columns, tile.width, pairs=self.pairs, widen=widen), halves)
        known = self.rows if isinstance(self.rows, int) else None
        with kernel(self.call, self.isa) as (k, done):
            grid = Grid(k.dim(self.rows), known, columns, self.units, tile)
            sums = k.scratch_buffer(tile.rows * tile.width, self.dtype)
            weights = self._packed(k, grid)
            with T.serial(tirx.const(self.groups, "int64")) as group:
                rows = left(k, grid, group)
                finish = Finish(k, tile, sums, columns, group * self.columns, halves=halves)
                emit(k, grid, rows, weights, group * (grid.panels * grid.depth * tile.width), sums, finish)
        scratch = grid.block * copied_stride(grid.depth, tile.lanes) * self.dtype.itemsize if copies else 0
        return Kernel(done[0], tile_bytes(tile) + scratch, {self.w: packing})

    def _packed(self, k: KernelBuilder, grid: Grid) -> "tirx.Buffer":
        """The buffer of packed panels that the weight is passed as."""
        return k.seen(self.w, grid.tile.unit, self.groups * grid.panels * grid.depth * grid.tile.width)


def product_of_rows(call: Call, isa: Isa, view: View) -> Kernel:
    """The kernel of a call whose anchor multiplies the rows of `view` [..., K] with its weight as [N, K]."""
    pairs = call.anchor.operands[0].dtype is DType.bf16 and isa.bf16_dot
    product = Product(call, isa, elements(view.shape[:-1]), pairs=pairs)
    stride = row_stride(view)
    as_stored = pairs and product.depth % 2 == 0 if view.dtype is DType.bf16 else not pairs
    if stride is not None and as_stored and view.dtype is not DType.f16:
        return product.direct(view, stride)
    return product.copied(lambda k, run, _: row_fill(k, view, run, product.depth))


def row_stride(view: View) -> int | None:
    """The constant distance of the rows of `view` where they can be read in place, else None.

    They cannot where every row of a tile starts in the same set of an L1 cache, which holds 8 to 12 lines.
    """
    rows = view.collapse(len(view.shape) - 1)
    if rows is None or not isinstance(stride := rows.strides[0], int):
        return None
    return None if stride and stride * view.dtype.itemsize % 4096 == 0 else stride


def tile_of(call: Call, isa: Isa, columns: int, pairs: bool, dtype: DType) -> Tile:
    """The tile for a product with `columns`, of two equal parts where the call computes from two slices of it."""
    return choose_tile(isa, columns, pairs, dtype, even=len(results_of(call)) == 2)


def tile_bytes(tile: Tile) -> int:
    """Scratch memory of one tile, in whole cache lines."""
    return -(-tile.rows * tile.width * tile.dtype.itemsize // 64) * 64


def rounds(anchor: Node, node: Node) -> bool:
    """Whether `node` rounds the first operand of `anchor`, whose weight is stored as it is, from f32 to bf16."""
    if anchor.operands[1].node.op is not ops.weight:
        return False
    narrow = node.op is ops.cast and node.types[0].dtype is DType.bf16 and node.operands[0].dtype is DType.f32
    return narrow and Value(node) == anchor.operands[0]


def refuse_operands(call: Call, isa: Isa) -> str | None:
    """Why a contraction with a weight cannot read its operands, or None."""
    x, w, *bias = call.anchor.operands
    if w.node.op is not ops.weight:
        return f"the weight is computed by {w.node.op.name}"
    if call.prologue:
        if call.prologue != (x.node,) or not rounds(call.anchor, x.node) or not isa.bf16_dot:
            return "x is computed in the kernel"
        x = call.stored(x)
    extra = "the index" if call.anchor.op is ops.grouped_linear else "the bias"
    for role, value in (("x", x), ("the weight", w), *((extra, b) for b in bias)):
        if value not in call.inputs:
            return f"{role} is computed in the kernel"
    if not x.dtype.is_float:
        return f"it multiplies floating-point numbers, not {x.dtype}"
    if not all(isinstance(dim, int) for dim in w.shape):
        return "the weight has a dynamic size"
    if not same_dim(call.inputs[x].strides[-1], 1) and not same_dim(x.shape[-1], 1):
        return "the last axis of x is strided"
    return None
