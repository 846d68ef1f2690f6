"""Group normalization against torch."""

import pytest

from planish.codegen.tvm.group_norm import GroupNorm
from planish.codegen.tvm.isa import AVX2, Isa
from planish.codegen.view import View
from planish.compiler import ops
from planish.compiler.ir import Graph
from planish.compiler.types import DType, Size
from tests.codegen.compare import check, normal
from tests.codegen.harness import call_of, host_isa

S = Size("s").symbol


@pytest.mark.parametrize("isa", [host_isa(), AVX2], ids=["host", "avx2"])
@pytest.mark.parametrize(
    ("groups", "channels"),
    [(1, 1), (1, 33), (2, 6), (4, 40), (3, 210), (8, 8), (16, 16), (32, 64), (12, 24), (8, 64), (4, 32)],
)
def test_any_groups(groups: int, channels: int, isa: Isa) -> None:
    x, w, b = normal(2, 4, 5, channels) + 3, normal(channels, seed=1), normal(channels, seed=2)
    check(GroupNorm(), lambda x, w, b: ops.group_norm(x, w, b, groups=groups), x, w, b, isa=isa, rtol=1e-4, atol=1e-4)


def test_dynamic_length_without_parameters_and_what_is_computed_after() -> None:
    for n in (2, 30):
        check(
            GroupNorm(),
            lambda x: ops.silu(ops.group_norm(x, groups=4)),
            normal(2, n, 24),
            anchor=ops.group_norm,
            sizes={"s": n},
            shapes=((2, S, 24),),
            rtol=1e-4,
            atol=1e-5,
        )


def test_narrow_groups_of_a_dynamic_length_and_what_is_computed_after() -> None:
    for n in (1, 30):
        check(
            GroupNorm(),
            lambda x: ops.silu(ops.group_norm(x, groups=16)),
            normal(2, n, 32) + 1,
            anchor=ops.group_norm,
            sizes={"s": n},
            shapes=((2, S, 32),),
            rtol=1e-4,
            atol=1e-5,
        )


def test_strided_channels_are_refused_so_that_a_copy_comes_before() -> None:
    x = ops.input_(name="x", shape=(2, 9, 32), dtype=DType.f32)
    views = {"x": View((2, 9, 32), (288, 1, 9), 0, DType.f32)}
    call = call_of(Graph("main", (x,), (ops.group_norm(x, groups=4),)), ops.group_norm, views)
    assert GroupNorm().refuse(call, host_isa()) == "the channels are strided"
