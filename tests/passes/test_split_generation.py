"""split-generation: decoding with caches gives what the model gives on whole sequences, and refuses what it cannot."""

from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import pytest
import torch

from planish.compiler.ir import Program
from planish.compiler.pass_ import Context
from planish.compiler.text import parse
from planish.errors import PassError
from planish.passes.split_generation import SplitGeneration
from tests.generation.architectures import ARCHITECTURES
from tests.generation.rounding import Rounding, halves, signed, sixteen
from tests.generation.stepping import Stepper, expected, imported, split
from tests.passes.harness import graph_text, program_of

CONTEXT = 32
PROMPTS = (14, 9, 3)


@cache
def _model(name: str) -> torch.nn.Module:
    torch.set_num_threads(1)
    return ARCHITECTURES[name]()


@cache
def _imported(name: str) -> tuple[torch.nn.Module, Program]:
    return _model(name), imported(_model(name))


def _rows(*lengths: int) -> list[list[int]]:
    generator = torch.Generator().manual_seed(3)
    return [torch.randint(3, 90, (n,), generator=generator).tolist() for n in lengths]


def _largest_error(
    program: Program,
    rows: Sequence[list[int]],
    prompts: Sequence[int],
    want: list[torch.Tensor],
    chunk: int = 9,
    most: int = CONTEXT,
) -> float:
    """Over every position from the prompts' ends on, or over `most` steps; prompts are read in chunks."""
    errors = []
    stepper = Stepper(program, len(rows))
    found = [stepper.read([row[:n] for row, n in zip(rows, prompts, strict=True)], chunk)]
    steps = min(most, *(len(row) - n for row, n in zip(rows, prompts, strict=True)))
    for i in range(steps):
        tokens = [[row[n + i]] for row, n in zip(rows, prompts, strict=True)]
        found.append(list(stepper.step("decode", tokens)))
    for i, logits in enumerate(found):
        pairs = zip(logits, want, prompts, strict=True)
        errors += [float((one - whole[n - 1 + i]).abs().max()) for one, whole, n in pairs]
    return max(errors)


# what differs from an architecture that stays by sizes, biases, or where a norm or a rotation stands
_SLOW = {"qwen2", "gemma", "codegen", "starcoder2", "phi", "qwen3_moe", "llama_yarn", "bloom"}


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.slow) if name in _SLOW else name for name in ARCHITECTURES]
)
def test_decoding_equals_the_model_at_every_position(name: str) -> None:
    model, program = _imported(name)
    rows = _rows(CONTEXT, 30, 25)
    want = [expected(model, row) for row in rows]
    three = split(program, SplitGeneration(context=CONTEXT, chunk=9, batch=3))
    assert _largest_error(three, rows, PROMPTS, want) < 1e-4
    assert _largest_error(three, rows, PROMPTS, want, chunk=4, most=3) < 1e-4
    assert _largest_error(three, rows[:2], (9, 2), want[:2], most=5) < 1e-4
    one = split(program, SplitGeneration(context=CONTEXT, chunk=9))
    assert _largest_error(one, rows[:1], (1,), want[:1]) < 1e-4


@pytest.mark.parametrize("name", ["opt", "falcon_alibi", "gptj"])
def test_a_model_traced_with_one_row_generates_one_row(name: str) -> None:
    model = _model(name)
    rows = _rows(20)
    program = split(imported(model, batch=1), SplitGeneration(context=CONTEXT, chunk=9))
    assert _largest_error(program, rows, (11,), [expected(model, rows[0])]) < 1e-4


# sums that differ in their last bits put a number between two levels on either, hence not 1e-5
@pytest.mark.parametrize(
    ("cache", "rounded", "tolerance"), [("f16", halves, 2e-3), ("i8", signed, 3e-3), ("i4", sixteen, 3e-2)]
)
@pytest.mark.parametrize("name", ["llama", "mistral", "gemma2"])
def test_narrow_caches_give_what_the_model_gives_from_rounded_keys_and_values(
    name: str, cache: str, rounded: Callable[[torch.Tensor], torch.Tensor], tolerance: float
) -> None:
    model, program = _imported(name)
    rows = _rows(CONTEXT, 30, 25)
    narrow = split(program, SplitGeneration(context=CONTEXT, chunk=9, batch=3, cache=cache))
    want = [expected(model, row, Rounding(model, rounded)) for row in rows]
    assert _largest_error(narrow, rows, PROMPTS, want) < tolerance
    assert _largest_error(narrow, rows, PROMPTS, [expected(model, row) for row in rows]) > 5e-4


def test_narrow_caches_are_inputs_of_their_dtype() -> None:
    _, program = _imported("llama")
    half = split(program, SplitGeneration(context=CONTEXT, chunk=8, cache="f16")).functions["decode"]
    assert [str(v.type) for v in half.inputs[3:]] == ["f16[1, 2, 32, 8]"] * 4
    bytes_ = split(program, SplitGeneration(context=CONTEXT, chunk=8, cache="i8")).functions["decode"]
    names = {str(v.node.attrs["name"]): str(v.type) for v in bytes_.inputs[3:7]}
    assert names == {
        "cache.0.k": "i8[1, 2, 32, 8]",
        "cache.0.k_scale": "f32[1, 2, 32, 1]",
        "cache.0.v": "i8[1, 2, 32, 8]",
        "cache.0.v_scale": "f32[1, 2, 32, 1]",
    }
    assert [v.type for v in bytes_.outputs[1:]] == [v.type for v in bytes_.inputs[3:]]
    packed = split(program, SplitGeneration(context=CONTEXT, chunk=8, cache="i4")).functions["decode"]
    assert [str(v.type) for v in packed.inputs[3:]] == ["u8[1, 2, 32, 12]"] * 4


def test_the_context_is_filled_to_its_last_token() -> None:
    model, program = _imported("llama")
    (row,) = _rows(CONTEXT)
    stepper = Stepper(split(program, SplitGeneration(context=CONTEXT, chunk=9)), 1)
    (after,) = stepper.read([row], 9)
    torch.testing.assert_close(after, expected(model, row)[-1], rtol=0, atol=1e-4)


def test_a_sliding_window_keeps_only_what_a_chunk_behind_it_sees() -> None:
    _, program = _imported("mistral")
    graph = split(program, SplitGeneration(context=CONTEXT, chunk=9)).functions["prefill"]
    assert {str(v.type) for v in graph.inputs[3:]} == {"f32[1, 2, 16, 8]"}


def test_the_last_layer_and_the_head_run_on_the_last_token_alone() -> None:
    _, program = _imported("llama")
    graph = split(program, SplitGeneration(context=CONTEXT, chunk=8)).functions["prefill"]
    linears = [str(n.types[0]) for n in graph.nodes() if n.op.name == "linear"]
    assert linears[-5:] == ["f32[1, tokens, 64]", "f32[1, 1, 32]", "f32[1, 1, 96]", "f32[1, 1, 32]", "f32[1, 1, 100]"]


def test_rotary_positions_become_one_table_each_for_all_layers() -> None:
    _, program = _imported("llama")
    after = split(program, SplitGeneration(context=CONTEXT, chunk=8))
    added = {name: tuple(t.shape) for name, t in after.weights.items() if name not in program.weights}
    assert added == {"model.rotary_emb.cos": (32, 8), "model.rotary_emb.sin": (32, 8)}
    assert not {n.op.name for g in after.functions.values() for n in g.nodes()} & {"cos", "sin"}
    assert str(parse(str(after.functions["prefill"]))) == str(after.functions["prefill"])


@pytest.mark.parametrize("name", ["llama", pytest.param("gpt2", marks=pytest.mark.slow), "opt"])
def test_masks_and_positions_as_inputs_count_as_ones_and_from_zero(name: str) -> None:
    model = _model(name)
    positions = torch.arange(8).expand(2, 8)
    program = imported(model, attention_mask=torch.ones(2, 8, dtype=torch.long), position_ids=positions)
    after = split(program, SplitGeneration(context=CONTEXT, chunk=9, batch=2))
    names = [str(v.node.attrs["name"]) for v in after.functions["decode"].inputs[:4]]
    assert names == ["ids", "past", "count", "cache.0.k"]
    rows = _rows(20, 17)
    want = [expected(model, row) for row in rows]
    assert _largest_error(after, rows, (9, 2), want) < 1e-4


_DECODER = (
    "embedding(@table: f32[11, 4], %ids): f32[B, S, 4]",
    "slice(@places: f32[32, 4]) {stop=`S`, axis=0}: f32[S, 4]",
    "add(%0, %1): f32[B, S, 4]",
    "reshape(%2) {shape=[`B`, 1, `S`, 4]}: f32[B, 1, S, 4]",
    "attention(%3, %3, %3) {causal=true, scale=0.5}: f32[B, 1, S, 4]",
    "reshape(%4) {shape=[`B`, `S`, 4]}: f32[B, S, 4]",
    "linear(%5, @table: f32[11, 4]): f32[B, S, 11]",
)
AFTER = """\
graph decode<rows: 1..2 = 2>(%ids: i64[rows, 1], %past: i64[rows], %count: i64[rows], \
%cache.0.k: f32[rows, 1, 8, 4], %cache.0.v: f32[rows, 1, 8, 4]) {
  %0 = embedding(@table: f32[11, 4], %ids): f32[rows, 1, 4]
  %1 = reshape(%past) {shape=[`rows`, 1]}: i64[rows, 1]
  %2 = clamp(%1) {high=7}: i64[rows, 1]
  %3 = index_select(@places.positions: f32[8, 4], %2) {axis=0}: f32[rows, 1, 4]
  %4 = add(%0, %3): f32[rows, 1, 4]
  %5 = reshape(%4) {shape=[`rows`, 1, 1, 4]}: f32[rows, 1, 1, 4]
  %6 = cache_update(%cache.0.k, %5, %past, %count): f32[rows, 1, 8, 4]
  %7 = cache_update(%cache.0.v, %5, %past, %count): f32[rows, 1, 8, 4]
  %8 = attention(%5, %6, %7, none, %past) {causal=true, scale=0.5}: f32[rows, 1, 1, 4]
  %9 = reshape(%8) {shape=[`rows`, 1, 4]}: f32[rows, 1, 4]
  %10 = linear(%9, @table: f32[11, 4]): f32[rows, 1, 11]
  %11 = reshape(%10) {shape=[`rows`, 11]}: f32[rows, 11]
  return %11, %6, %7
}"""


def _decoder(inputs: str = "%ids: i64[B, S]", outputs: str = "%6", sizes: str = "", **changed: str) -> Program:
    """The decoder with lines replaced: `at4` is line 4; a line may be followed by others in its stead."""
    lines = [changed.get(f"at{i}", line) for i, line in enumerate(_DECODER)]
    return program_of(graph_text(inputs, *lines, outputs=outputs, **({"sizes": sizes} if sizes else {})))


def test_a_table_of_positions_and_caches_take_the_place_of_the_sequence() -> None:
    after = split(_decoder(), SplitGeneration(context=8, chunk=4, batch=2))
    assert str(after.functions["decode"]) == AFTER
    assert torch.equal(after.weights["places.positions"], _decoder().weights["places"][:8])
    assert list(after.functions) == ["prefill", "decode"]


def test_a_table_as_long_as_the_context_is_the_weight_itself() -> None:
    program = _decoder()
    after = split(program, SplitGeneration(context=32, chunk=4))
    assert list(after.weights) == ["table", "places"]


def test_attentions_over_the_same_keys_and_values_share_a_cache() -> None:
    again = "attention(%3, %3, %3) {causal=true, scale=0.25}: f32[B, 1, S, 4]"
    lines = (*_DECODER[:5], again, "add(%4, %5): f32[B, 1, S, 4]")
    head = ("reshape(%6) {shape=[`B`, `S`, 4]}: f32[B, S, 4]", "linear(%7, @table: f32[11, 4]): f32[B, S, 11]")
    program = program_of(graph_text("%ids: i64[B, S]", *lines, *head, outputs="%8"))
    after = split(program, SplitGeneration(context=8, chunk=4))
    assert [str(v.node.attrs["name"]) for v in after.functions["decode"].inputs[3:]] == ["cache.0.k", "cache.0.v"]


def test_other_outputs_are_dropped_with_a_note() -> None:
    after = split(_decoder(outputs="%2, %6"), SplitGeneration(context=8, chunk=4))
    assert after.notes["dropped outputs"] == ("f32[B, S, 4]",)
    assert str(after.functions["prefill"].outputs[0].type) == "f32[1, 11]"


MIXING = {
    "conv": (
        "conv(%0, @w: f32[4, 3, 4]) {stride=[1], padding=[1], dilation=[1]}: f32[B, S, 4]",
        "conv in 'layers.0.mixer' mixes tokens: it works along them",
    ),
    "cumsum": ("cumsum(%0) {axis=1}: f32[B, S, 4]", "cumsum in 'layers.0.mixer' mixes tokens"),
    "roll": ("roll(%0) {shifts=[1], axes=[1]}: f32[B, S, 4]", "roll in 'layers.0.mixer' mixes tokens"),
    "softmax": ("softmax(%0) {axis=1}: f32[B, S, 4]", "softmax in 'layers.0.mixer' mixes tokens"),
    "norm of the batch": ("softmax(%0) {axis=0}: f32[B, S, 4]", "mixes rows of the batch"),
    "pieces": ("reshape(%0) {shape=[`B`, 4, `S`]}: f32[B, 4, S]", "reshape in 'layers.0.mixer' mixes tokens"),
}


@pytest.mark.parametrize("name", MIXING)
def test_refuses_an_op_that_mixes_tokens_and_names_it(name: str) -> None:
    line, words = MIXING[name]
    lines = [*_DECODER[:2], f"{line}  # layers.0.mixer"]
    if name == "pieces":
        lines += ["transpose(%2) {order=[0, 2, 1]}: f32[B, S, 4]", "add(%3, %0): f32[B, S, 4]"]
    else:
        lines += ["relu(%2): f32[B, S, 4]", "add(%3, %0): f32[B, S, 4]"]
    rest = (
        "reshape(%4) {shape=[`B`, 1, `S`, 4]}: f32[B, 1, S, 4]",
        "attention(%5, %5, %5) {causal=true, scale=0.5}: f32[B, 1, S, 4]",
        "reshape(%6) {shape=[`B`, `S`, 4]}: f32[B, S, 4]",
        "linear(%7, @table: f32[11, 4]): f32[B, S, 11]",
    )
    program = program_of(graph_text("%ids: i64[B, S]", *lines, *rest, outputs="%8"))
    with pytest.raises(PassError, match=words):
        SplitGeneration(context=8).apply(program, Context())


def test_refuses_a_sum_over_tokens() -> None:
    mean = "mean(%0) {axes=[1], keep=true}: f32[B, 1, 4]  # layers.0.pool"
    program = _decoder(at1=mean, at2="add(%0, %1): f32[B, S, 4]")
    with pytest.raises(PassError, match=r"mean in 'layers.0.pool' mixes tokens"):
        SplitGeneration(context=8).apply(program, Context())


def test_refuses_attention_that_is_not_causal() -> None:
    line = "attention(%3, %3, %3) {scale=0.5}: f32[B, 1, S, 4]  # layers.0.attention"
    words = r"attention in 'layers.0.attention' is not causal: it sees later tokens, so no cache can hold it"
    with pytest.raises(PassError, match=words):
        SplitGeneration(context=8).apply(_decoder(at4=line), Context())


def test_refuses_a_mask_that_depends_on_the_tokens() -> None:
    lines = (
        *_DECODER[:4],
        "full() {value=0, dtype=i64}: i64[]",
        "ne(%ids, %4): bool[B, S]",
        "reshape(%5) {shape=[`B`, 1, 1, `S`]}: bool[B, 1, 1, S]",
        "attention(%3, %3, %3, %6) {causal=true, scale=0.5}: f32[B, 1, S, 4]  # layers.0.attention",
        "reshape(%7) {shape=[`B`, `S`, 4]}: f32[B, S, 4]",
        "linear(%8, @table: f32[11, 4]): f32[B, S, 11]",
    )
    program = program_of(graph_text("%ids: i64[B, S]", *lines, outputs="%9"))
    with pytest.raises(PassError, match=r"'layers.0.attention' has a mask that is neither causal nor a window"):
        SplitGeneration(context=8).apply(program, Context())


def test_refuses_numbers_that_change_with_the_length() -> None:
    scale = "dim_value() {value=`S`, dtype=f32}: f32[]  # layers.0.scale"
    program = _decoder(at1=scale, at2="mul(%0, %1): f32[B, S, 4]")
    with pytest.raises(PassError, match=r"dim_value in 'layers.0.scale' depends on the number of tokens itself"):
        SplitGeneration(context=8).apply(program, Context())


@pytest.mark.parametrize(
    ("changed", "options", "words"),
    [
        ({}, {"context": 64}, "context 64 is over 32, the most that 'S' may be"),
        ({}, {"context": 8, "batch": 65}, "batch 65 is over 64, the most that 'B' may be"),
        (
            {"inputs": "%ids: i64[B, S], %speaker: f32[B, 4]"},
            {},
            r"the input 'speaker' f32\[B, 4\] is neither token ids",
        ),
        ({"at4": "relu(%3): f32[B, 1, S, 4]"}, {}, "no causal attention over the tokens is left"),
        ({"inputs": "%ids: f32[B, S, 4]", "at0": "relu(%ids): f32[B, S, 4]"}, {}, "must feed an embedding"),
    ],
)
def test_refuses_a_model_that_does_not_fit(changed: dict[str, str], options: dict[str, Any], words: str) -> None:
    with pytest.raises(PassError, match=words):
        SplitGeneration(**{"context": 8, **options}).apply(_decoder(**changed), Context())


def test_refuses_a_sequence_of_one_length() -> None:
    lines = [line.replace("`S`", "5").replace("S", "5") for line in _DECODER]
    program = program_of(graph_text("%ids: i64[B, 5]", *lines, outputs="%6", sizes="B: 1..64 = 2"))
    with pytest.raises(PassError, match="the tokens of 'ids' are 5, no named size; make axis 1 dynamic"):
        SplitGeneration(context=8).apply(program, Context())


def test_a_batch_of_one_is_enough_for_one_row() -> None:
    lines = [line.replace("`B`", "1").replace("[B", "[1") for line in _DECODER]
    program = program_of(graph_text("%ids: i64[1, S]", *lines, outputs="%6", sizes="S: 1..32 = 5"))
    assert list(split(program, SplitGeneration(context=8)).functions) == ["prefill", "decode"]
    with pytest.raises(PassError, match="a batch of 2 needs a dynamic axis 0 of the token ids"):
        SplitGeneration(context=8, batch=2).apply(program, Context())


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"context": 0}, "context, chunk and batch are at least 1"),
        ({"cache": "f8"}, "cache is 'f32', 'f16', 'i8' or 'i4', not 'f8'"),
    ],
)
def test_refuses_wrong_options(options: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        SplitGeneration(**options)


def test_refuses_a_program_that_is_split_already() -> None:
    after = split(_decoder(), SplitGeneration(context=8))
    with pytest.raises(PassError, match=r"it splits a single function 'main', not \['prefill', 'decode'\]"):
        SplitGeneration(context=8).apply(after, Context())
