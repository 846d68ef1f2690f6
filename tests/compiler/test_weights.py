"""Weights by name: recipes are computed when they are read, and asking for their type computes nothing."""

import pytest
import torch
from torch import Tensor

from planish.compiler.weights import Recipe, Weights


def _counted(made: list[str]) -> Recipe:
    def make() -> Tensor:
        made.append("made")
        return torch.arange(6.0).reshape(2, 3)

    return Recipe((2, 3), torch.float32, make)


def test_a_recipe_is_computed_at_every_reading_and_not_kept() -> None:
    made: list[str] = []
    weights = Weights({"a": torch.ones(2), "b": _counted(made)})
    assert made == []
    torch.testing.assert_close(weights["b"], torch.tensor([[0.0, 1.0, 2.0], [3.0, 4.0, 5.0]]))
    assert weights["b"] is not weights["b"]
    assert len(made) == 3


def test_types_names_and_subsets_compute_nothing() -> None:
    made: list[str] = []
    weights = Weights({"a": torch.ones(2, dtype=torch.int64), "b": _counted(made)})
    assert weights.like("b").shape == (2, 3)
    assert weights.like("b").dtype is torch.float32
    assert weights.like("b").nbytes == 24
    assert weights.like("a").dtype is torch.int64
    assert [name for name in weights if weights.is_recipe(name)] == ["b"]
    assert list(weights.kept(["b", "a"])) == ["b", "a"]
    assert list(weights.joined({"c": torch.ones(1)})) == ["a", "b", "c"]
    assert "b" in Weights(weights)
    assert len(weights) == 2
    assert made == []


def test_what_is_joined_replaces_what_was_there() -> None:
    assert float(Weights({"a": torch.zeros(())}).joined({"a": torch.ones(())})["a"]) == 1.0


def test_an_unknown_name_is_a_key_error() -> None:
    with pytest.raises(KeyError):
        Weights({})["a"]
