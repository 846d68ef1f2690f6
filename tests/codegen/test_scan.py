"""Running sums against torch."""

import pytest
import torch

from planish.codegen.tvm.scan import Scan
from planish.compiler import ops
from planish.compiler.types import DType, Size
from tests.codegen.compare import check, integers, normal

S = Size("s").symbol


@pytest.mark.parametrize("axis", [0, 1, 2])
@pytest.mark.parametrize("width", [1, 7, 33, 150])
def test_any_axis(axis: int, width: int) -> None:
    check(Scan(), lambda x: ops.cumsum(x, axis=axis), normal(3, 5, width), rtol=1e-5, atol=1e-5, tasks=3)
    check(Scan(), lambda x: ops.cumsum(x, axis=axis), integers(3, 5, width))


@pytest.mark.parametrize("n", [1, 5, 40])
def test_positions_from_a_mask_of_dynamic_size(n: int) -> None:
    def positions(mask: object) -> object:
        return ops.mul(ops.cumsum(ops.cast(mask, dtype=DType.i64), axis=1), ops.full(value=2, dtype=DType.i64))

    mask = integers(3, n, low=0, high=2, dtype=torch.bool)
    check(Scan(), positions, mask, anchor=ops.cumsum, sizes={"s": n}, shapes=((3, S),))
    check(
        Scan(), lambda x: ops.cumsum(x, axis=0), normal(n, 20), sizes={"s": n}, shapes=((S, 20),), rtol=1e-5, atol=1e-5
    )
