"""Keys and values rounded as narrow caches do, by formulas of their own, in the cache of transformers."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from transformers import DynamicCache


def halves(x: Tensor) -> Tensor:
    """f16."""
    return x.half().float()


def signed(x: Tensor) -> Tensor:
    """8 bits: the nearest of 255 levels around 0, the largest number of a head at the end."""
    step = x.abs().amax(-1, keepdim=True) / 127
    return torch.round(x / step) * step


def sixteen(x: Tensor) -> Tensor:
    """4 bits: the nearest of 16 levels, 0 among them, over the range of each half of a head of up to 64."""
    parts = x.unflatten(-1, (2, -1))
    low, high = parts.amin(-1, keepdim=True).clamp(max=0), parts.amax(-1, keepdim=True).clamp(min=0)
    step = halves((high - low) / 15)
    least = torch.round(low / step)
    above = (torch.round(parts / step) - least).clamp(0, 15)
    return (above * step + halves(least * step)).flatten(-2)


class Rounding(DynamicCache):
    """The cache of transformers for one pass of a model, which attends over `rounded` keys and values."""

    def __init__(self, model: nn.Module, rounded: Callable[[Tensor], Tensor]) -> None:
        config: Any = model.config
        super().__init__(config=config)
        self.rounded = rounded

    def update(self, k: Tensor, v: Tensor, *given: Any, **named: Any) -> tuple[Tensor, Tensor]:
        return super().update(self.rounded(k), self.rounded(v), *given, **named)
