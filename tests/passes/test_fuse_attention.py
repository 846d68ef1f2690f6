"""fuse-attention: every spelling becomes one op, and its mask what it means."""

import torch

from planish.passes import FuseAttention
from tests.passes.harness import refusals, rewritten


def test_scores_scale_mask_and_softmax_are_attention() -> None:
    before = """graph main<B: 1..64 = 2, S: 1..32 = 5>(%q: f32[B, 2, S, 4], %k: f32[B, 2, S, 4], %v: f32[B, 2, S, 4], %m: f32[B, 1, 1, S]) {
  %0 = transpose(%k) {order=[0, 1, 3, 2]}: f32[B, 2, 4, S]
  %1 = matmul(%q, %0): f32[B, 2, S, S]
  %2 = full() {value=0.5, dtype=f32}: f32[]
  %3 = mul(%1, %2): f32[B, 2, S, S]
  %4 = add(%3, %m): f32[B, 2, S, S]
  %5 = softmax(%4) {axis=3}: f32[B, 2, S, S]
  %6 = matmul(%5, %v): f32[B, 2, S, 4]  # attn
  return %6
}"""
    after = """graph main<B: 1..64 = 2, S: 1..32 = 5>(%q: f32[B, 2, S, 4], %k: f32[B, 2, S, 4], %v: f32[B, 2, S, 4], %m: f32[B, 1, 1, S]) {
  %0 = attention(%q, %k, %v, %m) {scale=0.5}: f32[B, 2, S, 4]  # attn
  return %0
}"""
    assert rewritten(FuseAttention(), before)[0] == after


def test_scaled_queries_and_a_bias_before_the_scale_count() -> None:
    before = """graph main<B: 1..64 = 2, S: 1..32 = 5>(%q: f32[B, 2, S, 4], %k: f32[B, 2, S, 4], %v: f32[B, 2, S, 4], %m: f32[2, S, S]) {
  %0 = full() {value=2.0, dtype=f32}: f32[]
  %1 = mul(%q, %0): f32[B, 2, S, 4]
  %2 = transpose(%k) {order=[0, 1, 3, 2]}: f32[B, 2, 4, S]
  %3 = matmul(%1, %2): f32[B, 2, S, S]
  %4 = add(%m, %3): f32[B, 2, S, S]
  %5 = div(%4, %0): f32[B, 2, S, S]
  %6 = softmax(%5) {axis=3}: f32[B, 2, S, S]
  %7 = matmul(%6, %v): f32[B, 2, S, 4]  # attn
  return %7
}"""
    after = """graph main<B: 1..64 = 2, S: 1..32 = 5>(%q: f32[B, 2, S, 4], %k: f32[B, 2, S, 4], %v: f32[B, 2, S, 4], %m: f32[2, S, S]) {
  %0 = full() {value=0.5, dtype=f32}: f32[]  # attn
  %1 = mul(%m, %0): f32[2, S, S]  # attn
  %2 = reshape(%1) {shape=[1, 2, `S`, `S`]}: f32[1, 2, S, S]  # attn
  %3 = attention(%q, %k, %v, %2) {scale=1.0}: f32[B, 2, S, 4]  # attn
  return %3
}"""
    assert rewritten(FuseAttention(), before)[0] == after


def test_tensors_of_rank_three_are_one_head_each() -> None:
    before = """graph main<B: 1..64 = 2, S: 1..32 = 5>(%q: f32[B, S, 4], %k: f32[B, S, 4], %v: f32[B, S, 4]) {
  %0 = transpose(%k) {order=[0, 2, 1]}: f32[B, 4, S]
  %1 = matmul(%q, %0): f32[B, S, S]
  %2 = full() {value=2.0, dtype=f32}: f32[]
  %3 = div(%1, %2): f32[B, S, S]
  %4 = softmax(%3) {axis=2}: f32[B, S, S]
  %5 = matmul(%4, %v): f32[B, S, 4]  # attn
  return %5
}"""
    after = """graph main<B: 1..64 = 2, S: 1..32 = 5>(%q: f32[B, S, 4], %k: f32[B, S, 4], %v: f32[B, S, 4]) {
  %0 = reshape(%q) {shape=[`B`, 1, `S`, 4]}: f32[B, 1, S, 4]  # attn
  %1 = reshape(%k) {shape=[`B`, 1, `S`, 4]}: f32[B, 1, S, 4]  # attn
  %2 = reshape(%v) {shape=[`B`, 1, `S`, 4]}: f32[B, 1, S, 4]  # attn
  %3 = attention(%0, %1, %2) {scale=0.5}: f32[B, 1, S, 4]  # attn
  %4 = reshape(%3) {shape=[`B`, `S`, 4]}: f32[B, S, 4]  # attn
  return %4
}"""
    assert rewritten(FuseAttention(), before)[0] == after


def test_heads_merged_into_the_batch_are_found_in_the_mask() -> None:
    before = """graph main<S: 1..32 = 5>(%q: f32[6, S, 4], %k: f32[6, S, 4], %v: f32[6, S, 4], %m: f32[3, 1, S, S]) {
  %0 = transpose(%k) {order=[0, 2, 1]}: f32[6, 4, S]
  %1 = matmul(%q, %0): f32[6, S, S]
  %2 = reshape(%1) {shape=[3, 2, `S`, `S`]}: f32[3, 2, S, S]
  %3 = add(%2, %m): f32[3, 2, S, S]
  %4 = reshape(%3) {shape=[6, `S`, `S`]}: f32[6, S, S]
  %5 = softmax(%4) {axis=2}: f32[6, S, S]
  %6 = matmul(%5, %v): f32[6, S, 4]  # attn
  return %6
}"""
    after = """graph main<S: 1..32 = 5>(%q: f32[6, S, 4], %k: f32[6, S, 4], %v: f32[6, S, 4], %m: f32[3, 1, S, S]) {
  %0 = reshape(%q) {shape=[3, 2, `S`, 4]}: f32[3, 2, S, 4]  # attn
  %1 = reshape(%k) {shape=[3, 2, `S`, 4]}: f32[3, 2, S, 4]  # attn
  %2 = reshape(%v) {shape=[3, 2, `S`, 4]}: f32[3, 2, S, 4]  # attn
  %3 = attention(%0, %1, %2, %m) {scale=1.0}: f32[3, 2, S, 4]  # attn
  %4 = reshape(%3) {shape=[6, `S`, 4]}: f32[6, S, 4]  # attn
  return %4
}"""
    assert rewritten(FuseAttention(), before)[0] == after


def test_a_causal_mask_that_is_scaled_with_the_scores_is_causal() -> None:
    before = """graph main<B: 1..64 = 2, S: 1..32 = 5>(%q: f32[B, 2, S, 4], %k: f32[B, 2, S, 4], %v: f32[B, 2, S, 4]) {
  %0 = transpose(%k) {order=[0, 1, 3, 2]}: f32[B, 2, 4, S]
  %1 = matmul(%q, %0): f32[B, 2, S, S]
  %2 = arange() {length=`S`}: i64[S]
  %3 = reshape(%2) {shape=[`S`, 1]}: i64[S, 1]
  %4 = le(%2, %3): bool[S, S]
  %5 = full() {value=0.0, dtype=f32}: f32[]
  %6 = full() {value=-3.4028234663852886e+38, dtype=f32}: f32[]
  %7 = where(%4, %5, %6): f32[S, S]
  %8 = add(%1, %7): f32[B, 2, S, S]
  %9 = full() {value=2.0, dtype=f32}: f32[]
  %10 = div(%8, %9): f32[B, 2, S, S]
  %11 = softmax(%10) {axis=3}: f32[B, 2, S, S]
  %12 = matmul(%11, %v): f32[B, 2, S, 4]  # attn
  return %12
}"""
    after = """graph main<B: 1..64 = 2, S: 1..32 = 5>(%q: f32[B, 2, S, 4], %k: f32[B, 2, S, 4], %v: f32[B, 2, S, 4]) {
  %0 = attention(%q, %k, %v) {causal=true, scale=0.5}: f32[B, 2, S, 4]  # attn
  return %0
}"""
    assert rewritten(FuseAttention(), before)[0] == after


def test_refuses_scores_that_tanh_caps() -> None:
    before = """graph main<B: 1..64 = 2, S: 1..32 = 5>(%q: f32[B, 2, S, 4], %k: f32[B, 2, S, 4], %v: f32[B, 2, S, 4]) {
  %0 = transpose(%k) {order=[0, 1, 3, 2]}: f32[B, 2, 4, S]
  %1 = matmul(%q, %0): f32[B, 2, S, S]
  %2 = full() {value=30.0, dtype=f32}: f32[]
  %3 = div(%1, %2): f32[B, 2, S, S]
  %4 = tanh(%3): f32[B, 2, S, S]
  %5 = mul(%4, %2): f32[B, 2, S, S]
  %6 = softmax(%5) {axis=3}: f32[B, 2, S, S]
  %7 = matmul(%6, %v): f32[B, 2, S, 4]  # attn
  return %7
}"""
    text, hits = rewritten(FuseAttention(), before)
    assert text == before
    assert refusals(hits) == ["its scores are capped at 30 by tanh"]


def test_scores_filled_where_a_mask_holds_are_masked() -> None:
    before = """graph main<B: 1..64 = 2, S: 1..32 = 5>(%q: f32[B, 2, S, 4], %k: f32[B, 2, S, 4], %v: f32[B, 2, S, 4], %h: bool[1, 1, S, S]) {
  %0 = full() {value=-3.4028234663852886e+38, dtype=f32}: f32[]
  %1 = transpose(%k) {order=[0, 1, 3, 2]}: f32[B, 2, 4, S]
  %2 = matmul(%q, %1): f32[B, 2, S, S]
  %3 = where(%h, %0, %2): f32[B, 2, S, S]
  %4 = softmax(%3) {axis=3}: f32[B, 2, S, S]
  %5 = matmul(%4, %v): f32[B, 2, S, 4]  # attn
  return %5
}"""
    after = """graph main<B: 1..64 = 2, S: 1..32 = 5>(%q: f32[B, 2, S, 4], %k: f32[B, 2, S, 4], %v: f32[B, 2, S, 4], %h: bool[1, 1, S, S]) {
  %0 = logical_not(%h): bool[1, 1, S, S]  # attn
  %1 = full() {value=0.0, dtype=f32}: f32[]  # attn
  %2 = full() {value=-3.4028234663852886e+38, dtype=f32}: f32[]  # attn
  %3 = where(%0, %1, %2): f32[1, 1, S, S]  # attn
  %4 = attention(%q, %k, %v, %3) {scale=1.0}: f32[B, 2, S, 4]  # attn
  return %4
}"""
    text, hits = rewritten(FuseAttention(), before)
    assert text == after
    assert refusals(hits) == ["a query may see no key, and with a finite mask the model then averages over all keys"]


def test_a_causal_mask_is_causal_and_padding_stays_the_mask() -> None:
    before = """graph main<B: 1..64 = 2, S: 1..32 = 5>(%q: f32[B, 2, S, 4], %k: f32[B, 2, S, 4], %v: f32[B, 2, S, 4], %p: bool[B, 1, 1, S]) {
  %0 = arange() {length=`S`}: i64[S]
  %1 = reshape(%0) {shape=[1, 1, 1, `S`]}: i64[1, 1, 1, S]
  %2 = reshape(%0) {shape=[1, 1, `S`, 1]}: i64[1, 1, S, 1]
  %3 = le(%1, %2): bool[1, 1, S, S]
  %4 = logical_and(%3, %p): bool[B, 1, S, S]
  %5 = attention(%q, %k, %v, %4) {scale=0.5}: f32[B, 2, S, 4]  # attn
  return %5
}"""
    after = """graph main<B: 1..64 = 2, S: 1..32 = 5>(%q: f32[B, 2, S, 4], %k: f32[B, 2, S, 4], %v: f32[B, 2, S, 4], %p: bool[B, 1, 1, S]) {
  %0 = attention(%q, %k, %v, %p) {causal=true, scale=0.5}: f32[B, 2, S, 4]  # attn
  return %0
}"""
    assert rewritten(FuseAttention(), before)[0] == after


def test_a_band_of_positions_is_a_window() -> None:
    before = """graph main<B: 1..64 = 2, S: 1..32 = 5>(%q: f32[B, 2, S, 4], %k: f32[B, 2, S, 4], %v: f32[B, 2, S, 4]) {
  %0 = arange() {length=`S`}: i64[S]
  %1 = reshape(%0) {shape=[1, 1, 1, `S`]}: i64[1, 1, 1, S]
  %2 = reshape(%0) {shape=[1, 1, `S`, 1]}: i64[1, 1, S, 1]
  %3 = full() {value=3, dtype=i64}: i64[]
  %4 = sub(%2, %3): i64[1, 1, S, 1]
  %5 = gt(%1, %4): bool[1, 1, S, S]
  %6 = le(%1, %2): bool[1, 1, S, S]
  %7 = logical_and(%5, %6): bool[1, 1, S, S]
  %8 = attention(%q, %k, %v, %7) {scale=0.5}: f32[B, 2, S, 4]  # attn
  return %8
}"""
    after = """graph main<B: 1..64 = 2, S: 1..32 = 5>(%q: f32[B, 2, S, 4], %k: f32[B, 2, S, 4], %v: f32[B, 2, S, 4]) {
  %0 = attention(%q, %k, %v) {causal=true, window=3, scale=0.5}: f32[B, 2, S, 4]  # attn
  return %0
}"""
    assert rewritten(FuseAttention(), before)[0] == after


def test_a_finite_causal_mask_is_causal() -> None:
    before = """graph main<B: 1..64 = 2, S: 1..32 = 5>(%q: f32[B, 2, S, 4], %k: f32[B, 2, S, 4], %v: f32[B, 2, S, 4]) {
  %0 = arange() {length=`S`}: i64[S]
  %1 = reshape(%0) {shape=[1, 1, 1, `S`]}: i64[1, 1, 1, S]
  %2 = reshape(%0) {shape=[1, 1, `S`, 1]}: i64[1, 1, S, 1]
  %3 = le(%1, %2): bool[1, 1, S, S]
  %4 = full() {value=0.0, dtype=f32}: f32[]
  %5 = full() {value=-3.4028234663852886e+38, dtype=f32}: f32[]
  %6 = where(%3, %4, %5): f32[1, 1, S, S]
  %7 = attention(%q, %k, %v, %6) {scale=0.5}: f32[B, 2, S, 4]  # attn
  return %7
}"""
    after = """graph main<B: 1..64 = 2, S: 1..32 = 5>(%q: f32[B, 2, S, 4], %k: f32[B, 2, S, 4], %v: f32[B, 2, S, 4]) {
  %0 = attention(%q, %k, %v) {causal=true, scale=0.5}: f32[B, 2, S, 4]  # attn
  return %0
}"""
    assert rewritten(FuseAttention(), before)[0] == after


def test_a_mask_that_keeps_everything_goes() -> None:
    before = """graph main<B: 1..64 = 2, S: 1..32 = 5>(%q: f32[B, 2, S, 4], %k: f32[B, 2, S, 4], %v: f32[B, 2, S, 4]) {
  %0 = full() {shape=[1, 1, 1, `S`], value=true, dtype=bool}: bool[1, 1, 1, S]
  %1 = attention(%q, %k, %v, %0) {scale=0.5}: f32[B, 2, S, 4]  # attn
  return %1
}"""
    after = """graph main<B: 1..64 = 2, S: 1..32 = 5>(%q: f32[B, 2, S, 4], %k: f32[B, 2, S, 4], %v: f32[B, 2, S, 4]) {
  %0 = attention(%q, %k, %v) {scale=0.5}: f32[B, 2, S, 4]  # attn
  return %0
}"""
    assert rewritten(FuseAttention(), before)[0] == after


def test_other_bands_stay_masks() -> None:
    before = """graph main<B: 1..64 = 2, S: 1..32 = 5>(%q: f32[B, 2, S, 4], %k: f32[B, 2, S, 4], %v: f32[B, 2, S, 4]) {
  %0 = arange() {length=`S`}: i64[S]
  %1 = reshape(%0) {shape=[1, 1, 1, `S`]}: i64[1, 1, 1, S]
  %2 = reshape(%0) {shape=[1, 1, `S`, 1]}: i64[1, 1, S, 1]
  %3 = lt(%1, %2): bool[1, 1, S, S]
  %4 = attention(%q, %k, %v, %3) {scale=0.5}: f32[B, 2, S, 4]
  %5 = ge(%1, %2): bool[1, 1, S, S]
  %6 = attention(%q, %k, %v, %5) {scale=0.5}: f32[B, 2, S, 4]
  return %4, %6
}"""
    text, hits = rewritten(FuseAttention(), before)
    assert text == before
    assert refusals(hits) == []


def test_keys_and_values_are_not_repeated_for_groups_of_heads() -> None:
    before = """graph main<B: 1..64 = 2, S: 1..32 = 5>(%q: f32[B, 4, S, 4], %k: f32[B, 2, S, 4], %v: f32[B, 2, S, 4]) {
  %0 = reshape(%k) {shape=[`B`, 2, 1, `S`, 4]}: f32[B, 2, 1, S, 4]
  %1 = expand(%0) {shape=[`B`, 2, 2, `S`, 4]}: f32[B, 2, 2, S, 4]
  %2 = reshape(%1) {shape=[`B`, 4, `S`, 4]}: f32[B, 4, S, 4]
  %3 = reshape(%v) {shape=[`B`, 2, 1, `S`, 4]}: f32[B, 2, 1, S, 4]
  %4 = expand(%3) {shape=[`B`, 2, 2, `S`, 4]}: f32[B, 2, 2, S, 4]
  %5 = reshape(%4) {shape=[`B`, 4, `S`, 4]}: f32[B, 4, S, 4]
  %6 = attention(%q, %2, %5) {scale=0.5}: f32[B, 4, S, 4]  # attn
  return %6
}"""
    after = """graph main<B: 1..64 = 2, S: 1..32 = 5>(%q: f32[B, 4, S, 4], %k: f32[B, 2, S, 4], %v: f32[B, 2, S, 4]) {
  %0 = attention(%q, %k, %v) {scale=0.5}: f32[B, 4, S, 4]  # attn
  return %0
}"""
    assert rewritten(FuseAttention(), before)[0] == after


def test_refuses_keys_repeated_without_values() -> None:
    before = """graph main<B: 1..64 = 2, S: 1..32 = 5>(%q: f32[B, 4, S, 4], %k: f32[B, 2, S, 4], %v: f32[B, 4, S, 4]) {
  %0 = reshape(%k) {shape=[`B`, 2, 1, `S`, 4]}: f32[B, 2, 1, S, 4]
  %1 = expand(%0) {shape=[`B`, 2, 2, `S`, 4]}: f32[B, 2, 2, S, 4]
  %2 = reshape(%1) {shape=[`B`, 4, `S`, 4]}: f32[B, 4, S, 4]
  %3 = attention(%q, %2, %v) {scale=0.5}: f32[B, 4, S, 4]  # attn
  return %3
}"""
    text, hits = rewritten(FuseAttention(), before)
    assert text == before
    assert refusals(hits) == ["keys and values are not repeated alike"]


def test_refuses_a_finite_mask_that_may_hide_every_key() -> None:
    before = """graph main<B: 1..64 = 2, S: 1..32 = 5>(%q: f32[B, 2, S, 4], %k: f32[B, 2, S, 4], %v: f32[B, 2, S, 4], %p: bool[B, 1, 1, S]) {
  %0 = full() {value=0.0, dtype=f32}: f32[]
  %1 = full() {value=-3.4028234663852886e+38, dtype=f32}: f32[]
  %2 = where(%p, %0, %1): f32[B, 1, 1, S]
  %3 = attention(%q, %k, %v, %2) {scale=0.5}: f32[B, 2, S, 4]  # attn
  return %3
}"""
    text, hits = rewritten(FuseAttention(), before)
    assert text == before
    assert refusals(hits) == ["a query may see no key, and with a finite mask the model then averages over all keys"]


def test_refuses_probabilities_that_something_else_reads() -> None:
    before = """graph main<B: 1..64 = 2, S: 1..32 = 5>(%q: f32[B, 2, S, 4], %k: f32[B, 2, S, 4], %v: f32[B, 2, S, 4]) {
  %0 = transpose(%k) {order=[0, 1, 3, 2]}: f32[B, 2, 4, S]
  %1 = matmul(%q, %0): f32[B, 2, S, S]
  %2 = softmax(%1) {axis=3}: f32[B, 2, S, S]
  %3 = matmul(%2, %v): f32[B, 2, S, 4]  # attn
  return %3, %2
}"""
    text, hits = rewritten(FuseAttention(), before)
    assert text == before
    assert refusals(hits) == ["its scores or probabilities have another user"]


def test_a_float_mask_built_from_its_complement_is_causal() -> None:
    before = """graph main<B: 1..64 = 2, S: 1..32 = 5>(%q: f32[B, 2, S, 4], %k: f32[B, 2, S, 4], %v: f32[B, 2, S, 4]) {
  %0 = arange() {length=`S`}: i64[S]
  %1 = arange() {length=`S`, start=1}: i64[S]
  %2 = reshape(%1) {shape=[`S`, 1]}: i64[S, 1]
  %3 = ge(%0, %2): bool[S, S]
  %4 = full() {value=-inf, dtype=f32}: f32[]
  %5 = full() {value=0.0, dtype=f32}: f32[]
  %6 = where(%3, %4, %5): f32[S, S]
  %7 = reshape(%6) {shape=[1, 1, `S`, `S`]}: f32[1, 1, S, S]
  %8 = attention(%q, %k, %v, %7) {scale=0.5}: f32[B, 2, S, 4]  # attn
  return %8
}"""
    after = """graph main<B: 1..64 = 2, S: 1..32 = 5>(%q: f32[B, 2, S, 4], %k: f32[B, 2, S, 4], %v: f32[B, 2, S, 4]) {
  %0 = attention(%q, %k, %v) {causal=true, scale=0.5}: f32[B, 2, S, 4]  # attn
  return %0
}"""
    assert rewritten(FuseAttention(), before)[0] == after


def test_a_stored_triangle_is_causal() -> None:
    before = """graph main<B: 1..64 = 2, S: 1..32 = 5>(%q: f32[B, 2, S, 4], %k: f32[B, 2, S, 4], %v: f32[B, 2, S, 4]) {
  %0 = slice(@bias: f32[1, 1, 32, 32]) {axis=2, stop=`S`}: f32[1, 1, S, 32]
  %1 = slice(%0) {axis=3, stop=`S`}: f32[1, 1, S, S]
  %2 = full() {value=0.0, dtype=f32}: f32[]
  %3 = ne(%1, %2): bool[1, 1, S, S]
  %4 = attention(%q, %k, %v, %3) {scale=0.5}: f32[B, 2, S, 4]  # attn
  return %4
}"""
    after = """graph main<B: 1..64 = 2, S: 1..32 = 5>(%q: f32[B, 2, S, 4], %k: f32[B, 2, S, 4], %v: f32[B, 2, S, 4]) {
  %0 = attention(%q, %k, %v) {causal=true, scale=0.5}: f32[B, 2, S, 4]  # attn
  return %0
}"""
    weights = {"bias": torch.ones(1, 1, 32, 32).tril()}
    assert rewritten(FuseAttention(), before, weights)[0] == after


def test_a_stored_mask_of_another_form_stays() -> None:
    before = """graph main<B: 1..64 = 2, S: 1..32 = 5>(%q: f32[B, 2, S, 4], %k: f32[B, 2, S, 4], %v: f32[B, 2, S, 4]) {
  %0 = slice(@bias: f32[1, 1, 32, 32]) {axis=2, stop=`S`}: f32[1, 1, S, 32]
  %1 = slice(%0) {axis=3, stop=`S`}: f32[1, 1, S, S]
  %2 = full() {value=0.0, dtype=f32}: f32[]
  %3 = ne(%1, %2): bool[1, 1, S, S]
  %4 = attention(%q, %k, %v, %3) {scale=0.5}: f32[B, 2, S, 4]  # attn
  return %4
}"""
    weights = {"bias": torch.ones(1, 1, 32, 32).tril().triu(-2)}
    text, hits = rewritten(FuseAttention(), before, weights)
    assert text == before
    assert refusals(hits) == []


def test_a_number_behind_movements_of_queries_is_the_scale() -> None:
    before = """graph main<B: 1..64 = 2, S: 1..32 = 5>(%x: f32[B, S, 8], %k: f32[B, 2, S, 4], %v: f32[B, 2, S, 4]) {
  %0 = full() {value=0.5, dtype=f32}: f32[]
  %1 = mul(%0, %x): f32[B, S, 8]
  %2 = reshape(%1) {shape=[`B`, `S`, 2, 4]}: f32[B, S, 2, 4]
  %3 = transpose(%2) {order=[0, 2, 1, 3]}: f32[B, 2, S, 4]
  %4 = attention(%3, %k, %v) {scale=0.5}: f32[B, 2, S, 4]  # attn
  return %4
}"""
    after = """graph main<B: 1..64 = 2, S: 1..32 = 5>(%x: f32[B, S, 8], %k: f32[B, 2, S, 4], %v: f32[B, 2, S, 4]) {
  %0 = reshape(%x) {shape=[`B`, `S`, 2, 4]}: f32[B, S, 2, 4]
  %1 = transpose(%0) {order=[0, 2, 1, 3]}: f32[B, 2, S, 4]
  %2 = attention(%1, %k, %v) {scale=0.25}: f32[B, 2, S, 4]  # attn
  return %2
}"""
    assert rewritten(FuseAttention(), before)[0] == after


def test_refuses_a_softmax_in_another_dtype() -> None:
    before = """graph main<B: 1..64 = 2, S: 1..32 = 5>(%q: bf16[B, 2, S, 4], %k: bf16[B, 2, S, 4], %v: bf16[B, 2, S, 4]) {
  %0 = transpose(%k) {order=[0, 1, 3, 2]}: bf16[B, 2, 4, S]
  %1 = matmul(%q, %0): bf16[B, 2, S, S]
  %2 = cast(%1) {dtype=f32}: f32[B, 2, S, S]
  %3 = softmax(%2) {axis=3}: f32[B, 2, S, S]
  %4 = cast(%3) {dtype=bf16}: bf16[B, 2, S, S]
  %5 = matmul(%4, %v): bf16[B, 2, S, 4]  # attn
  return %5
}"""
    text, hits = rewritten(FuseAttention(), before)
    assert text == before
    assert refusals(hits) == ["its softmax runs in f32, its product in bf16"]
