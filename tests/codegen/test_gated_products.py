"""Products that compute their gate, act(x G) * (x U), against PyTorch: activations, odd widths, formats, rows, CPUs."""

from dataclasses import replace

import pytest

from planish.codegen.template import Template
from planish.codegen.tvm.int8_linear import Int8Linear
from planish.codegen.tvm.isa import AVX2, AVX512, Isa
from planish.compiler import ops
from planish.compiler.ir import Graph
from planish.compiler.types import Dim, DType, symbol
from tests.codegen.coded_pairs import FORMATS, Case, close
from tests.codegen.gated import EVERY_GATE, SILU, Gate, gated, gated_call, of_halves
from tests.codegen.harness import call_of, run_call

WIDTHS = (1, 7, 16, 20, 48)  # fewer than a vector, and with and without a rest


def check_codes(case: Case, *rows: int, gate: Gate = SILU, isa: Isa | None = None, named: str | None = None) -> None:
    t, width = case.tensors(*rows), case.columns // 2
    first: Dim = symbol(named) if named else rows[0]
    inputs, y = case.linear(t, (first, *rows[1:]))
    call = gated_call(inputs, y, gate, width)
    got = run_call(Int8Linear(), call, t, sizes={named: rows[0]} if named else {}, isa=isa, tasks=3)
    close(got, of_halves(case.wanted(t), gate, width))


@EVERY_GATE
@pytest.mark.parametrize("rows", [1, 8])
def test_every_activation_is_right_over_codes(gate: Gate, rows: int) -> None:
    check_codes(Case(64, 64, 32, 32), rows, gate=gate)


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("form", ["int4", "int8"])
def test_every_width_is_right_over_codes(form: str, width: int) -> None:
    check_codes(replace(FORMATS[form], columns=2 * width), 5)


@pytest.mark.parametrize("form", FORMATS)
def test_formats_of_codes_are_right(form: str) -> None:
    check_codes(replace(FORMATS[form], columns=64), 3)


@pytest.mark.parametrize("rows", [1, 2, 7, 8, 13, 300])
def test_a_dynamic_count_of_rows_is_right_over_codes(rows: int) -> None:
    check_codes(Case(96, 96, 32, 32, zero=True), rows, named="m")


@pytest.mark.parametrize("isa", [AVX2, AVX512], ids=["avx2", "avx512"])
@pytest.mark.parametrize("width", [8, 20])
def test_other_cpus_are_right_over_codes(isa: Isa, width: int) -> None:
    check_codes(Case(2 * width, 64, 32, 32), 9, isa=isa)


def test_a_residual_is_added_to_what_is_gated() -> None:
    case = Case(64, 64, 32, 32)
    t = case.tensors(2, 9)
    t["r"] = t["r"][..., :32].contiguous()
    inputs, y = case.linear(t, (symbol("b"), symbol("s")))
    r = ops.input_(name="r", shape=(symbol("b"), symbol("s"), 32), dtype=DType.f32)
    call = call_of(Graph("main", (*inputs, r), (ops.add(gated(y, SILU, 32), r),)), ops.linear)
    got = run_call(Int8Linear(), call, t, sizes={"b": 2, "s": 9})
    close(got, of_halves(case.wanted(t), SILU, 32) + t["r"])


def test_slices_that_leave_columns_between_them_are_right() -> None:
    case = Case(70, 64, 32, 32)
    t = case.tensors(4)
    inputs, y = case.linear(t, (4,))
    call = call_of(Graph("main", inputs, (gated(y, SILU, 20, (45, 3)),)), ops.linear)
    wanted = case.wanted(t)
    close(run_call(Int8Linear(), call, t), SILU[1](wanted[:, 45:65], wanted[:, 3:23]))


@pytest.mark.parametrize("template", [Int8Linear()], ids=lambda template: template.name)
def test_slices_of_different_widths_are_left_to_other_kernels(template: Template) -> None:
    case = Case(64, 64, 32, 32)
    _, y = case.linear(case.tensors(2), (2,))
    slices = [ops.slice_(y, axis=1, start=start, stop=stop).node for start, stop in ((0, 30), (30, 64))]
    assert not template.fuses_slices(y.node, slices)
    assert template.fuses_slices(y.node, [ops.slice_(y, axis=1, start=s, stop=s + 32).node for s in (32, 0)])
