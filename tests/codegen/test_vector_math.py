"""Elementary functions against float64 results of numpy, in units in the last place."""

import ctypes
import math
from collections.abc import Callable
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy
import pytest
import torch
from tvm.script.ir_builder import IRBuilder
from tvm.script.ir_builder import tirx as T  # noqa: N812

from planish.codegen.tvm import short_math, vector_math
from planish.codegen.tvm.build import build_object, link
from planish.codegen.tvm.isa import AVX2, NEON, Isa
from planish.codegen.tvm.kernel import ramp
from planish.codegen.tvm.power import power
from tests.codegen.harness import host_isa

UNARY = ("exp", "exp_nonpositive", "log", "tanh", "sigmoid", "silu", "erf", "gelu", "gelu_tanh", "sin", "cos")
SHORT = ("exp", "tanh", "sigmoid", "silu", "gelu", "gelu_tanh")
FUNCTIONS = {
    **{name: getattr(vector_math, name) for name in UNARY},
    **{f"short_{name}": getattr(short_math, name) for name in SHORT},
    "power": power,
}
NAMES = tuple(FUNCTIONS)


def _function(name: str, lanes: int) -> object:
    """y[i] = f(x[i]) or f(x[i], z[i]), `lanes` elements at a time."""
    with IRBuilder() as ir, T.prim_func(private=True, s_tir=True):
        T.func_name(name)
        pointers = [T.arg(n, T.handle("float32")) for n in ("x", "z", "y")]
        count = T.arg("count", T.int64())
        x, z, y = (T.decl_buffer((count,), "float32", data=p) for p in pointers)
        with T.serial(count // lanes) as i:
            at = ramp(i * lanes, lanes)
            operands = [x[at], z[at]] if name == "power" else [x[at]]
            T.buffer_store(y, FUNCTIONS[name](*operands), [at])
    return ir.get()


def _object(isa: Isa, lanes: int, path: Path) -> None:
    build_object({f"{name}_of": _function(name, lanes) for name in NAMES}, isa, path)


@cache
def _library(isa: Isa, lanes: int) -> ctypes.CDLL:
    with TemporaryDirectory() as folder:
        _object(isa, lanes, Path(folder, "m.o"))
        link([], [Path(folder, "m.o")], isa, Path(folder, "m.so"))
        return ctypes.CDLL(str(Path(folder, "m.so")))


def _run(
    name: str, x: numpy.ndarray, z: numpy.ndarray | None = None, isa: Isa | None = None, lanes: int = 0
) -> numpy.ndarray:
    isa = isa or host_isa()
    lanes = lanes or isa.lanes
    size = len(x)
    x = numpy.resize(x, -(-size // lanes) * lanes).astype(numpy.float32)
    z = numpy.resize(x if z is None else z, len(x)).astype(numpy.float32)
    y = numpy.zeros_like(x)
    pointers = (ctypes.c_void_p(a.ctypes.data) for a in (x, z, y))
    getattr(_library(isa, lanes), f"{name}_of")(*pointers, ctypes.c_int64(len(x)))
    return y[:size]


def _ulps(found: numpy.ndarray, wanted: numpy.ndarray) -> float:
    """Largest error in units of the last place of the wanted result; exact on infinities and not-a-numbers."""
    rounded = wanted.astype(numpy.float32)
    special = ~numpy.isfinite(rounded)
    numpy.testing.assert_array_equal(found[special], rounded[special])
    unit = numpy.spacing(numpy.maximum(numpy.abs(rounded[~special]), numpy.float32(1.2e-38))).astype(numpy.float64)
    return float((numpy.abs(found[~special] - wanted[~special]) / unit).max())


def _spread(low: float, high: float, count: int = 40000) -> numpy.ndarray:
    """Values of both signs between two sizes, evenly in the logarithm, and evenly from end to end."""
    sizes = numpy.exp(numpy.random.default_rng(0).uniform(math.log(low), math.log(high), count))
    even = numpy.random.default_rng(1).uniform(-high, high, count)
    return numpy.concatenate([sizes, -sizes, even]).astype(numpy.float32)


SPECIAL = numpy.array(
    [0.0, -0.0, math.inf, -math.inf, math.nan, 1e-45, -1e-45, 1.0, -1.0, 3.4e38, -3.4e38], numpy.float32
)


def _exp(x: numpy.ndarray) -> numpy.ndarray:
    """Results below 2^-126 are 0."""
    return numpy.where(x < numpy.float32(-87.33), 0.0, numpy.exp(x))


def _erf(x: numpy.ndarray) -> numpy.ndarray:
    return torch.erf(torch.from_numpy(x)).numpy()


CASES: dict[str, tuple[Callable[[numpy.ndarray], numpy.ndarray], tuple[float, float], float]] = {
    "exp": (_exp, (1e-10, 110.0), 1.5),
    "log": (numpy.log, (1e-44, 3e38), 1.5),
    "tanh": (numpy.tanh, (1e-10, 20.0), 2.5),
    "erf": (_erf, (1e-10, 6.0), 1.5),
}


@pytest.mark.parametrize("isa", [host_isa(), AVX2], ids=["host", "avx2"])
@pytest.mark.parametrize("name", CASES)
def test_is_within_its_ulps_over_the_whole_range(name: str, isa: Isa) -> None:
    formula, (low, high), bound = CASES[name]
    x = numpy.concatenate([_spread(low, high), SPECIAL])
    with numpy.errstate(all="ignore"):
        assert _ulps(_run(name, x, isa=isa), formula(x.astype(numpy.float64))) <= bound


@pytest.mark.parametrize("name", UNARY)
def test_scalars_and_vectors_agree(name: str) -> None:
    x = numpy.concatenate([_spread(1e-6, 30.0, 500), SPECIAL])
    numpy.testing.assert_array_equal(_run(name, x, lanes=1), _run(name, x))


def test_exp_of_nonpositive_values_flushes_only_denormals() -> None:
    x = -numpy.abs(_spread(1e-10, 87.3))
    found, wanted = _run("exp_nonpositive", x), numpy.exp(x.astype(numpy.float64))
    assert _ulps(found[x > -10], wanted[x > -10]) <= 3
    assert _ulps(found, wanted) <= 5
    below = _run("exp_nonpositive", numpy.array([-88.0, -1e30, -math.inf]))
    assert ((below >= 0) & (below < 2.0**-126)).all()


def _float64(function: Callable[[torch.Tensor], torch.Tensor], x: numpy.ndarray) -> numpy.ndarray:
    return function(torch.from_numpy(x).double()).numpy()


def test_sigmoid_is_within_its_ulps_above_its_floor() -> None:
    x = numpy.concatenate([_spread(1e-6, 87.0), SPECIAL])
    assert _ulps(_run("sigmoid", x)[x > -87], _float64(torch.sigmoid, x)[x > -87]) <= 2.5
    assert not _run("sigmoid", numpy.array([-100.0, -math.inf])).any()


@pytest.mark.parametrize(
    ("name", "function"),
    [
        ("silu", torch.nn.functional.silu),
        ("gelu", torch.nn.functional.gelu),
        ("gelu_tanh", lambda x: torch.nn.functional.gelu(x, approximate="tanh")),
    ],
)
def test_activations_are_close_to_float64(name: str, function: Callable[[torch.Tensor], torch.Tensor]) -> None:
    x = _spread(1e-8, 60.0)
    error = numpy.abs(_run(name, x) - _float64(function, x))
    assert (error / numpy.maximum(1, numpy.abs(x))).max() <= 1.5e-7


def test_errors_of_gelu_do_not_add_up() -> None:
    """Where most activations are, a mean error near the largest one would be the same in every element of a sum."""
    x = numpy.random.default_rng(3).normal(-0.3, 0.3, 100000).astype(numpy.float32)
    error = _run("gelu", x) - _float64(torch.nn.functional.gelu, x)
    assert abs(error.mean()) <= 2e-8
    assert numpy.sqrt((error**2).mean()) <= 5e-8


def test_activations_of_infinities() -> None:
    ends = numpy.array([math.inf, -math.inf, math.nan], numpy.float32)
    assert _run("gelu", ends)[0] == math.inf
    assert abs(_run("gelu", ends)[1]) < 1e-30
    assert numpy.isnan(_run("gelu", ends)[2])


@pytest.mark.parametrize("isa", [host_isa(), AVX2], ids=["host", "avx2"])
@pytest.mark.parametrize(
    ("name", "function", "low", "high"),
    [
        ("exp", torch.exp, -87.0, 88.0),
        ("tanh", torch.tanh, -20.0, 20.0),
        ("sigmoid", torch.sigmoid, -87.0, 87.0),
        ("silu", torch.nn.functional.silu, -87.0, 87.0),
        ("gelu", torch.nn.functional.gelu, -4.5, 60.0),
        ("gelu_tanh", lambda x: torch.nn.functional.gelu(x, approximate="tanh"), -3.5, 60.0),
    ],
)
def test_short_functions_have_eleven_bits(
    name: str, function: Callable[[torch.Tensor], torch.Tensor], low: float, high: float, isa: Isa
) -> None:
    x = _spread(1e-8, 90.0)
    x = x[(x > low) & (x < high)]
    wanted = _float64(function, x)
    assert (numpy.abs(_run(f"short_{name}", x, isa=isa) - wanted) / numpy.abs(wanted)).max() <= 2.0**-11


@pytest.mark.parametrize("name", SHORT)
def test_short_functions_end_as_the_long_ones_do(name: str) -> None:
    ends = numpy.array([math.inf, -math.inf, math.nan, 100.0, -100.0, 0.0], numpy.float32)
    numpy.testing.assert_allclose(_run(f"short_{name}", ends), _run(name, ends), rtol=1e-4, atol=1e-12)


def test_short_gelu_vanishes_far_below_zero() -> None:
    x = numpy.linspace(-60.0, -4.5, 5000)
    assert numpy.abs(_run("short_gelu", x) - _float64(torch.nn.functional.gelu, x.astype(numpy.float32))).max() <= 1e-7


@pytest.mark.parametrize("name", ["sin", "cos"])
def test_sine_and_cosine_are_within_2e_7_up_to_a_hundred_thousand(name: str) -> None:
    x = _spread(1e-6, 1e5)
    assert numpy.abs(_run(name, x) - getattr(numpy, name)(x.astype(numpy.float64))).max() <= 2e-7
    assert numpy.isnan(_run(name, numpy.array([math.inf, -math.inf, math.nan]))).all()


def test_power_is_within_its_ulps() -> None:
    random = numpy.random.default_rng(2)
    x = numpy.exp(random.uniform(-60, 60, 60000)).astype(numpy.float32)
    y = random.uniform(-4, 4, 60000).astype(numpy.float32)
    with numpy.errstate(all="ignore"):
        assert _ulps(_run("power", x, y), numpy.power(x.astype(numpy.float64), y)) <= 1.5


def test_power_of_special_values_follows_numpy() -> None:
    base = numpy.array([0.0, -0.0, 1.0, -1.0, 2.0, -2.0, 0.5, -0.5, math.inf, -math.inf, math.nan], numpy.float32)
    exponent = numpy.array([0.0, 1.0, -1.0, 2.0, 3.0, -3.0, 0.5, -0.5, 200.0, -201.0, math.inf, -math.inf, math.nan])
    x, y = (a.reshape(-1).astype(numpy.float32) for a in numpy.meshgrid(base, exponent))
    with numpy.errstate(all="ignore"):
        wanted = numpy.power(x.astype(numpy.float64), y.astype(numpy.float64)).astype(numpy.float32)
    numpy.testing.assert_allclose(_run("power", x, y), wanted, rtol=2e-7)


def test_functions_compile_for_neon(tmp_path: Path) -> None:
    _object(NEON, 4, tmp_path / "m.o")
    assert (tmp_path / "m.o").stat().st_size > 0


@pytest.mark.parametrize("isa", [host_isa(), AVX2, NEON], ids=["host", "avx2", "neon"])
def test_objects_call_no_library(isa: Isa, tmp_path: Path) -> None:
    import subprocess

    _object(isa, isa.lanes, tmp_path / "m.o")
    listed = subprocess.run(["nm", "-u", str(tmp_path / "m.o")], capture_output=True, text=True, check=True)
    assert listed.stdout.split() == []
