"""Linear layers on GPUs against torch in Triton's interpreter: odd shapes, epilogues, dtypes, row counts."""

from typing import Any

import pytest
import torch
from torch.nn import functional

from planish.codegen.triton.gemm import Gemm
from planish.compiler import ops
from planish.compiler.ir import Graph
from planish.compiler.types import Size
from tests.codegen.compare import leaf, normal
from tests.codegen.harness import call_of
from tests.codegen.triton.harness import check, device, run_call

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


POINT = {"stride": (1, 1), "padding": (0, 0), "dilation": (1, 1)}


def test_a_pointwise_convolution_is_a_product() -> None:
    x, w, b = normal(2, 5, 3, 24).half(), normal(20, 1, 1, 24).half(), normal(20).half()
    leaves = [leaf(f"x{i}", t) for i, t in enumerate((x, w, b))]
    y = ops.relu(ops.conv(*leaves, **POINT))
    call = call_of(Graph("main", tuple(leaves), (y,)), ops.conv)
    wanted = functional.conv2d(x.double().movedim(-1, 1), w.double().movedim(-1, 1), b.double()).relu().movedim(1, -1)
    for found in run_call(Gemm(), call, {"x0": x, "x1": w, "x2": b}):
        torch.testing.assert_close(found.double(), wanted, rtol=2e-3, atol=2e-2)


@pytest.mark.parametrize(
    ("kernel", "change", "why"),
    [
        (3, {"padding": (1, 1)}, "a convolution over more than a point, or in groups, is no product"),
        (1, {"stride": (2, 2)}, "its strides leave points out"),
        (1, {"padding": (1, 1)}, "its padding adds points"),
    ],
)
def test_refuses_convolutions_that_are_no_product(kernel: int, change: dict[str, Any], why: str) -> None:
    leaves = leaf("x", normal(1, 6, 6, 8)), leaf("w", normal(4, kernel, kernel, 8))
    y = ops.conv(*leaves, **{**POINT, **change})
    assert Gemm().refuse(call_of(Graph("main", leaves, (y,)), ops.conv), device()) == why
