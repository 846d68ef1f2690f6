"""Linear layers of experts on GPUs whose weights are stored as codes."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

from planish.codegen.call import Call
from planish.codegen.halves import fuses_slices
from planish.codegen.triton.around import fuses_after, refuse_around
from planish.codegen.triton.device import Device
from planish.codegen.triton.grouped import Experts, refuse_rows, regimes_of
from planish.codegen.triton.kernel import Kernel, Launch, Variant, Work
from planish.codegen.triton.kernels.grouped import grouped_coded_gemm
from planish.codegen.triton.packed_weight import TILE, PackedWeight
from planish.codegen.triton.quantized_linear import (
    Tile,
    coded_arguments,
    coded_constants,
    coded_tile,
    refuse_weight,
    tiles_of,
    weight_of,
)
from planish.codegen.triton.tiles import blocks, product
from planish.compiler import ops
from planish.compiler.ir import Node, Op, Value
from planish.compiler.types import evaluate_dim


@dataclass(frozen=True, slots=True)
class GroupedQuantizedLinear:
    """x [..., K] times the numbers that codes [E, N, K] of each row's expert stand for; as `QuantizedLinear` else."""

    name: ClassVar[str] = "grouped-quantized-linear"
    ops: ClassVar[tuple[Op, ...]] = (ops.grouped_linear,)

    def refuse(self, call: Call, device: Device) -> str | None:
        return refuse_rows(call, device) or refuse_weight(call, device, rank=3) or refuse_around(call)

    def build(self, call: Call, device: Device) -> Kernel:
        weight = weight_of(call, device)
        experts = Experts.of(call, weight.columns)
        return experts.kernel(_product(experts, weight), weight.packings())

    def fuses_after(self, anchor: Node, node: Node) -> bool:
        return fuses_after(anchor, node)

    def fuses_before(self, anchor: Node, node: Node) -> bool:
        return node.op is ops.dequantize and anchor.op is ops.grouped_linear and Value(node) == anchor.operands[1]

    def fuses_slices(self, anchor: Node, slices: Sequence[Node]) -> bool:
        return fuses_slices(anchor, slices)


def _product(experts: Experts, weight: PackedWeight) -> Launch:
    return Launch(
        grouped_coded_gemm,
        {**coded_arguments(experts.call, weight), **experts.arguments()},
        {**coded_constants(weight), **experts.constants()},
        regimes_of(experts, tiles_of(weight.device), lambda tile, direct: _variant(experts, weight, tile, direct)),
        size=experts.rows,
    )


def _variant(experts: Experts, weight: PackedWeight, tile: Tile, direct: bool) -> Variant:
    wide, tiles = tile.tiles * TILE, experts.tiles(tile.rows, direct=direct)
    across = -(-experts.columns // wide)

    def work(sizes: Mapping[str, int]) -> Work:
        rows = evaluate_dim(experts.rows, sizes)
        deep, count = weight.depth, evaluate_dim(tiles, sizes)
        of_x, of_w = deep * weight.dtype.itemsize, wide * deep * weight.byte_count
        unique = rows * of_x / (across * count) + min(experts.count, rows) * of_w / count
        unpacked = wide * deep * weight.unpacking.instructions
        written = tile.rows * wide * weight.dtype.itemsize
        return Work(2.0 * tile.rows * wide * deep, weight.dtype, tile.rows * of_x + of_w, unique, written, unpacked)

    grid = (product(tiles, blocks(experts.columns, wide)), 1, 1)
    constants = {**coded_tile(tile, weight), "DIRECT": direct}
    return Variant(constants, grid, work, num_warps=tile.warps, num_stages=tile.stages)
