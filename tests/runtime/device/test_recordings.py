"""What is recorded of a program on a device, and when it is repeated: on kernels in the interpreter, against PyTorch."""

import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from planish.runtime.device.executor import DeviceExecutable
from planish.runtime.device.graphs import refusal, segments
from planish.runtime.plan import TorchStep
from tests.runtime.device.interpreted import executable

BATCH = torch.export.Dim("batch", max=64)


class _Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up = nn.Linear(8, 12)

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.up(x)) + 1


class _Convolutions(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.pool, self.head = nn.Conv2d(3, 8, 3, padding=1), nn.MaxPool2d(2), nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.pool(torch.sigmoid(self.stem(x))).mean((2, 3)))


class _Inverse(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        inverse = torch.linalg.inv(torch.sigmoid(x) + 3 * torch.eye(4))
        return torch.tanh(inverse) + x


def _launcher(run: DeviceExecutable) -> Any:
    return run.main._launcher


def _check(run: DeviceExecutable, net: nn.Module, *shape: int, seed: int = 0) -> None:
    x = torch.randn(*shape, generator=torch.Generator().manual_seed(seed))
    torch.testing.assert_close(run(x), net(x), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("net", [_Net(), _Inverse()])
def test_what_is_recorded_in_inference_mode_is_repeated_outside_of_it(tmp_path: Path, net: nn.Module) -> None:
    shape = (2, 8) if isinstance(net, _Net) else (4, 4)
    run = executable(net, (torch.randn(shape),), tmp_path)
    with torch.inference_mode():
        for seed in range(2):
            _check(run, net, *shape, seed=seed)
    assert _launcher(run).recordings > 0
    _check(run, net, *shape, seed=2)


def test_kernels_and_convolutions_are_one_recording(tmp_path: Path) -> None:
    net = _Convolutions().eval()
    run = executable(net, (torch.randn(2, 3, 6, 6),), tmp_path)
    assert any(isinstance(step, TorchStep) for step in run.main.plan.steps)
    for seed in range(4):
        _check(run, net, 2, 3, 6, 6, seed=seed)
    assert _launcher(run).recordings == 1


def test_an_op_that_waits_for_the_device_runs_between_two_recordings(tmp_path: Path) -> None:
    net = _Inverse()
    run = executable(net, (torch.randn(2, 4, 4),), tmp_path)
    assert [segment.recorded for segment in segments(run.main.plan, torch)] == [True, False, True]
    for seed in range(4):
        _check(run, net, 2, 4, 4, seed=seed)
    assert _launcher(run).recordings == 2


def test_each_batch_has_a_recording_of_its_own(tmp_path: Path) -> None:
    net = _Net()
    run = executable(net, (torch.randn(2, 8),), tmp_path, dynamic={"x": {0: BATCH}})
    for seed, batch in enumerate((2, 2, 5, 2, 5, 5, 2)):
        _check(run, net, batch, 8, seed=seed)
    assert _launcher(run).recordings == 2


def test_each_stream_repeats_recordings_of_its_own(tmp_path: Path) -> None:
    net = _Net()
    run = executable(net, (torch.randn(2, 8),), tmp_path)
    for seed, stream in enumerate((0, 0, 7, 7, 0, 7)):
        _launcher(run).stream = stream
        _check(run, net, 2, 8, seed=seed)
    assert _launcher(run).recordings == 2


def test_shapes_beyond_those_kept_are_not_recorded_while_others_are_in_use(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("planish.runtime.device.graphs._KEPT", 2)
    monkeypatch.setattr("planish.runtime.device.graphs._IDLE", 6)
    net = _Net()
    run = executable(net, (torch.randn(2, 8),), tmp_path, dynamic={"x": {0: BATCH}})
    for _ in range(3):
        for batch in (1, 2, 3):
            _check(run, net, batch, 8)
    assert _launcher(run).recordings == 2
    for _ in range(6):
        _check(run, net, 3, 8)
    assert _launcher(run).recordings == 3


def test_nothing_is_recorded_where_the_copies_have_no_room(tmp_path: Path) -> None:
    net = _Net()
    run = executable(net, (torch.randn(2, 8),), tmp_path)
    _check(run, net, 2, 8)
    _launcher(run).free = 10
    _check(run, net, 2, 8)
    _check(run, net, 2, 8)
    assert _launcher(run).recordings == 0


def test_threads_get_results_of_their_own(tmp_path: Path) -> None:
    net = _Net()
    run = executable(net, (torch.randn(2, 8),), tmp_path)
    given = [torch.randn(2, 8, generator=torch.Generator().manual_seed(i)) for i in range(8)]
    found: dict[int, Tensor] = {}

    def work(first: int) -> None:
        for i in range(first, len(given), 2):
            found[i] = run(given[i])

    work(0)  # so that the call is recorded
    threads = [threading.Thread(target=work, args=(first,)) for first in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for i, x in enumerate(given):
        torch.testing.assert_close(found[i], net(x), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("target", "reason"),
    [
        ("aten.convolution.default", None),
        ("aten.cumsum.default", None),
        ("aten.nonzero.default", "aten.nonzero.default is dynamic output shape"),
        ("aten.item.default", "aten.item.default is data dependent output"),
        ("aten.linalg_inv_ex.default", "aten.linalg_inv_ex.default waits for the device"),
    ],
)
def test_ops_are_recorded_unless_they_need_the_host(target: str, reason: str | None, tmp_path: Path) -> None:
    plan = executable(_Net(), (torch.randn(2, 8),), tmp_path).main.plan
    assert refusal(TorchStep(target, (), (), {}), plan, torch) == reason
