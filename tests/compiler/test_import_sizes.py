"""Imported models whose ops compute with dynamic sizes, against PyTorch at other sizes than the example's."""

from collections.abc import Callable, Mapping

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from planish.compiler.importers import import_torch
from planish.compiler.verify import verify
from planish.errors import ImportGraphError
from tests.compiler.test_import_torch_models import run

Shape = tuple[int, ...]
IMAGE: Mapping[int, object] = {0: "batch", 2: "height", 3: "width"}


class Computes(nn.Module):
    """A model whose forward is a function of x and of its layers."""

    def __init__(self, function: Callable[..., Tensor], *layers: nn.Module) -> None:
        super().__init__()
        self.function, self.layers = function, nn.ModuleList(layers)

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x, *self.layers)


def waves() -> nn.Module:
    """The front of a speech model: a tower of strided convolutions, then heads by a view that leaves them to infer."""

    def function(x: Tensor, *layers: nn.Module) -> Tensor:
        for layer in layers:
            x = F.gelu(layer(x))
        frames = x.transpose(1, 2)
        return frames.view(*frames.shape[:2], -1, 2).transpose(1, 2)

    return Computes(function, *(nn.Conv1d(i, 4, k, s) for i, k, s in ((1, 10, 5), (4, 3, 2), (4, 3, 2), (4, 2, 2))))


def through(function: Callable[[Tensor], Tensor]) -> Callable[[], nn.Module]:
    return lambda: Computes(function)


CASES: dict[str, tuple[Callable[[], nn.Module], Shape, Shape, Mapping[int, object]]] = {
    "a tower of convolutions": (waves, (2, 1, 1600), (3, 1, 1234), {0: "batch", 2: ("samples", 640, 9999)}),
    "uneven means": (through(lambda x: F.adaptive_avg_pool2d(x, (7, 3))), (2, 3, 20, 17), (1, 3, 9, 31), IMAGE),
    "doubled by lines": (
        through(lambda x: F.interpolate(x, scale_factor=2, mode="bilinear")),
        (2, 9, 6, 5),
        (1, 9, 4, 11),
        IMAGE,
    ),
    "corner to corner": (
        through(lambda x: F.interpolate(x, scale_factor=3, mode="bicubic", align_corners=True)),
        (2, 3, 6, 5),
        (1, 3, 4, 11),
        IMAGE,
    ),
    "to a given size": (
        through(lambda x: F.interpolate(x, (8, 8), mode="bilinear") + F.interpolate(x, (8, 8))),
        (2, 3, 6, 5),
        (1, 3, 4, 11),
        IMAGE,
    ),
    "transposed": (
        lambda: nn.ConvTranspose2d(3, 4, (4, 3), (2, 3), (1, 0)),
        (2, 3, 6, 5),
        (1, 3, 4, 11),
        IMAGE,
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_sizes_may_differ_from_the_examples(name: str) -> None:
    make, shape, other, axes = CASES[name]
    torch.manual_seed(0)
    model = make().eval()
    parameter = "input" if isinstance(model, nn.ConvTranspose2d) else "x"
    imported = import_torch(model, (torch.randn(shape),), dynamic={parameter: axes})
    verify(imported.program)
    assert imported.program.notes.get("opaque", ()) == ()
    for sizes in (shape, other):
        x = torch.randn(sizes)
        with torch.no_grad():
            wanted = model(x)
        torch.testing.assert_close(run(imported, (x,), {}), wanted, rtol=0, atol=1e-5)


class Triangle(nn.Module):
    """Attention under a mask cut from a stored triangle, of which torch takes the whole to be no cut."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("triangle", torch.ones(8, 8).tril().bool())

    def forward(self, x: Tensor) -> Tensor:
        mask = self.get_buffer("triangle")[: x.shape[1], : x.shape[1]]
        return torch.where(mask, x @ x.transpose(1, 2), 0.0) @ x


def test_the_one_size_that_torch_would_compile_apart_is_left_out() -> None:
    model, x = Triangle().eval(), torch.randn(1, 5, 4, generator=torch.Generator().manual_seed(0))
    imported = import_torch(model, (x,), dynamic={"x": {1: "tokens"}})
    assert [(size.low, size.high) for size in imported.program.main.sizes] == [(1, 7)]
    longer = torch.cat([x, x[:, :2]], 1)
    torch.testing.assert_close(run(imported, (longer,), {}), model(longer))
    with pytest.raises(ImportGraphError, match="in the specified range tokens <= 8 satisfy the generated guard"):
        import_torch(model, (x,), dynamic={"x": {1: ("tokens", 1, 8)}})
