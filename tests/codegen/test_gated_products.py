"""Products that compute their gate, act(x G) * (x U), against PyTorch: activations, odd widths, formats, rows, CPUs."""

from dataclasses import replace

import pytest
import torch
from torch.nn import functional

from planish.codegen.template import FusesSlices
from planish.codegen.tvm.gemm import Gemm
from planish.codegen.tvm.int8_linear import Int8Linear
from planish.codegen.tvm.isa import AVX2, AVX512, Isa
from planish.codegen.tvm.quantized_linear import QuantizedLinear
from planish.compiler import ops
from planish.compiler.ir import Graph, Value
from planish.compiler.types import Dim, DType, symbol
from tests.codegen import coded
from tests.codegen.coded import Form
from tests.codegen.coded_pairs import DTYPES, FORMATS, Case, close
from tests.codegen.compare import normal
from tests.codegen.gated import EVERY_GATE, GATES, SILU, Gate, gated, gated_call, of_halves
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


def check_weight(
    form: Form,
    width: int,
    *rows: int,
    gate: Gate = SILU,
    isa: Isa | None = None,
    named: str | None = None,
    dtype: torch.dtype = torch.float32,
) -> None:
    """Float rows times a coded weight."""
    t = coded.tensors(rows, 2 * width, 96, 32, form, dtype)
    first: Dim = symbol(named) if named else rows[0]
    x, y = coded.linear((first, *rows[1:]), t, 32, form, DTYPES[dtype])
    call = gated_call((x,), y, gate, width)
    got = run_call(QuantizedLinear(), call, t, sizes={named: rows[0]} if named else {}, isa=isa, tasks=3)
    wanted = of_halves(coded.wanted(t, 32, form), gate, width)
    coded.close(got, wanted, 2e-6 if dtype is torch.float32 else 2**-8)


@EVERY_GATE
def test_every_activation_is_right_over_a_coded_weight(gate: Gate) -> None:
    check_weight(coded.FORMS["int4"], 32, 3, gate=gate)


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("rows", [1, 5, 40])
def test_every_width_is_right_over_a_coded_weight(rows: int, width: int) -> None:
    check_weight(coded.FORMS["int4 with zeros"], width, rows)


@coded.EVERY_FORM
@pytest.mark.parametrize("rows", [2, 20])
def test_forms_of_coded_weights_are_right(form: Form, rows: int) -> None:
    check_weight(form, 24, rows)


@pytest.mark.parametrize("rows", [1, 16, 17, 70])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_dynamic_count_of_rows_is_right_over_a_coded_weight(rows: int, dtype: torch.dtype) -> None:
    check_weight(coded.FORMS["int8"], 40, rows, named="m", dtype=dtype)


@pytest.mark.parametrize("isa", [AVX2, AVX512], ids=["avx2", "avx512"])
@pytest.mark.parametrize("rows", [3, 30])
def test_other_cpus_are_right_over_a_coded_weight(isa: Isa, rows: int) -> None:
    check_weight(coded.FORMS["nf4"], 20, rows, isa=isa)


def check_floats(
    width: int,
    *rows: int,
    depth: int = 40,
    gate: Gate = SILU,
    isa: Isa | None = None,
    named: str | None = None,
    dtype: torch.dtype = torch.float32,
) -> None:
    t = {"x": normal(*rows, depth), "w": normal(2 * width, depth, seed=1) / depth**0.5, "b": normal(2 * width, seed=2)}
    t = {name: tensor.to(dtype) for name, tensor in t.items()}
    first: Dim = symbol(named) if named else rows[0]
    x = ops.input_(name="x", shape=(first, *rows[1:], depth), dtype=DTYPES[dtype])
    w, b = (ops.weight(name=name, shape=tuple(t[name].shape), dtype=DTYPES[dtype]) for name in ("w", "b"))
    call = gated_call((x,), ops.linear(x, w, b), gate, width)
    got = run_call(Gemm(), call, t, sizes={named: rows[0]} if named else {}, isa=isa, tasks=3)
    wanted = of_halves(functional.linear(t["x"].double(), t["w"].double(), t["b"].double()), gate, width)
    coded.close(got, wanted, 2e-6 if dtype is torch.float32 else 2**-8)


@EVERY_GATE
def test_every_activation_is_right_in_floats(gate: Gate) -> None:
    check_floats(32, 2, 7, gate=gate)


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("rows", [1, 13])
def test_every_width_is_right_in_floats(rows: int, width: int) -> None:
    check_floats(width, rows)


@pytest.mark.parametrize("rows", [1, 12, 70, 300])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_a_dynamic_count_of_rows_is_right_in_floats(rows: int, dtype: torch.dtype) -> None:
    check_floats(40, rows, named="m", dtype=dtype)


@pytest.mark.parametrize("isa", [AVX2, AVX512], ids=["avx2", "avx512"])
@pytest.mark.parametrize("width", [8, 20])
def test_other_cpus_are_right_in_floats(isa: Isa, width: int) -> None:
    check_floats(width, 9, isa=isa)


def test_numbers_of_64_bits_are_not_rounded() -> None:
    t = {"x": normal(5, 40).double(), "w": normal(48, 40, seed=1).double()}
    x = ops.input_(name="x", shape=(5, 40), dtype=DType.f64)
    y = ops.linear(x, ops.weight(name="w", shape=(48, 40), dtype=DType.f64))
    relu = GATES["relu"]
    got = run_call(Gemm(), gated_call((x,), y, relu, 24), t)
    torch.testing.assert_close(got, of_halves(functional.linear(t["x"], t["w"]), relu, 24), rtol=1e-13, atol=1e-13)


def _layers() -> dict[str, tuple[FusesSlices, Value]]:
    """A product of 64 columns for each template."""
    case = Case(64, 64, 32, 32)
    x = ops.input_(name="x", shape=(2, 64), dtype=DType.f32)
    form = coded.FORMS["int4"]
    return {
        "int8": (Int8Linear(), case.linear(case.tensors(2), (2,))[1]),
        "coded": (QuantizedLinear(), coded.linear((2,), coded.tensors((2,), 64, 96, 32, form), 32, form)[1]),
        "float": (Gemm(), ops.linear(x, ops.weight(name="w", shape=(64, 64), dtype=DType.f32))),
    }


@pytest.mark.parametrize("kind", ["int8", "coded", "float"])
def test_slices_of_different_widths_are_left_to_other_kernels(kind: str) -> None:
    template, y = _layers()[kind]

    def taken(*parts: tuple[int, int]) -> bool:
        slices = [ops.slice_(y, axis=1, start=start, stop=stop).node for start, stop in parts]
        return template.fuses_slices(y.node, slices)

    assert taken((32, 64), (0, 32))
    assert not taken((0, 30), (30, 64))
    assert not taken((0, 20), (20, 40), (40, 60))


@pytest.mark.parametrize(("mine", "other"), [("int8", "float"), ("coded", "float"), ("float", "coded")])
def test_a_template_takes_gates_of_its_own_products_alone(mine: str, other: str) -> None:
    layers = _layers()
    template, y = layers[mine][0], layers[other][1]
    assert not template.fuses_slices(y.node, [ops.slice_(y, axis=1, start=s, stop=s + 32).node for s in (0, 32)])
