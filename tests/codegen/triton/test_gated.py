"""Gated layers on GPUs against torch: silu(gate) * up as one kernel, from two slices of one product."""

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from planish.codegen.triton.gemm import Gemm
from planish.codegen.triton.int8_linear import Int8Linear
from planish.codegen.triton.quantized_linear import QuantizedLinear
from planish.compiler import ops
from planish.compiler.ir import Graph, Value
from planish.compiler.types import DType, Size, symbol
from tests.codegen.coded import FORMS, close, linear, tensors, wanted
from tests.codegen.coded_pairs import Case
from tests.codegen.compare import normal
from tests.codegen.harness import call_of
from tests.codegen.triton.harness import check, device, run_call

S = Size("s").symbol


def gated(y: Value, width: int, first: int = 0, second: int | None = None) -> Value:
    second = width if second is None else second
    gate, up = (ops.slice_(y, axis=y.type.rank - 1, start=s, stop=s + width) for s in (first, second))
    return ops.mul(ops.silu(gate), up)


def expected(y: Tensor, width: int) -> Tensor:
    return functional.silu(y[..., :width]) * y[..., width:]


@pytest.mark.parametrize(("m", "width", "k"), [(1, 20, 70), (12, 24, 130), (40, 37, 70), (260, 70, 64)])
def test_a_gate_joins_the_product_at_any_count_of_rows(m: int, width: int, k: int) -> None:
    x, w = normal(m, k).half(), normal(2 * width, k).half()
    check(Gemm(), lambda x, w: gated(ops.linear(x, w), width), x, w, anchor=ops.linear, rtol=4e-3, atol=0.1)


def test_slices_may_lie_in_any_order_behind_a_bias_with_a_residual() -> None:
    x, w, b, r = normal(2, 5, 48).half(), normal(100, 48).half(), normal(100).half(), normal(2, 5, 30, seed=1).half()

    def build(x: Value, w: Value, b: Value, r: Value) -> Value:
        y = ops.linear(x, w, b)
        first, second = (ops.slice_(y, axis=2, start=s, stop=s + 30) for s in (60, 10))
        return ops.add(r, ops.mul(ops.gelu(first), second))

    shapes = ((2, S, 48), (100, 48), (100,), (2, S, 30))
    check(Gemm(), build, x, w, b, r, anchor=ops.linear, shapes=shapes, sizes={"s": 5}, rtol=4e-3, atol=0.1)


@pytest.mark.parametrize("rows", [1, 20, 70])
@pytest.mark.parametrize("form", ["int4", "int4 with zeros", "nf4", "int8"])
def test_a_gate_joins_a_product_of_codes(form: str, rows: int) -> None:
    kind, width = FORMS[form], 27
    t = tensors((rows,), 2 * width, 96, 32, kind, torch.float16)
    x, y = linear((symbol("m"),), t, 32, kind, DType.f16)
    call = call_of(Graph("main", (x,), (gated(y, width),)), ops.linear)
    for found in run_call(QuantizedLinear(), call, t, sizes={"m": rows}, on="mi300x"):
        close(found, expected(wanted(t, 32, kind), width), 4e-3)


def test_a_sample_of_a_weight_is_packed_to_its_share_of_the_bytes() -> None:
    t = tensors((1,), 512, 96, 32, FORMS["int4"], torch.float16)
    x, y = linear((symbol("m"),), t, 32, FORMS["int4"], DType.f16)
    call = call_of(Graph("main", (x,), (gated(y, 256),)), ops.linear)
    packings = QuantizedLinear().build(call, device()).packings
    codes = next(value for value in packings if value.shape == (512, 96))
    whole, sample = (packings[codes].pack(t["q"][:rows].numpy()).nbytes for rows in (512, 128))
    assert whole == 4 * sample


@pytest.mark.parametrize(("bits", "group"), [(4, 32), (8, 64), (8, 96)])
def test_a_gate_joins_a_product_of_integers(bits: int, group: int) -> None:
    case = Case(54, 96, group, group, bits=bits)
    t = case.tensors(3)
    inputs, y = case.linear(t, (symbol("m"),))
    call = call_of(Graph("main", inputs, (gated(y, 27),)), ops.linear)
    for found in run_call(Int8Linear(), call, t, sizes={"m": 3}):
        close(found, expected(case.wanted(t), 27))
