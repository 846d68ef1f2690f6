"""Group normalization against torch."""

import pytest

from planish.codegen.tvm.group_norm import GroupNorm
from planish.codegen.tvm.isa import AVX2, Isa
from planish.compiler import ops
from planish.compiler.types import Size
from tests.codegen.compare import check, normal
from tests.codegen.harness import host_isa

S = Size("s").symbol


@pytest.mark.parametrize("isa", [host_isa(), AVX2], ids=["host", "avx2"])
@pytest.mark.parametrize(("groups", "channels"), [(1, 1), (1, 33), (2, 6), (4, 40), (3, 210), (8, 8)])
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
