"""Maps that choose experts: which they are, and that quantize-weights leaves them (mixtures: test_group_experts)."""

import pytest

from planish.compiler.pass_ import Context
from planish.compiler.verify import verify
from planish.passes.quantize_weights import QuantizeWeights
from planish.passes.routers import routers
from tests.generation.architectures import ARCHITECTURES
from tests.generation.stepping import imported
from tests.passes.harness import graph_text, program_of, refusals

# how many of 2 layers have experts
_ROUTERS = {"deepseek_v3": 1, "llama4": 1, "gpt_oss": 2}

_CHOICE = (
    "linear(%x, @router: f32[3, 64]): f32[B, S, 3]  # gate",
    "softmax(%0) {axis=2}: f32[B, S, 3]",
    "argmax(%1) {axis=2}: i64[B, S]",
    "linear(%x, @up: f32[64, 64]): f32[B, S, 64]  # up",
    "grouped_linear(%3, @experts: f32[3, 96, 64], %2): f32[B, S, 96]  # experts",
)


@pytest.mark.slow
@pytest.mark.parametrize("name", _ROUTERS)
def test_other_ways_to_choose_experts_stay_as_they_are(name: str) -> None:
    program = imported(ARCHITECTURES[name]())
    change = QuantizeWeights(bits=8).apply(program, Context())
    verify(change.program)
    kept = [key for key in change.program.weights if key.endswith(("mlp.gate.weight", "router.weight"))]
    assert len(kept) == _ROUTERS[name]
    assert refusals(change.hits).count("it chooses experts; routers=true quantizes it too") == _ROUTERS[name]
    assert "lm_head.weight.codes" in change.program.weights


def test_what_stands_beside_a_choice_is_quantized() -> None:
    change = QuantizeWeights(bits=8).apply(
        program_of(graph_text("%x: f32[B, S, 64]", *_CHOICE, outputs="%4")), Context()
    )
    assert set(change.program.weights) == {"router", "up.codes", "up.scale", "experts.codes", "experts.scale"}
    assert [(hit.scope, hit.refused) for hit in change.hits if hit.refused] == [
        ("gate", "it chooses experts; routers=true quantizes it too")
    ]


def test_routers_are_quantized_on_demand() -> None:
    program = program_of(graph_text("%x: f32[B, S, 64]", *_CHOICE, outputs="%4"))
    change = QuantizeWeights(bits=8, routers=True).apply(program, Context())
    assert {"router.codes", "up.codes", "experts.codes"} <= set(change.program.weights)


def test_the_likeliest_of_logits_is_no_choice_of_experts() -> None:
    lines = (*_CHOICE[:2], "argmax(%1) {axis=2}: i64[B, S]", "embedding(@table: f32[3, 64], %2): f32[B, S, 64]")
    assert routers(program_of(graph_text("%x: f32[B, S, 64]", *lines, outputs="%2, %3")).main) == frozenset()


def test_a_choice_that_several_maps_enter_is_nobodys() -> None:
    lines = (
        *_CHOICE[:1],
        "linear(%x, @noise: f32[3, 64]): f32[B, S, 3]",
        "add(%0, %1): f32[B, S, 3]",
        "argmax(%2) {axis=2}: i64[B, S]",
        "grouped_linear(%x, @experts: f32[3, 96, 64], %3): f32[B, S, 96]",
    )
    assert routers(program_of(graph_text("%x: f32[B, S, 64]", *lines, outputs="%4")).main) == frozenset()
