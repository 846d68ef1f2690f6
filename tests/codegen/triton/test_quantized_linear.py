"""Linear layers with weights of 8 and 4 bits on GPUs against a formula in torch: forms, odd sizes, rows, epilogues."""

from collections.abc import Callable

import numpy
import pytest
import torch
from torch.nn import functional

from planish.codegen.triton.kernel import Kernel
from planish.codegen.triton.packed_weight import pack_codes
from planish.codegen.triton.quantized_linear import QuantizedLinear
from planish.codegen.triton.unpacking import Unpacking
from planish.compiler import ops
from planish.compiler.ir import Graph, Value
from planish.compiler.types import DType, symbol
from planish.passes.weight_codes import NF4
from tests.codegen.coded import EVERY_FORM, FORMS, Form, Tensors, close, linear, tensors, wanted
from tests.codegen.harness import call_of
from tests.codegen.triton.harness import device, run_call

_PLAIN = "mi300x"  # assembly of NVIDIA does not run in the interpreter; the layout of weights is the same


def check(
    t: Tensors,
    group: int,
    form: Form,
    expected: torch.Tensor,
    *,
    after: Callable[[Value], Value] = lambda y: y,
    dtype: DType = DType.f16,
    tolerance: float = 2e-3,
) -> None:
    shape = tuple(t["x"].shape[:-1])
    x, y = linear((symbol("m"), *shape[1:]), t, group, form, dtype)
    call = call_of(Graph("main", (x,), (after(y),)), ops.linear)
    for found in run_call(QuantizedLinear(), call, t, sizes={"m": shape[0]}, on=_PLAIN):
        close(found, expected, tolerance)


@EVERY_FORM
@pytest.mark.parametrize(("rows", "columns", "depth", "group"), [(1, 40, 576, 128), (11, 70, 96, 96)])
def test_few_rows(rows: int, columns: int, depth: int, group: int, form: Form) -> None:
    t = tensors((rows,), columns, depth, group, form, torch.float16)
    check(t, group, form, wanted(t, group, form))
