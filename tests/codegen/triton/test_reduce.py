"""Reductions on GPUs against torch in Triton's interpreter: every op, any neighbouring axes, what fuses."""

from collections.abc import Callable

import pytest
import torch

from planish.codegen.triton.reduce import Reduce
from planish.compiler import ops
from planish.compiler.ir import Graph, Value
from planish.compiler.types import DType, Size
from tests.codegen.compare import integers, normal
from tests.codegen.harness import call_of
from tests.codegen.triton.harness import check, device

S = Size("s").symbol
REDUCTIONS: dict[str, Callable[..., Value]] = {
    "sum": ops.sum_,
    "mean": ops.mean,
    "amax": ops.amax,
    "amin": ops.amin,
    "any": ops.any_,
    "all": ops.all_,
}


@pytest.mark.parametrize("keep", [False, True])
@pytest.mark.parametrize("axes", [(0,), (1,), (2,), (0, 1), (1, 2), (0, 1, 2)])
def test_sums_over_any_neighbouring_axes(axes: tuple[int, ...], keep: bool) -> None:
    check(Reduce(), lambda x: ops.sum_(x, axes=axes, keep=keep), normal(3, 5, 37), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", REDUCTIONS)
def test_every_reduction(name: str) -> None:
    x = normal(6, 50)
    x[2, 7] = torch.nan
    check(Reduce(), lambda x: REDUCTIONS[name](x, axes=(1,)), x, rtol=1e-5, atol=1e-5)


def test_products_and_integers() -> None:
    check(Reduce(), lambda x: ops.prod(x, axes=(1,)), normal(3, 9), rtol=1e-5)
    check(Reduce(), lambda x: ops.sum_(x, axes=(0,)), integers(7, 11))
    check(Reduce(), lambda x: ops.amax(x, axes=(1,)), integers(7, 11, dtype=torch.int32))


def test_argmax_is_the_first_of_equals_and_prefers_nan() -> None:
    x = integers(5, 70, low=0, high=4).float()
    x[3, 30] = torch.nan
    check(Reduce(), lambda x: ops.argmax(x, axis=1), x)
    check(Reduce(), lambda x: ops.argmax(x, axis=0, keep=True), integers(9, 6))


def test_expressions_around_a_reduction() -> None:
    def build(x: Value, y: Value) -> Value:
        return ops.sqrt(ops.mean(ops.mul(x, y), axes=(2,)))

    x, y = normal(2, 4, 30).abs(), normal(2, 4, 30, seed=1).abs()
    shapes = ((2, S, 30), (2, S, 30))
    check(Reduce(), build, x, y, anchor=ops.mean, shapes=shapes, sizes={"s": 4}, rtol=1e-5)


def test_refuses_axes_apart() -> None:
    x = ops.input_(name="x", shape=(3, 4, 5), dtype=DType.f32)
    call = call_of(Graph("main", (x,), (ops.sum_(x, axes=(0, 2)),), ()), ops.sum_)
    assert Reduce().refuse(call, device()) == "axes [0, 2] do not follow each other"
