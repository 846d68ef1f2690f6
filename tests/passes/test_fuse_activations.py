"""fuse-activations: spelled out activations become one op."""

from planish.passes import FuseActivations
from tests.passes.harness import refusals, rewritten


def test_x_times_its_sigmoid_is_silu() -> None:
    before = """graph main<B: 1..64 = 2, S: 1..32 = 5>(%x: f32[B, S, 8]) {
  %0 = sigmoid(%x): f32[B, S, 8]
  %1 = mul(%x, %0): f32[B, S, 8]  # act
  return %1
}"""
    after = """graph main<B: 1..64 = 2, S: 1..32 = 5>(%x: f32[B, S, 8]) {
  %0 = silu(%x): f32[B, S, 8]  # act
  return %0
}"""
    assert rewritten(FuseActivations(), before)[0] == after


def test_the_form_with_erf_is_gelu() -> None:
    before = """graph main<B: 1..64 = 2, S: 1..32 = 5>(%x: f32[B, S, 8]) {
  %0 = full() {value=0.5, dtype=f32}: f32[]
  %1 = full() {value=1.4142135623730951, dtype=f32}: f32[]
  %2 = div(%x, %1): f32[B, S, 8]
  %3 = erf(%2): f32[B, S, 8]
  %4 = full() {value=1.0, dtype=f32}: f32[]
  %5 = add(%3, %4): f32[B, S, 8]
  %6 = mul(%0, %5): f32[B, S, 8]
  %7 = mul(%x, %6): f32[B, S, 8]  # act
  return %7
}"""
    after = """graph main<B: 1..64 = 2, S: 1..32 = 5>(%x: f32[B, S, 8]) {
  %0 = gelu(%x): f32[B, S, 8]  # act
  return %0
}"""
    assert rewritten(FuseActivations(), before)[0] == after


def test_the_form_with_tanh_and_a_power_is_gelu() -> None:
    before = """graph main<B: 1..64 = 2, S: 1..32 = 5>(%x: f32[B, S, 8]) {
  %0 = full() {value=0.5, dtype=f32}: f32[]
  %1 = mul(%x, %0): f32[B, S, 8]
  %2 = full() {value=3.0, dtype=f32}: f32[]
  %3 = pow(%x, %2): f32[B, S, 8]
  %4 = full() {value=0.044715, dtype=f32}: f32[]
  %5 = mul(%3, %4): f32[B, S, 8]
  %6 = add(%x, %5): f32[B, S, 8]
  %7 = full() {value=0.7978845608, dtype=f32}: f32[]
  %8 = mul(%6, %7): f32[B, S, 8]
  %9 = tanh(%8): f32[B, S, 8]
  %10 = full() {value=1.0, dtype=f32}: f32[]
  %11 = add(%9, %10): f32[B, S, 8]
  %12 = mul(%1, %11): f32[B, S, 8]  # act
  return %12
}"""
    after = """graph main<B: 1..64 = 2, S: 1..32 = 5>(%x: f32[B, S, 8]) {
  %0 = gelu(%x) {approximate="tanh"}: f32[B, S, 8]  # act
  return %0
}"""
    assert rewritten(FuseActivations(), before)[0] == after


def test_relu_and_an_upper_bound_are_one_clamp() -> None:
    before = """graph main<B: 1..64 = 2, S: 1..32 = 5>(%x: f32[B, S, 8]) {
  %0 = relu(%x): f32[B, S, 8]
  %1 = full() {value=6.0, dtype=f32}: f32[]
  %2 = minimum(%0, %1): f32[B, S, 8]
  return %2
}"""
    after = """graph main<B: 1..64 = 2, S: 1..32 = 5>(%x: f32[B, S, 8]) {
  %0 = clamp(%x) {low=0.0, high=6.0}: f32[B, S, 8]
  return %0
}"""
    assert rewritten(FuseActivations(), before)[0] == after


def test_quick_gelu_and_other_constants_stay() -> None:
    before = """graph main<B: 1..64 = 2, S: 1..32 = 5>(%x: f32[B, S, 8]) {
  %0 = full() {value=1.702, dtype=f32}: f32[]
  %1 = mul(%x, %0): f32[B, S, 8]
  %2 = sigmoid(%1): f32[B, S, 8]
  %3 = mul(%x, %2): f32[B, S, 8]
  %4 = full() {value=0.5, dtype=f32}: f32[]
  %5 = full() {value=1.5, dtype=f32}: f32[]
  %6 = div(%x, %5): f32[B, S, 8]
  %7 = erf(%6): f32[B, S, 8]
  %8 = full() {value=1.0, dtype=f32}: f32[]
  %9 = add(%7, %8): f32[B, S, 8]
  %10 = mul(%4, %9): f32[B, S, 8]
  %11 = mul(%x, %10): f32[B, S, 8]
  return %3, %11
}"""
    text, hits = rewritten(FuseActivations(), before)
    assert text == before
    assert refusals(hits) == []
