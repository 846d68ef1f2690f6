"""Linear layers on CPUs: panels of packed weights, register tiles, and everything elementwise after them."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from planish.codegen.call import Call
from planish.codegen.halves import fuses_slices
from planish.codegen.tvm.gemm_finish import finishes, refuse_finish
from planish.codegen.tvm.gemm_product import product_of_rows, refuse_operands, rounds
from planish.codegen.tvm.isa import Isa
from planish.codegen.tvm.kernel import Kernel
from planish.compiler import ops
from planish.compiler.ir import Node, Op


@dataclass(frozen=True, slots=True)
class Gemm:
    """x [..., K] times a weight [N, K], plus bias and elementwise nodes; any float dtype and sizes.

    A cast of x from f32 to bf16 happens while its rows are copied, where there is a dot product of bf16. Elementwise
    nodes may also be those of two slices of the result, gate and up.
    """

    name: ClassVar[str] = "gemm"
    ops: ClassVar[tuple[Op, ...]] = (ops.linear,)

    def refuse(self, call: Call, isa: Isa) -> str | None:
        return refuse_operands(call, isa) or refuse_finish(call)

    def build(self, call: Call, isa: Isa) -> Kernel:
        return product_of_rows(call, isa, call.inputs[call.stored(call.anchor.operands[0])])

    def fuses_after(self, anchor: Node, node: Node) -> bool:
        return finishes(anchor, node)

    def fuses_before(self, anchor: Node, node: Node) -> bool:
        return rounds(anchor, node)

    def fuses_slices(self, anchor: Node, slices: Sequence[Node]) -> bool:
        return anchor.operands[1].node.op is ops.weight and fuses_slices(anchor, slices)
