"""Running sums along an axis."""

from dataclasses import dataclass
from typing import ClassVar, cast

from tvm.script.ir_builder import tirx as T  # noqa: N812 - TVM's own name for its script namespace

from planish.codegen.call import Call
from planish.codegen.tvm import vector_math as vm
from planish.codegen.tvm.around import fuses_after, fuses_before, refuse_around
from planish.codegen.tvm.elementwise import compute_dtype
from planish.codegen.tvm.expression import Expression, store
from planish.codegen.tvm.isa import Isa
from planish.codegen.tvm.kernel import Kernel, KernelBuilder, bind, kernel, ramp
from planish.codegen.tvm.loops import Index, block_count, nest, span, units, vectors
from planish.compiler import ops
from planish.compiler.ir import Node, Op
from planish.compiler.types import DType

_STEP = 64  # columns of a unit of work


@dataclass(frozen=True, slots=True)
class Scan:
    """cumsum: one element after another along the last axis, vectors of neighbouring columns along another."""

    name: ClassVar[str] = "scan"
    ops: ClassVar[tuple[Op, ...]] = (ops.cumsum,)

    def refuse(self, call: Call, isa: Isa) -> str | None:
        if call.anchor.operands[0].dtype is DType.bool:
            return "cumsum of bool has no kernel; cast to i64"
        return refuse_around(call)

    def build(self, call: Call, isa: Isa) -> Kernel:
        shape, axis = call.anchor.types[0].shape, cast(int, call.anchor.attrs["axis"])
        with kernel(call, isa) as (k, done):
            if axis == len(shape) - 1:
                units(k, shape[:-1], lambda lead: _run(k, (lead, ()), 1))
            else:
                _across(k, axis)
        return Kernel(done[0], 0)

    def fuses_after(self, anchor: Node, node: Node) -> bool:
        return fuses_after(anchor, node)

    def fuses_before(self, anchor: Node, node: Node) -> bool:
        return fuses_before(node)


def _across(k: KernelBuilder, axis: int) -> None:
    shape = k.call.anchor.types[0].shape
    blocks = block_count(shape[-1], _STEP)

    def block(index: Index) -> None:
        start, stop = span(k, shape[-1], blocks, _STEP, index[-1])
        size = shape[-1] if isinstance(blocks, int) and blocks == 1 else stop - start
        before, after = index[:axis], index[axis:-1]
        vectors(k, start, size, lambda at, n: _run(k, (before, (*after, at)), n), k.isa.lanes)

    units(k, (*shape[:axis], *shape[axis + 1 : -1], blocks), block)


def _run(k: KernelBuilder, sides: tuple[Index, Index], lanes: int) -> None:
    """The sums at the indices before and after the axis."""
    call = k.call
    anchor = call.anchor
    before, after = sides
    dtype = compute_dtype(anchor.types[0].dtype)
    running = T.alloc_buffer((lanes,), dtype)
    T.buffer_store(running, vm.constant(0, dtype, lanes), [ramp(0, lanes)])

    def step(i: Index) -> None:
        index = (*before, *i, *after)
        value = running[ramp(0, lanes)] + Expression(k).at(anchor.operands[0], index, lanes)
        T.buffer_store(running, value, [ramp(0, lanes)])
        result = bind(running[ramp(0, lanes)])
        out = Expression(k, {anchor.values[0]: lambda *_: result}).at(call.output, index, lanes)
        store(k, call.view, index, out, lanes)

    nest([anchor.types[0].shape[len(before)]], k, step)
