"""Complex numbers inside a model are imported as pairs of real ones, against torch."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from planish.compiler.evaluate import evaluate
from planish.compiler.importers import import_torch
from planish.errors import ImportGraphError


class Rotary(nn.Module):
    """Rotary positions in polar coordinates, stored (LLaMA's own code) or computed from the positions."""

    angles: Tensor
    table: Tensor

    def __init__(self, stored: bool) -> None:
        super().__init__()
        self.register_buffer("angles", 1.0 / 100 ** (torch.arange(4) / 4))
        self.register_buffer("table", torch.polar(torch.ones(32, 4), torch.arange(32)[:, None] * self.angles))
        self.stored = stored

    def forward(self, x: Tensor) -> Tensor:
        length = x.shape[1]
        computed = torch.outer(torch.arange(length), self.angles)
        turns = self.table[:length] if self.stored else torch.polar(torch.ones_like(computed), computed) * 0.5
        pairs = torch.view_as_complex(x.float().reshape(*x.shape[:-1], -1, 2))
        return torch.view_as_real(pairs * turns[None, :, None, :]).flatten(3)


@pytest.mark.parametrize("stored", [True, False])
def test_rotary_positions_in_polar_coordinates(stored: bool) -> None:
    model, generator = Rotary(stored).eval(), torch.Generator().manual_seed(0)
    x = torch.randn(2, 6, 3, 8, generator=generator)
    program = import_torch(model, (x,), dynamic={"x": {0: "batch", 1: ("length", 1, 32)}}).program
    assert "opaque" not in program.notes
    for shape in ((2, 6, 3, 8), (1, 1, 3, 8), (3, 32, 3, 8)):
        x = torch.randn(shape, generator=generator)
        torch.testing.assert_close(evaluate(program.main, (x,), program.weights)[0], model(x))


class Applied(nn.Module):
    def __init__(self, function: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return self.function(x, y)


FORMS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "conjugate product": lambda x, y: torch.view_as_real(torch.complex(x, y) * torch.complex(y, x).conj()),
    "sums": lambda x, y: (torch.complex(x, y) + torch.complex(y, y) - torch.complex(x, x)).abs(),
    "quotient and factor": lambda x, y: (2.5 * torch.complex(x, y) / 3 * x).imag,
    "moved": lambda x, y: torch.complex(x, y).transpose(0, 1)[1:, None].real,
    "joined": lambda x, y: torch.view_as_real(torch.cat((torch.complex(x, y), torch.polar(x, y)), -1)),
}


@pytest.mark.parametrize("name", FORMS)
def test_arithmetic_of_complex_numbers(name: str) -> None:
    generator = torch.Generator().manual_seed(1)
    x, y = torch.rand(3, 4, generator=generator), torch.randn(3, 4, generator=generator)
    program = import_torch(Applied(FORMS[name]).eval(), (x, y)).program
    torch.testing.assert_close(evaluate(program.main, (x, y), program.weights)[0], FORMS[name](x, y))


@pytest.mark.parametrize(
    ("function", "words"),
    [
        (torch.complex, "an output has complex numbers, which planish lacks; return torch.view_as_real of it"),
        (lambda x, y: torch.complex(x, y).exp().abs(), "aten.exp.default has complex numbers, which planish lacks in"),
    ],
)
def test_refuses_what_has_no_pairs(function: Callable[[Tensor, Tensor], Tensor], words: str) -> None:
    with pytest.raises(ImportGraphError, match=words):
        import_torch(Applied(function).eval(), (torch.ones(3, 4), torch.ones(3, 4)))
