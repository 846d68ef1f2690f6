"""Products of a matrix and a vector of activations against torch, whichever way the matrix lies."""

import pytest
import torch

from planish.codegen.tvm.isa import AVX2, Isa
from planish.codegen.tvm.matmul import Matmul
from planish.codegen.tvm.matmul_plan import ProductPlan
from planish.codegen.tvm.matmul_vector import reads_in_place
from planish.codegen.view import View
from planish.compiler import ops
from planish.compiler.ir import Graph
from planish.compiler.ops.structure import TORCH_DTYPE
from planish.compiler.types import DType, symbol
from tests.codegen.harness import call_of, host_isa, on_both, run_call
from tests.codegen.test_matmul import close, data, matmul_call

ISAS = pytest.mark.parametrize("isa", [host_isa(), AVX2], ids=["host", "avx2"])


def in_place(x: tuple[int, ...], y: tuple[int, ...], lies: View | None = None) -> bool:
    call = matmul_call(x, y) if lies is None else matmul_call(x, y, y=lies)
    return reads_in_place(ProductPlan.of(call, host_isa(), 128, 128, 384))


_SIZES = ((1, 1), (7, 5), (33, 16), (40, 31), (65, 300))


@pytest.mark.parametrize(("size", "isa"), on_both(_SIZES, ((7, 5), (65, 300))))
@pytest.mark.parametrize("dtype", [DType.f32, DType.bf16, DType.f16, DType.f64], ids=str)
@pytest.mark.parametrize("turned", [False, True])
def test_a_row_times_a_matrix_is_right(size: tuple[int, int], turned: bool, dtype: DType, isa: Isa) -> None:
    depth, columns = size
    tensors = data((2, 1, depth), (2, depth, columns), TORCH_DTYPE[dtype])
    strides = (depth * columns, 1, depth) if turned else (depth * columns, columns, 1)
    call = matmul_call((2, 1, depth), (2, depth, columns), dtype, y=View((2, depth, columns), strides, 0, dtype))
    memory = {**tensors, "y": tensors["y"].transpose(1, 2).contiguous() if turned else tensors["y"]}
    wanted = tensors["x"].double() @ tensors["y"].double()
    for tasks in (1, 3):
        got = run_call(Matmul(), call, memory, isa=isa, tasks=tasks).double()
        close(got, wanted, {DType.bf16: 2**-8, DType.f16: 2**-11}.get(dtype, 2e-5) + 1e-5)


@ISAS
@pytest.mark.parametrize(("rows", "depth"), [(7, 5), (31, 33), (300, 65)])
def test_a_matrix_times_a_column_is_right_with_what_follows(rows: int, depth: int, isa: Isa) -> None:
    assert in_place((2, rows, depth), (2, depth, 1))
    x, y = (ops.input_(name=a, shape=s, dtype=DType.f32) for a, s in (("x", (2, rows, depth)), ("y", (2, depth, 1))))
    call = call_of(Graph("main", (x, y), (ops.relu(ops.matmul(x, y)),)), ops.matmul)
    tensors = data((2, rows, depth), (2, depth, 1))
    close(run_call(Matmul(), call, tensors, isa=isa, tasks=3), (tensors["x"].double() @ tensors["y"].double()).relu())


def test_one_kernel_serves_all_dynamic_sizes() -> None:
    b, k, n = map(symbol, "bkn")
    call = matmul_call((b, 1, k), (b, k, n))
    for sizes in ((1, 1, 1), (2, 130, 33), (3, 16, 64), (1, 17, 400)):
        tensors = data((sizes[0], 1, sizes[1]), sizes)
        got = run_call(Matmul(), call, tensors, sizes=dict(zip("bkn", sizes, strict=True)), tasks=3)
        close(got, tensors["x"].double() @ tensors["y"].double())


def test_a_computed_weight_and_its_bias_serve_a_single_row() -> None:
    x, w, b = (ops.input_(name=n, shape=s, dtype=DType.f32) for n, s in (("x", (21,)), ("w", (40, 21)), ("b", (40,))))
    torch.manual_seed(1)
    memory = {"x": torch.randn(21), "w": torch.randn(40, 21), "b": torch.randn(40)}
    got = run_call(Matmul(), call_of(Graph("main", (x, w, b), (ops.linear(x, w, b),)), ops.linear), memory)
    close(got, memory["w"].double() @ memory["x"].double() + memory["b"].double())


def test_a_matrix_with_gaps_both_ways_is_copied() -> None:
    gaps = View((2, 10, 18), (1200, 80, 2), 1, DType.f32)
    assert not in_place((2, 1, 10), (2, 10, 18), gaps)
