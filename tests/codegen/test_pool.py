"""Pooling against torch, with borders."""

import pytest
import torch

from planish.codegen.tvm.isa import Isa
from planish.codegen.tvm.pool import Pool
from planish.compiler import ops
from planish.compiler.types import Size
from tests.codegen.compare import check, normal
from tests.codegen.harness import on_both

S = Size("s").symbol
WINDOWS = [((2, 2), (2, 2), (0, 0)), ((3, 3), (2, 2), (1, 1)), ((3, 2), (1, 3), (1, 0)), ((7, 7), (1, 1), (3, 3))]


@pytest.mark.parametrize(("channels", "isa"), on_both((1, 3, 16, 37, 130), (3, 37)))
@pytest.mark.parametrize(("kernel", "stride", "padding"), WINDOWS)
def test_windows_of_an_image(kernel: object, stride: object, padding: object, channels: int, isa: Isa) -> None:
    x, window = normal(2, 9, 11, channels), {"kernel": kernel, "stride": stride, "padding": padding}
    check(Pool(), lambda x: ops.max_pool(x, **window), x, isa=isa, tasks=3)
    for count in (True, False):
        check(Pool(), lambda x, c=count: ops.avg_pool(x, **window, count_padding=c), x, isa=isa)


def test_windows_of_a_volume() -> None:
    window = {"kernel": (2, 3, 2), "stride": (1, 2, 2), "padding": (1, 1, 0)}
    check(Pool(), lambda x: ops.max_pool(x, **window), normal(2, 3, 5, 6, 20))
    check(Pool(), lambda x: ops.avg_pool(x, **window, count_padding=False), normal(2, 3, 5, 6, 20))


def test_windows_of_a_sequence_of_dynamic_length() -> None:
    window = {"kernel": (3,), "stride": (2,), "padding": (1,)}
    for n in (1, 2, 20):
        options = {"sizes": {"s": n}, "shapes": ((2, S, 20),)}
        check(Pool(), lambda x: ops.max_pool(x, **window), normal(2, n, 20), **options)
        check(Pool(), lambda x: ops.avg_pool(x, **window, count_padding=False), normal(2, n, 20), **options)


def test_what_is_computed_before_and_after() -> None:
    window = {"kernel": (2, 2), "stride": (2, 2), "padding": (0, 0)}
    check(Pool(), lambda x: ops.relu(ops.avg_pool(ops.neg(x), **window)), normal(1, 4, 4, 20), anchor=ops.avg_pool)


def test_not_a_number_is_the_maximum() -> None:
    x = normal(1, 4, 4, 20)
    x[0, 1, 1, 3] = torch.nan
    check(Pool(), lambda x: ops.max_pool(x, kernel=(2, 2), stride=(2, 2), padding=(0, 0)), x)
