"""Quality is measured under both on the same data, and differences and failures are not lost."""

import json
import math
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from benchmarks import quality
from benchmarks.peers import PeerError
from benchmarks.quality import Beside, Distance, QualityResult, in_f64, quality_markdown, run_quality
from benchmarks.results import Machine
from benchmarks.zoo import Call, DataError, Inputs, Quality, ZooModel, tensors


def load() -> nn.Module:
    torch.manual_seed(0)
    return nn.Linear(4, 3).eval()


def inputs(batch: int, length: int | None) -> Inputs:
    return {"input": torch.arange(4.0 * batch).reshape(batch, 4)}


def mean(call: Call) -> Quality:
    """The mean output on two calls of other sizes than the example's."""
    given = [torch.ones(3, 4), torch.full((5, 4), 2.0)]
    values = torch.cat([tensors(call(x))[0] for x in given])
    return Quality("mean", values.double().mean().item(), True, len(values))


def lost(call: Call) -> Quality:
    raise DataError("the data is away; fetch it")


MODEL = ZooModel("small", "one layer", load, inputs, {"input": {0: "batch"}}, {"batch": (1, 8)}, mean)
LOST = ZooModel("lost", "no data", load, inputs, {"input": {0: "batch"}}, {"batch": (1, 8)}, lost)


def test_both_values_and_the_difference_are_written_as_json(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quality, "machine", lambda threads: Machine("P", threads, "3", {}))
    suite = run_quality((MODEL, LOST), "q", tmp_path / "q.json", threads=1, say=lambda text: None)
    (written,) = json.loads((tmp_path / "q.json").read_text())["results"]
    with torch.no_grad():
        expected = load()(torch.cat([torch.ones(3, 4), torch.full((5, 4), 2.0)]))
    assert written["eager"] == pytest.approx(expected.double().mean().item(), rel=1e-6)
    assert written["planish"] == pytest.approx(written["eager"], rel=1e-5)
    assert 0 <= written["apart"]["mean_square_root"] <= written["apart"]["largest"] < 1e-5
    exact = load().double()(torch.cat([torch.ones(3, 4), torch.full((5, 4), 2.0)]).double())
    assert written["eager_error"]["largest"] == (expected - exact).abs().max().item()
    assert suite.results[0].verdict == "within 1e-4 of eager"
    assert written["largest_output"] == pytest.approx(expected.abs().max().item(), rel=1e-6)
    assert (written["metric"], written["samples"], written["calls"], written["exact_calls"]) == ("mean", 8, 2, 2)
    assert suite.failures == ("lost: the data is away; fetch it",)
    assert "| small | mean | 8 | " in quality_markdown(suite)
    assert "- lost: the data is away" in quality_markdown(suite)


def test_the_distances_of_all_calls_are_kept() -> None:
    def eager(x: Tensor) -> Tensor:
        return x * 2

    def ours(x: Tensor) -> Tensor:
        return x * 2 + x.abs().max() / 4

    beside = Beside(ours, eager, lambda x: x.double())
    for scale in (1.0, 4.0, 2.0):
        assert torch.equal(tensors(beside(torch.full((2,), scale)))[0], torch.full((2,), 2.25 * scale))
    assert (beside.apart.distance.largest, beside.largest, beside.calls) == (1.0, 8.0, 3)
    assert beside.apart.distance.mean_square_root == pytest.approx(math.sqrt((0.25**2 + 1 + 0.5**2) / 3))
    assert beside.eager_error.distance.largest == 4.0
    assert beside.planish_error.distance.largest == 5.0


def test_f64_is_computed_in_the_first_calls_and_where_outputs_are_apart() -> None:
    exact: list[float] = []
    beside = Beside(lambda x: x + (x == 7) * 1e-3, lambda x: x, lambda x: exact.append(float(x)) or x.double())
    for value in (0.0, 1.0, 2.0, 3.0, 4.0, 7.0, 5.0):
        beside(torch.tensor([value]))
    assert exact == [0.0, 1.0, 2.0, 3.0, 7.0]
    assert (beside.calls, beside.exact_calls) == (7, 5)


def test_outputs_of_another_shape_are_an_error() -> None:
    with pytest.raises(PeerError, match="outputs have shapes"):
        Beside(lambda x: x[:1], lambda x: x, lambda x: x)(torch.ones(2))


class Narrowing(nn.Module):
    """Casts to f32 as the norms of LLaMA do."""

    def forward(self, x: Tensor) -> Tensor:
        narrow = x.to(torch.float32).float()
        return torch.softmax(narrow, -1, dtype=torch.float32).to(x.dtype)


def test_f64_is_kept_where_the_model_casts_to_f32() -> None:
    x = torch.randn(3, 7, generator=torch.Generator().manual_seed(0))
    (found,) = tensors(in_f64(Narrowing())(x))
    assert torch.equal(found, torch.softmax(x.double(), -1))


@pytest.mark.parametrize(
    ("apart", "eager", "planish", "verdict"),
    [
        (9e-5, (3e-4, 1e-6), (4e-4, 2e-6), "within 1e-4 of eager"),
        (2e-4, (4e-5, 1e-6), (4e-5, 1e-6), "too far from eager"),
        (2e-4, (1e-4, 1e-6), (9e-5, 1e-6), "nearer to f64"),
        (2e-4, (1e-4, 1e-6), (9e-5, 1.05e-6), "farther from f64 than eager"),
        (2e-4, (1e-4, 1e-6), (1.2e-4, 1e-6), "farther from f64 than eager"),
        (2e-4, (1e-4, 1e-6), (9e-5, 2e-6), "farther from f64 than eager"),
    ],
)
def test_f64_decides_where_eager_is_not_near_to_it(
    apart: float, eager: tuple[float, float], planish: tuple[float, float], verdict: str
) -> None:
    distances = Distance(apart, 0.0), Distance(*eager), Distance(*planish)
    assert QualityResult("m", "mean", True, 1, 0.0, 0.0, *distances, 1.0, 1, 1).verdict == verdict
