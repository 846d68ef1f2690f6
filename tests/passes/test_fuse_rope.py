"""fuse-rope: spelled out rotary positions become one op."""

from planish.passes import FuseRope
from tests.passes.harness import refusals, rewritten


def test_halves_that_rotate_are_rope() -> None:
    before = """graph main<B: 1..64 = 2, S: 1..32 = 5>(%x: f32[B, 2, S, 8], %c: f32[1, 1, S, 8], %s: f32[1, 1, S, 8]) {
  %0 = mul(%x, %c): f32[B, 2, S, 8]
  %1 = slice(%x) {axis=3, start=4, stop=8}: f32[B, 2, S, 4]
  %2 = neg(%1): f32[B, 2, S, 4]
  %3 = slice(%x) {axis=3, stop=4}: f32[B, 2, S, 4]
  %4 = concat(%2, %3) {axis=3}: f32[B, 2, S, 8]
  %5 = mul(%4, %s): f32[B, 2, S, 8]
  %6 = add(%0, %5): f32[B, 2, S, 8]  # attn
  return %6
}"""
    after = """graph main<B: 1..64 = 2, S: 1..32 = 5>(%x: f32[B, 2, S, 8], %c: f32[1, 1, S, 8], %s: f32[1, 1, S, 8]) {
  %0 = rope(%x, %c, %s): f32[B, 2, S, 8]  # attn
  return %0
}"""
    assert rewritten(FuseRope(), before)[0] == after


def test_refuses_inner_values_that_something_else_reads() -> None:
    before = """graph main<B: 1..64 = 2, S: 1..32 = 5>(%x: f32[B, 2, S, 8], %c: f32[1, 1, S, 8], %s: f32[1, 1, S, 8]) {
  %0 = mul(%x, %c): f32[B, 2, S, 8]
  %1 = slice(%x) {axis=3, start=4, stop=8}: f32[B, 2, S, 4]
  %2 = neg(%1): f32[B, 2, S, 4]
  %3 = slice(%x) {axis=3, stop=4}: f32[B, 2, S, 4]
  %4 = concat(%2, %3) {axis=3}: f32[B, 2, S, 8]
  %5 = mul(%4, %s): f32[B, 2, S, 8]
  %6 = add(%0, %5): f32[B, 2, S, 8]  # attn
  return %6, %4
}"""
    text, hits = rewritten(FuseRope(), before)
    assert text == before
    assert refusals(hits) == ["an inner value has another user"]


def test_unequal_parts_stay() -> None:
    before = """graph main<B: 1..64 = 2, S: 1..32 = 5>(%x: f32[B, 2, S, 8], %c: f32[1, 1, S, 8], %s: f32[1, 1, S, 8]) {
  %0 = mul(%x, %c): f32[B, 2, S, 8]
  %1 = slice(%x) {axis=3, start=5, stop=8}: f32[B, 2, S, 3]
  %2 = neg(%1): f32[B, 2, S, 3]
  %3 = slice(%x) {axis=3, stop=5}: f32[B, 2, S, 5]
  %4 = concat(%2, %3) {axis=3}: f32[B, 2, S, 8]
  %5 = mul(%4, %s): f32[B, 2, S, 8]
  %6 = add(%0, %5): f32[B, 2, S, 8]  # attn
  return %6
}"""
    text, hits = rewritten(FuseRope(), before)
    assert text == before
    assert refusals(hits) == []
