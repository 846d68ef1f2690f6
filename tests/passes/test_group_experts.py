"""group-experts: gathered weights of experts become grouped products."""

from collections import Counter
from functools import cache
from typing import Any

import pytest
import torch
import transformers as hub
from torch import nn

from planish.compiler.evaluate import evaluate
from planish.compiler.ir import Program
from planish.compiler.pass_ import Context
from planish.passes import GroupExperts, QuantizeWeights
from tests.generation.architectures import build
from tests.generation.stepping import imported
from tests.passes.harness import refusals, rewritten

INPUTS = "main<T: 1..64 = 3>(%x: f32[T, 8], %i: i64[T, 2])"


def test_weights_gathered_for_every_token_are_read_where_they_lie() -> None:
    before = f"""graph {INPUTS} {{
  %0 = reshape(%x) {{shape=[`T`, 1, 8]}}: f32[T, 1, 8]
  %1 = expand(%0) {{shape=[`T`, 2, 8]}}: f32[T, 2, 8]
  %2 = reshape(%1) {{shape=[`2*T`, 8, 1]}}: f32[2*T, 8, 1]
  %3 = reshape(%i) {{shape=[`2*T`]}}: i64[2*T]
  %4 = index_select(@w: f32[4, 6, 8], %3) {{axis=0}}: f32[2*T, 6, 8]
  %5 = matmul(%4, %2): f32[2*T, 6, 1]  # experts
  return %5
}}"""
    after = f"""graph {INPUTS} {{
  %0 = reshape(%x) {{shape=[`T`, 1, 8]}}: f32[T, 1, 8]
  %1 = expand(%0) {{shape=[`T`, 2, 8]}}: f32[T, 2, 8]
  %2 = reshape(%1) {{shape=[`2*T`, 8]}}: f32[2*T, 8]  # experts
  %3 = reshape(%i) {{shape=[`2*T`]}}: i64[2*T]
  %4 = grouped_linear(%2, @w: f32[4, 6, 8], %3): f32[2*T, 6]  # experts
  %5 = reshape(%4) {{shape=[`2*T`, 6, 1]}}: f32[2*T, 6, 1]  # experts
  return %5
}}"""
    assert rewritten(GroupExperts(), before)[0] == after


def test_weights_on_the_right_are_turned_and_rows_of_a_token_share_its_experts() -> None:
    before = f"""graph {INPUTS} {{
  %0 = reshape(%x) {{shape=[`T`, 1, 2, 4]}}: f32[T, 1, 2, 4]
  %1 = index_select(@w: f32[3, 4, 6], %i) {{axis=0}}: f32[T, 2, 4, 6]
  %2 = matmul(%0, %1): f32[T, 2, 2, 6]  # experts
  return %2
}}"""
    after = f"""graph {INPUTS} {{
  %0 = reshape(%x) {{shape=[`T`, 1, 2, 4]}}: f32[T, 1, 2, 4]
  %1 = expand(%0) {{shape=[`T`, 2, 2, 4]}}: f32[T, 2, 2, 4]  # experts
  %2 = transpose(@w: f32[3, 4, 6]) {{order=[0, 2, 1]}}: f32[3, 6, 4]  # experts
  %3 = reshape(%i) {{shape=[`T`, 2, 1]}}: i64[T, 2, 1]  # experts
  %4 = expand(%3) {{shape=[`T`, 2, 2]}}: i64[T, 2, 2]  # experts
  %5 = grouped_linear(%1, %2, %4): f32[T, 2, 2, 6]  # experts
  return %5
}}"""
    assert rewritten(GroupExperts(), before)[0] == after


def test_a_transpose_and_a_reshape_of_gathered_weights_are_seen_through() -> None:
    before = f"""graph {INPUTS} {{
  %0 = index_select(@w: f32[3, 6, 4], %i) {{axis=0}}: f32[T, 2, 6, 4]
  %1 = reshape(%0) {{shape=[`2*T`, 6, 4]}}: f32[2*T, 6, 4]
  %2 = transpose(%1) {{order=[0, 2, 1]}}: f32[2*T, 4, 6]
  %3 = reshape(%x) {{shape=[`2*T`, 1, 4]}}: f32[2*T, 1, 4]
  %4 = matmul(%3, %2): f32[2*T, 1, 6]
  return %4
}}"""
    after = f"""graph {INPUTS} {{
  %0 = reshape(%x) {{shape=[`2*T`, 4]}}: f32[2*T, 4]
  %1 = reshape(%i) {{shape=[`2*T`]}}: i64[2*T]
  %2 = grouped_linear(%0, @w: f32[3, 6, 4], %1): f32[2*T, 6]
  %3 = reshape(%2) {{shape=[`2*T`, 1, 6]}}: f32[2*T, 1, 6]
  return %3
}}"""
    assert rewritten(GroupExperts(), before)[0] == after


@pytest.mark.parametrize(
    ("w", "index", "x", "result", "words"),
    [
        ("%0", "%i", "[`T`, 2, 4, 1]", "[T, 2, 6, 1]", "its experts are computed, not stored"),
        (
            "@w: f32[3, 6, 4]",
            "%j",
            "[`T`, 2, 4, 1]",
            "[T, 2, 6, 1]",
            "each expert of i64[2] is multiplied with several",
        ),
    ],
)
def test_refuses_experts_that_are_computed_or_shared(w: str, index: str, x: str, result: str, words: str) -> None:
    shape = "[T, 2, 6, 4]" if index == "%i" else "[2, 6, 4]"
    before = f"""graph main<T: 1..64 = 3>(%x: f32[T, 8], %i: i64[T, 2], %j: i64[2], %e: f32[3, 6, 4]) {{
  %0 = neg(%e): f32[3, 6, 4]
  %1 = index_select({w}, {index}) {{axis=0}}: f32{shape}
  %2 = reshape(%x) {{shape={x}}}: f32{x.replace("`", "")}
  %3 = matmul(%1, %2): f32{result}
  %4 = relu(%0): f32[3, 6, 4]
  return %3, %4
}}"""
    hits = rewritten(GroupExperts(), before)[1]
    assert len(refusals(hits)) == 1
    assert refusals(hits)[0].startswith(words)


def test_rows_of_an_embedding_are_no_experts() -> None:
    before = """graph main<T: 1..64 = 3>(%x: f32[T, 8], %i: i64[T]) {
  %0 = index_select(@w: f32[3, 8], %i) {axis=0}: f32[T, 8]
  %1 = transpose(%0) {order=[1, 0]}: f32[8, T]
  %2 = matmul(%x, %1): f32[T, T]
  return %2
}"""
    assert rewritten(GroupExperts(), before) == (before, ())


_SIZES: dict[str, Any] = {
    "vocab_size": 100,
    "hidden_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "num_experts_per_tok": 2,
    "max_position_embeddings": 64,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
_MANY = {**_SIZES, "num_experts": 8}
MIXTURES: dict[str, tuple[type[nn.Module], Any]] = {
    "mixtral": (hub.MixtralForCausalLM, hub.MixtralConfig(num_local_experts=4, intermediate_size=48, **_SIZES)),
    "qwen2_moe": (
        hub.Qwen2MoeForCausalLM,
        hub.Qwen2MoeConfig(
            intermediate_size=48,
            moe_intermediate_size=24,
            shared_expert_intermediate_size=40,
            decoder_sparse_step=1,
            **_MANY,
        ),
    ),
    "qwen3_moe": (
        hub.Qwen3MoeForCausalLM,
        hub.Qwen3MoeConfig(head_dim=8, moe_intermediate_size=24, decoder_sparse_step=1, **_MANY),
    ),
    "olmoe": (hub.OlmoeForCausalLM, hub.OlmoeConfig(intermediate_size=48, **_MANY)),
}


@cache
def mixture(name: str) -> tuple[Any, str, Program]:
    """The model, how it computes experts before it is imported, and its program after the exact passes."""
    kind, config = MIXTURES[name]
    model: Any = build(kind, config)
    return model, model.config._experts_implementation, imported(model)


@pytest.mark.parametrize("name", MIXTURES)
def test_a_mixture_of_transformers_gathers_no_weights(name: str) -> None:
    model, chosen, program = mixture(name)
    counts = Counter(node.op.name for node in program.main.nodes())
    assert counts["grouped_linear"] == 2
    assert counts["index_select"] == counts["matmul"] == 0
    assert model.config._experts_implementation == chosen != "batched_mm"
    longer = torch.randint(3, 90, (3, 11), generator=torch.Generator().manual_seed(4))
    with torch.no_grad():
        wanted = model(input_ids=longer, use_cache=False).logits
    found = evaluate(program.main, [longer], program.weights)[0]
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", MIXTURES)
def test_quantizing_leaves_the_routers_of_a_mixture(name: str) -> None:
    _, _, program = mixture(name)
    change = QuantizeWeights(bits=8).apply(program, Context())
    kept = {key: program.weights[key] for key in change.program.weights.keys() & program.weights.keys()}
    left = {key for key, x in kept.items() if x.ndim > 1 and x.shape[-1] == 32 and x.is_floating_point()}
    # the gate of the shared expert of Qwen2 reads the same input, so that they are one map
    assert left == {f"model.layers.0.mlp.gate.weight{'.concat' if name == 'qwen2_moe' else ''}"}
    assert refusals(change.hits).count("it chooses experts; routers=true quantizes it too") == 1
