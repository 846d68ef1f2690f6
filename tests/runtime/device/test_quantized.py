"""Networks with quantized weights run from their files: packed by the template, read by the kernel."""

from pathlib import Path

import pytest
import torch
from torch import nn

from planish.passes.quantize_weights import QuantizeWeights
from tests.codegen.triton.interpreter import needs_amds_f8
from tests.runtime.device.interpreted import executable


def exactly_quantized(columns: int, depth: int, largest: int = -8) -> nn.Linear:
    """A layer whose weight 4 bits in groups of 32 hold exactly: the largest of a group is its scale times -8. With 7 as
    the largest, f8 does: its scale takes 7 to 448, and whole numbers to multiples of 64."""
    layer = nn.Linear(depth, columns).half()
    weight = torch.randint(-7, 8, (columns, depth)) / 64
    weight[:, ::32] = largest / 64
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


@pytest.mark.parametrize("profile", ["h200", pytest.param("mi300x", marks=needs_amds_f8)])
def test_activations_of_f8_are_multiplied_as_f8(profile: str, tmp_path: Path) -> None:
    net, x = nn.Sequential(exactly_quantized(48, 64, 7)), torch.randn(3, 64).half()
    lean = executable(net, (x,), tmp_path, profile=profile, lossy=(QuantizeWeights(format="f8", activations="f8"),))
    rounded = x.float() / x.float().abs().amax(1, keepdim=True) * 448
    rounded = rounded.to(torch.float8_e4m3fn).float() * x.float().abs().amax(1, keepdim=True) / 448
    torch.testing.assert_close(lean(x).float(), torch.nn.functional.linear(rounded, *_float(net)), rtol=2e-3, atol=2e-3)
    assert any("f8_linear" in name for name in lean.plan.kernels)


def test_one_kernel_writes_a_sum_its_norm_and_codes_for_products(tmp_path: Path) -> None:
    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm = nn.LayerNorm(64, bias=False).half()
            self.up, self.down = exactly_quantized(48, 64), exactly_quantized(64, 48)

        def forward(self, x: torch.Tensor, y: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            """[R, 64] and [R, 64] -> both [R, 64]."""
            total = x + y
            normed = self.norm(total)
            return self.down(torch.relu(self.up(normed))) + total, normed.neg()

    net, inputs = Block().eval(), (torch.randn(3, 64).half(), torch.randn(3, 64).half())
    lossy = (QuantizeWeights(bits=4, group=32, activations="int8", skip=("down",)),)
    lean = executable(net, inputs, tmp_path, lossy=lossy)
    for found, wanted in zip(lean(*inputs), net(*inputs), strict=True):
        torch.testing.assert_close(found, wanted, rtol=2e-2, atol=2e-2)
    assert [name.split("_", 1)[1] for name in lean.plan.kernels] == [
        "quantized_rows_quantize_0_0",
        "int8_linear_linear_0_0",
        "gemm_linear_0_0",
        "map_neg_0_0",
    ]


def test_a_tied_table_of_f8_is_looked_up_and_multiplied(tmp_path: Path) -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table = nn.Embedding(48, 64).half()
            self.table.weight.data = exactly_quantized(48, 64, 7).weight.data

        def forward(self, ids: torch.Tensor) -> torch.Tensor:
            """[S] -> [S, 48]."""
            return torch.nn.functional.linear(self.table(ids), self.table.weight)

    net, ids = Tied().eval(), torch.tensor([3, 0, 47])
    lean = executable(net, (ids,), tmp_path, profile="mi300x", lossy=(QuantizeWeights(format="f8"),))
    torch.testing.assert_close(lean(ids), net(ids), rtol=4e-3, atol=4e-3)
    assert any("quantized_linear" in name for name in lean.plan.kernels)


def _float(net: nn.Sequential) -> tuple[torch.Tensor, torch.Tensor]:
    layer = net[0]
    assert isinstance(layer, nn.Linear)
    return layer.weight.float(), layer.bias.float()
