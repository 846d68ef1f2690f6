"""Grouped products on CPUs against torch: odd sizes, experts without rows, views, dtypes, codes and work splits."""

from pathlib import Path

import pytest
import torch
from torch.nn import functional

from planish.codegen.tvm.build import build_object
from planish.codegen.tvm.grouped_linear import GroupedLinear
from planish.codegen.tvm.isa import AVX2, AVX512, NEON, Isa
from planish.codegen.view import View
from planish.compiler import ops
from planish.compiler.ir import Graph, Value
from planish.compiler.types import DType, Shape, symbol
from tests.codegen import coded
from tests.codegen.coded import COMPILED, FORMS, ON_BOTH, Form
from tests.codegen.gated import SILU, gated, of_halves
from tests.codegen.harness import call_of, host_isa, run_call

ISAS = pytest.mark.parametrize("isa", [host_isa(), AVX2], ids=["host", "avx2"])
TORCH = {DType.f64: torch.float64, DType.f32: torch.float32, DType.bf16: torch.bfloat16, DType.f16: torch.float16}
TOLERANCE = {DType.f64: 1e-12, DType.f32: 1e-5, DType.bf16: 2e-2, DType.f16: 2e-3}
Tensors = dict[str, torch.Tensor]


def tensors(rows: tuple[int, ...], experts: int, columns: int, depth: int, dtype: DType = DType.f32) -> Tensors:
    generator = torch.Generator().manual_seed(0)
    return {
        "x": torch.randn(*rows, depth, generator=generator).to(TORCH[dtype]),
        "w": torch.randn(experts, columns, depth, generator=generator).to(TORCH[dtype]),
        "i": torch.randint(0, experts, rows, generator=generator),
        "r": torch.randn(*rows, columns, generator=generator).to(TORCH[dtype]),
    }


def product(rows: Shape, t: Tensors, dtype: DType = DType.f32) -> tuple[Value, Value, Value]:
    """The grouped product over x and i: (x, i, result)."""
    x = ops.input_(name="x", shape=(*rows, t["x"].shape[-1]), dtype=dtype)
    i = ops.input_(name="i", shape=rows, dtype=DType.i64 if t["i"].dtype is torch.int64 else DType.i32)
    w = ops.weight(name="w", shape=tuple(t["w"].shape), dtype=dtype)
    return x, i, ops.grouped_linear(x, w, i)


def run(t: Tensors, dtype: DType = DType.f32, *, dynamic: bool = False, **options: object) -> torch.Tensor:
    shape = tuple(t["i"].shape)
    x, i, y = product((symbol("m"), *shape[1:]) if dynamic else shape, t, dtype)
    call = call_of(Graph("main", (x, i), (y,)), ops.grouped_linear)
    sizes = {"m": shape[0]} if dynamic else None
    return run_call(GroupedLinear(), call, t, sizes=sizes, **options)  # type: ignore[arg-type]


def wanted(t: Tensors) -> torch.Tensor:
    chosen = t["w"][t["i"].long().clamp(0, len(t["w"]) - 1)].double()
    return torch.einsum("...nk,...k->...n", chosen, t["x"].double())


def close(got: torch.Tensor, expected: torch.Tensor, dtype: DType = DType.f32) -> None:
    """Errors relative to the largest result, since sums cancel."""
    limit = TOLERANCE[dtype]
    torch.testing.assert_close(got.double(), expected, rtol=limit, atol=limit * float(expected.abs().max()))


@ISAS
@pytest.mark.parametrize("tasks", [1, 3])
@pytest.mark.parametrize(
    ("rows", "experts", "columns", "depth"),
    [((1,), 1, 1, 1), ((1, 2), 8, 70, 33), ((7,), 3, 33, 127), ((40, 2), 4, 48, 31), ((300,), 2, 24, 40)],
)
def test_each_row_meets_its_expert(
    rows: tuple[int, ...], experts: int, columns: int, depth: int, tasks: int, isa: Isa
) -> None:
    t = tensors(rows, experts, columns, depth)
    close(run(t, tasks=tasks, isa=isa), wanted(t))


@pytest.mark.parametrize("rows", [1, 5, 60])
def test_a_dynamic_count_of_rows(rows: int) -> None:
    t = tensors((rows, 2), 5, 50, 31)
    close(run(t, dynamic=True), wanted(t))


@pytest.mark.parametrize("dtype", [DType.f64, DType.bf16, DType.f16])
@pytest.mark.parametrize("rows", [2, 40])
def test_other_dtypes(rows: int, dtype: DType) -> None:
    t = tensors((rows,), 3, 40, 37, dtype)
    close(run(t, dtype), wanted(t), dtype)


@ISAS
@pytest.mark.parametrize("depth", [24, 37])
def test_sums_of_bf16_products_are_given_in_f32_and_rows_of_f32_are_rounded_by_the_kernel(depth: int, isa: Isa) -> None:
    t = tensors((40,), 3, 50, depth, DType.bf16)
    x = ops.input_(name="x", shape=(40, depth), dtype=DType.f32 if isa.bf16_dot else DType.bf16)
    i, w = (
        product((40,), t, DType.bf16)[2].node.operands[2],
        ops.weight(name="w", shape=(3, 50, depth), dtype=DType.bf16),
    )
    y = ops.grouped_linear(ops.cast(x, dtype=DType.bf16) if isa.bf16_dot else x, w, i, dtype=DType.f32)
    call = call_of(Graph("main", (x, i), (y,)), ops.grouped_linear)
    buffers = {**t, "x": t["x"].float()} if isa.bf16_dot else t
    close(run_call(GroupedLinear(), call, buffers, isa=isa), wanted(t))


def test_all_rows_may_choose_one_expert_and_no_row_an_index_of_none() -> None:
    t = tensors((50,), 4, 33, 20)
    t["i"] = torch.full((50,), 2, dtype=torch.int32)
    close(run(t), wanted(t))
    t["i"] = torch.arange(-10, 40)
    close(run(t), wanted(t))


def test_rows_that_are_repeated_and_an_index_that_is_strided_are_read_where_they_lie() -> None:
    t = tensors((6, 2), 3, 40, 24)
    t["x"] = t["x"][:, :1].contiguous()
    wide = torch.zeros(6, 2, 5, dtype=torch.int64)
    wide[..., 3] = t["i"]
    x, i, y = product((6, 2), {**t, "x": t["x"].expand(6, 2, 24)})
    views = {"x": View((6, 2, 24), (24, 0, 1), 0, DType.f32), "i": View((6, 2), (10, 5), 3, DType.i64)}
    call = call_of(Graph("main", (x, i), (y,)), ops.grouped_linear, views)
    close(run_call(GroupedLinear(), call, {**t, "i": wide}), wanted({**t, "x": t["x"].expand(6, 2, 24)}))


@pytest.mark.parametrize("rows", [2, 40])
def test_weights_of_the_experts_and_an_activation_after_the_product(rows: int) -> None:
    t = tensors((rows,), 3, 70, 24)
    x, i, y = product((rows,), t)
    r, s = (ops.input_(name=n, shape=(rows, c), dtype=DType.f32) for n, c in (("r", 70), ("s", 1)))
    call = call_of(Graph("main", (x, i, r, s), (ops.add(ops.mul(ops.silu(y), s), r),)), ops.grouped_linear)
    t["s"] = torch.rand(rows, 1, generator=torch.Generator().manual_seed(1))
    close(run_call(GroupedLinear(), call, t), functional.silu(wanted(t)) * t["s"].double() + t["r"].double())


@pytest.mark.parametrize("dtype", [DType.f32, DType.bf16])
@pytest.mark.parametrize("rows", [2, 40])
def test_experts_compute_their_gate(rows: int, dtype: DType) -> None:
    t = tensors((rows,), 3, 70, 24, dtype)
    x, i, y = product((rows,), t, dtype)
    call = call_of(Graph("main", (x, i), (gated(y, SILU, 35),)), ops.grouped_linear)
    close(run_call(GroupedLinear(), call, t), of_halves(wanted(t), SILU, 35), dtype)


def coded_tensors(rows: tuple[int, ...], experts: int, columns: int, depth: int, group: int, form: Form) -> Tensors:
    t = coded.tensors(rows, experts * columns, depth, group, form)
    split = {name: t[name].reshape(experts, columns, -1) for name in ("q", "s", "z")}
    w = coded.weight_of(t, group, form).reshape(experts, columns, depth)
    index = torch.randint(0, experts, rows, generator=torch.Generator().manual_seed(2))
    return {"x": t["x"], **split, "w": w, "i": index}


def coded_product(rows: Shape, t: Tensors, group: int, form: Form, dtype: DType = DType.f32) -> tuple[Value, ...]:
    x = ops.input_(name="x", shape=(*rows, t["x"].shape[-1]), dtype=dtype)
    i = ops.input_(name="i", shape=rows, dtype=DType.i64)
    q = ops.weight(name="q", shape=tuple(t["q"].shape), dtype=DType.i8 if form.signed else DType.u8)
    s = ops.weight(name="s", shape=tuple(t["s"].shape), dtype=DType.f16)
    z = ops.weight(name="z", shape=tuple(t["z"].shape), dtype=DType.u8) if form.zero else None
    w = ops.dequantize(q, s, z, group=group, dtype=dtype, **form.attrs)
    return x, i, ops.grouped_linear(x, w, i)


@ON_BOTH
@pytest.mark.parametrize("rows", [(1, 2), (70,)])
def test_experts_of_codes(rows: tuple[int, ...], form: Form, isa: Isa) -> None:
    t = coded_tensors(rows, 3, 70, 96, 32, form)
    x, i, y = coded_product(rows, t, 32, form)
    call = call_of(Graph("main", (x, i), (y,)), ops.grouped_linear)
    close(run_call(GroupedLinear(), call, t, isa=isa, tasks=3), wanted(t))


@ISAS
@pytest.mark.parametrize("rows", [2, 70])
def test_experts_of_codes_compute_their_gate(rows: int, isa: Isa) -> None:
    form = FORMS["int4 with zeros"]
    t = coded_tensors((rows,), 3, 70, 96, 32, form)
    x, i, y = coded_product((rows,), t, 32, form)
    call = call_of(Graph("main", (x, i), (gated(y, SILU, 35),)), ops.grouped_linear)
    close(run_call(GroupedLinear(), call, t, isa=isa), of_halves(wanted(t), SILU, 35))


@pytest.mark.parametrize("rows", [1, 7, 90])
def test_experts_of_codes_for_a_dynamic_count_of_rows_in_bf16(rows: int) -> None:
    form = FORMS["int4"]
    t = coded_tensors((rows, 2), 4, 40, 80, 80, form)
    t["x"] = t["x"].bfloat16()
    x, i, y = coded_product((symbol("m"), 2), t, 80, form, DType.bf16)
    call = call_of(Graph("main", (x, i), (y,)), ops.grouped_linear)
    close(run_call(GroupedLinear(), call, t, sizes={"m": rows}), wanted(t), DType.bf16)


_COMPILED = [
    *COMPILED,
    *(pytest.param(None, isa, id=f"f32-{name}") for isa, name in ((NEON, "neon"), (AVX512, "avx512"))),
]


@pytest.mark.parametrize(("form", "isa"), _COMPILED)
def test_compiles_for_every_instruction_set(form: Form | None, isa: Isa, tmp_path: Path) -> None:
    if form is None:
        x, i, y = product((symbol("m"),), tensors((2,), 3, 40, 32))
    else:
        x, i, y = coded_product((symbol("m"),), coded_tensors((2,), 3, 40, 32, 32, form), 32, form)
    built = GroupedLinear().build(call_of(Graph("main", (x, i), (y,)), ops.grouped_linear), isa)
    build_object({"kernel": built.function}, isa, tmp_path / "kernel.o")
    assert (tmp_path / "kernel.o").stat().st_size > 0


def test_refuses_experts_and_rows_that_are_computed() -> None:
    t = tensors((2,), 3, 40, 32)
    x, i, _ = product((2,), t)
    w = ops.input_(name="w", shape=(3, 40, 32), dtype=DType.f32)
    call = call_of(Graph("main", (x, i, w), (ops.grouped_linear(x, w, i),)), ops.grouped_linear)
    assert GroupedLinear().refuse(call, AVX2) == "the weight is computed by input"
    stored = ops.weight(name="w", shape=(3, 40, 32), dtype=DType.f32)
    call = call_of(Graph("main", (x, i), (ops.grouped_linear(x, stored, ops.neg(i)),)), ops.grouped_linear)
    assert GroupedLinear().refuse(call, AVX2) == "x is computed in the kernel"
    codes = coded_product((2,), coded_tensors((2,), 3, 40, 32, 32, FORMS["int4"]), 32, FORMS["int4"])[2]
    y = ops.grouped_linear(ops.relu(x), codes.node.operands[1], i)
    call = call_of(Graph("main", (x, i), (y,)), ops.grouped_linear)
    assert GroupedLinear().refuse(call, AVX2) == "x is computed in the kernel"
