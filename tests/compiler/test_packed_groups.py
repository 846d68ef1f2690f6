"""Rows of 4-bit codes against a formula in numpy, number by number."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from planish.compiler import ops
from planish.compiler.types import DType, symbol
from planish.errors import TypeRuleError
from tests.codegen.packed import unpacked


def _packed(x: Tensor, group: int = 32) -> Tensor:
    found = ops.pack_groups.reference(x, group=group)
    assert isinstance(found, Tensor)
    return found


@pytest.mark.parametrize(("width", "group"), [(64, 32), (80, 32), (16, 32), (48, 8)])
def test_numbers_come_back_within_half_a_level_of_their_group(width: int, group: int) -> None:
    torch.manual_seed(0)
    x = torch.randn(3, 5, width)
    packed = _packed(x, group)
    found = unpacked(packed, width, group)
    size = width // 2
    for row, back in zip(x.reshape(-1, width), found.reshape(-1, width), strict=True):
        for start in (0, size):
            for at in range(start, start + size, group):
                part = slice(at, min(at + group, start + size))
                reach = max(0.0, float(row[part].max())) - min(0.0, float(row[part].min()))
                assert np.abs(row[part].numpy() - back[part]).max() <= 0.5 * reach / 15 * 1.01 + 1e-6
    unpack = ops.unpack_groups.reference(packed, width=width, group=group, dtype=DType.f32)
    assert isinstance(unpack, Tensor)
    torch.testing.assert_close(unpack.double(), torch.from_numpy(found), rtol=1e-6, atol=1e-7)


def test_a_byte_holds_a_code_of_each_half_and_numbers_of_groups_follow() -> None:
    x = torch.tensor([[0.0, 1, 2, 3, 4, 5, 6, 15, -15, -1, 0, 0, 0, 0, 0, 0]])
    packed = _packed(x)[0]
    low, high = [0, 1, 2, 3, 4, 5, 6, 15], [0, 14, 15, 15, 15, 15, 15, 15]
    assert packed[:8].tolist() == [a + 16 * b for a, b in zip(low, high, strict=True)]
    assert packed[8:].view(torch.float16).tolist() == [1, 0, 1, -15]


def test_zeros_stay_zeros_and_what_is_not_finite_gives_nan() -> None:
    x = torch.zeros(2, 32)
    x[1, 3], x[1, 20] = math.inf, 2.0
    found = ops.unpack_groups.reference(_packed(x), width=32, group=32, dtype=DType.f32)
    assert isinstance(found, Tensor)
    assert (found[0] == 0).all()
    assert found[1, :16].isnan().all()
    assert found[1, 20] == pytest.approx(2.0, rel=1e-3)


@pytest.mark.parametrize(("width", "why"), [(36, "known multiple of 8"), (symbol("d"), "known multiple of 8")])
def test_rows_of_other_widths_are_refused(width: int, why: str) -> None:
    with pytest.raises(TypeRuleError, match=why):
        ops.pack_groups(ops.input_(name="x", shape=(2, width), dtype=DType.f32))


def test_bytes_of_another_width_are_refused() -> None:
    packed = ops.input_(name="x", shape=(2, 40), dtype=DType.u8)
    assert str(ops.unpack_groups(packed, width=64).type) == "f32[2, 64]"
    with pytest.raises(TypeRuleError, match=r"rows of u8\[2, 40\] are no 80 numbers in groups of 32"):
        ops.unpack_groups(packed, width=80)
