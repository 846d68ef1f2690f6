"""Linear layers of experts on GPUs against torch in Triton's interpreter: any routing, views, epilogues, few and many rows."""

import pytest
import torch

from planish.codegen.triton.grouped import GroupedLinear
from planish.compiler import ops
from planish.compiler.ir import Value
from planish.compiler.types import Size
from tests.codegen.compare import normal
from tests.codegen.triton.harness import check

S = Size("s").symbol


def experts(count: int, *shape: int) -> torch.Tensor:
    return torch.randint(0, count, shape, generator=torch.Generator().manual_seed(len(shape)))


def grouped(x: Value, w: Value, index: Value) -> Value:
    return ops.grouped_linear(x, w, index)


@pytest.mark.parametrize("rows", [1, 5, 16])
def test_few_rows_each_read_the_weights_of_their_expert(rows: int) -> None:
    x, w = normal(rows, 70).half(), normal(6, 33, 70, seed=1).half()
    check(GroupedLinear(), grouped, x, w, experts(6, rows), rtol=2e-3, atol=2e-2)


@pytest.mark.parametrize(("rows", "count"), [(40, 3), (33, 9), (90, 1)])
def test_rows_are_multiplied_expert_by_expert(rows: int, count: int) -> None:
    x, w = normal(rows, 48), normal(count, 40, 48, seed=1)
    check(GroupedLinear(), grouped, x, w, experts(count, rows), rtol=1e-5, atol=1e-4)


def test_half_precision_rows_of_few_an_expert() -> None:
    x, w = normal(50, 130).half(), normal(4, 24, 130, seed=1).half()
    check(GroupedLinear(), grouped, x, w, experts(4, 50).int(), rtol=2e-3, atol=4e-2)


def test_experts_that_no_row_has_and_one_that_all_have() -> None:
    x, w = normal(37, 20), normal(5, 12, 20, seed=1)
    check(GroupedLinear(), grouped, x, w, torch.full((37,), 3), rtol=1e-5, atol=1e-4)


def test_indices_out_of_range_take_the_nearest_expert() -> None:
    x, w = normal(20, 16), normal(3, 12, 16, seed=1)
    check(GroupedLinear(), grouped, x, w, torch.arange(20) % 7 - 2, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("tokens", [3, 30])
def test_the_experts_of_a_token_read_its_row_and_are_weighted(tokens: int) -> None:
    """The form of a mixture: rows repeated by a view, results times the weights of the routing; any batch."""
    x, w = normal(tokens, 1, 48), normal(4, 40, 48, seed=1)
    given = x.expand(tokens, 2, 48), w, experts(4, tokens, 2), normal(tokens, 2, 1, seed=2)
    check(
        GroupedLinear(),
        lambda x, w, index, share: ops.mul(ops.grouped_linear(x, w, index), share),
        *given,
        shapes=((S, 2, 48), (4, 40, 48), (S, 2), (S, 2, 1)),
        sizes={"s": tokens},
        anchor=ops.grouped_linear,
        rtol=1e-5,
        atol=1e-4,
    )


def test_a_gate_over_two_slices_of_the_product() -> None:
    def gated(x: Value, w: Value, index: Value) -> Value:
        y = ops.grouped_linear(x, w, index)
        gate, up = (ops.slice_(y, axis=1, start=s, stop=s + 20) for s in (0, 20))
        return ops.mul(ops.silu(gate), up)

    x, w = normal(34, 48), normal(3, 40, 48, seed=1)
    check(GroupedLinear(), gated, x, w, experts(3, 34), anchor=ops.grouped_linear, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize(
    ("x", "w", "words"),
    [
        (normal(3, 4).double(), normal(2, 5, 4).double(), "f64 operands; it takes f32, f16 and bf16"),
        (normal(4, 3).T, normal(2, 5, 4), "a row of an operand does not lie in one piece"),
        (normal(3, 4), normal(1025, 1, 4), "1025 experts are over its 1024"),
    ],
)
def test_refuses_by_name(x: torch.Tensor, w: torch.Tensor, words: str) -> None:
    with pytest.raises(AssertionError, match=words):
        check(GroupedLinear(), grouped, x, w, experts(2, 3))


def test_a_single_vector_is_refused() -> None:
    with pytest.raises(AssertionError, match="a vector has no rows"):
        check(GroupedLinear(), grouped, normal(4), normal(2, 5, 4), torch.tensor(1))
