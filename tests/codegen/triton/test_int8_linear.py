"""Products of quantized activations and weights on GPUs against sums in 64 bits: formats, groups, rows, epilogues."""

from dataclasses import replace

import pytest
from torch.nn import functional

from planish.codegen.triton.int8_linear import Int8Linear
from planish.compiler import ops
from planish.compiler.ir import Graph
from planish.compiler.types import DType, symbol
from tests.codegen.coded_pairs import FORMATS, Case, close
from tests.codegen.harness import call_of
from tests.codegen.triton.harness import device, run_call

_TAKEN = [name for name in FORMATS if not (name.startswith("int8") and "zeros" in name)]


def check(case: Case, rows: int) -> None:
    t = case.tensors(rows)
    for found in run_call(Int8Linear(), case.call(t, (symbol("m"),)), t, sizes={"m": rows}):
        close(found, case.wanted(t))


@pytest.mark.parametrize("form", _TAKEN)
def test_formats_are_right(form: str) -> None:
    check(replace(FORMATS[form], columns=40), 5)


@pytest.mark.parametrize("groups", [(32, 32), (64, 32), (32, 64), (200, 64), (64, 200), (200, 200), (512, 256)])
def test_groups_are_right(groups: tuple[int, int]) -> None:
    case = replace(FORMATS["int4 with zeros"], columns=20)
    check(replace(case, x_group=groups[0], w_group=groups[1]), 3)


@pytest.mark.parametrize("rows", [20, 70])
@pytest.mark.parametrize("form", ["int4", "int8"])
def test_many_rows_are_right(form: str, rows: int) -> None:
    check(replace(FORMATS[form], columns=40, x_group=100, w_group=100, depth=100), rows)


def test_activation_and_residual_join_the_product() -> None:
    case = Case(35, 64, 32, 32)
    t = case.tensors(2, 9)
    inputs, y = case.linear(t, (2, symbol("s")))
    r = ops.input_(name="r", shape=y.shape, dtype=DType.f32)
    call = call_of(Graph("main", (*inputs, r), (ops.add(r, ops.gelu(y)),)), ops.linear)
    for found in run_call(Int8Linear(), call, t, sizes={"s": 9}):
        close(found, t["r"] + functional.gelu(case.wanted(t)))


def test_refuses_groups_that_no_instruction_fits() -> None:
    case = Case(8, 192, 48, 48)
    call = case.call(case.tensors(2), (2,))
    assert Int8Linear().refuse(call, device()) == "groups of 48 are no power of two from 32 on"


def test_refuses_codes_of_nine_bits() -> None:
    call = FORMATS["int8 with zeros"].call(FORMATS["int8 with zeros"].tensors(2), (2,))
    assert Int8Linear().refuse(call, device()) == "8-bit codes less their zero points need 9 bits"
