"""Ops without a GPU template between kernels in Triton's interpreter, against PyTorch."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from planish.runtime.device import frame
from planish.runtime.plan import TorchStep
from planish.runtime.torch_step import run_torch_step
from tests.runtime.device.interpreted import executable

BATCH = torch.export.Dim("batch", max=16)


class _Convolutions(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.down = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3, stride=2, groups=8)
        self.norm, self.pool = nn.BatchNorm2d(8), nn.MaxPool2d(2)
        self.head = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.norm(self.stem(x)))
        x = x + torch.sigmoid(x)
        return self.head(self.pool(self.down(x)).mean((2, 3)))


@pytest.mark.parametrize("batch", [1, 3])
def test_convolutions_run_as_torch_between_kernels(tmp_path: Path, batch: int) -> None:
    net = _Convolutions().eval()
    run = executable(net, (torch.randn(2, 3, 9, 11),), tmp_path, dynamic={"x": {0: BATCH}})
    targets = [step.target for step in run.plan.functions["main"].steps if isinstance(step, TorchStep)]
    assert targets.count("aten.convolution.default") == 2
    x = torch.randn(batch, 3, 9, 11)
    torch.testing.assert_close(run(x), net(x), rtol=1e-5, atol=1e-5)


class _Pooled(nn.Module):
    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return nn.functional.max_pool2d(x, 2), nn.functional.group_norm(x, 2)


def test_results_of_torch_are_the_callers_own(tmp_path: Path) -> None:
    run = executable(_Pooled(), (torch.randn(2, 4, 6, 6),), tmp_path)
    x = torch.randn(2, 4, 6, 6)
    found = run(x)
    for one, wanted in zip(found, _Pooled()(x), strict=True):
        torch.testing.assert_close(one, wanted, rtol=1e-5, atol=1e-5)
        assert one.is_contiguous()
    again = run(torch.randn(2, 4, 6, 6))
    assert found[0].data_ptr() != again[0].data_ptr()
    torch.testing.assert_close(found[0], nn.functional.max_pool2d(x, 2))


def test_kernels_read_at_aligned_addresses_what_torch_left_anywhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def moved(*given: Any) -> list[Any]:
        return [torch.cat((r.new_zeros(1), r.flatten()))[1:].view(r.shape) for r in run_torch_step(*given)]

    monkeypatch.setattr(frame, "run_torch_step", moved)
    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU()).eval()
    run = executable(net, (torch.randn(2, 3, 9, 11),), tmp_path)
    x = torch.randn(2, 3, 9, 11)
    torch.testing.assert_close(run(x), net(x), rtol=1e-5, atol=1e-5)
    launcher = run.functions["main"]._launcher
    given = [argument for each in launcher.given for argument in each if isinstance(argument, Tensor)]
    assert given
    assert all(tensor.data_ptr() % 16 == 0 for tensor in given)
