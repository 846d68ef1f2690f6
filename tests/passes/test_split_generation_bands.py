"""split-generation: masks of positions mean what they are for the whole context, in whatever form they are written."""

import pytest
import torch

from planish.compiler.ir import Program
from planish.compiler.pass_ import Context
from planish.compiler.verify import verify
from planish.errors import PassError
from planish.passes.split_generation import SplitGeneration
from tests.generation.stepping import Stepper
from tests.passes.harness import evaluate_program, graph_text, program_of

CHUNK = 12


def _chunked(low: int) -> Program:
    """A decoder whose tokens see those before them in their own chunk of 12, from `low` positions on."""
    lines = (
        "embedding(@table: f32[11, 4], %ids): f32[B, S, 4]",
        "reshape(%0) {shape=[`B`, 1, `S`, 4]}: f32[B, 1, S, 4]",
        f"arange() {{start={low}, length=`S`}}: i64[S]",
        f"full() {{value={CHUNK}, dtype=i64}}: i64[]",
        "floor_divide(%2, %3): i64[S]",
        "reshape(%4) {shape=[`S`, 1]}: i64[S, 1]",
        "eq(%5, %4): bool[S, S]",
        "reshape(%6) {shape=[1, 1, `S`, `S`]}: bool[1, 1, S, S]",
        "attention(%1, %1, %1, %7) {causal=true, scale=0.5}: f32[B, 1, S, 4]  # layers.0.attention",
        "reshape(%8) {shape=[`B`, `S`, 4]}: f32[B, S, 4]",
        "linear(%9, @table: f32[11, 4]): f32[B, S, 11]",
    )
    return program_of(graph_text("%ids: i64[B, S]", *lines, outputs="%10"))


def test_chunks_that_hold_the_whole_context_hide_nothing() -> None:
    program = _chunked(0)
    split = SplitGeneration(context=CHUNK, chunk=5).apply(program, Context()).program
    verify(split)
    ids = torch.randint(0, 11, (1, CHUNK), generator=torch.Generator().manual_seed(0))
    (wanted,) = evaluate_program(program, [ids])
    stepper = Stepper(split, 1)
    torch.testing.assert_close(stepper.read([ids[0, :7].tolist()], 5)[0], wanted[0, 6])
    for i in range(7, CHUNK):
        torch.testing.assert_close(stepper.step("decode", [[int(ids[0, i])]])[0], wanted[0, i])


@pytest.mark.parametrize(("context", "low"), [(CHUNK + 1, 0), (CHUNK, 3)])
def test_chunks_that_cut_the_context_are_refused(context: int, low: int) -> None:
    with pytest.raises(PassError, match=r"'layers.0.attention' has a mask that is neither causal nor a window"):
        SplitGeneration(context=context, chunk=5).apply(_chunked(low), Context())
