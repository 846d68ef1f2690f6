"""Batched products on GPUs against torch in Triton's interpreter: odd shapes, views, broadcast batches, epilogues."""

import pytest
import torch

from planish.codegen.triton.matmul import Matmul
from planish.compiler import ops
from planish.compiler.ir import Value
from planish.compiler.types import Size
from tests.codegen.compare import normal
from tests.codegen.triton.harness import check

S = Size("s").symbol


def product(x: Value, y: Value) -> Value:
    return ops.matmul(x, y)


@pytest.mark.parametrize(("m", "n", "k"), [(1, 40, 33), (17, 70, 20), (5, 6, 1)])
def test_products_of_two_matrices(m: int, n: int, k: int) -> None:
    check(Matmul(), product, normal(m, k), normal(k, n), rtol=1e-5, atol=1e-4)


def test_one_product_for_each_of_a_batch() -> None:
    check(Matmul(), product, normal(2, 3, 9, 20), normal(2, 3, 20, 33), rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize(("x", "y"), [((2, 1, 9, 20), (3, 20, 17)), ((9, 20), (3, 20, 17)), ((2, 3, 5, 20), (20, 17))])
def test_batches_are_broadcast(x: tuple[int, ...], y: tuple[int, ...]) -> None:
    check(Matmul(), product, normal(*x), normal(*y), rtol=1e-5, atol=1e-4)


def test_transposed_views_are_read_in_place() -> None:
    x, y = normal(2, 9, 3, 20).transpose(1, 2), normal(2, 3, 33, 20).transpose(2, 3)
    check(Matmul(), product, x, y, rtol=1e-5, atol=1e-4)


def test_elementwise_nodes_join_the_product_of_dynamic_sizes() -> None:
    check(
        Matmul(),
        lambda x, y, z: ops.add(ops.relu(ops.matmul(x, y)), z),
        *(normal(2, 9, 20).half(), normal(2, 20, 11).half(), normal(2, 9, 11, seed=1).half()),
        shapes=((2, S, 20), (2, 20, 11), (2, S, 11)),
        sizes={"s": 9},
        anchor=ops.matmul,
        rtol=2e-3,
        atol=2e-2,
    )


def test_a_linear_over_operands_that_do_not_lie_in_rows() -> None:
    x, w = normal(2, 20, 9).transpose(1, 2), normal(20, 33).T
    check(Matmul(), lambda x, w, b: ops.linear(x, w, b), x, w, normal(33), rtol=1e-5, atol=1e-4)


def test_refuses_integers() -> None:
    x = torch.ones(3, 4, dtype=torch.int32)
    with pytest.raises(AssertionError, match="i32 operands; it takes f32, f16 and bf16"):
        check(Matmul(), product, x, x.T.contiguous())
