"""Rotary position embedding: both halves of a head as two streams of vectors."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, TypeAlias

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

Write: TypeAlias = "Callable[[tirx.PrimExpr, tirx.PrimExpr, int], None]"


@dataclass(frozen=True, slots=True)
class Rope:
    """x * cosine + rotated x * sine for x [B, H, S, D], in f32 for f16 and bf16."""

    name: ClassVar[str] = "rope"
    ops: ClassVar[tuple[Op, ...]] = (ops.rope,)

    def refuse(self, call: Call, isa: Isa) -> str | None:
        return refuse_around(call)

    def build(self, call: Call, isa: Isa) -> Kernel:
        with kernel(call, isa) as (k, done):

            def row(lead: Index) -> None:
                rotate(k, call.anchor, lead, lambda at, x, lanes: _store(k, (*lead, at), x, lanes))

            units(k, call.anchor.types[0].shape[:-1], row)
        return Kernel(done[0], 0)

    def fuses_after(self, anchor: Node, node: Node) -> bool:
        return fuses_after(anchor, node)

    def fuses_before(self, anchor: Node, node: Node) -> bool:
        return fuses_before(node)


def rotate(k: KernelBuilder, node: Node, lead: Index, write: Write) -> None:
    """Call `write(place, elements, lanes)` for vectors of the result of a rope along its last axis, at `lead`."""
    half = node.types[0].shape[-1] // 2
    vectors(
        k, integer(0), half, lambda at, lanes: _pair(k, node, (lead, at, bind(at + half)), lanes, write), k.isa.lanes
    )


def _pair(
    k: KernelBuilder,
    node: Node,
    place: "tuple[Index, tirx.PrimExpr, tirx.PrimExpr]",
    lanes: int,
    write: Write,
) -> None:
    """Write `lanes` elements of the left and of the right half."""
    (x, cosine, sine), (lead, *places) = node.operands, place

    def read(value: Value, at: "tirx.PrimExpr") -> "tirx.PrimExpr":
        index = (*lead, at)
        return vm.keep(Expression(k).at(value, index[len(index) - len(value.shape) :], lanes))

    left, right = (read(x, at) for at in places)
    for at, own, other in zip(places, (left, right), (-right, left), strict=True):
        write(at, vm.keep(own * read(cosine, at) + other * read(sine, at)), lanes)


def _store(k: KernelBuilder, index: Index, result: "tirx.PrimExpr", lanes: int) -> None:
    call = k.call
    value = Expression(k, {call.anchor.values[0]: lambda *_: result}).at(call.output, index, lanes)
    store(k, call.view, index, value, lanes)
