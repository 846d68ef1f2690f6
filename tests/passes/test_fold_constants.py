"""fold-constants: what depends on weights and literals only is computed ahead of time."""

import torch

from planish.compiler.ir import Program
from planish.compiler.pass_ import Context
from planish.compiler.text import parse
from planish.compiler.weights import Weights
from planish.passes import FoldConstants
from tests.passes.harness import program_of, refusals, rewritten


def test_arithmetic_on_weights_becomes_a_weight() -> None:
    before = """graph main<B: 1..64 = 2>(%x: f32[B, 8]) {
  %0 = transpose(@w: f32[8, 4]) {order=[1, 0]}: f32[4, 8]  # head
  %1 = full() {value=0.5, dtype=f32}: f32[]
  %2 = mul(%0, %1): f32[4, 8]  # head
  %3 = linear(%x, %2, @b: f32[4]): f32[B, 4]  # head
  return %3
}"""
    after = """graph main<B: 1..64 = 2>(%x: f32[B, 8]) {
  %0 = linear(%x, @w.mul: f32[4, 8], @b: f32[4]): f32[B, 4]  # head
  return %0
}"""
    assert rewritten(FoldConstants(), before)[0] == after


def test_a_repeated_number_becomes_a_literal() -> None:
    before = """graph main<B: 1..64 = 2>(%x: f32[B, 8]) {
  %0 = arange() {length=8}: i64[8]
  %1 = full() {value=0, dtype=i64}: i64[]
  %2 = ge(%0, %1): bool[8]
  %3 = full() {value=2.0, dtype=f32}: f32[]
  %4 = where(%2, %x, %3): f32[B, 8]
  return %4
}"""
    after = """graph main<B: 1..64 = 2>(%x: f32[B, 8]) {
  %0 = full() {shape=[8], value=true, dtype=bool}: bool[8]
  %1 = full() {value=2.0, dtype=f32}: f32[]
  %2 = where(%0, %x, %1): f32[B, 8]
  return %2
}"""
    assert rewritten(FoldConstants(), before)[0] == after


def test_an_expansion_is_not_stored() -> None:
    before = """graph main<B: 1..64 = 2>(%x: f32[B, 8]) {
  %0 = neg(@c: f32[1, 8]): f32[1, 8]
  %1 = expand(%0) {shape=[`B`, 8]}: f32[B, 8]
  %2 = concat(%x, %1) {axis=1}: f32[B, 16]
  return %2
}"""
    after = """graph main<B: 1..64 = 2>(%x: f32[B, 8]) {
  %0 = expand(@c.neg: f32[1, 8]) {shape=[`B`, 8]}: f32[B, 8]
  %1 = concat(%x, %0) {axis=1}: f32[B, 16]
  return %1
}"""
    assert rewritten(FoldConstants(), before)[0] == after


def test_refuses_what_would_grow_the_weights() -> None:
    before = """graph main(%x: f32[16, 16]) {
  %0 = expand(@c: f32[1, 16]) {shape=[16, 16]}: f32[16, 16]  # a
  %1 = neg(%0): f32[16, 16]  # a
  %2 = add(%x, %1): f32[16, 16]
  return %2
}"""
    text, hits = rewritten(FoldConstants(limit=64), before)
    assert text == before
    assert refusals(hits) == ["the weights would grow by 960 bytes, over the limit of 64"]


def test_a_weight_that_is_still_read_counts_as_growth() -> None:
    before = """graph main<B: 1..64 = 2>(%x: f32[B, 8]) {
  %0 = transpose(@w: f32[8, 8]) {order=[1, 0]}: f32[8, 8]  # head
  %1 = linear(%x, %0): f32[B, 8]
  %2 = linear(%1, @w: f32[8, 8]): f32[B, 8]
  return %2
}"""
    text, hits = rewritten(FoldConstants(limit=64), before)
    assert text == before
    assert refusals(hits) == ["the weights would grow by 256 bytes, over the limit of 64"]


def test_the_weight_of_a_convolution_may_grow() -> None:
    before = """graph main(%x: f32[1, 9, 4]) {
  %0 = pad(@w: f32[8, 3, 4]) {before=[0, 0, 0], after=[0, 1, 0], value=0.0}: f32[8, 4, 4]
  %1 = conv(%x, %0) {stride=[1], padding=[0], dilation=[1], groups=1, after=none, dtype=none}: f32[1, 6, 8]
  return %1
}"""
    text, hits = rewritten(FoldConstants(limit=64), before)
    assert "conv(%x, @w.pad: f32[8, 4, 4])" in text
    assert refusals(hits) == []


def test_a_large_result_is_computed_when_it_is_read() -> None:
    program = program_of("""graph main(%x: f32[2, 512]) {
  %0 = concat(@p: f32[512, 512], @q: f32[256, 512]) {axis=0}: f32[768, 512]
  %1 = linear(%x, %0): f32[2, 768]
  %2 = concat(@b: f32[4], @c: f32[4]) {axis=0}: f32[8]
  return %1, %2
}""")
    weights = Weights(FoldConstants().apply(program, Context()).program.weights)
    assert [weights.is_recipe(name) for name in ("p.concat", "b.concat")] == [True, False]
    expected = torch.cat([program.weights["p"], program.weights["q"]])
    torch.testing.assert_close(weights["p.concat"], expected, rtol=0, atol=0)


def test_a_large_result_of_a_large_result_is_right() -> None:
    first = program_of("""graph main(%x: f32[2, 512]) {
  %0 = concat(@p: f32[512, 512], @q: f32[256, 512]) {axis=0}: f32[768, 512]
  %1 = linear(%x, %0): f32[2, 768]
  return %1
}""")
    once = FoldConstants().apply(first, Context()).program
    second = parse("""graph main(%x: f32[2, 512]) {
  %0 = neg(@p.concat: f32[768, 512]): f32[768, 512]
  %1 = linear(%x, %0): f32[2, 768]
  return %1
}""")
    twice = FoldConstants().apply(Program({"main": second}, once.weights), Context()).program
    expected = -torch.cat([first.weights["p"], first.weights["q"]])
    torch.testing.assert_close(twice.weights["p.concat.neg"], expected, rtol=0, atol=0)
