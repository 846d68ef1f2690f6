"""fuse-norms: spelled out normalizations become one op."""

from planish.passes import FuseNorms
from tests.passes.harness import refusals, rewritten


def test_a_root_mean_square_with_its_scale_is_rms_norm() -> None:
    before = """graph main<B: 1..64 = 2, S: 1..32 = 5>(%x: f32[B, S, 8]) {
  %0 = mul(%x, %x): f32[B, S, 8]
  %1 = mean(%0) {axes=[2], keep=true}: f32[B, S, 1]
  %2 = full() {value=1e-06, dtype=f32}: f32[]
  %3 = add(%1, %2): f32[B, S, 1]
  %4 = rsqrt(%3): f32[B, S, 1]
  %5 = mul(%x, %4): f32[B, S, 8]  # norm
  %6 = mul(@w: f32[8], %5): f32[B, S, 8]  # norm
  return %6
}"""
    after = """graph main<B: 1..64 = 2, S: 1..32 = 5>(%x: f32[B, S, 8]) {
  %0 = rms_norm(%x, @w: f32[8]): f32[B, S, 8]  # norm
  return %0
}"""
    assert rewritten(FuseNorms(), before)[0] == after


def test_mean_variance_scale_and_bias_are_layer_norm() -> None:
    before = """graph main<B: 1..64 = 2, S: 1..32 = 5>(%x: f32[B, S, 8]) {
  %0 = mean(%x) {axes=[2], keep=true}: f32[B, S, 1]
  %1 = sub(%x, %0): f32[B, S, 8]
  %2 = full() {value=2.0, dtype=f32}: f32[]
  %3 = pow(%1, %2): f32[B, S, 8]
  %4 = mean(%3) {axes=[2], keep=true}: f32[B, S, 1]
  %5 = full() {value=1e-05, dtype=f32}: f32[]
  %6 = add(%4, %5): f32[B, S, 1]
  %7 = sqrt(%6): f32[B, S, 1]
  %8 = div(%1, %7): f32[B, S, 8]
  %9 = mul(%8, @w: f32[8]): f32[B, S, 8]
  %10 = add(%9, @b: f32[8]): f32[B, S, 8]
  return %10
}"""
    after = """graph main<B: 1..64 = 2, S: 1..32 = 5>(%x: f32[B, S, 8]) {
  %0 = layer_norm(%x, @w: f32[8], @b: f32[8]): f32[B, S, 8]
  return %0
}"""
    assert rewritten(FuseNorms(), before)[0] == after


def test_a_scale_that_is_computed_from_weights_counts() -> None:
    before = """graph main<B: 1..64 = 2, S: 1..32 = 5>(%x: f32[B, S, 8]) {
  %0 = mul(%x, %x): f32[B, S, 8]
  %1 = mean(%0) {axes=[2], keep=true}: f32[B, S, 1]
  %2 = full() {value=1e-06, dtype=f32}: f32[]
  %3 = add(%1, %2): f32[B, S, 1]
  %4 = rsqrt(%3): f32[B, S, 1]
  %5 = mul(%x, %4): f32[B, S, 8]  # norm
  %6 = full() {value=1.0, dtype=f32}: f32[]
  %7 = add(@w: f32[8], %6): f32[8]
  %8 = mul(%5, %7): f32[B, S, 8]  # norm
  return %8
}"""
    after = """graph main<B: 1..64 = 2, S: 1..32 = 5>(%x: f32[B, S, 8]) {
  %0 = full() {value=1.0, dtype=f32}: f32[]
  %1 = add(@w: f32[8], %0): f32[8]
  %2 = rms_norm(%x, %1): f32[B, S, 8]  # norm
  return %2
}"""
    assert rewritten(FuseNorms(), before)[0] == after


def test_refuses_statistics_that_something_else_reads() -> None:
    before = """graph main<B: 1..64 = 2, S: 1..32 = 5>(%x: f32[B, S, 8]) {
  %0 = mul(%x, %x): f32[B, S, 8]
  %1 = mean(%0) {axes=[2], keep=true}: f32[B, S, 1]
  %2 = full() {value=1e-06, dtype=f32}: f32[]
  %3 = add(%1, %2): f32[B, S, 1]
  %4 = rsqrt(%3): f32[B, S, 1]
  %5 = mul(%x, %4): f32[B, S, 8]  # norm
  return %5, %4
}"""
    text, hits = rewritten(FuseNorms(), before)
    assert text == before
    assert refusals(hits) == ["its statistics have another user"]


def test_refuses_a_scale_where_the_plain_norm_is_read_too() -> None:
    before = """graph main<B: 1..64 = 2, S: 1..32 = 5>(%x: f32[B, S, 8]) {
  %0 = rms_norm(%x): f32[B, S, 8]  # norm
  %1 = mul(%0, @w: f32[8]): f32[B, S, 8]  # norm
  return %0, %1
}"""
    text, hits = rewritten(FuseNorms(), before)
    assert text == before
    assert refusals(hits) == ["the norm without its scale has another user"]


def test_norms_over_another_axis_stay() -> None:
    before = """graph main<B: 1..64 = 2>(%x: f32[B, 8, 8]) {
  %0 = mul(%x, %x): f32[B, 8, 8]
  %1 = mean(%0) {axes=[1], keep=true}: f32[B, 1, 8]
  %2 = full() {value=1e-06, dtype=f32}: f32[]
  %3 = add(%1, %2): f32[B, 1, 8]
  %4 = rsqrt(%3): f32[B, 1, 8]
  %5 = mul(%x, %4): f32[B, 8, 8]
  return %5
}"""
    text, hits = rewritten(FuseNorms(), before)
    assert text == before
    assert refusals(hits) == []
