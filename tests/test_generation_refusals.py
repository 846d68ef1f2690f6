"""Models that `generate=` does not take, and what is said of them."""

import pytest
import torch
from torch import Tensor, nn

import planish
from planish.errors import ImportGraphError
from planish.generation import Generation

IDS = torch.tensor([[3, 5, 4]])


class Recurrent(nn.Module):
    """A state that goes from token to token, as in Mamba and RWKV."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.head = nn.Embedding(10, 8), nn.Linear(8, 10)

    def forward(self, ids: Tensor) -> Tensor:
        state, states = torch.zeros(ids.shape[0], 8), []
        for i in range(ids.shape[1]):
            state = state * 0.5 + self.table(ids[:, i])
            states.append(state)
        return self.head(torch.stack(states, 1))


def test_refuses_a_recurrent_model_with_the_kinds_that_it_takes() -> None:
    words = r"Recurrent cannot be compiled with generate=, .* no recurrent layers \(Mamba, RWKV\) .*: .* sequence = 3$"
    with pytest.raises(ImportGraphError, match=words):
        planish.compile(Recurrent().eval(), inputs=(IDS,), generate=Generation(context=16))


def test_without_generate_the_advice_is_about_sizes() -> None:
    with pytest.raises(ImportGraphError, match=r"does not take the dynamic sizes.*To go on, give the size the range"):
        planish.compile(Recurrent().eval(), inputs=(IDS,), dynamic={"ids": {1: "tokens"}})
