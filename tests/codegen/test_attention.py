"""Attention kernels against torch: shapes, masks, strides, dtypes, instruction sets and dynamic sizes."""

import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from planish.codegen.call import Call
from planish.codegen.tvm.attention import Attention
from planish.codegen.tvm.build import build_object
from planish.codegen.tvm.isa import AVX2, NEON, Isa
from planish.codegen.view import View
from planish.compiler.ir import Graph, Value
from planish.compiler.ops import attention, input_, relu
from planish.compiler.types import Dim, DType, TensorType, symbol
from tests.codegen.harness import call_of, host_isa, run_call

LOWEST = torch.finfo(torch.float32).min


@dataclass(frozen=True)
class Shape:
    """Sizes of q [b, h, s, d], k [b, g, t, d], v [b, g, t, e]."""

    b: Dim
    h: int
    g: int
    s: Dim
    t: Dim
    d: int
    e: int


def placed(b: Dim, h: Dim, s: Dim, d: Dim, dtype: DType) -> View:
    """A [b, h, s, d] view of memory that lies as [b, s, h, d]."""
    return View((b, h, s, d), (s * h * d, d, h * d, 1), 0, dtype)


def attention_call(of: Shape, dtype: DType = DType.f32, mask: View | None = None, **attrs: object) -> Call:
    views = {
        "q": placed(of.b, of.h, of.s, of.d, dtype),
        "k": placed(of.b, of.g, of.t, of.d, dtype),
        "v": placed(of.b, of.g, of.t, of.e, dtype),
        **({} if mask is None else {"mask": mask}),
    }
    inputs = {name: input_(name=name, shape=view.shape, dtype=view.dtype) for name, view in views.items()}
    result = attention(*inputs.values(), scale=of.d**-0.5, **attrs)
    graph = Graph("main", tuple(inputs.values()), (result,))
    return call_of(graph, attention, views, placed(of.b, of.h, of.s, of.e, dtype))


def operands(of: Shape, dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    torch.manual_seed(0)
    sizes = {"q": (of.b, of.s, of.h, of.d), "k": (of.b, of.t, of.g, of.d), "v": (of.b, of.t, of.g, of.e)}
    return {name: torch.randn(*map(int, size)).to(dtype) for name, size in sizes.items()}


def expected(data: dict[str, Tensor], seen: Tensor | None = None) -> Tensor:
    """torch's own attention in f64 over [b, s, h, d] memory, with a bool or float mask."""
    q, k, v = (data[name].transpose(1, 2).double() for name in "qkv")
    seen = seen.double() if seen is not None and seen.dtype is not torch.bool else seen
    result = functional.scaled_dot_product_attention(q, k, v, attn_mask=seen, enable_gqa=q.shape[1] != k.shape[1])
    return result.nan_to_num(0.0)


def band(queries: int, keys: int, window: int | None = None) -> Tensor:
    last = torch.arange(queries)[:, None] + keys - queries
    key = torch.arange(keys)[None, :]
    return (key <= last) & (key > last - (window or 10**9))


SHAPES = (
    Shape(1, 1, 1, 1, 1, 1, 1),
    Shape(2, 4, 2, 13, 31, 20, 7),
    Shape(1, 3, 3, 127, 33, 32, 80),
    Shape(1, 2, 1, 2, 127, 64, 96),
    Shape(2, 1, 1, 65, 100, 7, 20),
)


@pytest.mark.parametrize("isa", [host_isa(), AVX2], ids=["host", "avx2"])
@pytest.mark.parametrize("of", SHAPES, ids=str)
def test_agrees_with_torch_on_odd_shapes(of: Shape, isa: Isa) -> None:
    data = operands(of)
    for tasks in (1, 2, 3):
        got = run_call(Attention(64, 48), attention_call(of), data, isa=isa, tasks=tasks)
        torch.testing.assert_close(got.double(), expected(data), rtol=2e-6, atol=2e-6)


@pytest.mark.parametrize("window", [None, 5, 40])
@pytest.mark.parametrize("of", [Shape(1, 6, 2, 33, 127, 16, 16), Shape(2, 2, 2, 150, 150, 8, 16)], ids=str)
def test_causal_queries_see_their_window(of: Shape, window: int | None) -> None:
    data = operands(of)
    got = run_call(Attention(32, 24), attention_call(of, causal=True, window=window), data, tasks=3)
    seen = band(int(of.s), int(of.t), window)
    torch.testing.assert_close(got.double(), expected(data, seen), rtol=2e-6, atol=2e-6)


@pytest.mark.parametrize("isa", [host_isa(), AVX2], ids=["host", "avx2"])
@pytest.mark.parametrize("queries", [3, 40])
def test_rounding_errors_of_many_keys_stay_small(queries: int, isa: Isa) -> None:
    """Adding up 2049 weights and values one after another would make the error three times as large."""
    of = Shape(1, 2, 2, queries, 2049, 32, 32)
    data = {**operands(of), "v": torch.rand(1, 2049, 2, 32, generator=torch.Generator().manual_seed(0))}
    got = run_call(Attention(), attention_call(of), data, isa=isa)
    exact = expected({name: value.double() for name, value in data.items()})
    assert ((got - exact) / exact).square().mean().sqrt() <= 4e-7


def test_a_causal_query_before_the_first_key_gives_zeros() -> None:
    of = Shape(1, 2, 1, 33, 20, 16, 16)
    data = operands(of)
    got = run_call(Attention(), attention_call(of, causal=True), data)
    assert got[:, :, :13].abs().max() == 0
    torch.testing.assert_close(got.double(), expected(data, band(33, 20)), rtol=2e-6, atol=2e-6)


@pytest.mark.parametrize(
    "shape", [(2, 4, 13, 31), (2, 1, 1, 31), (1, 1, 13, 31), (2, 4, 1, 31), (2, 1, 13, 1)], ids=str
)
@pytest.mark.parametrize("kind", ["bool", "infinite", "lowest", "additive"])
def test_masks_of_any_broadcast_shape_hide_keys(shape: tuple[int, ...], kind: str) -> None:
    of = Shape(2, 4, 2, 13, 31, 16, 16)
    torch.manual_seed(1)
    seen = torch.rand(shape) < 0.6
    mask = {
        "bool": seen,
        "infinite": torch.where(seen, 0.0, -torch.inf),
        "lowest": torch.where(seen, 0.0, LOWEST),
        "additive": torch.randn(shape) * 3,
    }[kind]
    dtype = DType.bool if kind == "bool" else DType.f32
    call = attention_call(of, mask=View(shape, (shape[1] * shape[2] * shape[3], *_inner(shape)), 0, dtype))
    data = operands(of)
    got = run_call(Attention(64, 16), call, {**data, "mask": mask.reshape(-1)}, tasks=2)
    torch.testing.assert_close(
        got.double(), expected(data, mask.float() if kind != "bool" else mask), rtol=3e-6, atol=3e-6
    )


def _inner(shape: tuple[int, ...]) -> tuple[int, int, int]:
    return shape[2] * shape[3], shape[3], 1


def test_a_row_masked_with_the_lowest_float_weighs_all_keys_alike() -> None:
    of = Shape(1, 1, 1, 3, 29, 8, 8)
    data, mask = operands(of), torch.full((1, 1, 3, 29), LOWEST)
    view = View((1, 1, 3, 29), (87, 87, 29, 1), 0, DType.f32)
    got = run_call(Attention(), attention_call(of, mask=view), {**data, "mask": mask})
    mean = data["v"].mean(1)[:, :, None].expand(1, 1, 3, 8)
    torch.testing.assert_close(got, mean, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", [DType.bool, DType.f32], ids=str)
def test_a_row_that_sees_no_key_gives_zeros(kind: DType) -> None:
    of = Shape(1, 2, 2, 5, 21, 16, 16)
    seen = torch.ones(1, 1, 5, 21, dtype=torch.bool)
    seen[:, :, 2] = False
    mask = seen if kind is DType.bool else torch.where(seen, 0.0, -torch.inf)
    call = attention_call(of, mask=View((1, 1, 5, 21), (105, 105, 21, 1), 0, kind))
    data = operands(of)
    got = run_call(Attention(64, 16), call, {**data, "mask": mask})
    assert got[:, :, 2].abs().max() == 0
    torch.testing.assert_close(got.double(), expected(data, seen), rtol=2e-6, atol=2e-6)


def test_a_mask_that_lies_transposed_is_read_through_its_strides() -> None:
    of = Shape(1, 2, 1, 18, 23, 16, 16)
    torch.manual_seed(2)
    memory = torch.randn(23, 18)
    call = attention_call(of, mask=View((1, 1, 18, 23), (0, 0, 1, 18), 0, DType.f32))
    data = operands(of)
    got = run_call(Attention(), call, {**data, "mask": memory})
    torch.testing.assert_close(got.double(), expected(data, memory.T[None, None]), rtol=2e-6, atol=2e-6)


@pytest.mark.parametrize("isa", [host_isa(), AVX2], ids=["host", "avx2"])
@pytest.mark.parametrize("of", SHAPES, ids=str)
def test_bf16_is_computed_in_f32_and_rounded_once(of: Shape, isa: Isa) -> None:
    data = operands(of, torch.bfloat16)
    got = run_call(Attention(64, 48), attention_call(of, DType.bf16), data, isa=isa)
    # Dot products round each weight by 2^-9 of it, so sums by no more of the largest value.
    rounding = 2**-9 * float(data["v"].abs().max()) if isa.bf16_dot else 1e-5
    torch.testing.assert_close(got.double(), expected(data), rtol=2**-8, atol=rounding)


@pytest.mark.parametrize(("causal", "window"), [(True, None), (True, 9), (False, None)])
@pytest.mark.parametrize("keys", [1, 2, 47, 64])
def test_pairs_of_keys_hide_and_weigh_as_single_ones(keys: int, causal: bool, window: int | None) -> None:
    of = Shape(2, 4, 2, keys, keys, 24, 36)
    data, mask = operands(of, torch.bfloat16), torch.randn(2, 1, keys, keys)
    call = attention_call(
        of, DType.bf16, mask=View.contiguous(TensorType(tuple(mask.shape), DType.f32)), causal=causal, window=window
    )
    got = run_call(Attention(64, 16), call, {**data, "mask": mask})
    hidden = band(keys, keys, window) if causal else torch.ones(keys, keys, dtype=torch.bool)
    wanted = expected(data, mask.double().masked_fill(~hidden, -torch.inf))
    torch.testing.assert_close(got.double(), wanted, rtol=2**-8, atol=2**-9 * float(data["v"].abs().max()))


@pytest.mark.parametrize("isa", [host_isa(), AVX2], ids=["host", "avx2"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize(
    "of", [Shape(2, 6, 2, 1, 131, 64, 80), Shape(1, 2, 2, 4, 17, 32, 20), Shape(1, 1, 1, 1, 1, 16, 160)], ids=str
)
def test_few_queries_attend_in_place(of: Shape, dtype: torch.dtype, isa: Isa) -> None:
    data = operands(of, dtype)
    call = attention_call(of, DType.f32 if dtype is torch.float32 else DType.bf16, causal=True)
    got = run_call(Attention(64, 48), call, data, isa=isa, tasks=3)
    tolerance = 2e-6 if dtype is torch.float32 else 2**-8
    torch.testing.assert_close(got.double(), expected(data, band(int(of.s), int(of.t))), rtol=tolerance, atol=1e-5)


@pytest.mark.parametrize("causal", [False, True])
def test_one_kernel_serves_all_dynamic_sizes(causal: bool) -> None:
    b, s, t = symbol("b"), symbol("s"), symbol("t")
    call = attention_call(Shape(b, 6, 2, s, t, 16, 16), causal=causal)
    for sizes in (
        {"b": 1, "s": 1, "t": 1},
        {"b": 2, "s": 7, "t": 130},
        {"b": 1, "s": 64, "t": 64},
        {"b": 1, "s": 1, "t": 63},
    ):
        of = Shape(sizes["b"], 6, 2, sizes["s"], sizes["t"], 16, 16)
        data = operands(of)
        got = run_call(Attention(32, 48), call, data, sizes=sizes, tasks=3)
        seen = band(sizes["s"], sizes["t"]) if causal else None
        torch.testing.assert_close(got.double(), expected(data, seen), rtol=2e-6, atol=2e-6)


def test_operands_and_result_may_have_any_strides() -> None:
    of = Shape(1, 2, 2, 19, 21, 20, 24)
    data, call = operands(of), attention_call(of)
    q, k, v = call.inputs
    inputs = {
        q: View((1, 2, 19, 20), (0, 380, 1, 19), 0, DType.f32),
        k: View((1, 2, 21, 20), (0, 420, 1, 21), 0, DType.f32),
        v: View((1, 2, 21, 24), (0, 1, 48, 2), 0, DType.f32),
    }
    moved = Call(call.anchor, call.nodes, inputs, call.output, View((1, 2, 19, 24), (0, 1, 96, 4), 3, DType.f32))
    memory = {name: data[name][0].permute(1, 2, 0).contiguous() for name in "qk"}
    got = run_call(Attention(), moved, {**memory, "v": data["v"].transpose(2, 3).contiguous()})
    torch.testing.assert_close(got.double(), expected(data), rtol=2e-6, atol=2e-6)


@pytest.mark.parametrize("dtype", [DType.f32, DType.bf16], ids=str)
def test_compiles_for_neon_and_needs_libc_alone(dtype: DType, tmp_path: Path) -> None:
    call = attention_call(Shape(1, 4, 2, symbol("s"), symbol("t"), 64, 80), dtype, causal=True)
    build_object({"attention": Attention().build(call, NEON).function}, NEON, tmp_path / "kernel.o")
    build_object({"attention": Attention().build(call, AVX2).function}, AVX2, tmp_path / "host.o")
    listed = subprocess.run(["nm", "-u", tmp_path / "host.o"], capture_output=True, text=True, check=True)
    assert set(listed.stdout.split()) <= {"U", "memset", "memcpy"}


def test_refuses_what_it_cannot_compute_by_its_words() -> None:
    isa = host_isa()
    whole = attention_call(Shape(1, 1, 1, 3, 3, 4, 4), DType.f64)
    assert Attention().refuse(whole, isa) == "attention takes f32, bf16 or f16, not f64"
    assert "constant head sizes" in str(Attention().refuse(_dynamic_head(), isa))
    followed = attention_call(Shape(1, 1, 1, 3, 3, 4, 4))
    after: Value = relu(followed.output)
    joined = Call(followed.anchor, (*followed.nodes, after.node), followed.inputs, after, followed.view)
    assert "nothing beside itself" in str(Attention().refuse(joined, isa))


def _dynamic_head() -> Call:
    d = symbol("d")
    views = {name: View((1, 1, 3, d), (3 * d, 3 * d, d, 1), 0, DType.f32) for name in "qkv"}
    inputs = {name: input_(name=name, shape=view.shape, dtype=view.dtype) for name, view in views.items()}
    result = attention(*inputs.values(), scale=1.0)
    return call_of(Graph("main", tuple(inputs.values()), (result,)), attention, views)
