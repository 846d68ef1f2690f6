"""Elementary functions on f64 against numpy and torch, through the kernels that compute them."""

import subprocess
from pathlib import Path

import numpy
import pytest
import torch
from torch import Tensor
from torch.nn import functional

from planish.codegen.call import Call
from planish.codegen.tvm.build import build_object
from planish.codegen.tvm.isa import AVX2, NEON, Isa
from planish.codegen.tvm.map import Map
from planish.compiler import ops
from planish.compiler.ir import Graph, Op
from planish.compiler.types import DType
from tests.codegen.harness import call_of, host_isa, run_call

# each op, torch's function, the range of its arguments and the error that its docstring states, in ulp
CASES = {
    "exp": (ops.exp, torch.exp, (-708.0, 709.7), 2),
    "log": (ops.log, torch.log, (0.0, 1e300), 2),
    "tanh": (ops.tanh, torch.tanh, (-25.0, 25.0), 4),
    "sigmoid": (ops.sigmoid, torch.sigmoid, (-700.0, 700.0), 4),
    "erf": (ops.erf, torch.erf, (-7.0, 7.0), 5),
}
ISAS = pytest.mark.parametrize("isa", [host_isa(), AVX2], ids=["host", "avx2"])


def call(op: Op, count: int, **attrs: str) -> Call:
    x = ops.input_(name="x", shape=(count,), dtype=DType.f64)
    return call_of(Graph("main", (x,), (op(x, **attrs),)), op)


def computed(op: Op, x: Tensor, isa: Isa, **attrs: str) -> Tensor:
    return run_call(Map(), call(op, len(x), **attrs), {"x": x}, isa=isa)


def spread(low: float, high: float) -> Tensor:
    """Numbers of every size between two bounds, and evenly spaced ones."""
    even = torch.linspace(low, high, 20011, dtype=torch.float64)
    sizes = 10.0 ** torch.linspace(-300, numpy.log10(high), 20011, dtype=torch.float64)
    return torch.cat([even, sizes, -sizes if low < 0 else sizes]).clamp(low, high)


@ISAS
@pytest.mark.parametrize("name", CASES)
def test_functions_are_right_to_a_few_ulp(name: str, isa: Isa) -> None:
    op, reference, (low, high), ulp = CASES[name]
    x = spread(low, high)
    wanted = reference(x)
    error = (computed(op, x, isa) - wanted).abs()[wanted.isfinite()]
    spacing = torch.from_numpy(numpy.spacing(wanted.abs().clamp(min=1e-307).numpy()))[wanted.isfinite()]
    assert (error / spacing).max() <= ulp + 1  # torch's own may be one off


@ISAS
@pytest.mark.parametrize(("op", "reference"), [(ops.sin, torch.sin), (ops.cos, torch.cos)], ids=["sin", "cos"])
def test_sine_and_cosine_are_right_within_their_range(op: Op, reference: object, isa: Isa) -> None:
    x = spread(-1e5, 1e5)
    assert (computed(op, x, isa) - reference(x)).abs().max() < 3e-16  # type: ignore[operator]


@ISAS
def test_activations_are_right(isa: Isa) -> None:
    x = spread(-30.0, 30.0)
    for got, wanted in (
        (computed(ops.silu, x, isa), functional.silu(x)),
        (computed(ops.gelu, x, isa, approximate="none"), functional.gelu(x)),
        (computed(ops.gelu, x, isa, approximate="tanh"), functional.gelu(x, approximate="tanh")),
    ):
        torch.testing.assert_close(got, wanted, rtol=1e-14, atol=1e-15)


def test_special_values_are_those_of_ieee() -> None:
    infinity, nan = float("inf"), float("nan")
    x = torch.tensor([infinity, -infinity, nan, 0.0, -0.0, 710.0, -1e308, 5e-324, 1.0], dtype=torch.float64)
    for op, reference in ((ops.exp, torch.exp), (ops.tanh, torch.tanh), (ops.erf, torch.erf), (ops.log, torch.log)):
        torch.testing.assert_close(computed(op, x, host_isa()), reference(x), rtol=1e-15, atol=1e-307, equal_nan=True)


@pytest.mark.parametrize("isa", [host_isa(), NEON], ids=["host", "neon"])
def test_functions_need_no_library(isa: Isa, tmp_path: Path) -> None:
    functions = {name: Map().build(call(op, 64), isa).function for name, (op, *_) in CASES.items()}
    build_object(functions, isa, tmp_path / "k.o")
    symbols = subprocess.run(["nm", "-u", tmp_path / "k.o"], capture_output=True, text=True, check=True).stdout
    assert not symbols.strip()
