"""merge-common-subexpressions: equal computations and equal weights become one."""

import torch

from planish.passes import MergeCommonSubexpressions
from tests.passes.harness import rewritten


def test_equal_computations_become_one_and_commutative_operands_may_swap() -> None:
    before = """graph main<B: 1..64 = 2>(%x: f32[B, 8], %y: f32[B, 8]) {
  %0 = sub(%x, %y): f32[B, 8]
  %1 = sub(%y, %x): f32[B, 8]
  %2 = add(%x, %y): f32[B, 8]  # a
  %3 = add(%y, %x): f32[B, 8]  # b
  %4 = mul(%2, %3): f32[B, 8]
  %5 = concat(%0, %1, %4) {axis=0}: f32[3*B, 8]
  return %5
}"""
    after = """graph main<B: 1..64 = 2>(%x: f32[B, 8], %y: f32[B, 8]) {
  %0 = sub(%x, %y): f32[B, 8]
  %1 = sub(%y, %x): f32[B, 8]
  %2 = add(%x, %y): f32[B, 8]  # a
  %3 = mul(%2, %2): f32[B, 8]
  %4 = concat(%0, %1, %3) {axis=0}: f32[3*B, 8]
  return %4
}"""
    assert rewritten(MergeCommonSubexpressions(), before)[0] == after


def test_weights_of_equal_content_become_one() -> None:
    before = """graph main<B: 1..64 = 2>(%x: f32[B, 8]) {
  %0 = linear(%x, @a: f32[4, 8]): f32[B, 4]
  %1 = linear(%x, @b: f32[4, 8]): f32[B, 4]
  %2 = linear(%x, @c: f32[4, 8]): f32[B, 4]
  return %0, %1, %2
}"""
    after = """graph main<B: 1..64 = 2>(%x: f32[B, 8]) {
  %0 = linear(%x, @a: f32[4, 8]): f32[B, 4]
  %1 = linear(%x, @c: f32[4, 8]): f32[B, 4]
  return %0, %0, %1
}"""
    weights = {"a": torch.ones(4, 8), "b": torch.ones(4, 8), "c": torch.full((4, 8), 2.0)}
    assert rewritten(MergeCommonSubexpressions(), before, weights)[0] == after


def test_literals_of_another_dtype_stay_apart() -> None:
    before = """graph main<B: 1..64 = 2>(%x: i64[B], %y: f32[B]) {
  %0 = full() {value=1, dtype=i64}: i64[]
  %1 = add(%x, %0): i64[B]
  %2 = full() {value=1.0, dtype=f32}: f32[]
  %3 = add(%y, %2): f32[B]
  %4 = full() {value=1.0, dtype=f32}: f32[]
  %5 = mul(%3, %4): f32[B]
  return %1, %5
}"""
    after = """graph main<B: 1..64 = 2>(%x: i64[B], %y: f32[B]) {
  %0 = full() {value=1, dtype=i64}: i64[]
  %1 = add(%x, %0): i64[B]
  %2 = full() {value=1.0, dtype=f32}: f32[]
  %3 = add(%y, %2): f32[B]
  %4 = mul(%3, %2): f32[B]
  return %1, %4
}"""
    assert rewritten(MergeCommonSubexpressions(), before)[0] == after
