"""Reductions against torch over every kind of axes."""

import pytest
import torch

from planish.codegen.tvm.isa import AVX2, Isa
from planish.codegen.tvm.reduce import Reduce
from planish.compiler import ops
from planish.compiler.ir import Graph, Op, Value
from planish.compiler.types import DType, Size
from tests.codegen.compare import check, integers, leaf, normal
from tests.codegen.harness import call_of, host_isa

F = DType.f32
S = Size("s").symbol
SUMS = (ops.sum_, ops.mean, ops.prod)
EXTREMES = (ops.amax, ops.amin)
TRUTHS = (ops.any_, ops.all_)
every = pytest.mark.parametrize("op", [*SUMS, *EXTREMES, *TRUTHS], ids=str)
AXES = [(0,), (1,), (2,), (0, 1), (1, 2), (0, 2), (0, 1, 2)]


def _check(op: Op, x: torch.Tensor, axes: tuple[int, ...], **options: object) -> None:
    keep = bool(options.pop("keep", False))
    tight = {"rtol": 1e-5, "atol": 1e-5, **options}
    check(Reduce(), lambda x: op(x, axes=axes, keep=keep), x, **tight)  # type: ignore[arg-type]


@pytest.mark.parametrize("axes", AXES, ids=str)
@every
def test_any_axes(op: Op, axes: tuple[int, ...]) -> None:
    x = normal(5, 6, 77)
    x = (x > -2) if op in TRUTHS else 1 + 0.1 * x if op is ops.prod else x
    _check(op, x, axes, tasks=3)
    _check(op, x, axes, keep=True)


@pytest.mark.parametrize("isa", [host_isa(), AVX2], ids=["host", "avx2"])
@pytest.mark.parametrize("width", [1, 2, 3, 7, 13, 31, 64, 65, 127, 1000])
@pytest.mark.parametrize("axis", [0, 1])
def test_any_width(axis: int, width: int, isa: Isa) -> None:
    _check(ops.sum_, normal(9, width), (axis,), isa=isa)
    _check(ops.amax, normal(9, width), (axis,), isa=isa, tasks=3)


@pytest.mark.parametrize("n", [1, 3, 16, 17, 100])
@pytest.mark.parametrize("axes", [(0,), (1,), (0, 1), (2,)], ids=str)
def test_dynamic_sizes(axes: tuple[int, ...], n: int) -> None:
    _check(ops.mean, normal(3, n, 20), axes, sizes={"s": n}, shapes=((3, S, 20),))
    _check(ops.mean, normal(3, 20, n), axes, sizes={"s": n}, shapes=((3, 20, S),))
    _check(ops.sum_, normal(3, 20, n), axes, sizes={"s": n}, shapes=((3, 20, S),))


@pytest.mark.parametrize("dtype", [torch.int64, torch.int32])
@pytest.mark.parametrize("op", [ops.sum_, *EXTREMES], ids=str)
def test_integers(op: Op, dtype: torch.dtype) -> None:
    for axes in ((0,), (1,)):
        _check(op, integers(6, 45, dtype=dtype), axes, rtol=0, atol=0)


def test_truth_of_numbers() -> None:
    x = integers(6, 45, low=0, high=2)
    for axes in ((0,), (1,)):
        _check(ops.any_, x, axes)
        _check(ops.all_, x.float(), axes)
        _check(ops.any_, torch.full((2, 20), torch.nan), axes)


def test_not_a_number_is_the_extreme() -> None:
    x = normal(6, 45)
    x[2, 3] = torch.nan
    for op in EXTREMES:
        _check(op, x, (0,))
        _check(op, x, (1,))


def test_bf16_is_summed_in_f32() -> None:
    _check(ops.mean, normal(6, 45).bfloat16(), (1,), rtol=1e-2, atol=1e-2)
    _check(ops.mean, normal(6, 45).double(), (1,), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("keep", [True, False])
@pytest.mark.parametrize("axis", [0, 1, 2])
def test_argmax(axis: int, keep: bool) -> None:
    check(Reduce(), lambda x: ops.argmax(x, axis=axis, keep=keep), normal(5, 37, 70))
    check(Reduce(), lambda x: ops.argmax(x, axis=axis, keep=keep), integers(5, 37, 70, low=0, high=3))


@pytest.mark.parametrize("axis", [0, 1])
def test_argmax_gives_the_first_not_a_number(axis: int) -> None:
    x = normal(40, 50)
    x[[3, 7, 30], [4, 4, 4]] = torch.nan
    x[7, 30] = torch.nan
    check(Reduce(), lambda x: ops.argmax(x, axis=axis), x)


@pytest.mark.parametrize("axis", [0, 1])
def test_argmax_of_the_lowest_numbers_alone_is_the_first(axis: int) -> None:
    check(Reduce(), lambda x: ops.argmax(x, axis=axis), torch.full((40, 70), -torch.inf))
    check(Reduce(), lambda x: ops.argmax(x, axis=axis), torch.full((40, 70), torch.iinfo(torch.int64).min))


@pytest.mark.parametrize("n", [1, 5, 50])
def test_argmax_of_dynamic_size(n: int) -> None:
    check(Reduce(), lambda x: ops.argmax(x, axis=1), normal(3, n), sizes={"s": n}, shapes=((3, S),))


def test_what_is_computed_before_and_after() -> None:
    def build(x: Value, y: Value, b: Value) -> Value:
        return ops.relu(ops.add(ops.mean(ops.mul(x, y), axes=(1, 2)), b))

    check(Reduce(), build, normal(2, 5, 6, 40), normal(6, 1), normal(40), anchor=ops.mean, rtol=1e-5)


def test_strided_views() -> None:
    for axes in ((0,), (1,)):
        _check(ops.sum_, normal(40, 33).T, axes)


def test_refuses_a_node_that_is_not_elementwise() -> None:
    x = leaf("x", normal(4, 5))
    call = call_of(Graph("main", (x,), (ops.softmax(ops.sum_(x, axes=(0,)), axis=0),)), ops.sum_)
    assert Reduce().refuse(call, host_isa()) == "softmax is not computed element by element with sum"
