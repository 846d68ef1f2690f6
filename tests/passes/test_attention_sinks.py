"""fuse-attention: scores beside a sink, as gpt-oss spells them, are attention with a sink."""

from planish.passes import FuseAttention
from tests.passes.harness import graph_text, refusals, rewritten

_INPUTS = "%q: f32[B, 4, S, 8], %k: f32[B, 4, S, 8], %v: f32[B, 4, S, 8], %m: f32[B, 1, S, S]"
_SCORES = (
    "transpose(%k) {order=[0, 1, 3, 2]}: f32[B, 4, 8, S]",
    "matmul(%q, %0): f32[B, 4, S, S]",
    "full() {value=0.5, dtype=f32}: f32[]",
    "mul(%1, %2): f32[B, 4, S, S]",
    "add(%3, %m): f32[B, 4, S, S]",
)
_JOINED = (
    "reshape(@sinks: f32[4]) {shape=[1, 4, 1, 1]}: f32[1, 4, 1, 1]",
    "expand(%5) {shape=[`B`, 4, `S`, 1]}: f32[B, 4, S, 1]",
    "concat(%4, %6) {axis=3}: f32[B, 4, S, S + 1]",
)
_FUSED = f"""graph main<B: 1..64 = 2, S: 1..32 = 5>({_INPUTS}) {{
  %0 = attention(%q, %k, %v, %m, none, @sinks: f32[4]) {{scale=0.5}}: f32[B, 4, S, 8]
  return %0
}}"""


def test_the_column_of_a_sink_that_is_dropped_again_is_a_sink() -> None:
    rest = (
        "softmax(%7) {axis=3}: f32[B, 4, S, S + 1]",
        "slice(%8) {axis=3, stop=`S`}: f32[B, 4, S, S]",
        "matmul(%9, %v): f32[B, 4, S, 8]",
    )
    assert rewritten(FuseAttention(), graph_text(_INPUTS, *_SCORES, *_JOINED, *rest, outputs="%10"))[0] == _FUSED


def test_the_largest_score_may_be_taken_off_before() -> None:
    rest = (
        "amax(%7) {axes=[3], keep=true}: f32[B, 4, S, 1]",
        "sub(%7, %8): f32[B, 4, S, S + 1]",
        "softmax(%9) {axis=3}: f32[B, 4, S, S + 1]",
        "slice(%10) {axis=3, stop=`S`}: f32[B, 4, S, S]",
        "matmul(%11, %v): f32[B, 4, S, 8]",
    )
    assert rewritten(FuseAttention(), graph_text(_INPUTS, *_SCORES, *_JOINED, *rest, outputs="%12"))[0] == _FUSED


def test_a_column_that_differs_by_query_is_no_sink() -> None:
    rest = (
        "slice(%m) {axis=3, stop=1}: f32[B, 1, S, 1]",
        "expand(%5) {shape=[`B`, 4, `S`, 1]}: f32[B, 4, S, 1]",
        "concat(%4, %6) {axis=3}: f32[B, 4, S, S + 1]",
        "softmax(%7) {axis=3}: f32[B, 4, S, S + 1]",
        "slice(%8) {axis=3, stop=`S`}: f32[B, 4, S, S]",
        "matmul(%9, %v): f32[B, 4, S, 8]",
    )
    text = graph_text(_INPUTS, *_SCORES, *rest, outputs="%10")
    assert rewritten(FuseAttention(), text)[0] == text


def test_probabilities_that_are_read_elsewhere_keep_their_column() -> None:
    rest = (
        "softmax(%7) {axis=3}: f32[B, 4, S, S + 1]",
        "slice(%8) {axis=3, stop=`S`}: f32[B, 4, S, S]",
        "matmul(%9, %v): f32[B, 4, S, 8]",
    )
    text = graph_text(_INPUTS, *_SCORES, *_JOINED, *rest, outputs="%10, %8")
    found, hits = rewritten(FuseAttention(), text)
    assert found == text
    assert refusals(hits) == ["its scores or probabilities have another user"]
