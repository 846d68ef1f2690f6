"""Products of two activations on CPUs: batched, with both operands copied to tiles as they are needed."""

from dataclasses import dataclass
from typing import ClassVar

from planish.codegen.call import Call
from planish.codegen.tvm.gemm_finish import finishes, refuse_finish
from planish.codegen.tvm.isa import Isa
from planish.codegen.tvm.kernel import Kernel
from planish.codegen.tvm.matmul_blocks import build_product
from planish.codegen.tvm.matmul_plan import ProductPlan
from planish.codegen.tvm.matmul_vector import build_vector, reads_in_place
from planish.compiler import ops
from planish.compiler.ir import Node, Op


@dataclass(frozen=True, slots=True)
class Matmul:
    """x [..., M, K] times y [..., K, N] over any float views, plus elementwise nodes; summed in f32, f64 in f64.

    Serves `linear` too, whose weight need not be known ahead of time. A unit of work is a block of the result of at
    most `rows` x `columns`; it takes `depth` of K at a time.
    """

    rows: int = 128
    columns: int = 128
    depth: int = 384

    name: ClassVar[str] = "matmul"
    ops: ClassVar[tuple[Op, ...]] = (ops.matmul, ops.linear)

    def refuse(self, call: Call, isa: Isa) -> str | None:
        for value in call.anchor.operands:
            if value not in call.inputs:
                return f"{value.node.op.name} is not computed while operands are read"
            if not value.dtype.is_float:
                return f"matmul takes floating-point numbers, not {value.dtype}"
        return refuse_finish(call)

    def build(self, call: Call, isa: Isa) -> Kernel:
        plan = ProductPlan.of(call, isa, self.rows, self.columns, self.depth)
        return build_vector(plan) if reads_in_place(plan) else build_product(plan)

    def fuses_after(self, anchor: Node, node: Node) -> bool:
        return finishes(anchor, node)

    def fuses_before(self, anchor: Node, node: Node) -> bool:
        return False
