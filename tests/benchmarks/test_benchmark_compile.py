"""The benchmark of compilation: stages, bytes of weights and the table."""

import subprocess
import sys

import pytest
import torch
from torch import nn

from benchmarks.compile import CompileResult, CompileSuite, Stages, compile_markdown, weight_bytes
from benchmarks.memory import memory_bytes
from benchmarks.results import Machine


def test_tied_weights_count_once() -> None:
    embedding, head = nn.Embedding(50, 8), nn.Linear(8, 50, bias=False)
    model = nn.Sequential(embedding, head)
    assert weight_bytes(model) == 2 * 50 * 8 * 4
    head.weight = embedding.weight
    assert weight_bytes(model) == 50 * 8 * 4


def test_a_stage_lasts_until_the_next_begins(monkeypatch: pytest.MonkeyPatch) -> None:
    times = iter([1.0, 3.0, 3.5, 4.0])
    monkeypatch.setattr("time.perf_counter", lambda: next(times))
    stages = Stages()
    for name in ("a", "b", "a", None):
        stages.next(name)
    assert stages.seconds == {"a": 2.5, "b": 0.5}


def test_the_peak_counts_memory_that_was_given_back() -> None:
    script = (
        "from benchmarks.memory import memory_bytes\nimport numpy\nbefore = memory_bytes('VmRSS')\n"
        "x = numpy.ones(1 << 25)\ndel x\nassert memory_bytes('VmHWM') - before >= 200 << 20\n"
        "assert memory_bytes('VmRSS') - before < 100 << 20\n"
    )
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 0


def test_a_row_gives_memory_in_multiples_of_the_weights() -> None:
    mib = 1 << 20
    result = CompileResult("m", 100 * mib, 1.0, 12.34, {}, 50 * mib, 150 * mib, 275 * mib, 101 * mib, 0.456)
    table = compile_markdown(CompileSuite("s", "now", Machine("P", 2, "3", {}), (result,)))
    assert table.splitlines()[-1] == "| m | 100 | 1.0 | 12.3 | 1.50x | 2.75x | 275 | 1.01x | 0.46 |"
    assert len({line.count("|") for line in table.splitlines()}) == 1


def test_memory_is_in_bytes() -> None:
    assert memory_bytes("VmHWM") >= memory_bytes("VmRSS") * 0.99 > torch.ones(1).nbytes
