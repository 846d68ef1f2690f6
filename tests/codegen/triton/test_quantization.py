"""Quantized activations on GPUs against torch in Triton's interpreter: scales of groups and rows, and codes."""

import pytest

from planish.codegen.triton.map import Map
from planish.codegen.triton.quantization import Quantization
from planish.compiler import ops
from planish.compiler.types import Size
from tests.codegen.compare import normal
from tests.codegen.triton.harness import check

S = Size("s").symbol


@pytest.mark.parametrize("group", [32, 48, 100])
def test_scales_of_groups_of_which_the_last_may_be_short(group: int) -> None:
    x = normal(2, 5, 100)
    x[0, 1] = 0
    shapes, sizes = ((2, S, 100),), {"s": 5}
    check(Quantization(), lambda x: ops.quantization_scale(x, group=group), x, shapes=shapes, sizes=sizes)


def test_codes_round_to_even_and_are_zero_where_the_scale_is() -> None:
    x, scale = 4 * normal(3, 70), normal(3, 3).abs()
    x[0, :4], scale[0, 0], scale[1, 1] = 0.5, 1.0, 0.0
    check(Map(), lambda x, s: ops.quantize(x, s, group=32, bits=4), x, scale)
