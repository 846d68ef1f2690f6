"""Rotary embedding against torch."""

import pytest
import torch

from planish.codegen.tvm.isa import AVX2, Isa
from planish.codegen.tvm.rope import Rope
from planish.compiler import ops
from planish.compiler.types import Size
from tests.codegen.compare import check, normal
from tests.codegen.harness import host_isa

S = Size("s").symbol


@pytest.mark.parametrize("isa", [host_isa(), AVX2], ids=["host", "avx2"])
@pytest.mark.parametrize("width", [2, 6, 32, 64, 80, 128])
def test_any_head_size(width: int, isa: Isa) -> None:
    tables = normal(1, 1, 5, width, seed=1), normal(1, 1, 5, width, seed=2)
    check(Rope(), lambda x, c, s: ops.rope(x, c, s), normal(2, 3, 5, width), *tables, isa=isa, tasks=3)


@pytest.mark.parametrize("n", [1, 7])
def test_dynamic_length_of_a_transposed_view(n: int) -> None:
    x = normal(2, 3, n, 64)
    shapes = ((2, 3, S, 64), (S, 64), (S, 64))
    tables = normal(n, 64, seed=1), normal(n, 64, seed=2)
    check(Rope(), lambda x, c, s: ops.rope(x, c, s), x, *tables, sizes={"s": n}, shapes=shapes)
    check(Rope(), lambda x, c, s: ops.rope(x, c, s), normal(2, n, 3, 64).transpose(1, 2), *tables)


def test_bf16_and_what_is_computed_after() -> None:
    x, c, s = normal(1, 2, 3, 32), normal(3, 32, seed=1), normal(3, 32, seed=2)
    check(Rope(), lambda x, c, s: ops.neg(ops.rope(x, c, s)), x, c, s, anchor=ops.rope)
    half = (t.to(torch.bfloat16) for t in (x, c, s))
    check(Rope(), lambda x, c, s: ops.rope(x, c, s), *half, rtol=2e-2, atol=4e-2)
