"""Linear layers on GPUs against torch in Triton's interpreter: odd shapes, epilogues, dtypes, row counts."""

import pytest

from planish.codegen.triton.gemm import Gemm
from planish.compiler import ops
from planish.compiler.types import Size
from tests.codegen.compare import normal
from tests.codegen.triton.harness import check

S = Size("s").symbol


@pytest.mark.parametrize(("m", "n", "k"), [(1, 40, 33), (16, 64, 128), (37, 100, 70), (300, 130, 65)])
def test_products_of_any_shape(m: int, n: int, k: int) -> None:
    check(Gemm(), lambda x, w: ops.linear(x, w), normal(m, k), normal(n, k), rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize(("m", "n", "k"), [(1, 40, 200), (11, 70, 513)])
def test_few_rows_in_half_precision(m: int, n: int, k: int) -> None:
    x, w = normal(m, k).half(), normal(n, k).half()
    check(Gemm(), lambda x, w: ops.linear(x, w), x, w, rtol=2e-3, atol=4e-2)


def test_bias_and_elementwise_nodes_join_the_product() -> None:
    x, w, b, r = normal(2, 9, 48), normal(70, 48), normal(70), normal(2, 1, 70, seed=1)
    check(
        Gemm(),
        lambda x, w, b, r: ops.add(ops.gelu(ops.linear(x, w, b)), r),
        *(x.half(), w.half(), b.half(), r.half()),
        shapes=((2, S, 48), (70, 48), (70,), (2, 1, 70)),
        sizes={"s": 9},
        anchor=ops.linear,
        rtol=2e-3,
        atol=2e-2,
    )


def test_rows_of_a_wider_tensor_are_read_in_place() -> None:
    wide = normal(20, 3, 64)
    check(Gemm(), lambda x, w: ops.linear(x, w), wide[:, 0, :], normal(33, 64), rtol=1e-5, atol=1e-4)
