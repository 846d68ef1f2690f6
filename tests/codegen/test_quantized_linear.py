"""Linear layers with weights of 8 and 4 bits against a formula in torch: formats, odd sizes, rows, epilogues, dtypes."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch.nn import functional

from planish.codegen.tvm.build import build_object
from planish.codegen.tvm.isa import AVX2, Isa
from planish.codegen.tvm.quantized_linear import QuantizedLinear
from planish.codegen.view import View
from planish.compiler import ops
from planish.compiler.ir import Graph, Value
from planish.compiler.types import DType, Shape, symbol
from tests.codegen.coded import (
    COMPILED,
    EVERY_FORM,
    FORMS,
    ON_BOTH,
    Form,
    Tensors,
    close,
    linear,
    tensors,
    wanted,
    weight_of,
)
from tests.codegen.harness import call_of, host_isa, run_call

ISAS = pytest.mark.parametrize("isa", [host_isa(), AVX2], ids=["host", "avx2"])


def run(
    t: Tensors,
    group: int,
    form: Form,
    *,
    after: Callable[[Value], Value] = lambda y: y,
    dynamic: bool = False,
    dtype: DType = DType.f32,
    views: dict[str, View] | None = None,
    **options: object,
) -> torch.Tensor:
    shape = tuple(t["x"].shape[:-1])
    rows: Shape = (symbol("m"), *shape[1:]) if dynamic else shape
    x, y = linear(rows, t, group, form, dtype)
    call = call_of(Graph("main", (x,), (after(y),)), ops.linear, views)
    sizes = {"m": shape[0]} if dynamic else None
    return run_call(QuantizedLinear(), call, t, sizes=sizes, **options)  # type: ignore[arg-type]


SIZES = [(1, 100, 576, 128), (7, 70, 96, 64), (16, 1, 8, 8), (5, 40, 37, 37)]


@ON_BOTH
@pytest.mark.parametrize(("rows", "columns", "depth", "group"), SIZES)
def test_few_rows(rows: int, columns: int, depth: int, group: int, form: Form, isa: Isa) -> None:
    t = tensors((rows,), columns, depth, group, form)
    close(run(t, group, form, isa=isa, tasks=3), wanted(t, group, form))


@ON_BOTH
@pytest.mark.parametrize(("rows", "columns", "depth", "group"), [(17, 100, 576, 128), (70, 40, 72, 24)])
def test_many_rows(rows: int, columns: int, depth: int, group: int, form: Form, isa: Isa) -> None:
    t = tensors((rows,), columns, depth, group, form)
    close(run(t, group, form, isa=isa, tasks=3), wanted(t, group, form))


@EVERY_FORM
@pytest.mark.parametrize("rows", [1, 7, 70])
def test_a_dynamic_count_of_rows(rows: int, form: Form) -> None:
    t = tensors((rows,), 40, 80, 32, form)
    close(run(t, 32, form, dynamic=True), wanted(t, 32, form))


@pytest.mark.parametrize("tasks", [1, 5])
def test_several_blocks_of_rows(tasks: int) -> None:
    t = tensors((150,), 70, 320, 320, FORMS["int8"])
    close(run(t, 320, FORMS["int8"], tasks=tasks), wanted(t, 320, FORMS["int8"]))


@pytest.mark.parametrize("form", [FORMS["int4"], FORMS["int8"]], ids=["int4", "int8"])
def test_rows_with_outliers_are_as_precise_as_in_torch(form: Form) -> None:
    t = tensors((4,), 64, 512, 128, form)
    t["x"][:, ::100] *= 1e4
    expected, plain = wanted(t, 128, form), functional.linear(t["x"], weight_of(t, 128, form).float(), t["b"])
    error, usual = ((y.double() - expected).abs().max() for y in (run(t, 128, form), plain))
    assert error < 2 * usual


def test_rows_of_zeros_give_the_bias_and_not_a_number_stays_in_its_row() -> None:
    t = tensors((3,), 40, 96, 32, FORMS["int4"])
    t["x"][0], t["x"][1, 50] = 0, torch.nan
    got = run(t, 32, FORMS["int4"])
    assert torch.equal(got[0], t["b"])
    assert got[1].isnan().all()
    close(got[2], wanted(t, 32, FORMS["int4"])[2])


@EVERY_FORM
@pytest.mark.parametrize("rows", [1, 40])
def test_groups_that_are_no_multiple_of_eight(rows: int, form: Form) -> None:
    t = tensors((rows,), 40, 50, 12, form)
    close(run(t, 12, form), wanted(t, 12, form))


@pytest.mark.parametrize("rows", [2, 40])
def test_scales_in_single_precision(rows: int) -> None:
    t = tensors((rows,), 40, 64, 32, FORMS["int4"])
    t["s"] = torch.rand(40, 2, generator=torch.Generator().manual_seed(3))
    close(run(t, 32, FORMS["int4"]), wanted(t, 32, FORMS["int4"]))


@EVERY_FORM
@pytest.mark.parametrize("depth", [64, 37])
@pytest.mark.parametrize("rows", [2, 40])
def test_bf16_rows(rows: int, depth: int, form: Form) -> None:
    t = tensors((rows,), 40, depth, 32 if depth == 64 else 37, form, torch.bfloat16)
    group = 32 if depth == 64 else 37
    close(run(t, group, form, dtype=DType.bf16), wanted(t, group, form), 1e-2)


@pytest.mark.parametrize("rows", [2, 40])
def test_activation_and_residual_after_the_product(rows: int) -> None:
    form = FORMS["int4"]
    t = tensors((rows,), 70, 96, 32, form)
    r = ops.input_(name="r", shape=(rows, 70), dtype=DType.f32)
    got = run(t, 32, form, after=lambda y: ops.add(ops.gelu(y), r))
    close(got, functional.gelu(wanted(t, 32, form)) + t["r"].double())


@pytest.mark.parametrize("rows", [2, 40])
def test_strided_rows_of_rank_three(rows: int) -> None:
    form = FORMS["int8"]
    t = tensors((2, rows), 20, 48, 48, form)
    wide = torch.randn(2, rows, 60, generator=torch.Generator().manual_seed(5))
    view = View((2, rows, 48), (rows * 60, 60, 1), 7, DType.f32)
    expected = wanted({**t, "x": wide[..., 7:55]}, 48, form)
    x, y = linear((2, rows), t, 48, form)
    call = call_of(Graph("main", (x,), (y,)), ops.linear, {"x": view})
    close(run_call(QuantizedLinear(), call, {**t, "x": wide}), expected)


@pytest.mark.parametrize(("form", "isa"), COMPILED)
def test_compiles_for_every_instruction_set(form: Form, isa: Isa, tmp_path: Path) -> None:
    for dtype in (DType.f32, DType.bf16):
        t = tensors((1,), 70, 96, 32, form)
        x, y = linear((symbol("m"),), t, 32, form, dtype)
        built = QuantizedLinear().build(call_of(Graph("main", (x,), (y,)), ops.linear), isa)
        build_object({"kernel": built.function}, isa, tmp_path / "k.o")
        assert (tmp_path / "k.o").stat().st_size > 0


def test_refuses_a_weight_that_is_computed() -> None:
    x = ops.input_(name="x", shape=(2, 8), dtype=DType.f32)
    q = ops.input_(name="q", shape=(4, 8), dtype=DType.i8)
    s = ops.weight(name="s", shape=(4, 1), dtype=DType.f32)
    call = call_of(Graph("main", (x, q), (ops.linear(x, ops.dequantize(q, s, group=8)),)), ops.linear)
    assert QuantizedLinear().refuse(call, host_isa()) == "the codes are computed by input"


@ISAS
@pytest.mark.parametrize("form", [FORMS["int4"], FORMS["int8"], FORMS["nf4"]], ids=["int4", "int8", "nf4"])
@pytest.mark.parametrize("depth", [96, 50])
def test_norms_and_activations_of_a_single_row_are_computed_in_the_kernel(depth: int, form: Form, isa: Isa) -> None:
    group = 32 if depth == 96 else 50
    t = tensors((1, 1), 70, depth, group, form)
    t["u"] = torch.randn(1, 1, depth, generator=torch.Generator().manual_seed(7))
    t["g"] = torch.rand(depth, generator=torch.Generator().manual_seed(8)) + 0.5
    x, u = (ops.input_(name=name, shape=(1, 1, depth), dtype=DType.f32) for name in "xu")
    g = ops.weight(name="g", shape=(depth,), dtype=DType.f32)
    gated, size = functional.silu(t["x"].double()) * t["u"].double(), (depth,)
    cases = [
        (ops.mul(ops.silu(x), u), gated),
        (ops.rms_norm(ops.mul(ops.silu(x), u), g, eps=1e-5), functional.rms_norm(gated, size, t["g"].double(), 1e-5)),
        (ops.layer_norm(ops.mul(ops.silu(x), u), g, g, eps=1e-5), None),
        (
            ops.relu(ops.rms_norm(ops.mul(x, u))),
            functional.relu(functional.rms_norm((t["x"] * t["u"]).double(), size, eps=1e-6)),
        ),
    ]
    for made, expected in cases:
        if expected is None:
            expected = functional.layer_norm(gated, size, t["g"].double(), t["g"].double(), 1e-5)
        _, plain = linear((1, 1), t, group, form)
        _, w, b = plain.node.operands
        call = call_of(Graph("main", (x, u), (ops.linear(made, w, b),)), ops.linear)
        got = run_call(QuantizedLinear(), call, t, isa=isa, tasks=3)
        close(got, wanted({**t, "x": expected}, group, form), 4e-6)


@EVERY_FORM
@pytest.mark.parametrize("rows", [17, 131])
def test_many_rows_of_bf16_are_summed_in_f32(rows: int, form: Form) -> None:
    t = tensors((rows,), 100, 576, 128, form)
    t["x"] = t["x"].bfloat16()
    x, q = (ops.input_(name="x", shape=(rows, 576), dtype=DType.bf16), DType.i8 if form.signed else DType.u8)
    parts = [ops.weight(name="q", shape=(100, 576), dtype=q), ops.weight(name="s", shape=(100, 5), dtype=DType.f16)]
    parts += [ops.weight(name="z", shape=(100, 5), dtype=DType.u8)] if form.zero else []
    w = ops.dequantize(*parts, group=128, dtype=DType.bf16, **form.attrs)
    y = ops.linear(x, w, ops.weight(name="b", shape=(100,), dtype=DType.f32), dtype=DType.f32)
    got = run_call(QuantizedLinear(), call_of(Graph("main", (x,), (y,)), ops.linear), t, tasks=3)
    rounded = weight_of(t, 128, form).bfloat16().double() if host_isa().bf16_dot else weight_of(t, 128, form)
    close(got, functional.linear(t["x"].double(), rounded, t["b"].double()), 2e-5)


def test_refuses_a_codebook_that_no_table_of_a_kernel_holds() -> None:
    form = Form(8, codebook=tuple(range(256)))
    x, y = linear((3,), tensors((3,), 24, 96, 96, form), 96, form)
    call = call_of(Graph("main", (x,), (y,)), ops.linear)
    assert QuantizedLinear().refuse(call, host_isa()) == "a codebook of 256 levels is over 128"
