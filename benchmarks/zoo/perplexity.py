"""How well a language model foretells a text."""

from collections.abc import Callable

import torch
from torch import Tensor

from benchmarks.zoo.data import austen
from benchmarks.zoo.model import Call, Quality, tensors
from benchmarks.zoo.text import windows

_SKIPPED_CHARACTERS = 200_000
_CHARACTERS_PER_TOKEN = 8


def austen_perplexity(call: Call, encode: Callable[[str], list[int]], *, count: int, length: int) -> Quality:
    """Perplexity over `count` windows of `length` tokens from the middle of Sense and Sensibility."""
    text = austen()[_SKIPPED_CHARACTERS:][: count * length * _CHARACTERS_PER_TOKEN]
    value = perplexity(call, windows(encode(text), count, length))
    return Quality("perplexity on Austen", value, False, count * (length - 1))


def perplexity(call: Call, tokens: Tensor) -> float:
    """exp of the mean cross-entropy of each next token in `tokens` `(windows, length)`, one window a call."""
    loss = 0.0
    for window in tokens:
        with torch.inference_mode():
            logits = tensors(call(window[None]))[0][0, :-1]
        loss += torch.nn.functional.cross_entropy(logits.double(), window[1:], reduction="sum").item()
    return float(torch.tensor(loss / (tokens.numel() - len(tokens))).exp())
