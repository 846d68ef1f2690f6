"""The benchmark of GPUs without one: what it refuses, how it goes on, and what its cases count."""

import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from types import ModuleType

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
    return list(fake(Asked(case, sizes, 0.0, 0)))


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


@pytest.mark.parametrize(
    ("name", "why"), [("hangs later", "took longer than 3 s"), ("dies later", "the process died with status 7")]
)
def test_what_was_measured_before_a_case_was_stopped_is_kept(tmp_path: Path, name: str, why: str) -> None:
    run = GpuRun((replace(_case(name, 1, 2), timeout_seconds=3.0),))
    run_gpu(run, SUITE, tmp_path / "r.json", _silent, measure=fake)
    first, second = load(tmp_path / "r.json").results
    assert (first.size, first.failure, first.notes) == (1, None, {"further times": why})
    assert (second.size, second.failure) == (2, why)


def test_a_later_result_stands_for_an_earlier_one_of_its_size(tmp_path: Path) -> None:
    suite = run_gpu(GpuRun((_case("fine", 1, 1),)), SUITE, tmp_path / "r.json", _silent, measure=fake)
    assert len(suite.results) == 1


def test_a_file_that_cannot_be_written_is_told_before_anything_is_measured(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match=r"cannot be written: .*; name another folder with --out"):
        run_gpu(GpuRun((_case("fine", 1),)), SUITE, tmp_path / "file" / "r.json", _silent, measure=fake)


def test_without_a_process_that_measures_nothing_more_is_tried(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module = ModuleType("only_in_this_process")

    def lost(asked: Asked) -> Iterator[GpuResult]:
        yield from ()

    lost.__module__, lost.__qualname__ = module.__name__, "lost"
    monkeypatch.setattr(module, "lost", lost, raising=False)
    monkeypatch.setitem(sys.modules, module.__name__, module)
    asked: list[str] = []
    run = GpuRun((_case("a", 1), _case("b", 1)))
    suite = run_gpu(run, SUITE, tmp_path / "r.json", asked.append, measure=lost)
    assert asked == ["a"]
    assert [r.case for r in suite.results] == ["a"]


def test_a_run_goes_on_with_what_its_file_lacks(tmp_path: Path) -> None:
    path, case = tmp_path / "r.json", _case("fine", 1, 2)
    old = GpuResult("fine", "g", 1, {"planish": 9.0}, {"planish": 9.0})
    failed = GpuResult("fine", "g", 2, failure="it broke")
    save(SUITE.with_results([old, failed]), path)
    suite = run_gpu(GpuRun((case,)), SUITE, path, _silent, measure=fake)
    assert [(r.size, r.median_ms["planish"]) for r in suite.results] == [(1, 9.0), (2, 0.5)]
    again = run_gpu(GpuRun((case,)), SUITE, path, _silent, measure=fake, fresh=True)
    assert [r.median_ms["planish"] for r in again.results] == [0.5, 0.5]


def test_what_failed_comes_last_and_what_needs_more_than_is_left_is_not_begun(tmp_path: Path) -> None:
    save(SUITE.with_results([GpuResult("b", "g", 1, failure="it broke")]), tmp_path / "r.json")
    quick = tuple(replace(_case(name, 1), timeout_seconds=20.0) for name in "ba")
    cases = (*quick, replace(_case("long", 1), timeout_seconds=200.0))
    asked: list[str] = []
    run_gpu(GpuRun(cases, minutes=1.0), SUITE, tmp_path / "r.json", asked.append, measure=fake)
    assert asked == [
        "a",
        "a, size 1: planish 500.0 us, torch 1000.0 us",
        "b",
        "b, size 1: planish 500.0 us, torch 1000.0 us",
    ]
    run_gpu(GpuRun(cases[2:], minutes=1.0), SUITE, tmp_path / "r.json", asked.append, measure=fake)
    assert asked[4] == "long"  # the first is begun all the same


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
