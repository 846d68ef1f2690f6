"""Softmax along other axes than the last against torch."""

import pytest
import torch

from planish.codegen.tvm.columns import Columns
from planish.compiler import ops
from planish.compiler.ir import Graph, Op
from planish.compiler.types import DType, Size
from tests.codegen.compare import check, leaf, normal
from tests.codegen.harness import call_of, host_isa

S = Size("s").symbol
both = pytest.mark.parametrize("op", [ops.softmax, ops.log_softmax], ids=str)


@pytest.mark.parametrize("width", [1, 7, 33, 200])
@pytest.mark.parametrize("axis", [0, 1])
@both
def test_any_axis_but_the_last(op: Op, axis: int, width: int) -> None:
    check(Columns(), lambda x: op(x, axis=axis), 5 * normal(3, 6, width), rtol=1e-5, tasks=3)


@pytest.mark.parametrize("n", [1, 9, 70])
@both
def test_dynamic_sizes(op: Op, n: int) -> None:
    check(Columns(), lambda x: op(x, axis=0), normal(n, 20), sizes={"s": n}, shapes=((S, 20),), rtol=1e-5)
    check(Columns(), lambda x: op(x, axis=0), normal(20, n), sizes={"s": n}, shapes=((20, S),), rtol=1e-5)


def test_what_is_computed_before_and_after() -> None:
    scale = ops.full(value=0.5, dtype=DType.f32)
    check(
        Columns(),
        lambda x, y: ops.mul(ops.softmax(ops.mul(x, scale), axis=0), y),
        *(normal(4, 40), normal(4, 40, seed=1)),
        anchor=ops.softmax,
        rtol=1e-5,
    )


def test_refuses_the_last_axis_and_f64() -> None:
    x, y = leaf("x", normal(4, 5)), leaf("y", normal(4, 5).to(torch.float64))
    last = call_of(Graph("main", (x,), (ops.softmax(x, axis=1),)), ops.softmax)
    assert Columns().refuse(last, host_isa()) == "softmax is along the last axis"
    wide = call_of(Graph("main", (y,), (ops.softmax(y, axis=0),)), ops.softmax)
    assert Columns().refuse(wide, host_isa()) == "softmax of f64 has no kernel; cast to f32"
