"""Products of f16 and f64 against torch: linear layers, activations, convolutions and attention."""

import subprocess
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from planish.codegen.template import Template
from planish.codegen.tvm.attention import Attention
from planish.codegen.tvm.attention_wide import AttentionWide
from planish.codegen.tvm.build import build_object
from planish.codegen.tvm.conv import Conv
from planish.codegen.tvm.depthwise import Depthwise
from planish.codegen.tvm.gemm import Gemm
from planish.codegen.tvm.isa import AVX2, NEON, Isa
from planish.codegen.tvm.matmul import Matmul
from planish.codegen.view import View
from planish.compiler import ops
from planish.compiler.ir import Graph, Value
from planish.compiler.ops.structure import TORCH_DTYPE
from planish.compiler.types import DType
from tests.codegen.harness import call_of, host_isa, run_call

KINDS = pytest.mark.parametrize("dtype", [DType.f16, DType.f64], ids=str)
ISAS = pytest.mark.parametrize("isa", [host_isa(), AVX2], ids=["host", "avx2"])


def leaf(name: str, dtype: DType, *shape: int, weight: bool = False) -> Value:
    return (ops.weight if weight else ops.input_)(name=name, shape=shape, dtype=dtype)


def random(dtype: DType, *shape: int) -> Tensor:
    return torch.randn(shape).to(TORCH_DTYPE[dtype])


def close(got: Tensor, wanted: Tensor) -> None:
    """f16 results are rounded once from f32, f64 results are computed in f64."""
    tolerance = {torch.float16: (2**-11 + 1e-5, 1e-4), torch.float64: (1e-12, 1e-12)}[got.dtype]
    torch.testing.assert_close(got.double(), wanted, rtol=tolerance[0], atol=tolerance[1])


@KINDS
@ISAS
@pytest.mark.parametrize("template", [Gemm(), Matmul(32, 32, 16)], ids=["gemm", "matmul"])
@pytest.mark.parametrize(
    ("rows", "columns", "depth"),
    [pytest.param(1, 1, 1, marks=pytest.mark.slow), (1, 40, 65), (13, 31, 33), (33, 70, 40)],
)
def test_linear_layers_are_right(
    rows: int, columns: int, depth: int, template: Template, isa: Isa, dtype: DType
) -> None:
    x, w, b = leaf("x", dtype, rows, depth), leaf("w", dtype, columns, depth, weight=True), leaf("b", dtype, columns)
    call = call_of(Graph("main", (x, b), (ops.relu(ops.linear(x, w, b)),)), ops.linear)
    memory = {"x": random(dtype, rows, depth), "w": random(dtype, columns, depth), "b": random(dtype, columns)}
    wanted = functional.linear(memory["x"].double(), memory["w"].double(), memory["b"].double()).relu()
    for tasks in (1, 3):
        close(run_call(template, call, memory, isa=isa, tasks=tasks), wanted)


@KINDS
@ISAS
@pytest.mark.parametrize("turned", [False, True])
def test_products_of_two_activations_are_right(turned: bool, isa: Isa, dtype: DType) -> None:
    x, y = leaf("x", dtype, 2, 35, 37), leaf("y", dtype, 2, 37, 50)
    view = View((2, 37, 50), (37 * 50, 1, 37) if turned else (37 * 50, 50, 1), 0, dtype)
    call = call_of(Graph("main", (x, y), (ops.matmul(x, y),)), ops.matmul, {"y": view})
    memory = {"x": random(dtype, 2, 35, 37), "y": random(dtype, 2, 37, 50)}
    wanted = memory["x"].double() @ memory["y"].double()
    memory["y"] = memory["y"].transpose(1, 2).contiguous() if turned else memory["y"]
    close(run_call(Matmul(32, 32, 16), call, memory, isa=isa, tasks=3), wanted)


@KINDS
@ISAS
@pytest.mark.parametrize(("groups", "kernel"), [(1, 1), (1, 3), (2, 3)])
def test_convolutions_are_right(groups: int, kernel: int, isa: Isa, dtype: DType) -> None:
    padding = kernel // 2
    x, w = leaf("x", dtype, 2, 9, 11, 6), leaf("w", dtype, 20, kernel, kernel, 6 // groups, weight=True)
    y = ops.conv(x, w, stride=(1, 2), padding=(padding, padding), dilation=(1, 1), groups=groups)
    memory = {"x": random(dtype, 2, 9, 11, 6), "w": random(dtype, 20, kernel, kernel, 6 // groups)}
    wanted = functional.conv2d(
        memory["x"].double().permute(0, 3, 1, 2),
        memory["w"].double().permute(0, 3, 1, 2),
        None,
        (1, 2),
        padding,
        1,
        groups,
    )
    got = run_call(Conv(), call_of(Graph("main", (x,), (y,)), ops.conv), memory, isa=isa)
    close(got, wanted.permute(0, 2, 3, 1))


@ISAS
def test_f16_depthwise_convolutions_are_right(isa: Isa) -> None:
    x, w = leaf("x", DType.f16, 2, 9, 11, 21), leaf("w", DType.f16, 21, 3, 3, 1, weight=True)
    y = ops.conv(x, w, stride=(1, 1), padding=(1, 1), dilation=(1, 1), groups=21)
    memory = {"x": random(DType.f16, 2, 9, 11, 21), "w": random(DType.f16, 21, 3, 3, 1)}
    wanted = functional.conv2d(
        memory["x"].double().permute(0, 3, 1, 2), memory["w"].double().permute(0, 3, 1, 2), None, 1, 1, 1, 21
    )
    got = run_call(Depthwise(), call_of(Graph("main", (x,), (y,)), ops.conv), memory, isa=isa)
    close(got, wanted.permute(0, 2, 3, 1))


@ISAS
@pytest.mark.parametrize("queries", [1, 3, 33])
def test_f16_attention_is_right(queries: int, isa: Isa) -> None:
    q, k, v = (leaf(name, DType.f16, 2, 3, s, 32) for name, s in (("q", queries), ("k", 40), ("v", 40)))
    y = ops.attention(q, k, v, scale=0.2, causal=False, window=None)
    memory = {n: random(DType.f16, 2, 3, queries if n == "q" else 40, 32) for n in "qkv"}
    double = {n: t.double() for n, t in memory.items()}
    wanted = functional.scaled_dot_product_attention(double["q"], double["k"], double["v"], scale=0.2)
    close(run_call(Attention(), call_of(Graph("main", (q, k, v), (y,)), ops.attention), memory, isa=isa), wanted)


_SIZES = ((1, 1, 1), (7, 33, 20), (33, 33, 32))
_MASKS = ("plain", "causal", "window", "bool", "float")


@pytest.mark.parametrize(
    ("queries", "keys", "head", "kind", "isa"),
    [
        *((*sizes, kind, host_isa()) for sizes in _SIZES for kind in _MASKS),
        *((*_SIZES[1], kind, AVX2) for kind in _MASKS),
        *(pytest.param(*_SIZES[i], kind, AVX2, marks=pytest.mark.slow) for i in (0, 2) for kind in _MASKS),
    ],
)
def test_f64_attention_is_right(queries: int, keys: int, head: int, kind: str, isa: Isa) -> None:
    q, k, v = (leaf(n, DType.f64, 2, 4 if n == "q" else 2, queries if n == "q" else keys, head) for n in "qkv")
    memory = {str(x.node.attrs["name"]): random(DType.f64, *map(int, x.shape)) for x in (q, k, v)}
    behind = torch.arange(queries)[:, None] + (keys - queries) - torch.arange(keys)
    masks = {"causal": behind >= 0, "window": (behind >= 0) & (behind < 3), "bool": torch.rand(queries, keys) < 0.7}
    masks["float"] = random(DType.f64, queries, keys)
    masks["bool"][:, 0] = True
    inputs = [q, k, v]
    if kind in ("bool", "float"):
        inputs.append(leaf("mask", DType[kind] if kind == "bool" else DType.f64, 1, 1, queries, keys))
        memory["mask"] = masks[kind]
    y = ops.attention(*inputs, scale=0.3, causal=kind in ("causal", "window"), window=3 if kind == "window" else None)
    call = call_of(Graph("main", tuple(inputs), (y,)), ops.attention)
    wanted = functional.scaled_dot_product_attention(
        memory["q"], memory["k"], memory["v"], masks.get(kind), scale=0.3, enable_gqa=True
    )
    close(run_call(AttentionWide(), call, memory, isa=isa, tasks=3), wanted)


@KINDS
@pytest.mark.parametrize("isa", [AVX2, NEON], ids=["avx2", "neon"])
def test_products_need_no_library(isa: Isa, dtype: DType, tmp_path: Path) -> None:
    x, w = leaf("x", dtype, 13, 33), leaf("w", dtype, 31, 33, weight=True)
    call = call_of(Graph("main", (x,), (ops.linear(x, w),)), ops.linear)
    functions = {t.name: t.build(call, isa).function for t in (Gemm(), Matmul())}
    build_object(functions, isa, tmp_path / "k.o")
    symbols = subprocess.run(["nm", "-u", tmp_path / "k.o"], capture_output=True, text=True, check=True).stdout
    assert set(symbols.split()) - {"U"} <= {"memset", "memcpy"}


def test_attention_in_f64_leaves_narrower_floats_to_its_sibling() -> None:
    q = leaf("q", DType.f32, 1, 1, 4, 8)
    call = call_of(Graph("main", (q,), (ops.attention(q, q, q, scale=1.0),)), ops.attention)
    assert AttentionWide().refuse(call, host_isa()) == "it computes in f64, not f32"
