"""Scales of activations for products of codes on GPUs; the codes themselves are an expression."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from planish.codegen.call import Call
from planish.codegen.triton.around import fuses_after, fuses_before, refuse_around
from planish.codegen.triton.device import Device
from planish.codegen.triton.fragment import Fragments, Group
from planish.codegen.triton.kernel import Kernel, Launch, Number, Output, Regime, Variant, Work
from planish.codegen.triton.kernels.quantization import group_scales
from planish.codegen.triton.tiles import blocks, power_of_two
from planish.compiler import ops
from planish.compiler.ir import Node, Op
from planish.compiler.ops.quantize import largest_code
from planish.compiler.types import Dim, DType, elements

_ELEMENTS = 2048  # of a block


@dataclass(frozen=True, slots=True)
class Quantization:
    """quantization_scale of groups of the last axis, or of whole rows."""

    name: ClassVar[str] = "quantization"
    ops: ClassVar[tuple[Op, ...]] = (ops.quantization_scale,)

    def refuse(self, call: Call, device: Device) -> str | None:
        return refuse_around(call)

    def build(self, call: Call, device: Device) -> Kernel:
        anchor, x = call.anchor, call.anchor.operands[0]
        group, bits, dtype = (anchor.attrs[name] for name in ("group", "bits", "dtype"))
        assert isinstance(group, int)
        assert isinstance(bits, int)
        assert isinstance(dtype, DType)
        lead, fragments = len(x.shape) - 1, Fragments(call)
        count, width = elements(anchor.types[0].shape), min(_ELEMENTS, power_of_two(group))
        down = max(1, _ELEMENTS // width)
        launch = Launch(
            group_scales,
            {
                "output": Output(),
                "count": Number(count),
                "groups": Number(anchor.types[0].shape[-1]),
                "columns": Number(x.shape[-1]),
                "extras": fragments.extras,
            },
            {
                "READ": fragments.read("read", x, (Group("row", lead), Group("column", 1))),
                "FINISH": fragments.finish("finish", (Group("row", lead), Group("column", 1))),
                "GROUP": group,
                "LIMIT": largest_code(dtype, bits),
            },
            (Regime(None, (_variant(call, (blocks(count, down), down, width)),)),),
        )
        return Kernel((launch,))

    def fuses_after(self, anchor: Node, node: Node) -> bool:
        return fuses_after(anchor, node)

    def fuses_before(self, anchor: Node, node: Node) -> bool:
        return fuses_before(node)


def _variant(call: Call, tile: tuple[Dim, int, int]) -> Variant:
    count, down, width = tile
    read = float(down * width * call.anchor.operands[0].dtype.itemsize)

    def work(_: Mapping[str, int]) -> Work:
        return Work(2.0 * down * width, DType.f32, read, read, 4.0 * down)

    return Variant({"BLOCK_COUNT": down, "BLOCK_GROUP": width}, (count, 1, 1), work, num_warps=4)
