"""Linear layers and pointwise convolutions on GPUs: tiles on the tensor cores, with what is elementwise after them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

from planish.codegen.attributes import integers_of
from planish.codegen.call import Call
from planish.codegen.halves import Halves, fuses_slices
from planish.codegen.triton.around import fuses_after, refuse_around
from planish.codegen.triton.device import Device
from planish.codegen.triton.fragment import Fragments, Group
from planish.codegen.triton.halves import finish_of, halves_of
from planish.codegen.triton.kernel import Constant, Input, Kernel, Launch, Number, Output, Regime, Variant, Work
from planish.codegen.triton.kernels.gemm import gemm
from planish.codegen.triton.tiles import blocks
from planish.compiler import ops
from planish.compiler.ir import Node, Op
from planish.compiler.ops.contract import conv_padding
from planish.compiler.types import Dim, DType, elements, evaluate_dim, same_dim

_FLOATS = (DType.f32, DType.f16, DType.bf16)


@dataclass(frozen=True, slots=True)
class Tile:
    """Rows, columns and depth of a tile, and how many warps and stages compute it; `split` parts of the depth are
    summed apart, or 0 where warps share the tile."""

    m: int
    n: int
    k: int
    warps: int
    stages: int
    split: int = 0


_SHORT = (Tile(16, 64, 128, 4, 4), Tile(16, 128, 64, 4, 4), Tile(16, 32, 256, 2, 3))
_MIDDLE = (Tile(64, 64, 64, 4, 4), Tile(64, 128, 64, 4, 4), Tile(32, 64, 128, 4, 3))
_TALL = (Tile(128, 128, 64, 8, 3), Tile(128, 256, 64, 8, 3), Tile(128, 64, 64, 4, 4))
TILES: tuple[tuple[int | None, tuple[Tile, ...]], ...] = ((16, _SHORT), (256, _MIDDLE), (None, _TALL))  # by rows
# the weight is the left operand, of which instructions take 16 columns, and the rows of x the right one
_FEW = (
    (8, (Tile(8, 16, 128, 4, 4, 4), Tile(8, 32, 64, 4, 4, 4), Tile(8, 16, 64, 8, 4, 8))),
    (16, (Tile(16, 16, 128, 4, 4, 4), Tile(16, 32, 64, 4, 4, 4), Tile(16, 64, 64, 4, 4, 4))),
)


@dataclass(frozen=True, slots=True)
class Gemm:
    """x [..., K] times a weight [N, K], plus bias and elementwise nodes, in f32, f16 or bf16.

    A convolution whose kernel covers one point, step by step, is the same product for every point.
    """

    name: ClassVar[str] = "gemm"
    ops: ClassVar[tuple[Op, ...]] = (ops.linear, ops.conv)

    def refuse(self, call: Call, device: Device) -> str | None:
        x, w = (call.inputs.get(v) for v in call.anchor.operands[:2])
        if x is None or w is None:
            return "its operands are computed by the call itself"
        if x.dtype not in _FLOATS:
            return f"{x.dtype} operands; it takes f32, f16 and bf16"
        if x.dtype is DType.bf16 and not device.has_bf16:
            return f"{device.profile.name} has no bf16 matrix units"
        if call.anchor.op is ops.conv and (why := _refuse_conv(call.anchor)) is not None:
            return why
        lines = x.collapse(len(x.shape) - 1)
        if lines is None or not same_dim(lines.strides[-1], 1) or not same_dim(w.strides[-1], 1):
            return "rows of an operand do not lie at one stride"
        if not (same_dim(x.offset, 0) and same_dim(w.offset, 0)):
            return "an operand starts inside its buffer"
        return refuse_around(call)

    def build(self, call: Call, device: Device) -> Kernel:
        x, w = (call.inputs[v] for v in call.anchor.operands[:2])
        lines = x.collapse(len(x.shape) - 1)
        assert lines is not None
        halves, fragments = halves_of(call), Fragments(call)
        (rows, depth), columns = lines.shape, w.shape[0] if halves is None else halves.columns
        index = {v: Input(i) for i, v in enumerate(call.inputs)}
        groups = (Group("row", len(x.shape) - 1), Group("column", 1))
        launch = Launch(
            gemm,
            {
                "x": index[call.anchor.operands[0]],
                "w": index[call.anchor.operands[1]],
                "output": Output(),
                "rows": Number(rows),
                "columns": Number(columns),
                "depth": Number(depth),
                "x_stride": Number(lines.strides[0]),
                "w_stride": Number(w.strides[0]),
                "extras": fragments.extras,
            },
            {"FINISH": finish_of(call, groups), "GROUP_M": 8, "PRECISION": "ieee", **slices_of(halves)},
            tuple(
                Regime(most, tuple(_variant(t, (rows, columns, depth), x.dtype) for t in tiles))
                for most, tiles in tiles_of(x.dtype, device)
            ),
            size=rows,
        )
        return Kernel((launch,))

    def fuses_after(self, anchor: Node, node: Node) -> bool:
        return fuses_after(anchor, node)

    def fuses_before(self, anchor: Node, node: Node) -> bool:
        return False

    def fuses_slices(self, anchor: Node, slices: Sequence[Node]) -> bool:
        return fuses_slices(anchor, slices)


def _refuse_conv(anchor: Node) -> str | None:
    """Why a convolution is no product over points, or None."""
    if any(not same_dim(size, 1) for size in anchor.operands[1].shape[1:-1]) or anchor.attrs["groups"] != 1:
        return "a convolution over more than a point, or in groups, is no product"
    if any(size != 1 for size in integers_of(anchor, "stride")):
        return "its strides leave points out"
    padded = any(not same_dim(size, 0) for sides in conv_padding(anchor.attrs) for size in sides)
    return "its padding adds points" if padded else None


def slices_of(halves: Halves | None) -> Mapping[str, Constant]:
    """What a kernel of floats takes for two slices."""
    half, (first, second) = (0, (0, 0)) if halves is None else (halves.width, halves.starts)
    return {"HALF": half, "FIRST": first, "SECOND": second}


def tiles_of(dtype: DType, device: Device) -> tuple[tuple[int | None, tuple[Tile, ...]], ...]:
    """The tiles by counts of rows; f32 is multiplied without the matrix units, which the split is for."""
    if dtype is DType.f32:
        return TILES
    if device.backend == "cuda":
        return (*_FEW, *TILES[1:])
    # AMD's instructions take 16 rows at least, and its 64 KiB of shared memory hold fewer stages
    most, few = _FEW[-1]
    return ((most, tuple(replace(tile, stages=2) for tile in few)), *TILES[1:])


def _variant(tile: Tile, shape: tuple[Dim, Dim, Dim], dtype: DType) -> Variant:
    rows, columns, depth = shape
    whole = isinstance(depth, int) and depth % tile.k == 0

    def work(sizes: Mapping[str, int]) -> Work:
        k = evaluate_dim(depth, sizes)
        down = evaluate_dim(blocks(rows, tile.m), sizes)
        across = evaluate_dim(blocks(columns, tile.n), sizes)
        read = (tile.m + tile.n) * k * dtype.itemsize
        unique = (tile.m / across + tile.n / down) * k * dtype.itemsize
        return Work(2 * tile.m * tile.n * k, dtype, read, unique, tile.m * tile.n * dtype.itemsize)

    constants = {"BLOCK_M": tile.m, "BLOCK_N": tile.n, "BLOCK_K": tile.k, "WHOLE_K": whole, "SPLIT": tile.split}
    grid = (elements((blocks(rows, tile.m), blocks(columns, tile.n))), 1, 1)
    return Variant(constants, grid, work, num_warps=tile.warps, num_stages=tile.stages)
