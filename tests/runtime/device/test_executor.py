"""The executor of devices, on kernels in Triton's interpreter, against PyTorch."""

from pathlib import Path

import numpy
import pytest
import torch
from torch import Tensor, nn

from planish.errors import InputError
from tests.runtime.device.interpreted import executable

BATCH = torch.export.Dim("batch", max=64)


class _Classifier(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(24, 40), nn.Linear(40, 24)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.down(torch.nn.functional.gelu(self.up(x)))


@pytest.mark.parametrize("batch", [1, 3, 20])
def test_a_network_with_a_dynamic_batch(tmp_path: Path, batch: int) -> None:
    net = _Classifier()
    run = executable(net, (torch.randn(2, 5, 24),), tmp_path, dynamic={"x": {0: BATCH}})
    x = torch.randn(batch, 5, 24)
    torch.testing.assert_close(run(x), net(x), rtol=1e-5, atol=1e-5)


def test_numpy_in_gives_numpy_out(tmp_path: Path) -> None:
    net = _Classifier()
    run = executable(net, (torch.randn(2, 5, 24),), tmp_path)
    x = numpy.random.default_rng(0).normal(size=(2, 5, 24)).astype(numpy.float32)
    result = run(x)
    assert isinstance(result, numpy.ndarray)
    numpy.testing.assert_allclose(result, net(torch.from_numpy(x)).detach().numpy(), rtol=1e-5, atol=1e-5)


def test_a_wrong_dtype_is_refused_by_name(tmp_path: Path) -> None:
    run = executable(_Classifier(), (torch.randn(2, 5, 24),), tmp_path)
    with pytest.raises(InputError, match=r"input 'x' takes f32\[2, 5, 24\], was given f64"):
        run(torch.randn(2, 5, 24).double())


def test_a_profile_has_a_row_for_each_kernel(tmp_path: Path) -> None:
    run = executable(_Classifier(), (torch.randn(2, 5, 24),), tmp_path)
    profile = run.profile(torch.randn(2, 5, 24), repeat=1)
    assert [row.scope for row in profile.rows] == ["up", "down"]


def test_repeated_shapes_are_recorded_and_results_stay_the_callers(tmp_path: Path) -> None:
    net = _Classifier()
    run = executable(net, (torch.randn(2, 5, 24),), tmp_path)
    given = [torch.randn(2, 5, 24) for _ in range(4)]
    results = [run(x) for x in given]
    for x, result in zip(given, results, strict=True):
        torch.testing.assert_close(result, net(x), rtol=1e-5, atol=1e-5)


def test_a_bound_call_reads_what_its_inputs_hold_now(tmp_path: Path) -> None:
    net, x = _Classifier(), torch.zeros(2, 5, 24)
    call = executable(net, (torch.randn(2, 5, 24),), tmp_path).main.bind([x])
    for seed in range(2):
        x.copy_(torch.randn(2, 5, 24, generator=torch.Generator().manual_seed(seed)))
        torch.testing.assert_close(call()[0], net(x), rtol=1e-5, atol=1e-5)


def test_an_input_that_would_be_copied_cannot_be_bound(tmp_path: Path) -> None:
    run = executable(_Classifier(), (torch.randn(2, 5, 24),), tmp_path)
    with pytest.raises(InputError, match="input 'x' does not lie aligned and contiguous on cpu and cannot be bound"):
        run.main.bind([torch.randn(24, 5, 2).permute(2, 1, 0)])
