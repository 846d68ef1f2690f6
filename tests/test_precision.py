"""precision="bf16": whole models against PyTorch, weights of half the bytes, and processors that cannot."""

import copy
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import planish
from planish.errors import InputError
from planish.hardware_profiles.host import read_host


class Net(nn.Module):
    """A patch convolution, an attention block with a residual sum, and a perceptron."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.patches = nn.Conv2d(3, 64, 4, stride=4)
        self.norm, self.final = nn.LayerNorm(64), nn.LayerNorm(64)
        self.qkv, self.out = nn.Linear(64, 192), nn.Linear(64, 64)
        self.up, self.down = nn.Linear(64, 256), nn.Linear(256, 64)

    def forward(self, image: Tensor) -> Tensor:
        x = self.patches(image).flatten(2).transpose(1, 2)
        q, k, v = self.qkv(self.norm(x)).view(*x.shape[:2], 3, 4, 16).permute(2, 0, 3, 1, 4)
        x = x + self.out(functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))
        result: Tensor = x + self.down(functional.gelu(self.up(self.final(x))))
        return result


@pytest.fixture(scope="module")
def image() -> Tensor:
    return torch.randn(2, 3, 24, 28, generator=torch.Generator().manual_seed(1))


def _report(compiled: planish.CompiledModel) -> str:
    return str(compiled.report)


@pytest.mark.skipif("avx512bf16" not in read_host().features, reason="this processor has no dot product of bf16")
def test_a_model_is_as_close_as_under_autocast_and_half_as_large(image: Tensor, tmp_path: Path) -> None:
    net = Net().eval()
    with torch.inference_mode():
        exact = copy.deepcopy(net).double()(image.double())
        with torch.autocast("cpu", torch.bfloat16):
            theirs = net(image)
        fast = planish.compile(net, "cpu", inputs=image, precision="bf16")
        ours = fast(image)
    assert ours.dtype is torch.float32
    assert (ours.double() - exact).abs().max() <= 1.5 * (theirs.double() - exact).abs().max()
    fast.save(tmp_path / "net.planish")
    assert torch.equal(planish.load(tmp_path / "net.planish")(image), ours)
    weights = (tmp_path / "net.planish" / "weights.safetensors").stat().st_size
    assert weights < 0.6 * sum(p.numel() * 4 for p in net.parameters())


def test_an_older_processor_computes_in_f32_and_the_report_says_why(image: Tensor) -> None:
    net = Net().eval()
    compiled = planish.compile(net, "x86-64-v3", inputs=image, precision="bf16")
    assert "x86-64-v3 has no dot product of bf16 (avx512bf16) that planish uses; it computes in f32" in _report(
        compiled
    )
    with torch.inference_mode():
        torch.testing.assert_close(compiled(image), net(image), rtol=1e-4, atol=1e-4)


def test_an_unknown_precision_names_those_that_there_are(image: Tensor) -> None:
    with pytest.raises(InputError, match="precision is 'f32' or 'bf16', not 'f16'"):
        planish.compile(Net().eval(), "cpu", inputs=image, precision="f16")
