"""Rotary position embedding: both halves of a head as two streams of vectors."""

from dataclasses import dataclass
from typing import ClassVar

from tvm import tirx

from planish.codegen.call import Call
from planish.codegen.tvm import vector_math as vm
from planish.codegen.tvm.around import fuses_after, fuses_before, refuse_around
from planish.codegen.tvm.expression import Expression, store
from planish.codegen.tvm.isa import Isa
from planish.codegen.tvm.kernel import Kernel, KernelBuilder, bind, kernel
from planish.codegen.tvm.loops import Index, integer, units, vectors
from planish.compiler import ops
from planish.compiler.ir import Node, Op, Value


@dataclass(frozen=True, slots=True)
class Rope:
    """x * cosine + rotated x * sine for x [B, H, S, D], in f32 for f16 and bf16."""

    name: ClassVar[str] = "rope"
    ops: ClassVar[tuple[Op, ...]] = (ops.rope,)

    def refuse(self, call: Call, isa: Isa) -> str | None:
        return refuse_around(call)

    def build(self, call: Call, isa: Isa) -> Kernel:
        shape = call.anchor.types[0].shape
        half = shape[-1] // 2
        with kernel(call, isa) as (k, done):

            def row(lead: Index) -> None:
                vectors(k, integer(0), half, lambda at, n: _rotate(k, lead, (at, bind(at + half)), n), isa.lanes)

            units(k, shape[:-1], row)
        return Kernel(done[0], 0)

    def fuses_after(self, anchor: Node, node: Node) -> bool:
        return fuses_after(anchor, node)

    def fuses_before(self, anchor: Node, node: Node) -> bool:
        return fuses_before(node)


def _rotate(k: KernelBuilder, lead: Index, places: Index, lanes: int) -> None:
    """Write `lanes` elements of the left and of the right half."""
    x, cosine, sine = k.call.anchor.operands

    def read(value: Value, at: "tirx.PrimExpr") -> "tirx.PrimExpr":
        index = (*lead, at)
        return vm.keep(Expression(k).at(value, index[len(index) - len(value.shape) :], lanes))

    left, right = (read(x, at) for at in places)
    turned = (-right, left)
    for at, own, other in zip(places, (left, right), turned, strict=True):
        _store(k, (*lead, at), vm.keep(own * read(cosine, at) + other * read(sine, at)), lanes)


def _store(k: KernelBuilder, index: Index, result: "tirx.PrimExpr", lanes: int) -> None:
    call = k.call
    value = Expression(k, {call.anchor.values[0]: lambda *_: result}).at(call.output, index, lanes)
    store(k, call.view, index, value, lanes)
