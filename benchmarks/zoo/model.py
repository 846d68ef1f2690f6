"""What every model of the zoo offers: module, real inputs, dynamic sizes and a quality metric."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

Inputs = dict[str, Tensor]
Call = Callable[..., object]


@dataclass(frozen=True, slots=True)
class Quality:
    """One number that says how well a model does its work on real data."""

    metric: str
    value: float
    higher_is_better: bool
    samples: int

    def __str__(self) -> str:
        return f"{self.metric} {self.value:.4g} ({self.samples} samples)"


@dataclass(frozen=True, slots=True)
class ZooModel:
    """A trained model with what a benchmark or a test needs to use it.

    `load()` gives the module in eval mode and fp32. `inputs(batch, length)` gives real inputs by the name of the
    parameter of `forward`, in its order, so that `module(**inputs)` and `module(*inputs.values())` mean the same;
    `length` counts tokens and is `None` for models without a sequence. `quality(call)` measures any callable that
    takes and returns what the module does; runtimes that return a bare tuple of the same tensors serve too.
    """

    name: str
    description: str
    load: Callable[[], nn.Module]
    inputs: Callable[[int, int | None], Inputs]
    dynamic: Mapping[str, Mapping[int, str]]
    sizes: Mapping[str, tuple[int, int]]
    quality: Callable[[Call], Quality]
    length: int | None = None

    def __post_init__(self) -> None:
        named = {name for axes in self.dynamic.values() for name in axes.values()}
        if named != set(self.sizes):
            raise ValueError(f"{self.name}: dynamic names {sorted(named)} but sizes are for {sorted(self.sizes)}")

    def dynamic_shapes(self) -> dict[str, dict[int, torch.export.Dim]]:
        """`dynamic` with its ranges in the form that `torch.export.export` takes."""
        dims = {name: torch.export.Dim(name, min=low, max=high) for name, (low, high) in self.sizes.items()}
        return {name: {axis: dims[size] for axis, size in axes.items()} for name, axes in self.dynamic.items()}


def tensors(outputs: object) -> tuple[Tensor, ...]:
    """The tensors among `outputs` (a tensor, numpy array, tuple, dict or dataclass output), in order."""
    return tuple(torch.as_tensor(leaf) for leaf in pytree.tree_leaves(outputs) if leaf is not None)
