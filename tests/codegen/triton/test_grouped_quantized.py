"""Linear layers of experts with weights of 8 and 4 bits on GPUs against a formula in torch: forms, rows, gates."""

from collections.abc import Callable

import pytest
import torch
from torch.nn import functional

from planish.codegen.triton.grouped_quantized import GroupedQuantizedLinear
from planish.compiler import ops
from planish.compiler.ir import Graph, Value
from planish.compiler.types import DType, symbol
from tests.codegen.coded import EVERY_FORM, FORMS, Form, Tensors, close, tensors, weight_of
from tests.codegen.harness import call_of
from tests.codegen.triton.harness import run_call

_PLAIN = "mi300x"  # assembly of NVIDIA does not run in the interpreter; the layout of weights is the same


def experts_of(rows: int, count: int, columns: int, depth: int, group: int, form: Form) -> tuple[Tensors, torch.Tensor]:
    """Operands of a product with experts [count, columns, depth], and its result by a formula."""
    t = tensors((rows,), count * columns, depth, group, form, torch.float16)
    w = weight_of(t, group, form).reshape(count, columns, depth)
    stored = {name: t[name].reshape(count, columns, -1) for name in "qsz"}
    t = {"x": t["x"], **stored, "i": torch.randint(0, count, (rows,), generator=torch.Generator().manual_seed(1))}
    result = torch.stack([functional.linear(x.double(), w[e]) for x, e in zip(t["x"], t["i"], strict=True)])
    return t, result


def check(
    t: Tensors, group: int, form: Form, expected: torch.Tensor, after: Callable[[Value], Value] = lambda y: y
) -> None:
    x = ops.input_(name="x", shape=(symbol("m"), t["x"].shape[1]), dtype=DType.f16)
    index = ops.input_(name="i", shape=(symbol("m"),), dtype=DType.i64)
    scales = ops.weight(name="s", shape=tuple(t["s"].shape), dtype=DType.f16)
    zeros = ops.weight(name="z", shape=tuple(t["z"].shape), dtype=DType.u8)
    codes = ops.weight(name="q", shape=tuple(t["q"].shape), dtype=form.dtype)
    given = (codes, scales, zeros) if form.zero else (codes, scales)
    w = ops.dequantize(*given, group=group, dtype=DType.f16, **form.attrs)
    call = call_of(Graph("main", (x, index), (after(ops.grouped_linear(x, w, index)),)), ops.grouped_linear)
    for found in run_call(GroupedQuantizedLinear(), call, t, sizes={"m": len(t["x"])}, on=_PLAIN):
        close(found, expected, 2e-3)


@EVERY_FORM
def test_few_rows_read_the_codes_of_their_experts(form: Form) -> None:
    t, expected = experts_of(3, 4, 40, 128, 64, form)
    check(t, 64, form, expected)


@pytest.mark.parametrize("rows", [20, 70])
@pytest.mark.parametrize("form", ["int8", "int4 with zeros"])
def test_rows_are_multiplied_expert_by_expert(rows: int, form: str) -> None:
    t, expected = experts_of(rows, 3, 20, 100, 100, FORMS[form])
    check(t, 100, FORMS[form], expected)


@pytest.mark.parametrize("rows", [2, 30])
def test_a_gate_over_two_slices_of_the_product(rows: int) -> None:
    def gated(y: Value) -> Value:
        gate, up = (ops.slice_(y, axis=1, start=s, stop=s + 20) for s in (0, 20))
        return ops.mul(ops.silu(gate), up)

    t, product = experts_of(rows, 2, 40, 64, 64, FORMS["int4"])
    gate, up = product.chunk(2, dim=1)
    check(t, 64, FORMS["int4"], functional.silu(gate) * up, gated)
