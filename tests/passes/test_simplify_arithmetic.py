"""simplify-arithmetic: arithmetic that changes nothing goes."""

from planish.passes import SimplifyArithmetic
from tests.passes.harness import refusals, rewritten


def test_sums_products_and_conditions_that_change_nothing_go() -> None:
    before = """graph main<B: 1..64 = 2>(%x: f32[B, 8], %m: bool[B, 1]) {
  %0 = full() {value=true, dtype=bool}: bool[]
  %1 = logical_and(%0, %m): bool[B, 1]
  %2 = full() {value=1.0, dtype=f32}: f32[]
  %3 = full() {value=0.0, dtype=f32}: f32[]
  %4 = add(%x, %3): f32[B, 8]
  %5 = mul(%2, %4): f32[B, 8]
  %6 = where(%0, %5, %3): f32[B, 8]
  %7 = where(%1, %6, %3): f32[B, 8]
  return %7
}"""
    after = """graph main<B: 1..64 = 2>(%x: f32[B, 8], %m: bool[B, 1]) {
  %0 = full() {value=0.0, dtype=f32}: f32[]
  %1 = where(%m, %x, %0): f32[B, 8]
  return %1
}"""
    assert rewritten(SimplifyArithmetic(), before)[0] == after


def test_a_sum_that_broadcasts_leaves_the_expansion() -> None:
    before = """graph main<B: 1..64 = 2>(%x: f32[1, 8], %y: f32[B]) {
  %0 = full() {shape=[`B`, 1], value=0.0, dtype=f32}: f32[B, 1]
  %1 = add(%x, %0): f32[B, 8]
  %2 = relu(%y): f32[B]
  return %1, %2
}"""
    after = """graph main<B: 1..64 = 2>(%x: f32[1, 8], %y: f32[B]) {
  %0 = expand(%x) {shape=[`B`, 8]}: f32[B, 8]
  %1 = relu(%y): f32[B]
  return %0, %1
}"""
    assert rewritten(SimplifyArithmetic(), before)[0] == after


def test_casts_to_the_same_dtype_and_double_negations_go() -> None:
    before = """graph main<B: 1..64 = 2>(%x: f32[B], %m: bool[B]) {
  %0 = cast(%x) {dtype=f32}: f32[B]
  %1 = neg(%0): f32[B]
  %2 = neg(%1): f32[B]
  %3 = logical_not(%m): bool[B]
  %4 = logical_not(%3): bool[B]
  return %2, %4
}"""
    after = """graph main<B: 1..64 = 2>(%x: f32[B], %m: bool[B]) {
  return %x, %m
}"""
    assert rewritten(SimplifyArithmetic(), before)[0] == after


def test_movements_and_casts_of_a_literal_are_literals() -> None:
    before = """graph main<B: 1..64 = 2>(%x: f32[B, 8]) {
  %0 = full() {value=3, dtype=i64}: i64[]
  %1 = cast(%0) {dtype=f32}: f32[]
  %2 = reshape(%1) {shape=[1, 1]}: f32[1, 1]
  %3 = expand(%2) {shape=[`B`, 8]}: f32[B, 8]
  %4 = mul(%x, %3): f32[B, 8]
  return %4
}"""
    after = """graph main<B: 1..64 = 2>(%x: f32[B, 8]) {
  %0 = full() {value=3.0, dtype=f32}: f32[]
  %1 = mul(%x, %0): f32[B, 8]
  return %1
}"""
    assert rewritten(SimplifyArithmetic(), before)[0] == after


def test_a_lower_bound_of_zero_is_relu() -> None:
    before = """graph main<B: 1..64 = 2>(%x: f32[B]) {
  %0 = full() {value=0.0, dtype=f32}: f32[]
  %1 = maximum(%x, %0): f32[B]
  %2 = clamp(%x) {low=0.0}: f32[B]
  %3 = clamp(%x): f32[B]
  return %1, %2, %3
}"""
    after = """graph main<B: 1..64 = 2>(%x: f32[B]) {
  %0 = relu(%x): f32[B]
  %1 = relu(%x): f32[B]
  return %0, %1, %x
}"""
    assert rewritten(SimplifyArithmetic(), before)[0] == after


def test_arithmetic_is_not_reordered() -> None:
    before = """graph main<B: 1..64 = 2>(%x: f32[B]) {
  %0 = full() {value=1.0, dtype=f32}: f32[]
  %1 = add(%x, %0): f32[B]
  %2 = full() {value=2.0, dtype=f32}: f32[]
  %3 = add(%1, %2): f32[B]
  %4 = sub(%0, %3): f32[B]
  return %4
}"""
    text, hits = rewritten(SimplifyArithmetic(), before)
    assert text == before
    assert refusals(hits) == []


def test_the_truth_of_a_choice_is_its_condition() -> None:
    before = """graph main<B: 1..64 = 2>(%m: bool[1, B], %n: bool[B]) {
  %0 = full() {value=0.0, dtype=f32}: f32[]
  %1 = full() {value=-3e+38, dtype=f32}: f32[]
  %2 = where(%m, %0, %1): f32[1, B]
  %3 = cast(%2) {dtype=bool}: bool[1, B]
  %4 = where(%n, %1, %0): f32[B]
  %5 = cast(%4) {dtype=bool}: bool[B]
  return %3, %5
}"""
    after = """graph main<B: 1..64 = 2>(%m: bool[1, B], %n: bool[B]) {
  %0 = logical_not(%m): bool[1, B]
  return %0, %n
}"""
    assert rewritten(SimplifyArithmetic(), before)[0] == after
