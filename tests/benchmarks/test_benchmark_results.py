"""Results survive the disk, tables and plots say what the numbers say, and limits are the formula's."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from benchmarks.kernels import KERNELS, KernelCase, KernelResult, KernelSuite, machine_limit
from benchmarks.moves import Moves
from benchmarks.plot import plot, relative
from benchmarks.results import Case, Limit, Machine, Result, Score, Suite, load, save
from benchmarks.run import max_abs_error
from benchmarks.table import kernel_markdown, markdown, speed
from benchmarks.work import Rates, flops, limit, moved_bytes
from planish.errors import InputError

LIMIT = Limit(flops=2e9, moved_bytes=1e6, peak_gflops=(100.0, 100.0), bandwidth_gbs=(10.0, 10.0), ms=20.0)
EAGER = Result("eager", None, "dynamic", 100.0, 90.0, (90.0, 100.0, 110.0), 0.0, 0.1)
FAST = Result("planish", None, "dynamic", 25.0, 20.0, (20.0, 25.0, 30.0), 2e-6, 9.0)
LOST = Result("openvino", failure="openvino is not installed; run 'pip install openvino'")
SUITE = Suite(
    name="fixture",
    created="2026-01-01T00:00:00+00:00",
    machine=Machine("Some Processor", 2, "3.11", {"name": "some"}),
    peers={"eager": "2.13", "planish": "0.1", "openvino": "openvino is not installed"},
    cases=(
        Case("minilm", 1, 128, LIMIT, 0.05, (EAGER, FAST, LOST)),
        Case("minilm", 8, 128, LIMIT, 0.05, (EAGER, replace(FAST, median_ms=100.0))),
    ),
    scores=(Score("minilm", "planish", "top-1", 0.3125, True, 400),),
)


def test_a_suite_comes_back_from_disk_as_it_was(tmp_path: Path) -> None:
    save(SUITE, tmp_path / "deep" / "suite.json")
    assert load(tmp_path / "deep" / "suite.json") == SUITE
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["suite.json"]


def test_a_failed_write_leaves_the_old_file_and_no_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "suite.json"
    save(SUITE, path)

    def full(self: Path, target: Path) -> None:
        raise OSError("No space left on device")

    monkeypatch.setattr(Path, "replace", full)
    with pytest.raises(OSError, match="No space left"):
        save(replace(SUITE, name="other"), path)
    assert load(path).name == "fixture"
    assert list(tmp_path.iterdir()) == [path]


def test_refuses_what_is_not_a_result_file(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot be read"):
        load(tmp_path / "absent.json")
    (tmp_path / "other.json").write_text("{}")
    with pytest.raises(InputError, match="holds no benchmark results"):
        load(tmp_path / "other.json")
    save(replace(SUITE, format=99), tmp_path / "newer.json")
    with pytest.raises(InputError, match="has format 99"):
        load(tmp_path / "newer.json")


def test_the_table_shows_speed_limit_error_means_and_failures() -> None:
    text = markdown(SUITE)
    assert "| minilm | 1 | planish | 25.00 | 20.00 | 4.00 | 0.80 | 2.0e-06 | 0.05 |" in text
    assert "| planish | 2.00 | 2 |" in text
    assert "- minilm, batch 1: openvino is not installed; run 'pip install openvino'" in text
    assert "| minilm | planish | top-1 | 0.3125 | 400 |" in text


def test_speed_is_unknown_without_eager() -> None:
    assert speed(replace(SUITE.cases[0], results=(FAST,)), FAST) is None


def test_the_plot_shows_latency_relative_to_eager(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    assert relative(SUITE, "planish") == [0.25, 1.0]
    assert relative(SUITE, "openvino") == [0.0, 0.0]
    plot(SUITE, tmp_path / "plot.png")
    assert (tmp_path / "plot.png").read_bytes().startswith(b"\x89PNG")


def test_the_limit_is_the_longer_of_arithmetic_and_traffic() -> None:
    samples = (Rates(90.0, 10.0), Rates(110.0, 30.0))
    assert limit((1e9, 1e6), samples).ms == pytest.approx(10.0)
    assert limit((1e6, 1e9), samples).ms == pytest.approx(50.0)


def test_flops_of_a_linear_and_of_attention_are_the_textbook_s() -> None:
    class Attention(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return nn.functional.scaled_dot_product_attention(x, x, x)

    assert flops(nn.Linear(30, 50), {"input": torch.zeros(7, 30)}) == 2 * 7 * 30 * 50
    assert flops(Attention(), {"x": torch.zeros(2, 3, 16, 8)}) == 2 * 2 * (2 * 3) * 16 * 16 * 8


def test_traffic_counts_tied_weights_once_and_of_a_table_only_its_rows() -> None:
    class Tied(nn.Module):
        def __init__(self, *, tied: bool) -> None:
            super().__init__()
            self.table = nn.Embedding(100, 8)
            self.head = nn.Linear(8, 100, bias=False)
            if tied:
                self.head.weight = self.table.weight

    ids, logits = {"ids": torch.zeros(1, 5, dtype=torch.int64)}, torch.zeros(1, 5, 100)
    around = 5 * 8 + 500 * 4
    assert moved_bytes(Tied(tied=True), ids, logits) == 100 * 8 * 4 + around
    assert moved_bytes(Tied(tied=False), ids, logits) == 100 * 8 * 4 + 5 * 8 * 4 + around


def test_the_error_is_the_largest_over_all_outputs_and_refuses_other_shapes() -> None:
    from benchmarks.peers import PeerError

    zeros = torch.zeros(2, 2)
    assert max_abs_error((zeros, zeros - 3), {"a": zeros, "b": zeros}) == 3
    with pytest.raises(PeerError, match="outputs have shapes"):
        max_abs_error(zeros, zeros[0])


def test_operations_of_products_and_exponentials_and_the_bytes_that_are_moved() -> None:
    cases = {(case.name, case.rows, case.dtype): case for case in KERNELS}
    assert cases["linear-gelu-384x1536", 16, "bf16"].operations == 2 * 16 * 384 * 1536
    assert cases["add", 128, "f32"].moved == 3 * 128 * 768 * 4
    assert cases["softmax", 128, "f32"].moved == 2 * 128 * 768 * 4
    assert cases["softmax", 128, "f32"].operations == 2 * 7 * 128 * 768


def test_a_kernel_is_bound_by_the_slower_of_arithmetic_and_a_loop_that_moves_as_much(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("benchmarks.kernels.measure_peak", lambda dtype, seconds, threads: 200.0)
    cases = {case.name: case for case in KERNELS if case.rows == 128}
    elements = 128 * 768
    moves = Moves(kernels=1e-5, loop=elements * 8 / 100e9)
    assert machine_limit(cases["gelu"], 1, moves).bound == "peak"  # 24 / 200 of a nanosecond an element, and 8 / 100
    limit = machine_limit(cases["layer-norm"], 1, moves)
    assert limit.bound == "bandwidth"
    assert limit.seconds == pytest.approx(moves.loop)
    assert limit.rate == pytest.approx(100.0)


@pytest.mark.parametrize("case", KERNELS[:1] + KERNELS[-6:], ids=lambda case: case.name)
def test_every_kernel_module_takes_the_inputs_of_its_case(case: KernelCase) -> None:
    inputs = case.inputs(5)
    assert case.module()(*inputs).shape == (5, case.out or case.width)


def test_the_kernel_table_shows_rates_shares_and_failures() -> None:
    result = KernelResult("add", "f32", 8, 768, None, "bandwidth", 0.5, 0.6, 1.0, 40.0, 50.0, 0.8, 0.0, 0.1)
    text = kernel_markdown(KernelSuite("k", SUITE.created, SUITE.machine, (result,), ("softmax: no template",)))
    assert "| add | f32 | 8 | 0.5000 | 0.6000 | 1.0000 | 40 | 50 | 0.80 | bandwidth | 0.0e+00 |" in text
    assert "- softmax: no template" in text
