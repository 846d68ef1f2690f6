"""Linear layers on CPUs against torch: odd sizes, epilogues, views, dtypes, instruction sets and work splits."""

import subprocess
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch.nn import functional

from planish.codegen.tvm.build import build_object
from planish.codegen.tvm.gemm import Gemm
from planish.codegen.tvm.gemm_tile import Tile, choose_tile
from planish.codegen.tvm.isa import AVX2, AVX512, NEON, ZEN4, Isa
from planish.codegen.view import View
from planish.compiler import ops
from planish.compiler.ir import Graph, Value
from planish.compiler.types import DType, Shape, symbol
from tests.codegen.harness import call_of, host_isa, run_call

TOLERANCE = {DType.f32: 1e-4, DType.bf16: 2e-2}
TORCH = {DType.f32: torch.float32, DType.bf16: torch.bfloat16}


def linear(shape: Shape, columns: int, dtype: DType = DType.f32, *, bias: bool = True) -> tuple[Value, Value]:
    """A linear layer over an input x of `shape` with weights w and b: (x, result)."""
    x = ops.input_(name="x", shape=shape, dtype=dtype)
    w = ops.weight(name="w", shape=(columns, shape[-1]), dtype=dtype)
    b = ops.weight(name="b", shape=(columns,), dtype=dtype) if bias else None
    return x, ops.linear(x, w, b)


def tensors(shape: tuple[int, ...], columns: int, dtype: DType = DType.f32) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)

    def random(*size: int) -> torch.Tensor:
        return torch.randn(size, generator=generator).to(TORCH[dtype])

    depth = shape[-1]
    return {
        "x": random(*shape),
        "w": random(columns, depth),
        "b": random(columns),
        "r": random(*shape[:-1], columns),
    }


def wanted(t: dict[str, torch.Tensor]) -> torch.Tensor:
    return functional.linear(t["x"].double(), t["w"].double(), t["b"].double())


def close(got: torch.Tensor, expected: torch.Tensor, dtype: DType = DType.f32) -> None:
    torch.testing.assert_close(got.double(), expected, rtol=TOLERANCE[dtype], atol=TOLERANCE[dtype] * 3)


@pytest.mark.parametrize("tasks", [1, 2, 3])
@pytest.mark.parametrize(
    ("rows", "columns", "depth"),
    [(1, 1, 1), (1, 33, 127), (2, 2, 13), (7, 31, 5), (13, 32, 33), (31, 48, 7), (33, 24, 31), (127, 70, 13)],
)
def test_every_small_size_is_right(rows: int, columns: int, depth: int, tasks: int) -> None:
    x, y = linear((rows, depth), columns)
    t = tensors((rows, depth), columns)
    close(run_call(Gemm(), call_of(Graph("main", (x,), (y,)), ops.linear), t, tasks=tasks), wanted(t))


@pytest.mark.parametrize("isa", [host_isa(), AVX2], ids=["host", "avx2"])
@pytest.mark.parametrize("rows", [1, 2, 3, 5, 11, 12, 25, 130])
def test_a_dynamic_count_of_rows_is_right(rows: int, isa: Isa) -> None:
    x, y = linear((symbol("m"), 31), 50)
    t = tensors((rows, 31), 50)
    call = call_of(Graph("main", (x,), (y,)), ops.linear)
    close(run_call(Gemm(), call, t, sizes={"m": rows}, isa=isa), wanted(t))


@pytest.mark.parametrize("isa", [host_isa(), AVX2], ids=["host", "avx2"])
def test_rounding_errors_of_long_sums_stay_small(isa: Isa) -> None:
    """Adding 4099 positive terms one after another would make the error three times as large."""
    random = torch.Generator().manual_seed(0)
    x, w = torch.rand(7, 4099, generator=random), torch.rand(33, 4099, generator=random)
    _, y = linear((7, 4099), 33, bias=False)
    got = run_call(Gemm(), call_of(Graph("main", y.node.operands[:1], (y,)), ops.linear), {"x": x, "w": w}, isa=isa)
    exact = x.double() @ w.double().T
    assert ((got - exact) / exact).square().mean().sqrt() <= 5e-7


@pytest.mark.parametrize("tasks", [1, 2, 5, 64])
def test_several_blocks_of_rows_are_right(tasks: int) -> None:
    x, y = linear((700, 300), 40)
    t = tensors((700, 300), 40)
    close(run_call(Gemm(), call_of(Graph("main", (x,), (y,)), ops.linear), t, tasks=tasks), wanted(t))


def test_more_tasks_than_tiles_leave_some_idle() -> None:
    x, y = linear((3, 9), 17)
    t = tensors((3, 9), 17)
    close(run_call(Gemm(), call_of(Graph("main", (x,), (y,)), ops.linear), t, tasks=7), wanted(t))


@pytest.mark.parametrize("isa", [host_isa(), AVX2], ids=["host", "avx2"])
def test_activation_and_residual_are_computed_on_the_tiles(isa: Isa) -> None:
    x, y = linear((symbol("b"), symbol("s"), 24), 35)
    r = ops.input_(name="r", shape=y.shape, dtype=DType.f32)
    scale = ops.weight(name="b", shape=(35,), dtype=DType.f32)
    result = ops.add(r, ops.mul(ops.gelu(y), scale))
    t = tensors((2, 19, 24), 35)
    call = call_of(Graph("main", (x, r), (result,)), ops.linear)
    got = run_call(Gemm(), call, t, sizes={"b": 2, "s": 19}, isa=isa)
    close(got, t["r"] + functional.gelu(wanted(t)) * t["b"])


@pytest.mark.parametrize("inner", [1, 3])
@pytest.mark.parametrize("residual", [(1, 1), (5, 1), (1, 3), (5, 3)])
def test_operands_of_the_epilogue_broadcast(inner: int, residual: tuple[int, int]) -> None:
    lead = (min(residual[0], 5), min(residual[1], inner))
    x, y = linear((5, inner, 24), 35)
    r = ops.input_(name="r", shape=(*lead, 35), dtype=DType.f32)
    t = tensors((5, inner, 24), 35)
    t["r"] = t["r"][: lead[0], : lead[1]]
    call = call_of(Graph("main", (x, r), (ops.add(y, r),)), ops.linear)
    close(run_call(Gemm(), call, t), wanted(t) + t["r"])


def test_an_operand_of_the_epilogue_may_be_a_transposed_view() -> None:
    x, y = linear((5, 3, 24), 35)
    r = ops.input_(name="r", shape=(5, 3, 35), dtype=DType.f32)
    t = tensors((5, 3, 24), 35)
    view = View((5, 3, 35), (35, 5 * 35, 1), 0, DType.f32)
    call = call_of(Graph("main", (x, r), (ops.add(y, r),)), ops.linear, views={"r": view})
    got = run_call(Gemm(), call, {**t, "r": t["r"].transpose(0, 1).contiguous()})
    close(got, wanted(t) + t["r"])


def test_one_vector_is_a_product_without_rows() -> None:
    x, y = linear((37,), 50)
    t = tensors((37,), 50)
    close(run_call(Gemm(), call_of(Graph("main", (x,), (y,)), ops.linear), t), wanted(t))


def test_rows_of_a_transposed_view_are_copied() -> None:
    x, y = linear((3, 5, 7, 20), 33, bias=False)
    t = tensors((5, 3, 7, 20), 33)
    view = View.contiguous(ops.input_(name="x", shape=(5, 3, 7, 20), dtype=DType.f32).type).transpose((1, 0, 2, 3))
    call = call_of(Graph("main", (x,), (y,)), ops.linear, views={"x": view})
    close(run_call(Gemm(), call, t), functional.linear(t["x"].transpose(0, 1).double(), t["w"].double()))


@pytest.mark.parametrize("depth", [20, 21])
def test_rows_of_a_slice_are_read_where_they_lie(depth: int) -> None:
    x, y = linear((9, depth), 33)
    t = tensors((9, depth), 33)
    wide = torch.full((9, 60), torch.nan)
    wide[:, 5 : 5 + depth] = t["x"]
    view = View((9, depth), (60, 1), 5, DType.f32)
    call = call_of(Graph("main", (x,), (y,)), ops.linear, views={"x": view})
    close(run_call(Gemm(), call, {**t, "x": wide}), wanted(t))


def test_rows_that_start_in_one_cache_set_are_right() -> None:
    x, y = linear((29, 1024), 40)
    t = tensors((29, 1024), 40)
    close(run_call(Gemm(), call_of(Graph("main", (x,), (y,)), ops.linear), t), wanted(t))


def test_the_output_may_lie_in_a_wider_buffer() -> None:
    x, y = linear((9, 20), 33)
    t = tensors((9, 20), 33)
    view = View((9, 33), (50, 1), 7, DType.f32)
    close(run_call(Gemm(), call_of(Graph("main", (x,), (y,)), ops.linear, out=view), t), wanted(t))


@pytest.mark.parametrize("isa", [host_isa(), AVX2], ids=["host", "avx2"])
@pytest.mark.parametrize("depth", [64, 33])
def test_bf16_is_summed_in_f32(depth: int, isa: Isa) -> None:
    x, y = linear((symbol("m"), depth), 35, DType.bf16)
    t = tensors((21, depth), 35, DType.bf16)
    call = call_of(Graph("main", (x,), (y,)), ops.linear)
    got = run_call(Gemm(), call, t, sizes={"m": 21}, isa=isa)
    assert got.dtype is torch.bfloat16
    close(got, wanted(t), DType.bf16)


@pytest.mark.parametrize("dtype", [DType.f32, DType.bf16])
@pytest.mark.parametrize(("columns", "halved"), [(24, True), *((n, False) for n in (8, 24, 40, 56, 23, 77, 119))])
def test_columns_that_end_in_half_a_vector_are_right(columns: int, halved: bool, dtype: DType) -> None:
    x, y = linear((symbol("m"), 30), columns, dtype)
    t = tensors((29, 30), columns, dtype)
    call = call_of(Graph("main", (x,), (ops.gelu(y),)), ops.linear)
    got = run_call(Gemm(), call, t, sizes={"m": 29}, isa=replace(host_isa(), halved=halved))
    close(got, functional.gelu(wanted(t)), dtype)


def test_half_a_vector_saves_padding_only_where_there_are_512_bits() -> None:
    assert choose_tile(AVX512, 24) == Tile(12, 2, 16, half=True)
    assert choose_tile(ZEN4, 24) == Tile(8, 3, 8)
    assert choose_tile(ZEN4, 384) == Tile(12, 2, 16)
    assert not choose_tile(AVX2, 24).half
    assert not choose_tile(NEON, 6).half


def test_bf16_inputs_give_f32_through_a_cast() -> None:
    x, y = linear((21, 64), 35, DType.bf16)
    t = tensors((21, 64), 35, DType.bf16)
    call = call_of(Graph("main", (x,), (ops.cast(y, dtype=DType.f32),)), ops.linear)
    close(run_call(Gemm(), call, t), wanted(t))


@pytest.mark.parametrize("isa", [AVX512, ZEN4, AVX2, NEON], ids=["avx512", "zen4", "avx2", "neon"])
@pytest.mark.parametrize("dtype", [DType.f32, DType.bf16])
def test_every_instruction_set_compiles_and_calls_no_library(isa: Isa, dtype: DType, tmp_path: Path) -> None:
    x, y = linear((symbol("m"), 40), 50, dtype)
    call = call_of(Graph("main", (x,), (ops.gelu(y),)), ops.linear)
    built = Gemm().build(call, isa)
    build_object({"kernel": built.function}, isa, tmp_path / "k.o")
    undefined = subprocess.run(["nm", "-u", tmp_path / "k.o"], capture_output=True, text=True, check=True).stdout
    assert [name for name in undefined.split() if name != "U"] == []


def refusal(x: Value, y: Value, views: dict[str, View] | None = None, out: View | None = None) -> str | None:
    return Gemm().refuse(call_of(Graph("main", (x,), (y,)), ops.linear, views=views, out=out), AVX2)


def test_refuses_a_computed_weight() -> None:
    x = ops.input_(name="x", shape=(4, 8), dtype=DType.f32)
    w = ops.input_(name="w", shape=(6, 8), dtype=DType.f32)
    assert refusal(x, ops.linear(x, w)) == "the weight is computed by input"


def test_refuses_an_operand_that_is_computed_in_the_kernel() -> None:
    x = ops.input_(name="x", shape=(4, 8), dtype=DType.f32)
    w = ops.weight(name="w", shape=(6, 8), dtype=DType.f32)
    assert refusal(x, ops.linear(ops.relu(x), w)) == "x is computed in the kernel"


def test_refuses_other_dtypes() -> None:
    x, y = linear((4, 8), 6, DType.i32)
    assert refusal(x, y) == "it multiplies floating-point numbers, not i32"


def test_refuses_strided_last_axes() -> None:
    x, y = linear((4, 8), 6)
    assert refusal(x, y, views={"x": View((4, 8), (1, 4), 0, DType.f32)}) == "the last axis of x is strided"
    assert refusal(x, y, out=View((4, 6), (1, 4), 0, DType.f32)) == "the last axis of the output is strided"


def test_takes_only_elementwise_nodes_of_its_own_shape_after_it() -> None:
    x, y = linear((4, 8), 6)
    same = ops.add(y, ops.input_(name="r", shape=(1, 6), dtype=DType.f32))
    other = ops.add(y, ops.input_(name="r", shape=(5, 4, 6), dtype=DType.f32))
    assert Gemm().fuses_after(y.node, same.node)
    assert not Gemm().fuses_after(y.node, other.node)
    assert not Gemm().fuses_after(y.node, ops.softmax(y, axis=1).node)
    assert not Gemm().fuses_before(y.node, ops.relu(x).node)
