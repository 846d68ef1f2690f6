"""The benchmark of GPUs without one: what it refuses, how it goes on, and what its cases count."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from typer.testing import CliRunner

from benchmarks.__main__ import app
from benchmarks.gpu.cases import CASES, GpuCase, exact_weights
from benchmarks.gpu.llama import MODELS, SHAPES
from benchmarks.gpu.results import Asked, GpuResult, GpuSuite, gpu_markdown, load, plot_gpu, resumed, save
from benchmarks.gpu.run import GpuRun, left, run_gpu
from planish.errors import InputError
from planish.passes.weight_codes import Format
from tests.benchmarks.fake_measure import fake

SUITE = GpuSuite("Device", "now", {"torch": "1"}, 1000.0)


def _faked(case: str, *sizes: int) -> Sequence[GpuResult]:
    return fake(Asked(case, sizes, 0.0, 0))


def _case(name: str, *sizes: int) -> GpuCase:
    return replace(CASES[0], name=name, sizes=sizes)


def _silent(text: str) -> None:
    pass


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_refuses_a_machine_without_a_gpu() -> None:
    with pytest.raises(InputError, match="this machine has no GPU that torch can use; run the benchmark where one is"):
        CliRunner().invoke(app, ["gpu"], catch_exceptions=False)


def test_an_unknown_case_is_named_before_work_starts() -> None:
    with pytest.raises(InputError, match="nothing to measure is called 'int4-4096x409'; did you mean 'int4-4096x4096'"):
        CliRunner().invoke(app, ["gpu", "--only", "int4-4096x409"], catch_exceptions=False)


def test_a_case_that_dies_or_raises_is_a_failure_and_the_next_is_measured(tmp_path: Path) -> None:
    run = GpuRun((_case("dies", 1), _case("raises", 2), _case("fine", 3, 4)))
    suite = run_gpu(run, SUITE, tmp_path / "r.json", _silent, measure=fake)
    assert {(r.case, r.size): r.failure for r in suite.results} == {
        ("dies", 1): "the process died with status 7",
        ("raises", 2): "RuntimeError: CUDA error: an illegal memory access",
        ("fine", 3): None,
        ("fine", 4): None,
    }
    assert load(tmp_path / "r.json") == suite
    assert left(run, suite) == ["dies", "raises"]


def test_a_measurement_that_hangs_is_stopped(tmp_path: Path) -> None:
    run = GpuRun((replace(_case("hangs", 1), timeout_seconds=0.1),))
    (result,) = run_gpu(run, SUITE, tmp_path / "r.json", _silent, measure=fake).results
    assert result.failure == "took longer than 0 s"


def test_a_run_goes_on_with_what_its_file_lacks(tmp_path: Path) -> None:
    path, case = tmp_path / "r.json", _case("fine", 1, 2)
    old = GpuResult("fine", "g", 1, {"planish": 9.0}, {"planish": 9.0})
    failed = GpuResult("fine", "g", 2, failure="it broke")
    save(SUITE.with_results([old, failed]), path)
    suite = run_gpu(GpuRun((case,)), SUITE, path, _silent, measure=fake)
    assert [(r.size, r.median_ms["planish"]) for r in suite.results] == [(1, 9.0), (2, 0.5)]
    again = run_gpu(GpuRun((case,)), SUITE, path, _silent, measure=fake, fresh=True)
    assert [r.median_ms["planish"] for r in again.results] == [0.5, 0.5]


def test_no_case_is_begun_after_its_minutes(tmp_path: Path) -> None:
    run = GpuRun((_case("fine", 1),), minutes=-1.0)
    assert run_gpu(run, SUITE, tmp_path / "r.json", _silent, measure=fake).results == ()


def test_refuses_to_go_on_with_another_gpus_results(tmp_path: Path) -> None:
    save(replace(SUITE, device="Other"), tmp_path / "r.json")
    with pytest.raises(InputError, match="was measured on Other with"):
        resumed(tmp_path / "r.json", SUITE)


def test_the_table_shows_speed_share_and_what_is_wrong() -> None:
    good, wrong = _faked("a", 1)[0], replace(_faked("b", 2)[0], error=0.5)
    text = gpu_markdown(SUITE.with_results([good, wrong, GpuResult("c", "g", 3, failure="it broke")]))
    assert "| a | 1 | 500.0 | 1000.0 | 2.00 |  | 0.50 | 1.0e-03 | yes |" in text
    assert "| b | 2 | 500.0 | 1000.0 | 2.00 |  | 0.50 | 5.0e-01 | NO |" in text
    assert "| g | 2.00 | 2 |" in text
    assert text.endswith("- c, size 3: it broke\n")


def test_the_picture_is_a_png(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    plot_gpu(SUITE.with_results(_faked("a", 1, 8)), tmp_path / "p.png")
    assert (tmp_path / "p.png").read_bytes().startswith(b"\x89PNG")


def test_names_of_cases_differ() -> None:
    names = [case.name for case in (*CASES, *MODELS)]
    assert len(set(names)) == len(names)


@pytest.mark.parametrize(("bits", "group"), [(4, 128), (8, 0)])
def test_the_weights_lose_nothing_in_rounding(bits: int, group: int) -> None:
    weight = exact_weights(24, 256, bits=bits, group=group)
    grouped = weight.float().reshape(24, -1, group or 256)
    scale = grouped.abs().amax(-1, keepdim=True) / ((1 << (bits - 1)) - 1)
    assert torch.equal(((grouped / scale).round() * scale.half().float()).half().reshape(24, 256), weight)
    codes = Format(bits, group or 256).encode(weight)
    assert codes.error == 0.0


def test_the_weights_lose_nothing_in_f8() -> None:
    case = next(case for case in CASES if case.name == "f8-4096x4096")
    weight = case.module().weight.detach()[:8]
    assert Format(8, 4096, f8=True).encode(weight).error == 0.0


@pytest.mark.parametrize("name", ["int4-4096x4096", "f16-8192x8192", "decode-32x128"])
def test_flops_are_those_that_torch_counts(name: str) -> None:
    case = next(case for case in CASES if case.name == name)
    size = min(case.sizes)
    with torch.device("meta"), FlopCounterMode(display=False) as counter:
        module = torch.nn.Linear(int(name.split("x")[1]), int(name.split("-")[1].split("x")[0]), bias=False)
        inputs = [torch.empty(t.shape) for t in case.inputs(size)]
        if case.group == "attention":
            q, k, v = inputs
            _ = (q @ k.transpose(-1, -2)) @ v
        else:
            module(*inputs)
    assert case.flops(size) == counter.get_total_flops()


def test_an_8b_model_has_as_many_weights() -> None:
    # LLaMA 3 8B has 8.03e9 parameters, of which the embedding's 128256 * 4096 are in no linear map
    assert SHAPES["8b"].linear_weights(32) + 128256 * 4096 == pytest.approx(8.03e9, rel=1e-3)
    assert SHAPES["70b"].linear_weights(80) + 128256 * 8192 == pytest.approx(70.6e9, rel=2e-3)
