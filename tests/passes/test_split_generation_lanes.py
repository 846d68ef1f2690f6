"""Lanes of split-generation: along which steps of a value's axes the tokens lie, against exchanged tokens in torch."""

import pytest
import torch

from planish.compiler.evaluate import evaluate
from planish.compiler.ir import Program, Value
from planish.compiler.types import evaluate_dim, symbol
from planish.passes.split_generation_lanes import Lane, lane_of
from tests.passes.harness import graph_text, program_of

LANES = {
    "flattened": (
        "reshape(%x) {shape=[`B*S`, 4]}: f32[B*S, 4]",
        "linear(%0, @w: f32[6, 4]): f32[B*S, 6]",
        "reshape(%1) {shape=[`B*S*2`, 3]}: f32[2*B*S, 3]",
        "softmax(%2) {axis=1}: f32[2*B*S, 3]",
        "reshape(%3) {shape=[`B`, `S`, 6]}: f32[B, S, 6]",
    ),
    "heads": (
        "reshape(%x) {shape=[`B`, `S`, 2, 2]}: f32[B, S, 2, 2]",
        "transpose(%0) {order=[2, 1, 0, 3]}: f32[2, S, B, 2]",
        "matmul(%1, @w: f32[2, 3]): f32[2, S, B, 3]",
        "sum(%2) {axes=[0]}: f32[S, B, 3]",
        "transpose(%3) {order=[1, 0, 2]}: f32[B, S, 3]",
    ),
    "choices": (
        "argmax(%x) {axis=2, keep=true}: i64[B, S, 1]",
        "gather(%x, %0) {axis=2}: f32[B, S, 1]",
        "reshape(%0) {shape=[`B`, `S`]}: i64[B, S]",
        "index_select(@w: f32[3, 4], %2) {axis=1}: f32[3, B, S]",
        "transpose(%3) {order=[1, 2, 0]}: f32[B, S, 3]",
        "concat(%4, %1) {axis=2}: f32[B, S, 4]",
    ),
    "experts": (
        "argmax(%x) {axis=2}: i64[B, S]",
        "grouped_linear(%x, @w: f32[4, 6, 4], %0): f32[B, S, 6]",
        "reshape(%1) {shape=[`B*S*2`, 3]}: f32[2*B*S, 3]",
        "reshape(%0) {shape=[`B*S`, 1]}: i64[B*S, 1]",
        "expand(%3) {shape=[`B*S`, 2]}: i64[B*S, 2]",
        "reshape(%4) {shape=[`B*S*2`]}: i64[2*B*S]",
        "grouped_linear(%2, @v: f32[4, 5, 3], %5): f32[2*B*S, 5]",
    ),
    "reductions": (
        "mean(%x) {axes=[2], keep=true}: f32[B, S, 1]",
        "expand(%0) {shape=[`B`, `S`, 3]}: f32[B, S, 3]",
        "cumsum(%1) {axis=2}: f32[B, S, 3]",
        "pad(%2) {before=[0, 0, 1], after=[0, 0, 0]}: f32[B, S, 4]",
        "flip(%3) {axes=[2]}: f32[B, S, 4]",
        "layer_norm(%4): f32[B, S, 4]",
    ),
}


@pytest.mark.parametrize("name", LANES)
def test_a_lane_is_where_exchanged_tokens_are_exchanged(name: str) -> None:
    """Exchanging tokens (or rows) of the input exchanges steps of every value's lane, in torch's numbers."""
    lines = LANES[name]
    for axis, size in ((1, "S"), (0, "B")):
        for last in range(len(lines)):
            graph = program_of(graph_text("%x: f32[B, S, 4]", *lines[: last + 1], outputs=f"%{last}"))
            (value,) = graph.main.outputs
            lanes = {graph.main.inputs[0]: Lane(axis)}
            for node in graph.main.nodes():
                found = lane_of(node, lanes, symbol(size))
                assert not isinstance(found, str), found
                lanes |= {} if found is None else {Value(node): found}
            _check_lane(graph, lanes[value], axis)


def _check_lane(program: Program, lane: Lane, axis: int) -> None:
    x = torch.randn(3, 5, 4, generator=torch.Generator().manual_seed(0))
    order = torch.randperm(x.shape[axis], generator=torch.Generator().manual_seed(1))
    (plain,), (exchanged,) = (
        evaluate(program.main, [given], program.weights) for given in (x, x.index_select(axis, order))
    )
    inner = evaluate_dim(lane.inner, {"B": 3, "S": 5})
    before, after = plain.shape[: lane.axis], plain.shape[lane.axis + 1 :]
    steps = plain.reshape(*before, -1, x.shape[axis], inner, *after).index_select(lane.axis + 1, order)
    torch.testing.assert_close(exchanged, steps.reshape(plain.shape))
