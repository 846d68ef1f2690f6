"""Products of two activations against torch: shapes, strides, batches, epilogues, dtypes and dynamic sizes."""

import subprocess
from pathlib import Path

import pytest
import torch
from torch import Tensor

from planish.codegen.call import Call
from planish.codegen.tvm.build import build_object
from planish.codegen.tvm.isa import AVX2, NEON, Isa
from planish.codegen.tvm.matmul import Matmul
from planish.codegen.view import View
from planish.compiler import ops
from planish.compiler.ir import Graph, Value
from planish.compiler.types import Dim, DType, symbol
from tests.codegen.harness import call_of, host_isa, run_call

SMALL = Matmul(32, 32, 16)
ISAS = pytest.mark.parametrize("isa", [host_isa(), AVX2], ids=["host", "avx2"])


def matmul_call(x_shape: tuple[Dim, ...], y_shape: tuple[Dim, ...], dtype: DType = DType.f32, **views: View) -> Call:
    """The product of inputs x and y; `views` places them by name."""
    a, b = (ops.input_(name=name, shape=shape, dtype=dtype) for name, shape in (("x", x_shape), ("y", y_shape)))
    return call_of(Graph("main", (a, b), (ops.matmul(a, b),)), ops.matmul, views)


def data(x: tuple[int, ...], y: tuple[int, ...], dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    torch.manual_seed(0)
    return {"x": torch.randn(x).to(dtype), "y": torch.randn(y).to(dtype)}


def close(got: Tensor, wanted: Tensor, tolerance: float = 2e-5) -> None:
    torch.testing.assert_close(got.double(), wanted, rtol=tolerance, atol=tolerance)


@ISAS
@pytest.mark.parametrize("template", [SMALL, Matmul()], ids=["small", "default"])
@pytest.mark.parametrize(
    ("m", "k", "n"), [(1, 1, 1), (2, 13, 7), (13, 7, 31), (33, 127, 33), (1, 65, 127), (127, 40, 2)], ids=str
)
def test_agrees_with_torch_on_odd_shapes(m: int, k: int, n: int, template: Matmul, isa: Isa) -> None:
    tensors = data((m, k), (k, n))
    for tasks in (1, 2, 3):
        got = run_call(template, matmul_call((m, k), (k, n)), tensors, isa=isa, tasks=tasks)
        close(got, tensors["x"].double() @ tensors["y"].double())


@pytest.mark.parametrize(
    ("x", "y"), [((3, 2, 13, 7), (3, 2, 7, 9)), ((2, 1, 13, 7), (3, 7, 9)), ((13, 7), (4, 7, 40))], ids=str
)
def test_batches_broadcast(x: tuple[int, ...], y: tuple[int, ...]) -> None:
    tensors = data(x, y)
    got = run_call(SMALL, matmul_call(x, y), tensors, tasks=3)
    close(got, tensors["x"].double() @ tensors["y"].double())


@ISAS
@pytest.mark.parametrize("turned_x", [False, True])
@pytest.mark.parametrize("turned_y", [False, True])
def test_operands_may_lie_transposed(turned_x: bool, turned_y: bool, isa: Isa) -> None:
    tensors = data((2, 35, 37), (2, 37, 50))
    views = {
        "x": View((2, 35, 37), (35 * 37, 1, 35) if turned_x else (35 * 37, 37, 1), 0, DType.f32),
        "y": View((2, 37, 50), (37 * 50, 1, 37) if turned_y else (37 * 50, 50, 1), 0, DType.f32),
    }
    turned = {"x": turned_x, "y": turned_y}
    memory = {name: t.transpose(1, 2).contiguous() if turned[name] else t for name, t in tensors.items()}
    got = run_call(SMALL, matmul_call((2, 35, 37), (2, 37, 50), **views), memory, isa=isa)
    close(got, tensors["x"].double() @ tensors["y"].double())


def test_operands_with_gaps_are_read_through_their_strides() -> None:
    memory = data((2, 20, 30), (2, 30, 40))
    views = {"x": View((2, 5, 10), (600, 60, 3), 4, DType.f32), "y": View((2, 10, 18), (1200, 80, 2), 1, DType.f32)}
    got = run_call(Matmul(), matmul_call((2, 5, 10), (2, 10, 18), **views), memory)
    x, y = (torch.as_strided(memory[n], v.shape, v.strides, v.offset) for n, v in views.items())  # type: ignore[arg-type]
    close(got, x.double() @ y.double())


@ISAS
def test_bf16_is_computed_in_f32_and_rounded_once(isa: Isa) -> None:
    for y_view in ((37 * 50, 50, 1), (37 * 50, 1, 37)):
        tensors = data((2, 35, 37), (2, 37, 50), torch.bfloat16)
        view = View((2, 37, 50), y_view, 0, DType.bf16)
        memory = {"x": tensors["x"], "y": tensors["y"] if y_view[2] == 1 else tensors["y"].transpose(1, 2).contiguous()}
        got = run_call(SMALL, matmul_call((2, 35, 37), (2, 37, 50), DType.bf16, y=view), memory, isa=isa)
        torch.testing.assert_close(got.double(), tensors["x"].double() @ tensors["y"].double(), rtol=2**-8, atol=1e-5)


def test_one_kernel_serves_all_dynamic_sizes() -> None:
    b, m, k, n = map(symbol, "bmkn")
    call = matmul_call((b, m, k), (b, k, n))
    for sizes in ((1, 1, 1, 1), (2, 7, 130, 33), (3, 64, 16, 64), (1, 65, 17, 31), (2, 1, 33, 127)):
        named = dict(zip("bmkn", sizes, strict=True))
        tensors = data((sizes[0], sizes[1], sizes[2]), (sizes[0], sizes[2], sizes[3]))
        got = run_call(SMALL, call, tensors, sizes=named, tasks=3)
        close(got, tensors["x"].double() @ tensors["y"].double())


@pytest.mark.parametrize("n", [1, 3, 45])
def test_elementwise_nodes_follow_in_the_same_kernel(n: int) -> None:
    x, y = (ops.input_(name=a, shape=s, dtype=DType.f32) for a, s in (("x", (2, 19, 21)), ("y", (2, 21, n))))
    z = ops.input_(name="z", shape=(19, n), dtype=DType.f32)
    half = ops.full(value=0.5, dtype=DType.f32)
    result = ops.relu(ops.add(ops.mul(ops.matmul(x, y), half), z))
    tensors = {**data((2, 19, 21), (2, 21, n)), "z": torch.randn(19, n)}
    got = run_call(SMALL, call_of(Graph("main", (x, y, z), (result,)), ops.matmul), tensors)
    close(got, torch.relu(tensors["x"].double() @ tensors["y"].double() * 0.5 + tensors["z"]))


@pytest.mark.parametrize("shape", [(21,), (19, 21), (2, 3, 5, 21)], ids=str)
@pytest.mark.parametrize("biased", [False, True])
def test_linear_takes_a_weight_that_is_computed(shape: tuple[int, ...], biased: bool) -> None:
    x, w = (ops.input_(name=a, shape=s, dtype=DType.f32) for a, s in (("x", shape), ("w", (40, 21))))
    b = ops.input_(name="b", shape=(40,), dtype=DType.f32)
    result = ops.linear(x, w, b) if biased else ops.linear(x, w)
    torch.manual_seed(3)
    tensors = {"x": torch.randn(shape), "w": torch.randn(40, 21), "b": torch.randn(40)}
    inputs = (x, w, b) if biased else (x, w)
    got = run_call(SMALL, call_of(Graph("main", inputs, (result,)), ops.linear), tensors, tasks=3)
    wanted = tensors["x"].double() @ tensors["w"].double().T
    close(got, wanted + tensors["b"] if biased else wanted)


@pytest.mark.parametrize("dtype", [DType.f32, DType.bf16], ids=str)
def test_compiles_for_neon_and_needs_libc_alone(dtype: DType, tmp_path: Path) -> None:
    m, k = symbol("m"), symbol("k")
    call = matmul_call((4, m, k), (4, k, 50), dtype)
    build_object({"matmul": Matmul().build(call, NEON).function}, NEON, tmp_path / "neon.o")
    build_object({"matmul": Matmul().build(call, AVX2).function}, AVX2, tmp_path / "avx2.o")
    listed = subprocess.run(["nm", "-u", tmp_path / "avx2.o"], capture_output=True, text=True, check=True)
    assert set(listed.stdout.split()) <= {"U", "memset", "memcpy"}


def test_refuses_what_it_cannot_compute_by_its_words() -> None:
    isa = host_isa()
    assert (
        Matmul().refuse(matmul_call((2, 2), (2, 2), DType.i32), isa) == "matmul takes floating-point numbers, not i32"
    )
    x, y = (ops.input_(name=a, shape=(3, 3), dtype=DType.f32) for a in "xy")
    prepared: Value = ops.matmul(ops.relu(x), y)
    call = call_of(Graph("main", (x, y), (prepared,)), ops.matmul)
    assert Matmul().refuse(call, isa) == "relu is not computed while operands are read"
