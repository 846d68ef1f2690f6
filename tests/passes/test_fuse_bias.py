"""fuse-bias: constant sums and factors after a linear map join its weights."""

from planish.passes import FuseBias
from tests.passes.harness import refusals, rewritten


def test_a_sum_and_a_factor_join_the_weights() -> None:
    before = """graph main<B: 1..64 = 2, S: 1..32 = 5>(%x: f32[B, S, 8]) {
  %0 = linear(%x, @w: f32[4, 8], @b: f32[4]): f32[B, S, 4]  # fc
  %1 = add(@c: f32[4], %0): f32[B, S, 4]  # fc
  %2 = full() {value=0.5, dtype=f32}: f32[]
  %3 = mul(%1, %2): f32[B, S, 4]  # scale
  return %3
}"""
    after = """graph main<B: 1..64 = 2, S: 1..32 = 5>(%x: f32[B, S, 8]) {
  %0 = full() {value=0.5, dtype=f32}: f32[]
  %1 = mul(@w: f32[4, 8], %0): f32[4, 8]  # scale
  %2 = add(@b: f32[4], @c: f32[4]): f32[4]  # fc
  %3 = mul(%2, %0): f32[4]  # scale
  %4 = linear(%x, %1, %3): f32[B, S, 4]  # fc
  return %4
}"""
    assert rewritten(FuseBias(), before)[0] == after


def test_a_product_with_a_weight_is_linear() -> None:
    before = """graph main<B: 1..64 = 2, S: 1..32 = 5>(%x: f32[B, S, 8]) {
  %0 = matmul(%x, @w: f32[8, 4]): f32[B, S, 4]  # fc
  %1 = sub(%0, @c: f32[1, 1, 4]): f32[B, S, 4]  # fc
  return %1
}"""
    after = """graph main<B: 1..64 = 2, S: 1..32 = 5>(%x: f32[B, S, 8]) {
  %0 = transpose(@w: f32[8, 4]) {order=[1, 0]}: f32[4, 8]  # fc
  %1 = reshape(@c: f32[1, 1, 4]) {shape=[4]}: f32[4]  # fc
  %2 = neg(%1): f32[4]  # fc
  %3 = linear(%x, %0, %2): f32[B, S, 4]  # fc
  return %3
}"""
    assert rewritten(FuseBias(), before)[0] == after


def test_a_sum_behind_a_reshape_joins_too() -> None:
    before = """graph main<B: 1..64 = 2, S: 1..32 = 5>(%x: f32[B, S, 8]) {
  %0 = linear(%x, @w: f32[4, 8]): f32[B, S, 4]  # fc
  %1 = reshape(%0) {shape=[`B*S`, 4]}: f32[B*S, 4]
  %2 = add(%1, @c: f32[4]): f32[B*S, 4]  # fc
  return %2
}"""
    after = """graph main<B: 1..64 = 2, S: 1..32 = 5>(%x: f32[B, S, 8]) {
  %0 = linear(%x, @w: f32[4, 8], @c: f32[4]): f32[B, S, 4]  # fc
  %1 = reshape(%0) {shape=[`B*S`, 4]}: f32[B*S, 4]  # fc
  return %1
}"""
    assert rewritten(FuseBias(), before)[0] == after


def test_a_factor_of_each_channel_joins_a_convolution() -> None:
    before = """graph main<B: 1..64 = 2>(%x: f32[B, 6, 6, 3]) {
  %0 = conv(%x, @w: f32[4, 3, 3, 3]) {stride=[1, 1], padding=[1, 1], dilation=[1, 1]}: f32[B, 6, 6, 4]  # conv
  %1 = mul(%0, @c: f32[4]): f32[B, 6, 6, 4]  # conv
  return %1
}"""
    after = """graph main<B: 1..64 = 2>(%x: f32[B, 6, 6, 3]) {
  %0 = reshape(@c: f32[4]) {shape=[4, 1, 1, 1]}: f32[4, 1, 1, 1]  # conv
  %1 = mul(@w: f32[4, 3, 3, 3], %0): f32[4, 3, 3, 3]  # conv
  %2 = conv(%x, %1) {stride=[1, 1], padding=[1, 1], dilation=[1, 1]}: f32[B, 6, 6, 4]  # conv
  return %2
}"""
    assert rewritten(FuseBias(), before)[0] == after


def test_refuses_weights_and_results_that_something_else_reads() -> None:
    before = """graph main<B: 1..64 = 2, S: 1..32 = 5>(%x: f32[B, S, 8]) {
  %0 = linear(%x, @w: f32[8, 8]): f32[B, S, 8]  # a
  %1 = linear(%0, @w: f32[8, 8]): f32[B, S, 8]  # b
  %2 = mul(%1, @c: f32[8]): f32[B, S, 8]  # b
  %3 = add(%0, @c: f32[8]): f32[B, S, 8]  # a
  return %2, %3
}"""
    text, hits = rewritten(FuseBias(), before)
    assert text == before
    assert refusals(hits) == [
        "its weight has another user and would be stored twice",
        "the sum without its bias has another user",
    ]
