"""Fusion, selection and the schedule on text graphs, with templates that only record what they were asked."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import pytest

from planish.codegen.call import Call
from planish.codegen.schedule import Kernels, schedule
from planish.codegen.select import Choice, Selection, TorchCall, select
from planish.codegen.tvm.isa import AVX2, Isa
from planish.compiler.ir import Node, Op
from planish.compiler.ops import BY_NAME, attention, linear
from planish.compiler.text import parse
from planish.errors import TemplateError

MOST = tuple(op for op in BY_NAME.values() if op.name not in ("linear", "attention", "opaque", "input", "weight"))


@dataclass(frozen=True)
class Rows:
    """Takes everything but contractions; computes elementwise operands where it reads them."""

    name: ClassVar[str] = "rows"
    ops: ClassVar[tuple[Op, ...]] = MOST

    def refuse(self, call: Call, isa: Isa) -> str | None:
        return None

    def fuses_after(self, anchor: Node, node: Node) -> bool:
        return True

    def fuses_before(self, anchor: Node, node: Node) -> bool:
        return True


@dataclass(frozen=True)
class Product:
    """Takes contractions over contiguous operands only."""

    name: ClassVar[str] = "product"
    ops: ClassVar[tuple[Op, ...]] = (linear, attention)

    def refuse(self, call: Call, isa: Isa) -> str | None:
        strided = [v for v in call.inputs.values() if not v.is_contiguous]
        return "an operand is strided" if strided and call.anchor.op is linear else None

    def fuses_after(self, anchor: Node, node: Node) -> bool:
        return anchor.op is linear

    def fuses_before(self, anchor: Node, node: Node) -> bool:
        return False


@dataclass(frozen=True)
class Gated(Product):
    """Computes on two slices of its result, too."""

    def fuses_slices(self, anchor: Node, slices: Sequence[Node]) -> bool:
        return len(slices) == 2


def chosen(text: str, product: Product | None = None) -> Selection:
    return select(parse(text), (Rows(), product or Product()), AVX2)  # type: ignore[arg-type]


def ops(selection: Selection) -> list[str]:
    return [
        "+".join(n.op.name for n in w.call.nodes) if isinstance(w, Choice) else f"torch {w.node.attrs['target']}"
        for w in selection.work
    ]


def test_an_activation_and_a_residual_join_the_linear_before_them() -> None:
    text = """graph main<B: 1..8 = 2>(%x: f32[B, 8], %r: f32[B, 16]) {
      %0 = linear(%x, @w: f32[16, 8]): f32[B, 16]
      %1 = relu(%0): f32[B, 16]
      %2 = add(%1, %r): f32[B, 16]
      return %2
    }"""
    assert ops(chosen(text)) == ["linear+relu+add"]


def test_a_value_with_two_readers_is_written_once() -> None:
    text = """graph main(%x: f32[4, 8]) {
      %0 = linear(%x, @w: f32[8, 8]): f32[4, 8]
      %1 = relu(%0): f32[4, 8]
      %2 = add(%0, %1): f32[4, 8]
      return %2
    }"""
    assert ops(chosen(text)) == ["linear", "relu+add"]


GATED = """graph main(%x: f32[4, 8]) {{
  %0 = linear(%x, @w: f32[12, 8]): f32[4, 12]
  %1 = slice(%0) {{axis=1, start=0, stop=6}}: f32[4, 6]
  %2 = slice(%0) {{axis=1, start=6, stop=12}}: f32[4, 6]
  %3 = silu(%1): f32[4, 6]
  %4 = mul(%3, %2): f32[4, 6]
  return %4{more}
}}"""


def test_what_is_computed_on_slices_joins_a_product_whose_template_takes_them() -> None:
    assert ops(chosen(GATED.format(more=""), Gated())) == ["linear+slice+slice+silu+mul"]
    assert ops(chosen(GATED.format(more=""))) == ["linear", "silu+mul"]


@pytest.mark.parametrize("other", ["%0", "%2", "%3"])
def test_slices_that_something_else_reads_stay_apart(other: str) -> None:
    assert ops(chosen(GATED.format(more=f", {other}"), Gated()))[0] == "linear"


@dataclass(frozen=True)
class Picky(Gated):
    """Turns out to take no slices after all."""

    def refuse(self, call: Call, isa: Isa) -> str | None:
        return "it has slices" if len(call.epilogue) > 1 else Product.refuse(self, call, isa)


def test_a_product_and_its_gate_that_no_template_takes_together_are_two_kernels() -> None:
    assert ops(chosen(GATED.format(more=""), Picky())) == ["linear", "silu+mul"]


@dataclass(frozen=True)
class Preparing(Product):
    """Computes what it reads element by element."""

    def fuses_before(self, anchor: Node, node: Node) -> bool:
        return "elementwise" in node.op.traits


@dataclass(frozen=True)
class PreparingGated(Preparing, Gated):
    """The same, and computes on two slices of its result."""


NEXT = """graph main(%x: f32[4, 8]) {
  %0 = linear(%x, @w: f32[12, 8]): f32[4, 12]
  %1 = slice(%0) {axis=1, start=0, stop=6}: f32[4, 6]
  %2 = slice(%0) {axis=1, start=6, stop=12}: f32[4, 6]
  %3 = silu(%1): f32[4, 6]
  %4 = mul(%3, %2): f32[4, 6]
  %5 = linear(%4, @v: f32[8, 6]): f32[4, 8]
  return %5
}"""


def test_a_gate_is_computed_by_the_product_before_it_rather_than_by_the_one_after() -> None:
    assert ops(chosen(NEXT, PreparingGated())) == ["linear+slice+slice+silu+mul", "linear"]
    assert ops(chosen(NEXT, Preparing()))[-1] == "silu+mul+linear"


def test_literals_are_computed_wherever_they_are_read() -> None:
    text = """graph main(%x: f32[4, 8]) {
      %0 = full() {value=2.0, dtype=f32}: f32[]
      %1 = linear(%x, @w: f32[8, 8]): f32[4, 8]
      %2 = mul(%1, %0): f32[4, 8]
      %3 = softmax(%2) {axis=1}: f32[4, 8]
      %4 = mul(%3, %0): f32[4, 8]
      return %4
    }"""
    assert ops(chosen(text)) == ["linear+full+mul", "softmax+full+mul"]


def test_views_cost_no_kernel_and_attention_writes_in_the_order_that_is_read() -> None:
    text = """graph main(%x: f32[2, 5, 24]) {
      %0 = reshape(%x) {shape=[2, 5, 3, 8]}: f32[2, 5, 3, 8]
      %1 = transpose(%0) {order=[0, 2, 1, 3]}: f32[2, 3, 5, 8]
      %2 = attention(%1, %1, %1) {scale=1.0}: f32[2, 3, 5, 8]
      %3 = transpose(%2) {order=[0, 2, 1, 3]}: f32[2, 5, 3, 8]
      %4 = reshape(%3) {shape=[2, 5, 24]}: f32[2, 5, 24]
      %5 = linear(%4, @w: f32[24, 24]): f32[2, 5, 24]
      return %5
    }"""
    selection = chosen(text)
    assert ops(selection) == ["attention", "linear"]
    first = selection.work[0]
    assert isinstance(first, Choice)
    assert str(first.call.view) == "f32[2:120, 3:8, 5:24, 8:1]"


def test_a_strided_operand_that_no_template_takes_is_copied() -> None:
    text = """graph main(%x: f32[8, 4]) {
      %0 = transpose(%x) {order=[1, 0]}: f32[4, 8]
      %1 = linear(%0, @w: f32[8, 8]): f32[4, 8]
      return %1
    }"""
    selection = chosen(text)
    assert ops(selection) == ["reshape", "linear"]


def test_results_that_share_a_buffer_or_are_inputs_are_copied() -> None:
    text = """graph main(%x: f32[8]) {
      %0 = relu(%x): f32[8]
      %1 = reshape(%0) {shape=[2, 4]}: f32[2, 4]
      return %x, %0, %1
    }"""
    selection = chosen(text)
    assert ops(selection) == ["relu", "reshape", "reshape"]
    assert len(set(selection.outputs)) == 3


def test_an_op_without_a_kernel_is_named_with_its_scope_and_the_reasons() -> None:
    text = """graph main(%x: f32[2, 3, 4, 8]) {
      %0 = attention(%x, %x, %x) {scale=1.0}: f32[2, 3, 4, 8]  # layers.0
      return %0
    }"""
    with pytest.raises(TemplateError, match=r"attention in 'layers\.0' .* has no kernel here: no template serves"):
        select(parse(text), (Rows(),), AVX2)  # type: ignore[arg-type]


def test_torch_calls_split_the_program_into_steps() -> None:
    text = """graph main(%x: f32[8]) {
      %0 = relu(%x): f32[8]
      %1 = opaque(%0) {target="aten.erfinv.default", arguments="{}", shapes=[[8]], dtypes=[f32]}: f32[8]
      %2 = neg(%1): f32[8]
      return %2
    }"""
    plan = schedule(chosen(text))
    assert [type(step) for step in plan.steps] == [Kernels, TorchCall, Kernels]
    assert [s.kind for s in plan.storage.values()] == ["input", "output", "value", "value"]


def test_buffers_share_the_arena_once_they_are_dead_and_barriers_stand_only_at_hazards() -> None:
    text = """graph main<B: 1..8 = 2>(%x: f32[B, 8], %y: f32[B, 8]) {
      %0 = softmax(%x) {axis=1}: f32[B, 8]
      %1 = softmax(%y) {axis=1}: f32[B, 8]
      %2 = softmax(%0) {axis=1}: f32[B, 8]
      %3 = softmax(%2) {axis=1}: f32[B, 8]
      %4 = add(%3, %1): f32[B, 8]
      %5 = softmax(%4) {axis=1}: f32[B, 8]
      return %5
    }"""
    (step,) = schedule(chosen(text)).steps
    assert isinstance(step, Kernels)
    assert step.barriers == (False, True, True, True, True)
    assert [len(slot.members) for slot in step.slots] == [2, 2]


def test_independent_kernels_need_no_barrier_between_them() -> None:
    text = """graph main(%x: f32[8], %y: f32[8]) {
      %0 = softmax(%x) {axis=0}: f32[8]
      %1 = softmax(%y) {axis=0}: f32[8]
      return %0, %1
    }"""
    (step,) = schedule(chosen(text)).steps
    assert isinstance(step, Kernels)
    assert step.barriers == (False, False)
