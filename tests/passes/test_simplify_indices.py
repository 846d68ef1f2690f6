"""simplify-indices: what follows from positions alone is worked out ahead of time."""

import torch

from planish.passes import SimplifyIndices
from tests.passes.harness import refusals, rewritten


def test_comparisons_that_always_hold_are_literals() -> None:
    before = """graph main<B: 1..64 = 2, S: 1..32 = 5>(%x: f32[B, S, 8]) {
  %0 = arange() {length=`S`}: i64[S]
  %1 = full() {value=0, dtype=i64}: i64[]
  %2 = ge(%0, %1): bool[S]
  %3 = full() {value=32, dtype=i64}: i64[]
  %4 = lt(%0, %3): bool[S]
  %5 = full() {value=31, dtype=i64}: i64[]
  %6 = lt(%0, %5): bool[S]
  %7 = add(%0, %1): i64[S]
  %8 = ne(%7, %0): bool[S]
  return %2, %4, %6, %8, %x
}"""
    after = """graph main<B: 1..64 = 2, S: 1..32 = 5>(%x: f32[B, S, 8]) {
  %0 = full() {shape=[`S`], value=true, dtype=bool}: bool[S]
  %1 = full() {shape=[`S`], value=true, dtype=bool}: bool[S]
  %2 = arange() {length=`S`}: i64[S]
  %3 = full() {value=31, dtype=i64}: i64[]
  %4 = lt(%2, %3): bool[S]
  %5 = full() {shape=[`S`], value=false, dtype=bool}: bool[S]
  return %0, %1, %4, %5, %x
}"""
    assert rewritten(SimplifyIndices(), before)[0] == after


def test_a_lookup_of_consecutive_rows_is_a_slice() -> None:
    before = """graph main<B: 1..64 = 2, S: 1..32 = 5>(%x: f32[B, S, 8]) {
  %0 = arange() {length=`S`, start=2}: i64[S]
  %1 = reshape(%0) {shape=[1, `S`]}: i64[1, S]
  %2 = expand(%1) {shape=[`B`, `S`]}: i64[B, S]
  %3 = embedding(@table: f32[64, 8], %2): f32[B, S, 8]  # positions
  %4 = add(%x, %3): f32[B, S, 8]
  return %4
}"""
    after = """graph main<B: 1..64 = 2, S: 1..32 = 5>(%x: f32[B, S, 8]) {
  %0 = slice(@table: f32[64, 8]) {axis=0, start=2, stop=`S + 2`}: f32[S, 8]  # positions
  %1 = reshape(%0) {shape=[1, `S`, 8]}: f32[1, S, 8]  # positions
  %2 = expand(%1) {shape=[`B`, `S`, 8]}: f32[B, S, 8]  # positions
  %3 = add(%x, %2): f32[B, S, 8]
  return %3
}"""
    assert rewritten(SimplifyIndices(), before)[0] == after


def test_a_lookup_of_one_row_is_that_row() -> None:
    before = """graph main<B: 1..64 = 2, S: 1..32 = 5>(%x: f32[B, S, 8]) {
  %0 = slice(@types: i64[1, 32]) {axis=1, stop=`S`}: i64[1, S]
  %1 = embedding(@table: f32[2, 8], %0): f32[1, S, 8]
  %2 = add(%x, %1): f32[B, S, 8]
  return %2
}"""
    after = """graph main<B: 1..64 = 2, S: 1..32 = 5>(%x: f32[B, S, 8]) {
  %0 = slice(@table: f32[2, 8]) {axis=0, stop=1}: f32[1, 8]
  %1 = reshape(%0) {shape=[1, 1, 8]}: f32[1, 1, 8]
  %2 = expand(%1) {shape=[1, `S`, 8]}: f32[1, S, 8]
  %3 = add(%x, %2): f32[B, S, 8]
  return %3
}"""
    weights = {"types": torch.zeros(1, 32, dtype=torch.long)}
    assert rewritten(SimplifyIndices(), before, weights)[0] == after


def test_positions_held_in_a_weight_are_positions() -> None:
    before = """graph main<B: 1..64 = 2, S: 1..32 = 5>(%x: f32[B, S, 8]) {
  %0 = slice(@positions: i64[1, 32]) {axis=1, stop=`S`}: i64[1, S]
  %1 = index_select(@table: f32[32, 8], %0) {axis=0}: f32[1, S, 8]
  %2 = add(%x, %1): f32[B, S, 8]
  return %2
}"""
    after = """graph main<B: 1..64 = 2, S: 1..32 = 5>(%x: f32[B, S, 8]) {
  %0 = slice(@table: f32[32, 8]) {axis=0, stop=`S`}: f32[S, 8]
  %1 = reshape(%0) {shape=[1, `S`, 8]}: f32[1, S, 8]
  %2 = add(%x, %1): f32[B, S, 8]
  return %2
}"""
    weights = {"positions": torch.arange(32)[None]}
    assert rewritten(SimplifyIndices(), before, weights)[0] == after


def test_segments_of_packed_positions_come_out_equal() -> None:
    before = """graph main<B: 1..64 = 2, S: 1..32 = 5>(%x: f32[B, S]) {
  %0 = arange() {length=`S`}: i64[S]
  %1 = reshape(%0) {shape=[1, `S`]}: i64[1, S]
  %2 = slice(%1) {axis=1, stop=1}: i64[1, 1]
  %3 = full() {value=1, dtype=i64}: i64[]
  %4 = sub(%2, %3): i64[1, 1]
  %5 = concat(%4, %1) {axis=1}: i64[1, S + 1]
  %6 = slice(%5) {axis=1, start=1, stop=`S + 1`}: i64[1, S]
  %7 = slice(%5) {axis=1, stop=`S`}: i64[1, S]
  %8 = sub(%6, %7): i64[1, S]
  %9 = ne(%8, %3): bool[1, S]
  %10 = cast(%9) {dtype=i64}: i64[1, S]
  %11 = cumsum(%10) {axis=1}: i64[1, S]
  %12 = reshape(%11) {shape=[`S`, 1]}: i64[S, 1]
  %13 = eq(%11, %12): bool[S, S]
  return %13, %x
}"""
    after = """graph main<B: 1..64 = 2, S: 1..32 = 5>(%x: f32[B, S]) {
  %0 = full() {shape=[`S`, `S`], value=true, dtype=bool}: bool[S, S]
  return %0, %x
}"""
    assert rewritten(SimplifyIndices(), before)[0] == after


def test_refuses_positions_that_may_lie_past_the_table() -> None:
    before = """graph main<B: 1..64 = 2, S: 1..32 = 5>(%x: f32[B, S, 8]) {
  %0 = arange() {length=`S`}: i64[S]
  %1 = embedding(@table: f32[16, 8], %0): f32[S, 8]  # positions
  %2 = add(%x, %1): f32[B, S, 8]
  return %2
}"""
    text, hits = rewritten(SimplifyIndices(), before)
    assert text == before
    assert refusals(hits) == ["positions up to S may lie outside the 16 rows of the table"]


def test_lookups_by_data_stay() -> None:
    before = """graph main<B: 1..64 = 2, S: 1..32 = 5>(%i: i64[B, S]) {
  %0 = embedding(@table: f32[64, 8], %i): f32[B, S, 8]
  return %0
}"""
    text, hits = rewritten(SimplifyIndices(), before)
    assert text == before
    assert refusals(hits) == []
