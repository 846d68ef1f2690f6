"""The weights of a program by name: tensors, and recipes of weights that are computed whenever they are read."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True, eq=False)
class Recipe:
    """A weight of known type that `make` computes; nothing keeps the result, so that it costs no memory in between."""

    shape: tuple[int, ...]
    dtype: torch.dtype
    make: Callable[[], Tensor]


class Weights(Mapping[str, Tensor]):
    """Weights by name, read-only. Reading one that is a recipe computes it; `like`, `kept` and `joined` read none."""

    __slots__ = ("_items",)

    def __init__(self, items: Mapping[str, Tensor | Recipe]) -> None:
        self._items: Mapping[str, Tensor | Recipe] = items._items if isinstance(items, Weights) else dict(items)

    def __getitem__(self, name: str) -> Tensor:
        item = self._items[name]
        return item.make() if isinstance(item, Recipe) else item

    def __iter__(self) -> Iterator[str]:
        return iter(self._items)

    def __len__(self) -> int:
        return len(self._items)

    def __contains__(self, name: object) -> bool:
        return name in self._items

    def is_recipe(self, name: str) -> bool:
        """Whether reading the weight computes it."""
        return isinstance(self._items[name], Recipe)

    def like(self, name: str) -> Tensor:
        """A tensor without data (device meta) of the weight's shape and dtype."""
        item = self._items[name]
        return torch.empty(item.shape, dtype=item.dtype, device="meta")

    def kept(self, names: Iterable[str]) -> "Weights":
        """The weights of these names, in their order."""
        return Weights({name: self._items[name] for name in names})

    def joined(self, more: Mapping[str, Tensor | Recipe]) -> "Weights":
        """These weights and `more`, which replace those of the same name."""
        return Weights({**self._items, **Weights(more)._items})
