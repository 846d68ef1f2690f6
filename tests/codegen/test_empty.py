"""Values without elements: literals in their place, and the numbers of PyTorch; what has no kernel is refused."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import planish
from planish.codegen.empty import without_empty
from planish.errors import TemplateError
from tests.passes.harness import graph_text, program_of

X = torch.randn(3, 4, generator=torch.Generator().manual_seed(0))


class Net(nn.Module):
    def __init__(self, function: Callable[[Tensor], object]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> object:
        return self.function(x)


BEFORE = graph_text(
    "%x: f32[B, 4]",
    "slice(%x) {axis=1, start=4, stop=4}: f32[B, 0]",
    "relu(%0): f32[B, 0]",
    "concat(%1, %x) {axis=1}: f32[B, 4]",
    "sum(%1) {axes=[1], keep=true}: f32[B, 1]",
    "add(%2, %3): f32[B, 4]",
    outputs="%4, %1",
    sizes="B: 1..64 = 2",
)
AFTER = graph_text(
    "%x: f32[B, 4]",
    "concat(%x) {axis=1}: f32[B, 4]",
    "full() {shape=[`B`, 1], value=0, dtype=f32}: f32[B, 1]",
    "add(%0, %1): f32[B, 4]",
    "full() {shape=[`B`, 0], value=0, dtype=f32}: f32[B, 0]",
    outputs="%2, %3",
    sizes="B: 1..64 = 2",
)


def test_what_has_no_elements_becomes_a_literal() -> None:
    assert str(without_empty(program_of(BEFORE).main)) == str(program_of(AFTER).main)


def test_a_graph_without_empty_values_stays_the_same_object() -> None:
    graph = program_of(graph_text("%x: f32[B, 4]", "relu(%x): f32[B, 4]", outputs="%0", sizes="B: 1..64 = 2")).main
    assert without_empty(graph) is graph


def everything(x: Tensor) -> tuple[Tensor, ...]:
    rows, columns = x[:0], x[:, :0]
    empty = (columns, columns.T.contiguous() + 1, columns.softmax(-1), rows * 2, functional.layer_norm(rows, (4,)))
    sums = (columns.sum(-1), columns.mean(-1), columns.prod(-1), (columns > 0).all(-1), (columns > 0).any(-1))
    products = (columns @ columns.T, rows @ x.T, functional.linear(columns, torch.ones(5, 0), torch.arange(5.0)))
    return (*empty, *sums, *products, torch.cat((columns * 2, x), 1), x.gather(1, columns.long()))


@pytest.mark.parametrize("dynamic", [None, {"x": {0: "n"}}], ids=["static", "dynamic"])
def test_empty_values_give_the_numbers_of_pytorch(dynamic: dict[str, dict[int, str]] | None) -> None:
    compiled = planish.compile(Net(everything).eval(), inputs=(X,), dynamic=dynamic)
    for got, wanted in zip(compiled(X), everything(X), strict=True):
        torch.testing.assert_close(got, wanted, equal_nan=True)


def test_a_kernel_that_cannot_read_nothing_is_refused_by_name() -> None:
    net = Net(lambda x: functional.pad(x[:, :0], (1, 1)))
    with pytest.raises(TemplateError, match=r"pad in '' .*: it reads f32\[3, 0\], which has no elements; leave it out"):
        planish.compile(net.eval(), inputs=(X,))
