"""Linear layers whose weight is stored as codes of 8 or 4 bits: linear(x, dequantize(@codes, @scale, @zero), b)."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from tvm import tirx
from tvm.script.ir_builder import tirx as T  # noqa: N812 - TVM's own name for its script namespace

from planish.codegen.call import Call
from planish.codegen.halves import fuses_slices
from planish.codegen.tvm.computed_row import computes, refuse_norms
from planish.codegen.tvm.gemm_finish import finishes, refuse_finish
from planish.codegen.tvm.isa import Isa
from planish.codegen.tvm.kernel import Kernel, KernelBuilder, bind, kernel
from planish.codegen.tvm.quantization import refuse_codebook
from planish.codegen.tvm.quantized_panels import ManyRows
from planish.codegen.tvm.quantized_planes import PlaneRows
from planish.codegen.tvm.quantized_rows import MOST_ROWS, FewRows
from planish.codegen.tvm.quantized_weight import CodedWeight, Levels
from planish.codegen.view import View
from planish.compiler import ops
from planish.compiler.ir import Node, Op, Value
from planish.compiler.types import DType, elements, same_dim


@dataclass(frozen=True, slots=True)
class QuantizedLinear:
    """x [..., K] times the numbers that codes [N, K] stand for, plus bias and elementwise nodes; sums are f32.

    Many rows of bf16 multiply in pairs with a weight of bf16 where there is a dot product of bf16. What makes a single
    row of x, a norm among others, is computed by every task for itself. Elementwise nodes may also be those of two
    slices of the result, gate and up.
    """

    name: ClassVar[str] = "quantized-linear"
    ops: ClassVar[tuple[Op, ...]] = (ops.linear,)

    def refuse(self, call: Call, isa: Isa) -> str | None:
        return refuse_codes(call) or self._refuse_before(call) or refuse_rows(call) or refuse_finish(call)

    def build(self, call: Call, isa: Isa) -> Kernel:
        weight = CodedWeight.of(call.anchor.operands[1].node, isa, call)
        x = call.anchor.operands[0]
        rows = elements(x.shape[:-1])
        known = rows if isinstance(rows, int) else None
        view = call.inputs.get(x)
        few = few_rows(weight, isa, x, view, known, min(known or MOST_ROWS, MOST_ROWS))
        many = None if view is None else ManyRows(weight, isa, x, view, known)
        if many is None or (weight.dot and not many.pairs):
            with kernel(call, isa) as (k, done):
                few.emit(k, bind(k.dim(rows)), Levels(k, weight))
            return Kernel(done[0], few.scratch_bytes, weight.packings())
        with kernel(call, isa) as (k, done):
            _by_rows(k, bind(k.dim(rows)), Levels(k, weight), few, many)
        return Kernel(done[0], max(few.scratch_bytes, many.scratch_bytes), weight.packings())

    def fuses_after(self, anchor: Node, node: Node) -> bool:
        return finishes(anchor, node)

    def fuses_before(self, anchor: Node, node: Node) -> bool:
        if node.op is ops.dequantize:
            return anchor.op is ops.linear and Value(node) == anchor.operands[1]
        return anchor.op is ops.linear and anchor.operands[1].node.op is ops.dequantize and computes(anchor, node)

    def fuses_slices(self, anchor: Node, slices: Sequence[Node]) -> bool:
        return anchor.operands[1].node.op is ops.dequantize and fuses_slices(anchor, slices)

    def _refuse_before(self, call: Call) -> str | None:
        others = [node.op.name for node in call.prologue if not self.fuses_before(call.anchor, node)]
        return f"{others[0]} is not computed with the rows of x" if others else refuse_norms(call)


def few_rows(
    weight: CodedWeight, isa: Isa, x: Value, view: View | None, known: int | None, most: int
) -> FewRows | PlaneRows:
    """What multiplies few rows with the weight, by dot products of bytes where it is packed for them."""
    if weight.dot:
        return PlaneRows(weight, isa, x, view, known)
    return FewRows(weight, isa, x, view, most, known)


def _by_rows(k: KernelBuilder, rows: "tirx.PrimExpr", levels: Levels, few: FewRows | PlaneRows, many: ManyRows) -> None:
    """The kernel for as many rows as there are, decided at run time where their count is no constant."""
    if few.known is not None:
        (few if few.known <= MOST_ROWS else many).emit(k, rows, levels)
        return
    with T.If(rows <= MOST_ROWS):
        with T.Then():
            few.emit(k, rows, levels)
        with T.Else():
            many.emit(k, rows, levels)


def refuse_codes(call: Call) -> str | None:
    """Why the weight cannot be read as codes, or None."""
    w = call.anchor.operands[1]
    if w.node.op is not ops.dequantize or w.node not in call.nodes:
        return "the weight is not dequantized in the kernel"
    for role, value in zip(("codes", "scales", "zero points"), w.node.operands, strict=False):
        if value.node.op is not ops.weight or value not in call.inputs:
            return f"the {role} are computed by {value.node.op.name}"
        if not call.inputs[value].is_contiguous or not all(isinstance(dim, int) for dim in value.shape):
            return f"the {role} are not stored in one piece"
    return refuse_codebook(w.node) or ("scales are f64" if w.node.operands[1].dtype is DType.f64 else None)


def refuse_rows(call: Call) -> str | None:
    """Why the rows of x cannot be read, or None."""
    x, _, *bias = call.anchor.operands
    if any(b not in call.inputs for b in bias):
        return f"the {'index' if call.anchor.op is ops.grouped_linear else 'bias'} is computed in the kernel"
    if x.dtype not in (DType.f32, DType.bf16, DType.f16):
        return f"it multiplies f32, bf16 and f16, not {x.dtype}"
    if x not in call.inputs:
        return None
    if not same_dim(call.inputs[x].strides[-1], 1) and not same_dim(x.shape[-1], 1):
        return "the last axis of x is strided"
    return None
