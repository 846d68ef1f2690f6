"""The reference evaluator against torch."""

import pytest
import torch

from planish.compiler.evaluate import bind_sizes, evaluate
from planish.compiler.text import parse
from planish.errors import InputError

TEXT = """graph main<B: 1..8 = 2, S: 1..8 = 3>(%x: f32[B, S, 4], %m: bool[B, S]) {
  %0 = linear(%x, @w: f32[4, 4], @b: f32[4]): f32[B, S, 4]
  %1 = full() {value=0.0, dtype=f32}: f32[]
  %2 = reshape(%m) {shape=[`B`, `S`, 1]}: bool[B, S, 1]
  %3 = where(%2, %0, %1): f32[B, S, 4]
  %4 = reshape(%3) {shape=[`B*S`, 4]}: f32[B*S, 4]
  %5 = slice(%4) {axis=0, stop=`B*S - 1`}: f32[B*S - 1, 4]
  return %5, %x
}"""


def test_a_graph_computes_what_torch_computes() -> None:
    torch.manual_seed(0)
    x, m, w, b = torch.randn(3, 2, 4), torch.rand(3, 2) > 0.5, torch.randn(4, 4), torch.randn(4)
    result, same = evaluate(parse(TEXT), (x, m), {"w": w, "b": b})
    expected = torch.where(m[..., None], x @ w.T + b, 0.0).reshape(6, 4)[:-1]
    torch.testing.assert_close(result, expected)
    assert same is x


def test_sizes_are_bound_from_the_inputs() -> None:
    assert bind_sizes(parse(TEXT), (torch.zeros(5, 7, 4), torch.zeros(5, 7))) == {"B": 5, "S": 7}


def test_sizes_that_contradict_each_other_are_named() -> None:
    with pytest.raises(InputError, match=r"input 'm' is \[5, 6\], not bool\[B, S\]"):
        bind_sizes(parse(TEXT), (torch.zeros(5, 7, 4), torch.zeros(5, 6)))


def test_the_number_of_inputs_is_checked() -> None:
    with pytest.raises(InputError, match="main takes 2 inputs, not 1"):
        bind_sizes(parse(TEXT), (torch.zeros(5, 7, 4),))
