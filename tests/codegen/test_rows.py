"""Softmax and normalizations against torch, with what is fused around them."""

from collections.abc import Callable

import pytest
import torch

from planish.codegen.tvm.isa import AVX2, Isa
from planish.codegen.tvm.rows import Rows
from planish.compiler import ops
from planish.compiler.ir import Graph, Op, Value
from planish.compiler.types import DType, Size
from tests.codegen.compare import check, leaf, normal
from tests.codegen.harness import call_of, host_isa, run_call

F = DType.f32
WIDTHS = [1, 2, 7, 13, 16, 31, 33, 64, 127, 384, 1000]
S = Size("s").symbol


def _softmax(x: Value, w: Value, b: Value) -> Value:
    return ops.softmax(x, axis=1)


def _log_softmax(x: Value, w: Value, b: Value) -> Value:
    return ops.log_softmax(x, axis=1)


def _layer_norm(x: Value, w: Value, b: Value) -> Value:
    return ops.layer_norm(x, w, b, eps=1e-5)


def _rms_norm(x: Value, w: Value, b: Value) -> Value:
    return ops.rms_norm(x, w, eps=1e-6)


FUNCTIONS = [_softmax, _log_softmax, _layer_norm, _rms_norm]
ANCHORS: dict[Callable[..., Value], Op] = dict(
    zip(FUNCTIONS, (ops.softmax, ops.log_softmax, ops.layer_norm, ops.rms_norm), strict=True)
)
named = pytest.mark.parametrize("function", FUNCTIONS, ids=lambda f: f.__name__[1:])


def _used(function: Callable[..., Value]) -> int:
    return {_softmax: 1, _log_softmax: 1, _layer_norm: 3, _rms_norm: 2}[function]


def _operands(rows: int, width: int) -> tuple[torch.Tensor, ...]:
    return 3 * normal(rows, width) + 1, normal(width, seed=1), normal(width, seed=2)


def _check(function: Callable[..., Value], *tensors: torch.Tensor, **options: object) -> None:
    used = tensors[: _used(function)]

    def build(*leaves: Value) -> Value:
        return function(*leaves, *[None] * (3 - len(leaves)))

    check(Rows(), build, *used, anchor=ANCHORS[function], rtol=1e-5, atol=3e-6, **options)  # type: ignore[arg-type]


@pytest.mark.parametrize("width", WIDTHS)
@named
def test_rows_of_any_width(function: Callable[..., Value], width: int) -> None:
    _check(function, *_operands(5, width), tasks=3)


@pytest.mark.parametrize("isa", [host_isa(), AVX2], ids=["host", "avx2"])
@pytest.mark.parametrize("width", [1, 5, 16, 70, 300])
@named
def test_rows_of_dynamic_width(function: Callable[..., Value], width: int, isa: Isa) -> None:
    _check(function, *_operands(3, width), sizes={"s": width}, shapes=((3, S), (S,), (S,))[: _used(function)], isa=isa)


@named
def test_rows_of_dynamic_count(function: Callable[..., Value]) -> None:
    _check(function, *_operands(7, 40), sizes={"s": 7}, shapes=((S, 40), (40,), (40,))[: _used(function)], tasks=20)


@named
def test_rows_of_a_strided_view(function: Callable[..., Value]) -> None:
    x, w, b = _operands(40, 33)
    _check(function, x.T, w.new_ones(40), b.new_ones(40))
    _check(function, x[3:9, 2:30], w[2:30].clone(), b[2:30].clone())


def test_an_addition_before_and_an_activation_after() -> None:
    x, y, w, b = normal(2, 6, 50), normal(2, 6, 50, seed=3), normal(50, seed=1), normal(50, seed=2)

    def build(x: Value, y: Value, w: Value, b: Value) -> Value:
        return ops.silu(ops.layer_norm(ops.add(x, y), w, b))

    check(Rows(), build, x, y, w, b, anchor=ops.layer_norm, rtol=1e-5, atol=3e-6)


@pytest.mark.parametrize("width", [48, 50])
@named
def test_an_addition_before_rows_that_vectors_fill_or_do_not(function: Callable[..., Value], width: int) -> None:
    x, w, b = _operands(5, width)
    used = (w, b)[: _used(function) - 1]

    def build(x: Value, y: Value, *others: Value) -> Value:
        return function(ops.add(x, y), *others, *[None] * (2 - len(others)))

    check(Rows(), build, x, x.flip(1).contiguous(), *used, anchor=ANCHORS[function], rtol=1e-5, atol=3e-6, tasks=2)


def test_a_mask_before_softmax() -> None:
    x, mask = normal(2, 3, 5, 40), torch.where(normal(2, 1, 1, 40, seed=1) > 0, 0.0, -torch.inf)
    scale = ops.full(value=0.125, dtype=F)
    check(Rows(), lambda x, m: ops.softmax(ops.add(ops.mul(x, scale), m), axis=3), x, mask, rtol=1e-5)


def test_softmax_of_extreme_rows() -> None:
    x = torch.tensor(
        [[1e30, -1e30, 0.0], [-torch.inf, 0.0, 1.0], [-torch.inf] * 3, [torch.nan, 0.0, 1.0], [88.0, 0.0, -88.0]]
    )
    check(Rows(), lambda x: ops.softmax(x, axis=1), x)


@pytest.mark.parametrize("isa", [host_isa(), AVX2], ids=["host", "avx2"])
@pytest.mark.parametrize("top", [0.0, 3.3, -1000.0, 1e8], ids=str)
def test_softmax_is_precise_in_small_results_too(top: float, isa: Isa) -> None:
    x = torch.cat([-87 * torch.rand(6, 1000, generator=torch.Generator().manual_seed(5)), torch.zeros(6, 1)], 1) + top
    value = leaf("x", x)
    call = call_of(Graph("main", (value,), (ops.softmax(value, axis=1),)), ops.softmax)
    found, wanted = run_call(Rows(), call, {"x": x}, isa=isa).double(), torch.softmax(x.double(), 1)
    rounding = 2.0**-24 * (top - x.double())  # of the difference from the largest, which has to be rounded
    error = (found - wanted).abs() / wanted
    assert (wanted > 2e-38).any()
    assert float((error - rounding)[wanted > 2e-38].max()) < 5e-7


def test_softmax_vanishes_where_elements_are_masked() -> None:
    x = normal(4, 64)
    x[:, 5:40], x[:, 40:50] = -torch.inf, -3e38
    value = leaf("x", x)
    call = call_of(Graph("main", (value,), (ops.softmax(value, axis=1),)), ops.softmax)
    found = run_call(Rows(), call, {"x": x})
    assert float(found[:, 5:50].abs().max()) < 2.0**-125
    assert not found[:, 5:50].signbit().any()


def test_variance_of_large_means_is_accurate() -> None:
    x = normal(4, 384) + 1000
    check(Rows(), lambda x: ops.layer_norm(x), x, rtol=1e-3, atol=1e-3)


def test_bf16_rows_are_computed_in_f32() -> None:
    x, w = normal(3, 40).bfloat16(), normal(40, seed=1).bfloat16()
    check(Rows(), lambda x, w: ops.rms_norm(x, w), x, w, rtol=1e-2, atol=1e-2)
    check(Rows(), lambda x, w: ops.rms_norm(ops.cast(x, dtype=F), w), x, w.float(), anchor=ops.rms_norm, rtol=1e-5)


def test_refuses_another_axis_and_f64() -> None:
    x, y = leaf("x", normal(4, 5)), leaf("y", normal(4, 5).double())
    other = call_of(Graph("main", (x,), (ops.softmax(x, axis=0),)), ops.softmax)
    assert Rows().refuse(other, host_isa()) == "softmax along axis 0 of f32[4, 5] is not along the last axis"
    wide = call_of(Graph("main", (y,), (ops.layer_norm(y),)), ops.layer_norm)
    assert Rows().refuse(wide, host_isa()) == "layer_norm of f64 has no kernel; cast to f32"


@pytest.mark.parametrize("width", [48, 768, 1001])
@pytest.mark.parametrize("static", [True, False], ids=["static", "dynamic"])
def test_layer_norm_is_precise_where_the_elements_lie_far_from_zero(width: int, static: bool) -> None:
    exact = torch.round(64 * normal(5, width)) / 64
    wanted = torch.layer_norm(exact.double(), (width,), eps=1e-5)
    assert (
        _error_of_layer_norm(exact + 2048, wanted, static) < 3e-4
    )  # half a unit in the last place of the mean is 6e-5


@pytest.mark.parametrize("static", [True, False], ids=["static", "dynamic"])
def test_layer_norm_is_precise_where_the_first_elements_lie_far_from_the_others(static: bool) -> None:
    x = normal(5, 768)
    x[:, :16] += 1000
    x[3, 0] = -1e6
    wanted = torch.layer_norm(x.double(), (768,), eps=1e-5)
    assert _error_of_layer_norm(x, wanted, static) < 2e-5


def _error_of_layer_norm(x: torch.Tensor, wanted: torch.Tensor, static: bool) -> float:
    value = leaf("x", x, None if static else (x.shape[0], S))
    output = ops.layer_norm(value, None, None, eps=1e-5)
    sizes = {} if static else {"s": x.shape[1]}
    graph = Graph("main", (value,), (output,), tuple(Size(name, hint=hint) for name, hint in sizes.items()))
    found = run_call(Rows(), call_of(graph, ops.layer_norm), {"x": x}, sizes=sizes)
    return float((found.double() - wanted).abs().max())


@pytest.mark.parametrize("rows", [1, 2, 3, 4, 9])
@named
def test_any_number_of_rows_is_shared_by_any_number_of_tasks(function: Callable[..., Value], rows: int) -> None:
    for tasks in (1, 3):
        _check(function, *_operands(rows, 40), tasks=tasks)
