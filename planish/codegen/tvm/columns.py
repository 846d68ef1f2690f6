"""Softmax along an axis other than the last: vectors hold neighbouring columns."""

from dataclasses import dataclass
from typing import ClassVar, cast

from tvm import tirx

from planish.codegen.call import Call
from planish.codegen.tvm import vector_math as vm
from planish.codegen.tvm.around import fuses_after, fuses_before, refuse_around
from planish.codegen.tvm.expression import Expression, store
from planish.codegen.tvm.folds import Fold, Registers, peak, total
from planish.codegen.tvm.isa import Isa
from planish.codegen.tvm.kernel import Kernel, KernelBuilder, kernel
from planish.codegen.tvm.loops import Index, block_count, integer, nest, span, units, vectors
from planish.compiler import ops
from planish.compiler.ir import Node, Op
from planish.compiler.types import DType

_STEP = 64  # columns of a unit of work


@dataclass(frozen=True, slots=True)
class Columns:
    """Three passes along the axis, of which the last computes the exponentials again."""

    name: ClassVar[str] = "columns"
    ops: ClassVar[tuple[Op, ...]] = (ops.softmax, ops.log_softmax)

    def refuse(self, call: Call, isa: Isa) -> str | None:
        x, axis = call.anchor.operands[0], call.anchor.attrs["axis"]
        if axis == len(x.shape) - 1:
            return f"{call.anchor.op.name} is along the last axis"
        if x.dtype not in (DType.f32, DType.bf16, DType.f16):
            return f"{call.anchor.op.name} of {x.dtype} has no kernel; cast to f32"
        return refuse_around(call)

    def build(self, call: Call, isa: Isa) -> Kernel:
        shape, axis = call.anchor.types[0].shape, cast(int, call.anchor.attrs["axis"])
        blocks = block_count(shape[-1], _STEP)
        with kernel(call, isa) as (k, done):

            def block(index: Index) -> None:
                start, stop = span(k, shape[-1], blocks, _STEP, index[-1])
                size = shape[-1] if isinstance(blocks, int) and blocks == 1 else stop - start
                before, after = index[:axis], index[axis:-1]
                vectors(k, start, size, lambda at, n: _columns(k, (before, (*after, at)), n), isa.lanes)

            units(k, (*shape[:axis], *shape[axis + 1 : -1], blocks), block)
        return Kernel(done[0], 0)

    def fuses_after(self, anchor: Node, node: Node) -> bool:
        return fuses_after(anchor, node)

    def fuses_before(self, anchor: Node, node: Node) -> bool:
        return fuses_before(node)


def _columns(k: KernelBuilder, sides: tuple[Index, Index], lanes: int) -> None:
    """The columns at the indices before and after the axis."""
    call = k.call
    anchor = call.anchor
    before, after = sides
    size = anchor.types[0].shape[len(before)]

    def fold(fold: Fold, change: "tirx.PrimExpr | None") -> "tirx.PrimExpr":
        registers = Registers(fold, lanes, 1)
        nest([size], k, lambda i: registers.take(read((*before, *i, *after), change), integer(0), step=0))
        return registers.vector()[0]

    def read(index: Index, top: "tirx.PrimExpr | None") -> "tirx.PrimExpr":
        x = vm.keep(Expression(k).at(anchor.operands[0], index, lanes))
        return x if top is None else vm.exp_nonpositive(vm.keep(x - top))

    top = fold(peak(), None)
    denominator = fold(total("float32"), top)
    scale = vm.keep(vm.like(top, 1.0) / denominator if anchor.op is ops.softmax else top + vm.log(denominator))

    def write(i: Index) -> None:
        index = (*before, *i, *after)
        result = read(index, top) * scale if anchor.op is ops.softmax else read(index, None) - scale
        value = Expression(k, {anchor.values[0]: lambda *_: result}).at(call.output, index, lanes)
        store(k, call.view, index, value, lanes)

    nest([size], k, write)
