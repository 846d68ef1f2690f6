"""The kernel of attention over caches for many queries: blocks as in attention, at positions that `past` tells.

Keys are visited by position. Position p lies in slot p mod R, and no block holds both ends of the ring.
"""

from tvm import tirx
from tvm.script.ir_builder import tirx as T  # noqa: N812 - TVM's own name for its script namespace

from planish.codegen.tvm.attention_blocks import Blocks
from planish.codegen.tvm.attention_plan import AttentionPlan
from planish.codegen.tvm.kernel import Kernel, bind, kernel
from planish.codegen.tvm.tiles import index, load, quotient, remainder
from planish.codegen.tvm.vector_math import lanes_of, splat
from planish.compiler.ir import Value
from planish.compiler.types import DType


def build_cached_blocks(plan: AttentionPlan) -> Kernel:
    """The kernel of a plan whose call has `past`."""
    with kernel(plan.call, plan.isa, plan.scratch_bytes) as (k, done):
        CachedBlocks(k, plan).emit()
    return Kernel(done[0], plan.scratch_bytes)


class CachedBlocks(Blocks):
    """Blocks over a ring of slots: `base` is the position in slot 0 of the keys that are visited."""

    def _keys_of_row(self) -> None:
        operands = self.plan.call.anchor.operands
        past = self.k.buffers[operands[3]][self.k.address(self.plan.call.inputs[operands[3]], (self.b,))]
        self.keys = bind(tirx.max(index(0), past) + self.queries)
        self.slots = bind(self.k.dim(self.plan.k.shape[2]))

    def _seen(self) -> "tuple[tirx.PrimExpr, tirx.PrimExpr]":
        first, stop = super()._seen()
        if self.plan.window is None:
            return first, bind(tirx.min(stop, self.slots))
        return bind(tirx.max(first, stop - self.slots)), stop

    def _visit(self, first: "tirx.PrimExpr", stop: "tirx.PrimExpr") -> None:
        """The keys before the end of the ring, then those from its beginning on."""
        if self.plan.window is None:
            self.base = index(0)
            self._blocks(first, stop)
            return
        end = bind((quotient(first, self.slots) + 1) * self.slots)
        with T.serial(tirx.Select(stop > end, index(2), index(1))) as part:
            start = bind(tirx.Select(tirx.EQ(part, index(0)), first, end))
            self.base = bind(start - remainder(start, self.slots))
            self._blocks(start, bind(tirx.Select(tirx.EQ(part, index(0)), tirx.min(end, stop), stop)))

    def slot(self, key: "tirx.PrimExpr") -> "tirx.PrimExpr":
        return key - self.base

    def widened(self, value: Value, key: "tirx.PrimExpr", x: "tirx.PrimExpr") -> "tirx.PrimExpr":
        """Codes times the scale of their key."""
        if value.dtype is not DType.i8:
            return x
        scale = scale_of(self.plan, value)
        view = self.plan.call.inputs[scale]
        place = self.k.address(view, (self.b, self.g, self.slot(key), 0))
        return x * splat(bind(load(self.k, self.k.buffers[scale], view, place, 1)), lanes_of(x))


def scale_of(plan: AttentionPlan, codes: Value) -> Value:
    """The scales that the call reads with the codes of a cache."""
    return next(n.operands[1] for n in plan.call.prologue if n.operands[0] == codes)
