"""merge-parallel-linears: linear maps of one input in one module become one."""

from planish.passes import MergeParallelLinears
from tests.passes.harness import refusals, rewritten


def test_maps_of_one_module_become_slices_of_one_map() -> None:
    before = """graph main<B: 1..64 = 2, S: 1..32 = 5>(%x: f32[B, S, 8]) {
  %0 = linear(%x, @q: f32[4, 8], @qb: f32[4]): f32[B, S, 4]  # attn.q
  %1 = mul(%0, %0): f32[B, S, 4]
  %2 = linear(%x, @k: f32[2, 8]): f32[B, S, 2]  # attn.k
  %3 = linear(%x, @f: f32[8, 8]): f32[B, S, 8]  # mlp.fc
  return %1, %2, %3
}"""
    after = """graph main<B: 1..64 = 2, S: 1..32 = 5>(%x: f32[B, S, 8]) {
  %0 = concat(@q: f32[4, 8], @k: f32[2, 8]) {axis=0}: f32[6, 8]  # attn
  %1 = full() {shape=[2], value=0.0, dtype=f32}: f32[2]  # attn.k
  %2 = concat(@qb: f32[4], %1) {axis=0}: f32[6]  # attn
  %3 = linear(%x, %0, %2): f32[B, S, 6]  # attn
  %4 = slice(%3) {axis=2, stop=4}: f32[B, S, 4]  # attn.q
  %5 = mul(%4, %4): f32[B, S, 4]
  %6 = slice(%3) {axis=2, start=4, stop=6}: f32[B, S, 2]  # attn.k
  %7 = linear(%x, @f: f32[8, 8]): f32[B, S, 8]  # mlp.fc
  return %5, %6, %7
}"""
    assert rewritten(MergeParallelLinears(), before)[0] == after


def test_refuses_weights_that_are_shared_or_computed() -> None:
    before = """graph main<B: 1..64 = 2, S: 1..32 = 5>(%x: f32[B, S, 8]) {
  %0 = linear(%x, @q: f32[8, 8]): f32[B, S, 8]  # attn.q
  %1 = neg(@v: f32[8, 8]): f32[8, 8]
  %2 = linear(%x, %1): f32[B, S, 8]  # attn.v
  %3 = linear(%x, @k: f32[8, 8]): f32[B, S, 8]  # attn.k
  %4 = matmul(%3, @k: f32[8, 8]): f32[B, S, 8]
  return %0, %2, %4
}"""
    text, hits = rewritten(MergeParallelLinears(), before)
    assert text == before
    assert refusals(hits) == [
        "its weight is computed, not stored",
        "its weight has another user and would be stored twice",
    ]
