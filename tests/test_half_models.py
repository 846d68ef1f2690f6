"""Whole models in f16 and f64 against the same models of PyTorch in f64."""

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import planish

transformers = pytest.importorskip("transformers")


class Sentences(nn.Module):
    """A small MiniLM."""

    def __init__(self) -> None:
        super().__init__()
        sizes = {"hidden_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 96}
        self.model = transformers.BertModel(transformers.BertConfig(vocab_size=100, **sizes))

    def forward(self, tokens: Tensor, mask: Tensor) -> Tensor:
        result: Tensor = self.model(input_ids=tokens, attention_mask=mask).last_hidden_state
        return result


class Images(nn.Module):
    """A small ViT."""

    def __init__(self) -> None:
        super().__init__()
        sizes = {"hidden_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 96}
        self.model = transformers.ViTModel(transformers.ViTConfig(image_size=32, patch_size=8, **sizes))

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.model(x).last_hidden_state
        return result


class Mixed(nn.Module):
    """Attention, convolutions and activations without norms, which have no f64 kernel."""

    def __init__(self) -> None:
        super().__init__()
        self.attention, self.linear = nn.MultiheadAttention(32, 4, batch_first=True), nn.Linear(32, 64)
        self.conv, self.depthwise = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1, groups=8)

    def forward(self, x: Tensor, image: Tensor) -> tuple[Tensor, Tensor]:
        attended = functional.gelu(self.linear(self.attention(x, x, x, need_weights=False)[0]))
        return attended, functional.silu(self.depthwise(self.conv(image))).mean((2, 3)).exp()


@torch.no_grad()
def _half_error(model: nn.Module, args: tuple[Tensor, ...]) -> tuple[float, float]:
    """The largest error of planish and of PyTorch in f16, against f64 with the same weights."""
    half = model.eval().half()
    inputs = tuple(x.half() if x.is_floating_point() else x for x in args)
    double: Any = copy.deepcopy(half).double()
    wanted = double(*(x.double() if x.is_floating_point() else x for x in inputs))
    got = planish.compile(half, "cpu", inputs=inputs)(*inputs)
    assert got.dtype is torch.float16
    return float((got.double() - wanted).abs().max()), float((half(*inputs).double() - wanted).abs().max())


@pytest.mark.parametrize("architecture", [Sentences, Images])
def test_a_half_precision_model_is_as_close_as_pytorch(architecture: type[nn.Module]) -> None:
    if architecture is Sentences:
        mask = torch.ones(2, 9, dtype=torch.int64)
        mask[1, 6:] = 0
        args: tuple[Tensor, ...] = (torch.randint(0, 100, (2, 9)), mask)
    else:
        args = (torch.randn(2, 3, 32, 32),)
    ours, theirs = _half_error(architecture(), args)
    assert ours <= 2 * theirs + 1e-3


@torch.no_grad()
def test_an_f64_model_keeps_f64() -> None:
    model = Mixed().eval().double()
    args = (torch.randn(2, 9, 32, dtype=torch.float64), torch.randn(2, 3, 12, 12, dtype=torch.float64))
    for got, wanted in zip(planish.compile(model, "cpu", inputs=args)(*args), model(*args), strict=True):
        torch.testing.assert_close(got, wanted, rtol=1e-13, atol=1e-13)
