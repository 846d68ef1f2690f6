"""Quality is measured under both on the same data, and differences and failures are not lost."""

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from benchmarks import quality
from benchmarks.peers import PeerError
from benchmarks.quality import Beside, quality_markdown, run_quality
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
    assert 0 <= written["max_abs_error"] < 1e-5
    assert written["largest_output"] == pytest.approx(expected.abs().max().item(), rel=1e-6)
    assert (written["metric"], written["samples"], written["calls"]) == ("mean", 8, 2)
    assert suite.failures == ("lost: the data is away; fetch it",)
    assert "| small | mean | 8 | " in quality_markdown(suite)
    assert "- lost: the data is away" in quality_markdown(suite)


def test_the_largest_difference_of_all_calls_is_kept() -> None:
    def eager(x: Tensor) -> Tensor:
        return x * 2

    def ours(x: Tensor) -> Tensor:
        return x * 2 + x.abs().max() / 4

    beside = Beside(ours, eager)
    for scale in (1.0, 4.0, 2.0):
        assert torch.equal(tensors(beside(torch.full((2,), scale)))[0], torch.full((2,), 2.25 * scale))
    assert (beside.error, beside.largest, beside.calls) == (1.0, 8.0, 3)


def test_outputs_of_another_shape_are_an_error() -> None:
    with pytest.raises(PeerError, match="outputs have shapes"):
        Beside(lambda x: x[:1], lambda x: x)(torch.ones(2))
