"""English text that is on every machine, and windows of tokens cut from a text."""

import pydoc_data.topics

import torch
from torch import Tensor


def prose() -> str:
    """The help topics of Python's own documentation: about 460 KB of technical English."""
    topics: dict[str, str] = pydoc_data.topics.topics
    return "\n".join(topics[name] for name in sorted(topics))


def windows(tokens: list[int], count: int, length: int) -> Tensor:
    """The first `count` windows of `length` tokens, one after the other: `(count, length)` int64."""
    needed = count * length
    if len(tokens) < needed:
        raise ValueError(f"{count} windows of {length} need {needed} tokens; the text has {len(tokens)}")
    return torch.tensor(tokens[:needed], dtype=torch.int64).view(count, length)
