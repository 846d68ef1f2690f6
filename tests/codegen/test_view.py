"""Views place elements where torch's strides do."""

import pytest
import torch

from planish.codegen.view import View
from planish.compiler.types import DType, TensorType, symbol

B, S = symbol("B"), symbol("S")


def view(*shape: int) -> View:
    return View.contiguous(TensorType(shape, DType.f32))


def placed(v: View) -> torch.Tensor:
    memory = torch.arange(10_000)
    return torch.as_strided(memory, v.shape, v.strides, v.offset)  # type: ignore[arg-type]


def test_moves_match_torch_on_numbers() -> None:
    x = torch.arange(2 * 6 * 12).reshape(2, 6, 12)
    ours = view(2, 6, 12)
    assert torch.equal(placed(ours.transpose((2, 0, 1))), x.permute(2, 0, 1))
    assert torch.equal(placed(ours.slice(1, 1, 2, 3)), x[:, 1::2])
    reshaped = ours.slice(2, 4, 1, 8).reshape((2, 6, 2, 4))
    assert reshaped is not None
    assert torch.equal(placed(reshaped), x[:, :, 4:].reshape(2, 6, 2, 4))


def test_expand_repeats_with_stride_zero() -> None:
    x = torch.arange(3).reshape(3, 1)
    assert torch.equal(placed(view(3, 1).expand((2, 3, 4))), x.expand(2, 3, 4))


def test_heads_split_and_join_without_a_copy_for_every_size() -> None:
    hidden = View.contiguous(TensorType((B, S, 384), DType.f32))
    split = hidden.reshape((B, S, 12, 32))
    assert split is not None
    heads = split.transpose((0, 2, 1, 3))
    assert str(heads) == "f32[B:384*S, 12:32, S:384, 32:1]"
    joined = heads.transpose((0, 2, 1, 3)).reshape((B * S, 384))
    assert joined is not None
    assert joined.is_contiguous


@pytest.mark.parametrize("shape", [(24, 3), (6, 12)])
def test_a_reshape_across_a_transpose_needs_a_copy(shape: tuple[int, ...]) -> None:
    assert view(6, 12).transpose((1, 0)).reshape(shape) is None


def test_extent_ends_at_the_last_element_seen() -> None:
    assert view(4, 5).slice(0, 1, 2, 2).extent == 20
    assert view(4, 5).transpose((1, 0)).extent == 20


def test_collapse_joins_leading_axes_of_a_slice() -> None:
    part = View.contiguous(TensorType((B, S, 384), DType.f32)).slice(2, 128, 1, 128).collapse(2)
    assert str(part) == "f32[B*S:384, 128:1]+128"
