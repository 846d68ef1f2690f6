"""Attention on GPUs: blocks of queries walk over the keys that they see."""

from dataclasses import dataclass
from typing import ClassVar

from planish.codegen.call import Call
from planish.codegen.triton.around import fuses_after, refuse_around
from planish.codegen.triton.attention_operands import Operands, refuse_sink
from planish.codegen.triton.attention_tiles import tiles
from planish.codegen.triton.attention_walk import Walk
from planish.codegen.triton.device import Device
from planish.codegen.triton.kernel import Kernel
from planish.codegen.triton.kernels.attention import flash
from planish.compiler import ops
from planish.compiler.ir import Node, Op


@dataclass(frozen=True, slots=True)
class Attention:
    """softmax(q k^T * scale + mask) v with groups of queries, causal bands and windows; heads of up to 256."""

    name: ClassVar[str] = "attention"
    ops: ClassVar[tuple[Op, ...]] = (ops.attention,)

    def refuse(self, call: Call, device: Device) -> str | None:
        given = Operands.of(call.anchor)
        if given.past is not None:
            return "it attends over a cache"
        return refuse_sink(call.anchor) or given.refuse() or given.refuse_rows(call) or refuse_around(call)

    def build(self, call: Call, device: Device) -> Kernel:
        given = Operands.of(call.anchor)
        walk = Walk.of(call, device, float((given.depth + given.width) * given.k.dtype.itemsize))
        return walk.kernel(flash, tiles(given, walk.rows, device), constants=walk.keys_read())

    def fuses_after(self, anchor: Node, node: Node) -> bool:
        return fuses_after(anchor, node)

    def fuses_before(self, anchor: Node, node: Node) -> bool:
        return False
