"""Models that write into what they computed: the numbers of PyTorch, and no second export where no view is written."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.export import ExportedProgram

from planish.compiler.importers import import_torch
from planish.errors import ImportGraphError
from tests.compiler.test_import_torch_models import assert_same, run

X = torch.randn(4, 6, generator=torch.Generator().manual_seed(0))


class Writer(nn.Module):
    def __init__(self, function: Callable[[Tensor], object]) -> None:
        super().__init__()
        self.function = function
        self.eval()

    def forward(self, x: Tensor) -> object:
        return self.function(x)


def shares(x: Tensor) -> object:
    """As routers of experts norm what they chose."""
    values, index = torch.topk(x.softmax(-1), 2)
    values /= values.sum(-1, keepdim=True)
    return values, index


def both_halves(x: Tensor) -> object:
    whole = x * 2
    left, right = whole.split(3, -1)
    left += right
    return whole, left


def one_of_two_names(x: Tensor) -> object:
    chosen = torch.topk(x, 2)
    chosen[0].mul_(3)
    return chosen[0] + 1, chosen[1]


@pytest.mark.parametrize("function", [shares, both_halves, one_of_two_names])
def test_written_values_are_those_of_pytorch(function: Callable[[Tensor], object]) -> None:
    assert_same(run(import_torch(Writer(function), (X,)), (X,), {}), function(X))


def test_a_result_that_is_no_view_is_written_without_another_export(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(ExportedProgram, "run_decompositions")
    assert_same(run(import_torch(Writer(shares), (X,)), (X,), {}), shares(X))
    with pytest.raises(ImportGraphError, match="run_decompositions"):
        import_torch(Writer(both_halves), (X,))
