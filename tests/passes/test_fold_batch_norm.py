"""fold-batch-norm: batch norms become part of their neighbour's weights."""

import pytest
import torch

from planish.passes import FoldBatchNorm
from tests.passes.harness import refusals, rewritten


def test_a_batch_norm_after_a_convolution_goes() -> None:
    before = """graph main<B: 1..64 = 2>(%x: f32[B, 6, 6, 3]) {
  %0 = conv(%x, @w: f32[4, 3, 3, 3], @b: f32[4]) {stride=[1, 1], padding=[1, 1], dilation=[1, 1]}: f32[B, 6, 6, 4]  # conv
  %1 = batch_norm(@mean: f32[4], @variance: f32[4], %0, @scale: f32[4], @shift: f32[4]): f32[B, 6, 6, 4]  # bn
  return %1
}"""
    after = """graph main<B: 1..64 = 2>(%x: f32[B, 6, 6, 3]) {
  %0 = full() {value=1e-05, dtype=f32}: f32[]  # bn
  %1 = add(@variance: f32[4], %0): f32[4]  # bn
  %2 = rsqrt(%1): f32[4]  # bn
  %3 = mul(%2, @scale: f32[4]): f32[4]  # bn
  %4 = reshape(%3) {shape=[4, 1, 1, 1]}: f32[4, 1, 1, 1]  # bn
  %5 = mul(@w: f32[4, 3, 3, 3], %4): f32[4, 3, 3, 3]  # bn
  %6 = mul(@b: f32[4], %3): f32[4]  # bn
  %7 = mul(@mean: f32[4], %3): f32[4]  # bn
  %8 = sub(@shift: f32[4], %7): f32[4]  # bn
  %9 = add(%6, %8): f32[4]  # bn
  %10 = conv(%x, %5, %9) {stride=[1, 1], padding=[1, 1], dilation=[1, 1]}: f32[B, 6, 6, 4]  # conv
  return %10
}"""
    weights = {"variance": torch.tensor([0.5, 1.0, 2.0, 0.1])}
    assert rewritten(FoldBatchNorm(), before, weights)[0] == after


def test_a_batch_norm_before_a_convolution_goes() -> None:
    before = """graph main<B: 1..64 = 2>(%x: f32[B, 8, 8, 4]) {
  %0 = batch_norm(@mean: f32[4], @variance: f32[4], %x): f32[B, 8, 8, 4]  # bn
  %1 = conv(%0, @w: f32[5, 3, 3, 4], @b: f32[5]) {stride=[1, 1], padding=[0, 0], dilation=[1, 1]}: f32[B, 6, 6, 5]  # conv
  return %1
}"""
    after = """graph main<B: 1..64 = 2>(%x: f32[B, 8, 8, 4]) {
  %0 = full() {value=1e-05, dtype=f32}: f32[]  # bn
  %1 = add(@variance: f32[4], %0): f32[4]  # bn
  %2 = rsqrt(%1): f32[4]  # bn
  %3 = mul(@w: f32[5, 3, 3, 4], %2): f32[5, 3, 3, 4]  # bn
  %4 = full() {shape=[4], value=0.0, dtype=f32}: f32[4]  # bn
  %5 = mul(@mean: f32[4], %2): f32[4]  # bn
  %6 = sub(%4, %5): f32[4]  # bn
  %7 = mul(@w: f32[5, 3, 3, 4], %6): f32[5, 3, 3, 4]  # bn
  %8 = sum(%7) {axes=[1, 2, 3]}: f32[5]  # bn
  %9 = add(%8, @b: f32[5]): f32[5]  # bn
  %10 = conv(%x, %3, %9) {stride=[1, 1], padding=[0, 0], dilation=[1, 1]}: f32[B, 6, 6, 5]  # conv
  return %10
}"""
    weights = {"variance": torch.tensor([0.5, 1.0, 2.0, 0.1])}
    assert rewritten(FoldBatchNorm(), before, weights)[0] == after


def test_refuses_a_convolution_with_another_user() -> None:
    before = """graph main<B: 1..64 = 2>(%x: f32[B, 6, 6, 3]) {
  %0 = conv(%x, @w: f32[4, 3, 3, 3]) {stride=[1, 1], padding=[1, 1], dilation=[1, 1]}: f32[B, 6, 6, 4]  # conv
  %1 = batch_norm(@mean: f32[4], @variance: f32[4], %0, @scale: f32[4], @shift: f32[4]): f32[B, 6, 6, 4]  # bn
  return %1, %0
}"""
    weights = {"variance": torch.tensor([0.5, 1.0, 2.0, 0.1])}
    text, hits = rewritten(FoldBatchNorm(), before, weights)
    assert text == before
    assert refusals(hits) == ["the conv before it has another user"]


@pytest.mark.parametrize(
    "padding", ["padding=[1, 1], dilation=[1, 1]", "padding=[0, 0], dilation=[1, 1], after=[2, 2]"]
)
def test_refuses_padding_after_a_batch_norm(padding: str) -> None:
    before = f"""graph main<B: 1..64 = 2>(%x: f32[B, 8, 8, 4]) {{
  %0 = batch_norm(@mean: f32[4], @variance: f32[4], %x): f32[B, 8, 8, 4]  # bn
  %1 = conv(%0, @w: f32[5, 3, 3, 4], @b: f32[5]) {{stride=[1, 1], {padding}}}: f32[B, 8, 8, 5]  # conv
  return %1
}}"""
    weights = {"variance": torch.tensor([0.5, 1.0, 2.0, 0.1])}
    text, hits = rewritten(FoldBatchNorm(), before, weights)
    assert text == before
    assert refusals(hits) == ["padding or groups of the convolution after it change what its shift adds"]
