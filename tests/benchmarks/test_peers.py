"""Peers compute what eager computes, and those that cannot are reported, not dropped."""

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from benchmarks.__main__ import _chosen
from benchmarks.peers import BY_PRECISION, PEERS, Peer, PeerError
from benchmarks.results import load
from benchmarks.run import Choice, max_abs_error, run
from benchmarks.timing import Effort
from benchmarks.zoo import Call, Inputs, Quality, ZooModel, tensors
from benchmarks.zoo.glassllm import GLASSLLM
from planish.errors import InputError

EAGER, COMPILE, ONNX, OPENVINO, PLANISH = PEERS
BRIEF = Effort(seconds=0, warm=0, least=2, most=2, rest_ms=0, burst=1)


class _Twice(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(2.0))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.scale


TWICE = ZooModel(
    name="twice",
    description="doubles its input",
    load=lambda: _Twice().eval(),
    inputs=lambda batch, length: {"x": torch.arange(3.0 * batch).view(batch, 3)},
    dynamic={"x": {0: "batch"}},
    sizes={"batch": (1, 8)},
    quality=lambda call: Quality("sum", 0.0, True, 1),
)


def _broken(model: ZooModel, module: nn.Module, inputs: Inputs, threads: int) -> Call:
    raise NotImplementedError("no such op")


def _wrong_shape(model: ZooModel, module: nn.Module, inputs: Inputs, threads: int) -> Call:
    return lambda x: x[:, :1]


@pytest.mark.parametrize("peer", [ONNX, OPENVINO], ids=lambda peer: peer.name)
def test_runs_glassllm_as_eager_does(peer: Peer) -> None:
    pytest.importorskip(peer.package)
    pytest.importorskip("onnxscript")
    module, inputs = GLASSLLM.load(), GLASSLLM.inputs(3, 17)
    call = peer.prepare(GLASSLLM, module, inputs, 1)
    with torch.inference_mode():
        assert max_abs_error(call(*inputs.values()), module(**inputs)) < 1e-4


@pytest.mark.parametrize("peer", BY_PRECISION["bf16"][-2:], ids=lambda peer: peer.name)
def test_peers_of_bf16_stay_near_eager(peer: Peer) -> None:
    pytest.importorskip(peer.package)
    pytest.importorskip("onnxscript")
    module, inputs = GLASSLLM.load(), GLASSLLM.inputs(3, 17)
    call = peer.prepare(GLASSLLM, module, inputs, 1)
    with torch.inference_mode():
        expected = module(**inputs)
    assert max_abs_error(call(*inputs.values()), expected) < 2**-5 * max(
        float(t.abs().max()) for t in tensors(expected)
    )


def test_a_run_keeps_times_errors_and_the_reasons_of_peers_that_failed(tmp_path: Path) -> None:
    peers = (
        EAGER,
        Peer("broken", "torch", "static", _broken),
        Peer("absent", "no-such-package", "static", _broken),
        Peer("crooked", "torch", "static", _wrong_shape),
    )
    path = tmp_path / "run.json"
    run(Choice((TWICE,), peers, (1, 2), torch.get_num_threads(), BRIEF, quality=True), "test", path, lambda text: None)
    suite = load(path)
    assert [case.batch for case in suite.cases] == [1, 2]
    results = {result.peer: result for result in suite.cases[0].results}
    assert len(results["eager"].calls_ms) == 2
    assert results["eager"].max_abs_error == 0
    assert results["broken"].failure == "broken cannot run twice: NotImplementedError: no such op"
    assert results["absent"].failure == "absent is not installed; run 'pip install no-such-package'"
    assert results["crooked"].failure == "outputs have shapes [(1, 1)], eager's have [(1, 3)]"
    assert [score.peer for score in suite.scores] == ["eager"]


def test_a_peer_without_its_package_says_how_to_install_it() -> None:
    with pytest.raises(PeerError, match="run 'pip install no-such-package'"):
        Peer("absent", "no-such-package", "static", _broken).version()


def test_names_choose_in_the_known_order_and_unknown_ones_get_a_suggestion() -> None:
    assert [peer.name for peer in _chosen("planish,eager", PEERS)] == ["eager", "planish"]
    assert _chosen("", PEERS) == PEERS
    with pytest.raises(InputError, match="'egaer'; did you mean 'eager'"):
        _chosen("egaer", PEERS)
