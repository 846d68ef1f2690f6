"""Softmax and normalizations on GPUs against torch in Triton's interpreter: odd widths, long rows, what fuses."""

import pytest
import torch
from torch.nn import functional

from planish.codegen.select import Choice, select
from planish.codegen.triton.rows import Rows
from planish.codegen.triton.templates import TEMPLATES
from planish.compiler import ops
from planish.compiler.ir import Graph, Op, Value
from planish.compiler.types import DType, Size
from tests.codegen.compare import leaf, normal
from tests.codegen.harness import call_of
from tests.codegen.triton.harness import check, device, run_results

S = Size("s").symbol


@pytest.mark.parametrize("columns", [1, 7, 64, 200, 8200])
def test_softmax_of_any_width(columns: int) -> None:
    check(Rows(), lambda x: ops.softmax(x, axis=1), 3 * normal(3, columns))


def test_log_softmax() -> None:
    check(Rows(), lambda x: ops.log_softmax(x, axis=2), 3 * normal(2, 3, 50), atol=3e-6)


@pytest.mark.parametrize("columns", [5, 96, 8200])
def test_norms_of_any_width(columns: int) -> None:
    x, w, b = 2 + normal(3, columns), normal(columns, seed=1), normal(columns, seed=2)
    check(Rows(), lambda x, w, b: ops.layer_norm(x, w, b, eps=1e-5), x, w, b, rtol=1e-5, atol=1e-5)
    check(Rows(), lambda x, w: ops.rms_norm(x, w, eps=1e-6), x, w, rtol=1e-5, atol=1e-5)
    check(Rows(), lambda x: ops.rms_norm(x, eps=1e-6), x, rtol=1e-5, atol=1e-5)


def test_a_residual_sum_is_computed_while_its_norm_reads_it() -> None:
    def build(x: Value, y: Value, w: Value) -> Value:
        return ops.mul(ops.rms_norm(ops.add(x, y), w), ops.full(value=2.0, dtype=DType.f32))

    x, y, w = normal(2, 5, 40), normal(2, 5, 40, seed=1), normal(40, seed=2)
    check(
        Rows(), build, x, y, w, anchor=ops.rms_norm, shapes=((2, S, 40), (2, S, 40), (40,)), sizes={"s": 5}, rtol=1e-5
    )


@pytest.mark.parametrize("form", [ops.rms_norm, ops.layer_norm])
def test_a_residual_sum_that_others_read_is_written_on_the_way(form: Op) -> None:
    tensors = normal(2, 5, 40).half(), normal(2, 5, 40, seed=1).half()
    leaves = tuple(leaf(f"x{i}", t) for i, t in enumerate(tensors))
    total = ops.add(*leaves)
    graph = Graph("main", leaves, (form(ops.cast(total, dtype=DType.f32), eps=1e-5), total))
    (choice,) = select(graph, TEMPLATES, device()).work
    assert isinstance(choice, Choice)
    for found in run_results(Rows(), choice.call, {f"x{i}": t for i, t in enumerate(tensors)}):
        exact = tensors[0].double() + tensors[1].double()
        shift = exact.mean(-1, keepdim=True) if form is ops.layer_norm else 0.0
        torch.testing.assert_close(found[1].double(), exact, rtol=1e-3, atol=0)
        norm = functional.rms_norm(exact - shift, (40,), eps=1e-5)
        torch.testing.assert_close(found[0].double(), norm, rtol=1e-5, atol=1e-5)


def test_long_rows_read_a_sum_from_memory() -> None:
    leaves = tuple(leaf(f"x{i}", torch.empty(2, 8200)) for i in range(2))
    total = ops.add(*leaves)
    work = select(Graph("main", leaves, (ops.rms_norm(total, eps=1e-5), total)), TEMPLATES, device()).work
    assert [w.template.name for w in work if isinstance(w, Choice)] == ["map", "rows"]


def test_half_precision() -> None:
    check(Rows(), lambda x: ops.softmax(x, axis=1), normal(6, 130).half(), rtol=1e-3, atol=1e-4)


def test_rows_of_infinities_are_as_in_torch() -> None:
    x = normal(4, 20)
    x[1] = -torch.inf
    x[2, 3:] = -torch.inf
    x[3, 2] = torch.nan
    check(Rows(), lambda x: ops.softmax(x, axis=1), x)


def test_refuses_another_axis() -> None:
    x = ops.input_(name="x", shape=(3, 4), dtype=DType.f32)
    call = call_of(Graph("main", (x,), (ops.softmax(x, axis=0),), ()), ops.softmax)
    assert Rows().refuse(call, device()) == "softmax along axis 0 of f32[3, 4] is not along the last axis"
