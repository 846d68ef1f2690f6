"""The GPU benchmark walked through without one: tiny shapes in Triton's interpreter, and a torch.cuda that is a fake."""

import inspect
import json
import subprocess
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

import planish
from benchmarks.gpu.cases import CASES, GpuCase, linear
from benchmarks.gpu.decode import _compiled_layer, decode
from benchmarks.gpu.decoder import Decoder
from benchmarks.gpu.first_token import first_token, timed
from benchmarks.gpu.hardware import Cuda
from benchmarks.gpu.llama import SHAPES, DecodeCase, llama, model_case
from benchmarks.gpu.measure import PEERS, measure
from benchmarks.gpu.results import Asked, GpuSuite, gpu_markdown
from benchmarks.gpu.run import ALL, begin, measure_named, ship_records
from benchmarks.timing import Timing
from planish.autotune import store as store_module
from planish.autotune.store import Record, Store, default_path
from planish.autotune.tuner import triton_version
from planish.codegen.variants import VariantRow
from planish.compiler.recipe import parse_pass
from planish.hardware_profiles import Profile, load_profile
from planish.passes import ALL as PASSES
from planish.passes import EXACT
from tests.benchmarks import fake_cuda
from tests.runtime.device.interpreted import executable, language_executable

ROWS = tuple(
    VariantRow("k0", 0, None, 4, f"BLOCK_M={i}", seconds, "measured", "L2", i == 0, None, predicted)
    for i, (seconds, predicted) in enumerate(((1e-6, 2e-6), (2e-6, 1e-6)))
)


class Interpreted:
    """Stands for the GPU: an MI300X, whose kernels have no assembly, in Triton's interpreter on the CPU."""

    device = "cpu"

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.timed: list[tuple[str, ...]] = []

    @property
    def profile(self) -> Profile:
        return load_profile("mi300x")

    def compile(self, module: torch.nn.Module, **options: Any) -> Any:
        inspect.signature(planish.compile).bind(module, "mi300x", **options)
        inputs, generate = options["inputs"], options.get("generate")
        parsed = [parse_pass(p, PASSES) if isinstance(p, str) else p for p in options["passes"] or ()]
        lossy = [p for p in parsed if type(p) not in {type(e) for e in EXACT}]
        report = SimpleNamespace(variants=ROWS)
        if generate is None:
            dynamic = options["dynamic"]
            made = executable(module, inputs, self.folder, dynamic=dynamic, profile="mi300x", lossy=lossy)
            return SimpleNamespace(executable=made, report=report)
        found = language_executable(module, inputs[0], self.folder, generate, profile="mi300x", lossy=lossy)
        return SimpleNamespace(executable=found, report=report, generate=found.generate, save=Path.touch)

    def recorded(self, call: Callable[[], object]) -> Callable[[], object]:
        call()
        return call

    def times(self, calls: Mapping[str, Callable[[], object]], seconds: float) -> dict[str, Timing]:
        self.timed.append(tuple(calls))
        for call in calls.values():
            call()
        return {name: Timing((2.0, 1.0, 3.0)) for name in calls}

    def wait(self) -> None:
        """Everything is done."""


def _tiny(case: GpuCase) -> GpuCase:
    def inputs(rows: int) -> tuple[Tensor, ...]:
        return (torch.randn(rows, 128, generator=torch.Generator().manual_seed(1)).half(),)

    made = linear(32, 128, bits=4, group=128)
    return replace(case, module=lambda: made, inputs=inputs, sizes=(1, 5))


@pytest.mark.parametrize("name", ["int4-4096x4096", "f16-4096x4096", "w8a8-4096x4096"])
def test_a_product_is_compiled_compared_and_timed(tmp_path: Path, name: str) -> None:
    hardware = Interpreted(tmp_path)
    case = _tiny(next(case for case in CASES if case.name == name))
    first, second = measure(case, (1, 5), hardware, seconds=0.0, tune=0)
    assert first.correct
    assert second.correct
    assert hardware.timed == [("planish", "torch")] * 2
    assert first.median_ms == {"planish": 2.0, "torch": 2.0}
    assert first.p10_ms == {"planish": 1.0, "torch": 1.0}
    assert first.limit_ms is not None
    assert [(pick.variants, pick.slowdown) for pick in first.picks] == [(2, 2.0)]
    assert (first.model_factor, second.picks) == (2.0, ())


def test_a_model_that_reads_a_prompt_is_compiled_compared_and_timed(tmp_path: Path) -> None:
    case = replace(model_case("tiny", 1, "int4"), peers=("torch",))
    (result,) = measure(case, (3,), Interpreted(tmp_path), seconds=0.0, tune=0)
    assert result.correct


def test_decoding_is_compiled_compared_and_timed(tmp_path: Path) -> None:
    hardware, case = Interpreted(tmp_path), DecodeCase("d", "tiny", 1, (3,), 16, 8, 2, peers=("torch",))
    seen: list[bool] = []

    def first(path: Path) -> Mapping[str, float]:
        seen.append(path.exists())
        return {"first_token_seconds": 1.5}

    (result,) = decode(case, (3,), hardware, seconds=0.0, tune=0, first=first)
    assert seen == [True]
    assert result.correct
    assert hardware.timed == [("planish", "torch")]
    assert result.facts["first_token_seconds"] == 1.5
    assert result.facts["generated_token_ms"] > 0
    suite = GpuSuite("Device", "now", {"torch": "1"}, 1000.0).with_results([result])
    text = gpu_markdown(suite)
    assert "| d | 3 | first_token_seconds | 1.5 |" in text
    assert "within 15% of the best measured variant for 0 of 1 calls (0%)" in text
    assert "| d | k0 | 4 | 2.00 |" in text


def test_a_first_token_that_cannot_be_timed_costs_no_more(tmp_path: Path) -> None:
    case = DecodeCase("d", "tiny", 1, (3,), 16, 8, 2, peers=("torch",))

    def late(path: Path) -> Mapping[str, float]:
        raise subprocess.TimeoutExpired("python", 120.0)

    (result,) = decode(case, (3,), Interpreted(tmp_path), seconds=0.0, tune=0, first=late)
    assert result.correct
    assert result.notes == {"first_token_seconds": "Command 'python' timed out after 120.0 seconds"}


def test_what_is_compiled_by_torch_is_timed_after_the_rest_and_may_fail(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def broken(module: torch.nn.Module) -> Callable[..., Any]:
        def call(*inputs: Tensor) -> Tensor:
            raise FileNotFoundError("no gcc")

        return call

    monkeypatch.setattr("benchmarks.gpu.measure.PEERS", {**PEERS, "torch.compile": broken})
    case = replace(
        _tiny(next(case for case in CASES if case.name == "f16-4096x4096")), peers=("torch", "torch.compile")
    )
    hardware = Interpreted(tmp_path)
    first, second = measure(case, (5,), hardware, seconds=0.0, tune=0)
    assert hardware.timed == [("planish", "torch")] * 2
    assert (first.notes, second.notes) == ({}, {"torch.compile": "FileNotFoundError: no gcc"})
    assert "- f16-4096x4096, size 5, no torch.compile: FileNotFoundError: no gcc" in gpu_markdown(
        GpuSuite("Device", "now", {"torch": "1"}, 1000.0).with_results([second])
    )


def test_the_peers_steps_give_the_logits_of_transformers() -> None:
    model = llama("tiny", 2).float()
    tokens = torch.tensor([5, 90, 3, 17, 41])
    with torch.inference_mode():
        wanted = model(tokens[None]).logits[0, -1]
        torch.testing.assert_close(Decoder(model, 8).read(tokens), wanted, rtol=1e-4, atol=1e-5)


def test_the_bytes_of_a_step_are_those_of_codes_scales_and_caches() -> None:
    case = DecodeCase("d", "tiny", 1)
    # 2 * 128 * 128 of q and o, 2 * 128 * 64 of k and v, 3 * 128 * 128, the head
    weights = 2 * 128 * 128 + 2 * 128 * 64 + 3 * 128 * 128 + 128 * 96
    assert SHAPES["tiny"].linear_weights(1) == weights
    assert case.moved_bytes(10) == weights * 4.125 / 8 + 10 * 2 * 64 * 2
    packed = DecodeCase("d", "8b", 1, cache="i4")  # 8 heads of 128: 64 bytes of codes, 4 groups of 2 numbers in f16
    plain = DecodeCase("d", "8b", 1)
    assert plain.moved_bytes(10) - packed.moved_bytes(10) == 10 * 2 * 8 * (256 - 80)


def test_the_gpus_clock_takes_turns_and_gives_milliseconds(monkeypatch: pytest.MonkeyPatch) -> None:
    fake_cuda.install(monkeypatch)
    calls: list[str] = []
    hardware = Cuda("cpu", flushed_bytes=16)
    times = hardware.times({"a": lambda: calls.append("a"), "b": lambda: calls.append("b")}, 0.0, least=2)
    assert "".join(calls) == "aaabbb" + "ab" * 2
    assert times["a"].calls_ms == (1.0, 1.0)
    assert hardware.copy_gbs(1000) == 2e-6 * 1000 / 1.0
    assert hardware.profile.name == "h200"


def test_a_recorded_call_is_replayed(monkeypatch: pytest.MonkeyPatch) -> None:
    fake_cuda.install(monkeypatch)
    calls: list[int] = []
    before = fake_cuda.Graph.replayed
    Cuda("cpu").recorded(lambda: calls.append(1))()
    assert (len(calls), fake_cuda.Graph.replayed - before) == (3, 1)


def test_a_suite_begins_with_what_the_machine_is(monkeypatch: pytest.MonkeyPatch) -> None:
    fake_cuda.install(monkeypatch)
    monkeypatch.setattr(Cuda, "copy_gbs", lambda self: 4000.0)
    suite = begin()
    assert (suite.device, suite.copy_gbs, suite.versions["runtime"]) == ("NVIDIA H200", 4000.0, "13.0")


def test_each_kind_of_case_goes_to_its_measurement(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[str, tuple[int, ...], float, int]] = []

    def noting(case: Any, sizes: tuple[int, ...], hardware: object, *, seconds: float, tune: int) -> Iterator[Any]:
        assert isinstance(hardware, Cuda)
        asked.append((case.name, sizes, seconds, tune))
        yield from ()

    monkeypatch.setattr("benchmarks.gpu.measure.measure", noting)
    monkeypatch.setattr("benchmarks.gpu.decode.decode", noting)
    for name in ("int4-4096x4096", "decode-8b"):
        assert list(measure_named(Asked(name, (1,), 0.5, 3))) == []
    assert asked == [("int4-4096x4096", (1,), 0.5, 3), ("decode-8b", (1,), 0.5, 3)]
    assert {case.group for case in ALL} >= {"int4", "f16", "attention", "memory", "w8a8", "decode", "prefill w8a8"}


def test_torch_compile_is_asked_for_its_best_without_graphs_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []

    def noting(module: Any, **options: Any) -> Any:
        asked.append(options)
        return module

    monkeypatch.setattr(torch, "compile", noting)
    PEERS["torch.compile"](torch.nn.Identity())
    _compiled_layer()
    assert asked == [{"mode": "max-autotune-no-cudagraphs", "dynamic": False}] * 2


def test_the_time_to_the_first_token_counts_loading_and_one_step(monkeypatch: pytest.MonkeyPatch) -> None:
    moments = iter((0.0, 3.0, 3.5, 4.0))
    monkeypatch.setattr("time.perf_counter", lambda: next(moments))
    asked: list[Any] = []

    def load(path: Path) -> Any:
        asked.append(path)
        return SimpleNamespace(generate=lambda prompt, max_new_tokens: iter([7] * max_new_tokens))

    found = timed(Path("a"), load, lambda: None)
    assert asked == [Path("a")]
    assert found == {"ready_seconds": 3.0, "load_seconds": 0.5, "first_token_seconds": 1.0}


def test_a_process_that_cannot_load_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    done = SimpleNamespace(returncode=1, stdout="", stderr="ArtifactError: gone\n")
    monkeypatch.setattr("subprocess.run", lambda *given, **named: done)
    with pytest.raises(RuntimeError, match="the process that loads the artifact failed: ArtifactError: gone"):
        first_token(Path("a"))
    done.returncode, done.stdout = 0, "noise\n" + json.dumps({"load_seconds": 1.0}) + "\n"
    assert first_token(Path("a")) == {"load_seconds": 1.0}


def test_records_are_shipped_in_a_file_of_the_profile_and_triton(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    fake_cuda.install(monkeypatch)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(store_module, "SHIPPED", tmp_path)
    facts = ("d", load_profile("h200").fingerprint, triton_version(), "1")
    record = Record(*facts, "k", "{}", "v", 1e-6, 1e-6, None, "t")
    Store(default_path()).add(record)
    assert ship_records().startswith("wrote 1 records to ")
    (tmp_path / "out").mkdir()
    assert ship_records(tmp_path / "out").endswith(f"records to {next((tmp_path / 'out').glob('h200-triton-*.jsonl'))}")
    (path,) = tmp_path.glob("h200-triton-*.jsonl")
    assert json.loads(path.read_text())["kernel"] == "k"
