"""Attention over caches for CPUs: each row of the batch visits the keys that its own past lets it see."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from planish.codegen.call import Call
from planish.codegen.tvm.attention import Attention, over_cache
from planish.codegen.tvm.isa import Isa
from planish.compiler.ir import Node, Op, Value
from planish.compiler.ops import cast, dequantize
from planish.compiler.ops.contract import attention
from planish.compiler.types import DType, same_dim

if TYPE_CHECKING:
    from planish.codegen.tvm.kernel import Kernel

_FLOATS = (DType.f32, DType.bf16, DType.f16)


@dataclass(frozen=True, slots=True)
class CachedAttention:
    """Attention with `past`, computed in f32 over caches of f32, bf16, f16, or i8 with one scale a token and head.

    For one token over i8 codes, queries and weights are rounded to 16 bits where the CPU multiplies these.

    Casts and dequantized codes are widened where keys and values are read; a cast or `dequantize` to a narrower float
    is not rounded on the way. Queries after the last slot of a cache without a window see it from its beginning to its
    end. Slots that no query has to see are read all the same and must hold finite numbers.
    """

    queries: int = 64
    keys: int = 512

    name: ClassVar[str] = "cached-attention"
    ops: ClassVar[tuple[Op, ...]] = (attention,)

    def refuse(self, call: Call, isa: Isa) -> str | None:
        anchor = call.anchor
        if not over_cache(anchor):
            return "it attends over caches, with past"
        if anchor.operands[0].dtype not in _FLOATS:
            return f"attention over a cache takes f32, bf16 or f16, not {anchor.operands[0].dtype}"
        if call.epilogue or any(not self.fuses_before(anchor, node) for node in call.prologue):
            return "attention over a cache computes nothing beside itself but casts and codes of keys and values"
        if any(_read(v) not in call.inputs for v in anchor.operands[1:3] if v not in call.inputs):
            return "attention over a cache reads keys and values from memory"
        return Attention().refuse_sizes(call)

    def build(self, call: Call, isa: Isa) -> "Kernel":
        from planish.codegen.tvm.attention_plan import AttentionPlan
        from planish.codegen.tvm.cached_attention_blocks import build_cached_blocks
        from planish.codegen.tvm.cached_attention_codes import OneTokenOfCodes, serves_codes
        from planish.codegen.tvm.cached_attention_one import OneToken, serves
        from planish.codegen.tvm.cached_attention_pieces import GRANULE
        from planish.codegen.tvm.cached_attention_turned import OneTokenTurned, serves_turned

        one = AttentionPlan.of(call, isa, 2 * isa.lanes, GRANULE)
        if serves(one):
            turned = OneTokenTurned if serves_turned(one) else OneToken
            return (OneTokenOfCodes if serves_codes(one) else turned).build(one)
        return build_cached_blocks(AttentionPlan.of(call, isa, self.queries, self.keys))

    def fuses_after(self, anchor: Node, node: Node) -> bool:
        return False

    def fuses_before(self, anchor: Node, node: Node) -> bool:
        """Casts among floats and i8 codes with one scale for all of a key or value."""
        if not over_cache(anchor) or not any(v.node is node for v in anchor.operands[1:3]):
            return False
        if node.op is cast:
            return node.operands[0].dtype in _FLOATS
        return node.op is dequantize and _one_scale(node)


def _one_scale(node: Node) -> bool:
    codes, scale = node.operands[:2]
    plain = len(node.operands) == 2 and not node.attrs["codebook"]
    return plain and codes.dtype is DType.i8 and scale.dtype in _FLOATS and same_dim(scale.shape[-1], 1)


def _read(value: Value) -> Value:
    return value.node.operands[0]
