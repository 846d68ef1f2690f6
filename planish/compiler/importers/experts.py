"""Mixtures of experts of transformers, traced in the one form that no value decides about."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn

# transformers 5 keeps its choice there: a loop over the experts that were hit, a grouped product, or gathered weights
_CHOICE = "_experts_implementation_internal"
_GATHERED = "batched_mm"


@contextmanager
def gathered_experts(model: nn.Module) -> Iterator[None]:
    """While open, experts of transformers gather their weights for every token; afterwards all is as it was.

    A loop over the experts that tokens chose cannot be exported, and a grouped product sorts all tokens by expert.
    `group-experts` makes grouped products of what is gathered.
    """
    configs: dict[int, Any] = {id(c): c for m in model.modules() if hasattr(c := getattr(m, "config", None), _CHOICE)}
    before = [(config, getattr(config, _CHOICE)) for config in configs.values()]
    try:
        for config in configs.values():
            setattr(config, _CHOICE, _GATHERED)
        yield
    finally:
        for config, choice in before:
            setattr(config, _CHOICE, choice)
