"""Attention for CPUs: blocks of queries against blocks of keys with an online softmax (arXiv 2205.14135)."""

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from planish.codegen.call import Call
from planish.codegen.tvm.isa import Isa
from planish.compiler.ir import Node, Op
from planish.compiler.ops.contract import attention, sink_of
from planish.compiler.types import DType

if TYPE_CHECKING:
    from planish.codegen.tvm.kernel import Kernel


@dataclass(frozen=True, slots=True)
class Attention:
    """Attention over f32, bf16 or f16 views, computed in f32; bf16 in dot products where there are such.

    A unit of work is one block of up to `queries` queries that share a head of keys; it visits at most `keys` keys at
    a time. Narrow results are rounded once. A query that sees no key gives zeros.
    """

    queries: int = 64
    keys: int = 512

    name: ClassVar[str] = "attention"
    ops: ClassVar[tuple[Op, ...]] = (attention,)

    def refuse(self, call: Call, isa: Isa) -> str | None:
        dtype = call.anchor.operands[0].dtype
        if over_cache(call.anchor):
            return "attention over a cache has templates of its own"
        if dtype not in (DType.f32, DType.bf16, DType.f16):
            return f"attention takes f32, bf16 or f16, not {dtype}"
        return self.refuse_shapes(call)

    def refuse_shapes(self, call: Call) -> str | None:
        """Why a kernel of attention cannot serve the call whatever its dtype, or None."""
        if call.prologue or call.epilogue:
            return "attention computes nothing beside itself"
        return self.refuse_sizes(call)

    def refuse_sizes(self, call: Call) -> str | None:
        """Why no kernel of attention can serve the sizes and attributes of the call, or None."""
        q, _, v = call.anchor.operands[:3]
        if not isinstance(q.shape[3], int) or not isinstance(v.shape[3], int):
            return f"attention needs constant head sizes, not {q.shape[3]} and {v.shape[3]}"
        if any(not isinstance(a, int | float | type(None)) for a in call.anchor.attrs.values()):
            return f"attention needs a constant window and scale, not {dict(call.anchor.attrs)}"
        if (sink := sink_of(call.anchor)) is not None and sink not in call.inputs:
            return "attention reads its sink from memory"
        if not math.isfinite(float(str(call.anchor.attrs["scale"]))):
            return f"attention needs a finite scale, not {call.anchor.attrs['scale']}"
        return None

    def build(self, call: Call, isa: Isa) -> "Kernel":
        from planish.codegen.tvm.attention_blocks import build_blocks
        from planish.codegen.tvm.attention_pairs import build_pairs
        from planish.codegen.tvm.attention_plan import AttentionPlan

        plan = AttentionPlan.of(call, isa, self.queries, self.keys)
        return build_pairs(plan) if plan.pairs else build_blocks(plan)

    def fuses_after(self, anchor: Node, node: Node) -> bool:
        return False

    def fuses_before(self, anchor: Node, node: Node) -> bool:
        return False


def over_cache(node: Node) -> bool:
    """Whether an attention reads keys and values from a cache, at positions that `past` tells."""
    return node.op is attention and len(node.inputs) > 4 and node.inputs[4] is not None
