"""Outputs too large for the caches are written past them, with the same numbers."""

import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from planish.codegen.template import Template
from planish.codegen.tvm import streaming
from planish.codegen.tvm.build import build_object
from planish.codegen.tvm.isa import AVX2, AVX512, NEON, Isa
from planish.codegen.tvm.map import Map
from planish.codegen.tvm.rows import Rows
from planish.codegen.tvm.streaming import refuse_stream
from planish.codegen.view import View
from planish.compiler import ops
from planish.compiler.ir import Graph, Value
from planish.compiler.types import DType, Size
from tests.codegen.compare import check, leaf, normal
from tests.codegen.harness import call_of, host_isa, run_call

S = Size("s").symbol
HOST = [host_isa(), AVX2]


@pytest.fixture
def everything_is_large(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streaming, "STREAM_BYTES", 1)


def _view(*shape: int, strides: tuple[int, ...] | None = None) -> View:
    return View(shape, strides or (shape[1], 1), 0, DType.f32)


def test_small_outputs_other_processors_and_odd_rows_are_refused() -> None:
    large = _view(8192, 1024)
    assert refuse_stream(large, AVX512) is None
    assert refuse_stream(large, NEON) == "stores past the caches are measured on x86-64 alone"
    assert refuse_stream(_view(512, 1024), AVX512) == "the output fits in the caches"
    assert refuse_stream(_view(8192, 1001), AVX512) == "rows do not end with a vector"
    assert refuse_stream(_view(8192, 1024, strides=(2048, 1)), AVX512) == "the output does not lie in one piece"


@pytest.mark.parametrize("isa", HOST, ids=["host", "avx2"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64, torch.int8], ids=str)
@pytest.mark.parametrize("width", [64, 70, 8])
@pytest.mark.usefixtures("everything_is_large")
def test_elementwise_results_are_the_same(width: int, dtype: torch.dtype, isa: Isa) -> None:
    x, y = normal(33, width).to(dtype), normal(33, width, seed=1).to(dtype)
    check(Map(), ops.add, x, y, isa=isa, tasks=3)
    check(Map(), ops.add, x, y, isa=isa, sizes={"s": 33}, shapes=((S, width), (S, width)))
    check(Map(), ops.add, x, y, isa=isa, sizes={"s": width}, shapes=((33, S), (33, S)))


@pytest.mark.usefixtures("everything_is_large")
def test_copies_and_joins_are_the_same() -> None:
    x, y = normal(7, 64), normal(3, 64, seed=1)
    check(Map(), lambda x: ops.reshape(x, shape=(14, 32)), x)
    check(Map(), lambda x, y: ops.concat(x, y, axis=0), x, y)
    check(Map(), lambda x: ops.gt(x, ops.full(value=0.0, dtype=DType.f32)), x)


@pytest.mark.parametrize("isa", HOST, ids=["host", "avx2"])
@pytest.mark.parametrize("rows", [1, 2, 7])
@pytest.mark.usefixtures("everything_is_large")
def test_rows_are_the_same(rows: int, isa: Isa) -> None:
    x, w = normal(rows, 48), normal(48, seed=1)
    options = {"isa": isa, "rtol": 1e-5, "atol": 3e-6}
    check(Rows(), lambda x: ops.softmax(x, axis=1), x, **options)  # type: ignore[arg-type]
    dynamic = {"sizes": {"s": 48}, "shapes": ((rows, S), (S,))}
    check(Rows(), lambda x, w: ops.rms_norm(x, w), x, w, **options, **dynamic)  # type: ignore[arg-type]


ADD: Callable[[Value, Value], Value] = ops.add
NORM: Callable[[Value, Value], Value] = lambda x, y: ops.layer_norm(ops.add(x, y))  # noqa: E731


@pytest.mark.parametrize(("template", "build"), [(Map(), ADD), (Rows(), NORM)], ids=["map", "rows"])
def test_large_outputs_leave_by_non_temporal_stores(
    template: Template, build: Callable[[Value, Value], Value], tmp_path: Path
) -> None:
    x, y = leaf("x", torch.empty(1), (S, 64)), leaf("y", torch.empty(1), (S, 64))
    output = build(x, y)
    call = call_of(Graph("main", (x, y), (output,), (Size("s", hint=8),)), output.node.op)
    function = template.build(call, AVX512).function
    path = tmp_path / "k.o"
    build_object({"first": function, "second": function}, AVX512, path)
    assert _instructions(path) >= {"vmovntps", "sfence"}


def _instructions(path: Path) -> set[str]:
    listed = subprocess.run(
        ["objdump", "-d", "--no-show-raw-insn", str(path)], capture_output=True, text=True, check=True
    ).stdout
    return {word for line in listed.splitlines() if (word := line.partition("\t")[2].partition(" ")[0])}


@pytest.mark.parametrize("shift", [0, 4, 32])
@pytest.mark.usefixtures("everything_is_large")
def test_an_output_at_an_odd_address_is_written_by_ordinary_stores(shift: int) -> None:
    x = normal(5, 64)
    value = leaf("x", x)
    call = call_of(Graph("main", (value,), (ops.neg(value),)), ops.neg)
    assert torch.equal(run_call(Map(), call, {"x": x}, shift=shift), -x)
