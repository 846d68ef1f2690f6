"""Networks with quantized weights run from their files: packed by the template, read by the kernel."""

from pathlib import Path

import pytest
import torch
from torch import nn

from planish.passes.quantize_weights import QuantizeWeights
from tests.runtime.device.interpreted import executable


def exactly_quantized(columns: int, depth: int) -> nn.Linear:
    """A layer whose weight 4 bits in groups of 32 hold exactly: the largest of a group is its scale times -8."""
    layer = nn.Linear(depth, columns).half()
    weight = torch.randint(-7, 8, (columns, depth)) / 64
    weight[:, ::32] = -8 / 64
    layer.weight.data = weight.half()
    return layer


@pytest.mark.parametrize("rows", [1, 5])
def test_weights_that_four_bits_hold_change_nothing(rows: int, tmp_path: Path) -> None:
    net = nn.Sequential(exactly_quantized(48, 64), nn.ReLU(), exactly_quantized(20, 48))
    x = torch.randn(rows, 64).half()
    lean = executable(net, (x,), tmp_path, profile="mi300x", lossy=(QuantizeWeights(bits=4, group=32),))
    torch.testing.assert_close(lean(x), net(x), rtol=4e-3, atol=4e-3)
    assert all("quantized_linear" in name for name in lean.plan.kernels)


def test_activations_of_eight_bits_are_multiplied_as_integers(tmp_path: Path) -> None:
    net, x = nn.Sequential(exactly_quantized(48, 64)), torch.randn(3, 64).half()
    lean = executable(net, (x,), tmp_path, lossy=(QuantizeWeights(bits=4, group=32, activations="int8"),))
    torch.testing.assert_close(lean(x), net(x), rtol=2e-2, atol=2e-2)
    assert any("int8_linear" in name for name in lean.plan.kernels)
