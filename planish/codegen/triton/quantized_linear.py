"""Linear layers on GPUs whose weight is stored as codes: linear(x, dequantize(@codes, @scale, @zero), b)."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

from planish.codegen.call import Call
from planish.codegen.halves import fuses_slices
from planish.codegen.triton.around import fuses_after, refuse_around
from planish.codegen.triton.device import Device
from planish.codegen.triton.elementwise import TRITON_DTYPE
from planish.codegen.triton.fragment import Fragments, Group
from planish.codegen.triton.halves import finish_of, halves_of
from planish.codegen.triton.kernel import (
    Argument,
    Constant,
    Input,
    Kernel,
    Launch,
    Number,
    Output,
    Regime,
    Variant,
    Work,
)
from planish.codegen.triton.kernels.quantized import coded_gemm
from planish.codegen.triton.packed_weight import TILE, PackedWeight
from planish.codegen.triton.sources import Existing
from planish.codegen.triton.tiles import blocks
from planish.codegen.view import View
from planish.compiler import ops
from planish.compiler.ir import Node, Op, Value
from planish.compiler.types import Dim, DType, elements, evaluate_dim, same_dim

_FLOATS = (DType.f32, DType.f16, DType.bf16)


@dataclass(frozen=True, slots=True)
class Tile:
    """Rows of x, tiles of 16 columns, units of the depth and parts of it that are summed apart; warps and stages."""

    rows: int
    tiles: int
    units: int
    split: int
    warps: int
    stages: int


_REGIMES: tuple[tuple[int | None, tuple[Tile, ...]], ...] = (
    (8, (Tile(8, 1, 2, 4, 4, 4), Tile(8, 1, 1, 8, 8, 4), Tile(8, 2, 1, 4, 4, 4))),
    (16, (Tile(16, 1, 2, 4, 4, 4), Tile(16, 2, 1, 4, 4, 4), Tile(16, 1, 1, 8, 8, 4))),
    (64, (Tile(32, 2, 1, 4, 4, 4), Tile(64, 4, 1, 1, 4, 4), Tile(64, 2, 1, 4, 4, 3))),
    (None, (Tile(128, 8, 1, 1, 8, 3), Tile(64, 8, 1, 1, 4, 3), Tile(256, 8, 1, 1, 8, 3))),
)


@dataclass(frozen=True, slots=True)
class QuantizedLinear:
    """x [..., K] times the numbers that codes [N, K] stand for, plus bias and elementwise nodes; sums are f32.

    The numbers are rounded to the dtype of x, as the codebook and the scales of bf16 are before.
    """

    name: ClassVar[str] = "quantized-linear"
    ops: ClassVar[tuple[Op, ...]] = (ops.linear,)

    def refuse(self, call: Call, device: Device) -> str | None:
        return _refuse_rows(call, device) or refuse_weight(call, device, rank=2) or refuse_around(call)

    def build(self, call: Call, device: Device) -> Kernel:
        weight = weight_of(call, device)
        return Kernel((_launch(call, weight),), packings=weight.packings())

    def fuses_after(self, anchor: Node, node: Node) -> bool:
        return fuses_after(anchor, node)

    def fuses_before(self, anchor: Node, node: Node) -> bool:
        return node.op is ops.dequantize and anchor.op is ops.linear and Value(node) == anchor.operands[1]

    def fuses_slices(self, anchor: Node, slices: Sequence[Node]) -> bool:
        return fuses_slices(anchor, slices)


def weight_of(call: Call, device: Device) -> PackedWeight:
    """The weight of the call's anchor."""
    return PackedWeight(call.anchor.operands[1].node, call.anchor.operands[0].dtype, device, halves_of(call))


def refuse_weight(call: Call, device: Device, *, rank: int) -> str | None:
    """Why the weight, of so many axes, is not stored as codes that the kernel unpacks, or None."""
    w = call.anchor.operands[1]
    if w.node.op is not ops.dequantize or w.node not in call.nodes:
        return "the weight is not dequantized in the kernel"
    for role, value in zip(("codes", "scales", "zero points"), w.node.operands, strict=False):
        if value.node.op is not ops.weight or value not in call.inputs:
            return f"the {role} are computed by {value.node.op.name}"
        if not call.inputs[value].is_contiguous or not all(isinstance(dim, int) for dim in value.shape):
            return f"the {role} are not stored in one piece"
        if value.dtype is DType.f64:
            return f"the {role} are f64"
    return (
        f"the weight {w.type} is of {len(w.shape)} axes" if len(w.shape) != rank else weight_of(call, device).refuse()
    )


def _refuse_rows(call: Call, device: Device) -> str | None:
    x = call.anchor.operands[0]
    if x not in call.inputs:
        return f"its rows are computed by {x.node.op.name}"
    if x.dtype not in _FLOATS:
        return f"{x.dtype} rows; it takes f32, f16 and bf16"
    if x.dtype is DType.bf16 and not device.has_bf16:
        return f"{device.profile.name} has no bf16 matrix units"
    lines = _lines(call)
    if lines is None or not same_dim(lines.strides[-1], 1) or not same_dim(lines.offset, 0):
        return "its rows do not lie at one stride from the start of a buffer"
    return None


def _lines(call: Call) -> View | None:
    """x as [rows, depth]."""
    view = call.inputs[call.anchor.operands[0]]
    return view.collapse(len(view.shape) - 1)


def _launch(call: Call, weight: PackedWeight) -> Launch:
    lines, anchor = _lines(call), call.anchor
    assert lines is not None
    rows = lines.shape[0]
    groups = (Group("row", len(anchor.operands[0].shape) - 1), Group("column", 1))
    arguments: dict[str, Argument | tuple[Argument, ...]] = {
        **coded_arguments(call, weight),
        "output": Output(),
        "rows": Number(rows),
        "columns": Number(weight.columns),
        "depth": Number(weight.depth),
        "x_stride": Number(lines.strides[0]),
        "extras": Fragments(call).extras,
    }
    constants = {**coded_constants(weight), "FINISH": finish_of(call, groups)}
    return Launch(coded_gemm, arguments, constants, _regimes(rows, weight), size=rows)


def coded_arguments(call: Call, weight: PackedWeight) -> dict[str, Argument]:
    """The operands of a product with codes; no zero points are a constant."""
    index = {v: Input(i) for i, v in enumerate(call.inputs)}
    found = {"x": call.anchor.operands[0], "codes": weight.node.operands[0], "scale": weight.scale, "zero": weight.zero}
    return {name: index[value] for name, value in found.items() if value is not None}


def coded_constants(weight: PackedWeight) -> dict[str, Constant]:
    """What a kernel must know of the codes."""
    return {
        **({"zero": None} if weight.zero is None else {}),
        "HALF": 0 if weight.halves is None else weight.halves.width,
        "UNPACK": weight.unpacking.function(),
        "CODES": weight.codes,
        "GROUP": weight.group,
        "OFFSET": weight.offset,
        "SCALED": not weight.is_scaled_by_rows,
        "DTYPE": Existing("triton.language", TRITON_DTYPE[weight.dtype]),
        "PRECISION": "ieee",
        "GROUP_M": 8,
    }


def _regimes(rows: Dim, weight: PackedWeight) -> tuple[Regime, ...]:
    known = rows if isinstance(rows, int) else None
    kept = [(most, tiles) for most, tiles in tiles_of(weight.device) if known is None or most is None or known <= most]
    return tuple(
        Regime(most, tuple(_variant(tile, rows, weight) for tile in tiles))
        for most, tiles in (kept if known is None else kept[:1])
    )


def tiles_of(device: Device) -> tuple[tuple[int | None, tuple[Tile, ...]], ...]:
    """The tiles by counts of rows."""
    # the matrix units of AMD take 16 rows at least
    least = 8 if device.backend == "cuda" else 16
    return tuple((most, tuple(replace(t, rows=max(least, t.rows)) for t in tiles)) for most, tiles in _REGIMES)


def coded_tile(tile: Tile, weight: PackedWeight) -> dict[str, Constant]:
    """The constants of a tile; a unit of 8-bit codes is half as deep."""
    units = tile.units * 4 // weight.codes
    return {"BLOCK_M": tile.rows, "TILES": tile.tiles, "UNITS": units, "SPLIT": tile.split}


def _variant(tile: Tile, rows: Dim, weight: PackedWeight) -> Variant:
    wide = tile.tiles * TILE

    def work(sizes: Mapping[str, int]) -> Work:
        across, down = -(-weight.columns // wide), evaluate_dim(blocks(rows, tile.rows), sizes)
        of_x, of_w = tile.rows * weight.depth * weight.dtype.itemsize, wide * weight.depth * weight.byte_count
        flops = 2.0 * tile.rows * wide * weight.depth
        unpacked = wide * weight.depth * weight.unpacking.instructions
        written = tile.rows * wide * weight.dtype.itemsize
        return Work(flops, weight.dtype, of_x + of_w, of_x / across + of_w / down, written, unpacked)

    grid = (elements((blocks(rows, tile.rows), blocks(weight.columns, wide))), 1, 1)
    return Variant(coded_tile(tile, weight), grid, work, num_warps=tile.warps, num_stages=tile.stages)
