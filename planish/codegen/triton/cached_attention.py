"""Attention over caches on GPUs: few queries part the keys among programs, many walk over them."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from planish.codegen.call import Call
from planish.codegen.triton.around import fuses_after, fuses_before, refuse_around
from planish.codegen.triton.attention_operands import Operands, refuse_sink
from planish.codegen.triton.attention_tiles import packed_tiles, tiles, tiles_of_codes
from planish.codegen.triton.attention_walk import Arguments, Walk
from planish.codegen.triton.device import Device
from planish.codegen.triton.kernel import Constant, Kernel
from planish.codegen.triton.kernels.attention import flash
from planish.codegen.triton.kernels.packed_cache import flash_packed
from planish.codegen.triton.packed_cache import Packed, addresses, pointer, reads_packed
from planish.compiler import ops
from planish.compiler.ir import Node, Op


@dataclass(frozen=True, slots=True)
class CachedAttention:
    """Attention with `past` over caches in any float dtype, in i8 with scales or in groups of 4 bits, computed in the
    dtype of q."""

    name: ClassVar[str] = "cached-attention"
    ops: ClassVar[tuple[Op, ...]] = (ops.attention,)

    def refuse(self, call: Call, device: Device) -> str | None:
        given = Operands.of(call.anchor)
        if given.past is None:
            return "it attends over no cache"
        return refuse_sink(call.anchor) or given.refuse() or refuse_around(call)

    def build(self, call: Call, device: Device) -> Kernel:
        given = Operands.of(call.anchor)
        if reads_packed(call, given.k, given.v):
            return _packed(call, given, device)
        number_bytes = min(view.dtype.itemsize for value, view in call.inputs.items() if len(value.shape) == 4)
        walk = Walk.of(call, device, float((given.depth + given.width) * number_bytes))
        shapes = tiles_of_codes if number_bytes == 1 else tiles
        return walk.kernel(flash, shapes(given, walk.rows, device), constants=walk.keys_read())

    def fuses_after(self, anchor: Node, node: Node) -> bool:
        return fuses_after(anchor, node)

    def fuses_before(self, anchor: Node, node: Node) -> bool:
        return Operands.of(anchor).past is not None and fuses_before(node)


def _packed(call: Call, given: Operands, device: Device) -> Kernel:
    """Attention over caches that are bytes of two codes."""
    k, v = Packed.of(given.k), Packed.of(given.v)
    walk = Walk.of(call, device, float(k.row_bytes + v.row_bytes))
    arguments: Arguments = {
        "k": pointer(call, given.k),
        "v": pointer(call, given.v),
        **addresses(call, "k", given.k),
        **addresses(call, "v", given.v),
    }
    constants: Mapping[str, Constant] = {**k.constants("K"), **v.constants("V")}
    return walk.kernel(flash_packed, packed_tiles(given, walk.rows), arguments, constants)
