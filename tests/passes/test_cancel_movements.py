"""cancel-movements: movements that undo each other, or that nothing needs, go."""

from planish.passes import CancelMovements
from tests.passes.harness import refusals, rewritten


def test_neighbours_that_undo_each_other_go() -> None:
    before = """graph main<B: 1..64 = 2>(%x: f32[B, 4, 6]) {
  %0 = transpose(%x) {order=[0, 2, 1]}: f32[B, 6, 4]
  %1 = transpose(%0) {order=[0, 2, 1]}: f32[B, 4, 6]
  %2 = reshape(%1) {shape=[`B`, 24]}: f32[B, 24]
  %3 = reshape(%2) {shape=[`B`, 6, 4]}: f32[B, 6, 4]
  %4 = slice(%3) {axis=1, stop=6}: f32[B, 6, 4]
  %5 = expand(%4) {shape=[`B`, 6, 4]}: f32[B, 6, 4]
  %6 = relu(%5): f32[B, 6, 4]
  return %6
}"""
    after = """graph main<B: 1..64 = 2>(%x: f32[B, 4, 6]) {
  %0 = reshape(%x) {shape=[`B`, 6, 4]}: f32[B, 6, 4]
  %1 = relu(%0): f32[B, 6, 4]
  return %1
}"""
    assert rewritten(CancelMovements(sink=False), before)[0] == after


def test_a_channels_first_model_computes_channels_last() -> None:
    before = """graph main<B: 1..64 = 2>(%x: f32[B, 3, 8, 8]) {
  %0 = transpose(%x) {order=[0, 2, 3, 1]}: f32[B, 8, 8, 3]
  %1 = conv(%0, @a: f32[4, 3, 3, 3]) {stride=[1, 1], padding=[1, 1], dilation=[1, 1]}: f32[B, 8, 8, 4]
  %2 = transpose(%1) {order=[0, 3, 1, 2]}: f32[B, 4, 8, 8]
  %3 = relu(%2): f32[B, 4, 8, 8]
  %4 = mean(%3) {axes=[2, 3], keep=true}: f32[B, 4, 1, 1]
  %5 = sigmoid(%4): f32[B, 4, 1, 1]
  %6 = mul(%3, %5): f32[B, 4, 8, 8]
  %7 = transpose(%6) {order=[0, 2, 3, 1]}: f32[B, 8, 8, 4]
  %8 = conv(%7, @b: f32[4, 3, 3, 4]) {stride=[1, 1], padding=[1, 1], dilation=[1, 1]}: f32[B, 8, 8, 4]
  %9 = transpose(%8) {order=[0, 3, 1, 2]}: f32[B, 4, 8, 8]
  %10 = add(%9, %6): f32[B, 4, 8, 8]
  %11 = mean(%10) {axes=[2, 3]}: f32[B, 4]
  return %11
}"""
    after = """graph main<B: 1..64 = 2>(%x: f32[B, 3, 8, 8]) {
  %0 = transpose(%x) {order=[0, 2, 3, 1]}: f32[B, 8, 8, 3]
  %1 = conv(%0, @a: f32[4, 3, 3, 3]) {stride=[1, 1], padding=[1, 1], dilation=[1, 1]}: f32[B, 8, 8, 4]
  %2 = relu(%1): f32[B, 8, 8, 4]
  %3 = mean(%2) {axes=[1, 2], keep=true}: f32[B, 1, 1, 4]
  %4 = sigmoid(%3): f32[B, 1, 1, 4]
  %5 = mul(%2, %4): f32[B, 8, 8, 4]
  %6 = conv(%5, @b: f32[4, 3, 3, 4]) {stride=[1, 1], padding=[1, 1], dilation=[1, 1]}: f32[B, 8, 8, 4]
  %7 = add(%6, %5): f32[B, 8, 8, 4]
  %8 = mean(%7) {axes=[1, 2]}: f32[B, 4]
  return %8
}"""
    assert rewritten(CancelMovements(), before)[0] == after


def test_patches_are_flattened_without_a_transpose() -> None:
    before = """graph main<B: 1..64 = 2>(%x: f32[B, 4, 4, 6]) {
  %0 = expand(@cls: f32[1, 1, 6]) {shape=[`B`, 1, 6]}: f32[B, 1, 6]
  %1 = transpose(%x) {order=[0, 3, 1, 2]}: f32[B, 6, 4, 4]
  %2 = reshape(%1) {shape=[`B`, 6, 16]}: f32[B, 6, 16]
  %3 = transpose(%2) {order=[0, 2, 1]}: f32[B, 16, 6]
  %4 = concat(%0, %3) {axis=1}: f32[B, 17, 6]
  return %4
}"""
    after = """graph main<B: 1..64 = 2>(%x: f32[B, 4, 4, 6]) {
  %0 = expand(@cls: f32[1, 1, 6]) {shape=[`B`, 1, 6]}: f32[B, 1, 6]
  %1 = reshape(%x) {shape=[`B`, 16, 6]}: f32[B, 16, 6]
  %2 = concat(%0, %1) {axis=1}: f32[B, 17, 6]
  return %2
}"""
    assert rewritten(CancelMovements(), before)[0] == after


def test_transposes_pass_pads_joins_rolls_and_slices() -> None:
    before = """graph main<B: 1..64 = 2>(%x: f32[B, 4, 4, 6]) {
  %0 = transpose(%x) {order=[0, 3, 1, 2]}: f32[B, 6, 4, 4]
  %1 = pad(%0) {before=[0, 0, 1, 0], after=[0, 0, 0, 2]}: f32[B, 6, 5, 6]
  %2 = concat(%1, %1) {axis=1}: f32[B, 12, 5, 6]
  %3 = roll(%2) {shifts=[1], axes=[3]}: f32[B, 12, 5, 6]
  %4 = slice(%3) {axis=2, stop=4}: f32[B, 12, 4, 6]
  %5 = transpose(%4) {order=[0, 2, 3, 1]}: f32[B, 4, 6, 12]
  return %5
}"""
    after = """graph main<B: 1..64 = 2>(%x: f32[B, 4, 4, 6]) {
  %0 = pad(%x) {before=[0, 1, 0, 0], after=[0, 0, 2, 0]}: f32[B, 5, 6, 6]
  %1 = concat(%0, %0) {axis=3}: f32[B, 5, 6, 12]
  %2 = roll(%1) {shifts=[1], axes=[2]}: f32[B, 5, 6, 12]
  %3 = slice(%2) {axis=1, stop=4}: f32[B, 4, 6, 12]
  return %3
}"""
    assert rewritten(CancelMovements(), before)[0] == after


def test_a_bias_along_channels_is_stored_transposed() -> None:
    before = """graph main<B: 1..64 = 2>(%x: f32[B, 4, 4, 6]) {
  %0 = transpose(%x) {order=[0, 3, 1, 2]}: f32[B, 6, 4, 4]
  %1 = mul(%0, @scale: f32[6, 1, 1]): f32[B, 6, 4, 4]
  %2 = add(%1, @map: f32[6, 4, 4]): f32[B, 6, 4, 4]
  %3 = transpose(%2) {order=[0, 2, 3, 1]}: f32[B, 4, 4, 6]
  return %3
}"""
    after = """graph main<B: 1..64 = 2>(%x: f32[B, 4, 4, 6]) {
  %0 = reshape(@scale: f32[6, 1, 1]) {shape=[6]}: f32[6]
  %1 = mul(%x, %0): f32[B, 4, 4, 6]
  %2 = reshape(@map: f32[6, 4, 4]) {shape=[1, 6, 4, 4]}: f32[1, 6, 4, 4]
  %3 = transpose(%2) {order=[0, 2, 3, 1]}: f32[1, 4, 4, 6]
  %4 = add(%1, %3): f32[B, 4, 4, 6]
  return %4
}"""
    assert rewritten(CancelMovements(), before)[0] == after


def test_the_transposes_of_heads_stay() -> None:
    before = """graph main<B: 1..64 = 2, S: 1..32 = 5>(%x: f32[B, S, 8]) {
  %0 = reshape(%x) {shape=[`B`, `S`, 2, 4]}: f32[B, S, 2, 4]
  %1 = transpose(%0) {order=[0, 2, 1, 3]}: f32[B, 2, S, 4]
  %2 = attention(%1, %1, %1) {scale=0.5}: f32[B, 2, S, 4]
  %3 = transpose(%2) {order=[0, 2, 1, 3]}: f32[B, S, 2, 4]
  %4 = reshape(%3) {shape=[`B`, `S`, 8]}: f32[B, S, 8]
  return %4
}"""
    text, hits = rewritten(CancelMovements(), before)
    assert text == before
    assert refusals(hits) == []


def test_expansions_before_broadcasting_go() -> None:
    before = """graph main<B: 1..64 = 2, S: 1..32 = 5>(%x: f32[B, S, 8], %y: f32[1, S, 1], %m: bool[1, 1, 1, S], %q: f32[B, 2, S, 4]) {
  %0 = expand(%y) {shape=[`B`, `S`, 8]}: f32[B, S, 8]
  %1 = add(%x, %0): f32[B, S, 8]
  %2 = expand(%m) {shape=[`B`, 1, `S`, `S`]}: bool[B, 1, S, S]
  %3 = attention(%q, %q, %q, %2) {scale=0.5}: f32[B, 2, S, 4]
  return %1, %3
}"""
    after = """graph main<B: 1..64 = 2, S: 1..32 = 5>(%x: f32[B, S, 8], %y: f32[1, S, 1], %m: bool[1, 1, 1, S], %q: f32[B, 2, S, 4]) {
  %0 = add(%x, %y): f32[B, S, 8]
  %1 = attention(%q, %q, %q, %m) {scale=0.5}: f32[B, 2, S, 4]
  return %0, %1
}"""
    assert rewritten(CancelMovements(), before)[0] == after


def test_an_op_on_an_expansion_runs_on_what_is_expanded() -> None:
    before = """graph main<B: 1..64 = 2>(%x: f32[B, 1], %y: f32[B, 8]) {
  %0 = expand(%x) {shape=[`B`, 8]}: f32[B, 8]
  %1 = exp(%0): f32[B, 8]
  %2 = concat(%1, %y) {axis=1}: f32[B, 16]
  return %2
}"""
    after = """graph main<B: 1..64 = 2>(%x: f32[B, 1], %y: f32[B, 8]) {
  %0 = exp(%x): f32[B, 1]
  %1 = expand(%0) {shape=[`B`, 8]}: f32[B, 8]
  %2 = concat(%1, %y) {axis=1}: f32[B, 16]
  return %2
}"""
    assert rewritten(CancelMovements(), before)[0] == after


def test_linear_maps_take_any_leading_axes() -> None:
    before = """graph main<B: 1..64 = 2, S: 1..32 = 5>(%x: f32[B, S, 8]) {
  %0 = reshape(%x) {shape=[`B*S`, 8]}: f32[B*S, 8]
  %1 = linear(%0, @w: f32[4, 8]): f32[B*S, 4]
  %2 = gelu(%1): f32[B*S, 4]
  %3 = linear(%2, @u: f32[8, 4]): f32[B*S, 8]
  %4 = reshape(%3) {shape=[`B`, `S`, 8]}: f32[B, S, 8]
  %5 = add(%4, %x): f32[B, S, 8]
  return %5
}"""
    after = """graph main<B: 1..64 = 2, S: 1..32 = 5>(%x: f32[B, S, 8]) {
  %0 = linear(%x, @w: f32[4, 8]): f32[B, S, 4]
  %1 = gelu(%0): f32[B, S, 4]
  %2 = linear(%1, @u: f32[8, 4]): f32[B, S, 8]
  %3 = add(%2, %x): f32[B, S, 8]
  return %3
}"""
    assert rewritten(CancelMovements(), before)[0] == after


def test_slices_of_joins_are_the_pieces() -> None:
    before = """graph main<B: 1..64 = 2>(%x: f32[B, 4], %y: f32[B, 6]) {
  %0 = concat(%x, %y) {axis=1}: f32[B, 10]
  %1 = slice(%0) {axis=1, stop=4}: f32[B, 4]
  %2 = slice(%0) {axis=1, start=5, stop=9}: f32[B, 4]
  %3 = slice(%2) {axis=1, start=1, stop=3}: f32[B, 2]
  return %1, %3
}"""
    after = """graph main<B: 1..64 = 2>(%x: f32[B, 4], %y: f32[B, 6]) {
  %0 = slice(%y) {axis=1, start=2, stop=4}: f32[B, 2]
  return %x, %0
}"""
    assert rewritten(CancelMovements(), before)[0] == after


def test_symmetric_padding_joins_the_convolution() -> None:
    before = """graph main<B: 1..64 = 2>(%x: f32[B, 6, 6, 3]) {
  %0 = pad(%x) {before=[0, 1, 2, 0], after=[0, 1, 2, 0]}: f32[B, 8, 10, 3]
  %1 = conv(%0, @w: f32[4, 3, 3, 3]) {stride=[2, 2], padding=[0, 0], dilation=[1, 1]}: f32[B, 3, 4, 4]
  return %1
}"""
    after = """graph main<B: 1..64 = 2>(%x: f32[B, 6, 6, 3]) {
  %0 = conv(%x, @w: f32[4, 3, 3, 3]) {stride=[2, 2], padding=[1, 2], dilation=[1, 1]}: f32[B, 3, 4, 4]
  return %0
}"""
    assert rewritten(CancelMovements(), before)[0] == after


def test_asymmetric_padding_joins_the_convolution() -> None:
    before = """graph main<B: 1..64 = 2>(%x: f32[B, 6, 6, 3]) {
  %0 = pad(%x) {before=[0, 0, 1, 0], after=[0, 1, 0, 0]}: f32[B, 7, 7, 3]
  %1 = conv(%0, @w: f32[4, 3, 3, 3]) {stride=[2, 2], padding=[0, 0], dilation=[1, 1]}: f32[B, 3, 3, 4]
  %2 = pad(%1) {before=[0, 1, 0, 0], after=[0, 0, 1, 0]}: f32[B, 4, 4, 4]
  %3 = conv(%2, @v: f32[2, 2, 2, 4]) {stride=[1, 1], padding=[0, 1], dilation=[1, 1], after=[1, 0]}: f32[B, 4, 4, 2]
  return %3
}"""
    after = """graph main<B: 1..64 = 2>(%x: f32[B, 6, 6, 3]) {
  %0 = conv(%x, @w: f32[4, 3, 3, 3]) {stride=[2, 2], padding=[0, 1], dilation=[1, 1], after=[1, 0]}: f32[B, 3, 3, 4]
  %1 = conv(%0, @v: f32[2, 2, 2, 4]) {stride=[1, 1], padding=[1, 1], dilation=[1, 1]}: f32[B, 4, 4, 2]
  return %1
}"""
    assert rewritten(CancelMovements(), before)[0] == after


def test_padding_with_another_user_joins_the_convolution_and_stays_for_the_user() -> None:
    before = """graph main<B: 1..64 = 2>(%x: f32[B, 6, 6, 3]) {
  %0 = pad(%x) {before=[0, 0, 0, 0], after=[0, 1, 1, 0]}: f32[B, 7, 7, 3]
  %1 = conv(%0, @w: f32[4, 3, 3, 3]) {stride=[2, 2], padding=[0, 0], dilation=[1, 1]}: f32[B, 3, 3, 4]
  return %0, %1
}"""
    after = """graph main<B: 1..64 = 2>(%x: f32[B, 6, 6, 3]) {
  %0 = pad(%x) {before=[0, 0, 0, 0], after=[0, 1, 1, 0]}: f32[B, 7, 7, 3]
  %1 = conv(%x, @w: f32[4, 3, 3, 3]) {stride=[2, 2], padding=[0, 0], dilation=[1, 1], after=[1, 1]}: f32[B, 3, 3, 4]
  return %0, %1
}"""
    assert rewritten(CancelMovements(), before)[0] == after


def test_padding_that_a_convolution_cannot_do_stays_and_says_why() -> None:
    before = """graph main<B: 1..64 = 2>(%x: f32[B, 6, 6, 3]) {
  %0 = pad(%x) {before=[0, 1, 1, 0], after=[0, 1, 1, 0], value=1.0}: f32[B, 8, 8, 3]
  %1 = conv(%0, @w: f32[4, 3, 3, 3]) {stride=[1, 1], padding=[0, 0], dilation=[1, 1]}: f32[B, 6, 6, 4]
  %2 = pad(%1) {before=[0, 1, 1, 0], after=[0, 1, 1, 2]}: f32[B, 8, 8, 6]
  %3 = conv(%2, @v: f32[4, 3, 3, 6]) {stride=[1, 1], padding=[0, 0], dilation=[1, 1]}: f32[B, 6, 6, 4]
  return %3
}"""
    text, hits = rewritten(CancelMovements(), before)
    assert text == before
    assert refusals(hits) == [
        "a convolution pads zeros, and the padding before it is 1.0",
        "the padding before the convolution adds images or channels",
    ]


def test_padding_of_a_channels_first_input_joins_the_convolution() -> None:
    before = """graph main<B: 1..64 = 2>(%x: f32[B, 3, 6, 6]) {
  %0 = pad(%x) {before=[0, 0, 0, 1], after=[0, 0, 1, 0]}: f32[B, 3, 7, 7]
  %1 = transpose(%0) {order=[0, 2, 3, 1]}: f32[B, 7, 7, 3]
  %2 = conv(%1, @w: f32[4, 3, 3, 3]) {stride=[2, 2], padding=[0, 0], dilation=[1, 1]}: f32[B, 3, 3, 4]
  return %2
}"""
    after = """graph main<B: 1..64 = 2>(%x: f32[B, 3, 6, 6]) {
  %0 = transpose(%x) {order=[0, 2, 3, 1]}: f32[B, 6, 6, 3]
  %1 = conv(%0, @w: f32[4, 3, 3, 3]) {stride=[2, 2], padding=[0, 1], dilation=[1, 1], after=[1, 0]}: f32[B, 3, 3, 4]
  return %1
}"""
    assert rewritten(CancelMovements(), before)[0] == after
