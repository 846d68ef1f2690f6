"""Mixtures of experts from `compile` to tokens, against transformers."""

import copy

import torch
import transformers
from torch import nn

import planish
from planish.generation import Generation
from tests.generation import architectures

_PROMPTS = [[5, 9, 11, 40, 41, 42, 43, 44, 45, 46], [17, 3], list(range(60, 75))]


def small_mixture() -> nn.Module:
    sizes = {**architectures._GATED, "hidden_size": 64, "num_hidden_layers": 1}
    config = transformers.MixtralConfig(num_local_experts=4, num_experts_per_tok=2, sliding_window=None, **sizes)
    return architectures.build(transformers.MixtralForCausalLM, config)


def greedy(model: nn.Module, prompt: list[int], tokens: int) -> list[int]:
    """The tokens that transformers gives, from whole sequences."""
    ids = list(prompt)
    with torch.no_grad():
        for _ in range(tokens):
            ids.append(int(model(input_ids=torch.tensor([ids]), use_cache=False).logits[0, -1].argmax()))
    return ids[len(prompt) :]


def test_a_batch_of_prompts_gives_the_tokens_of_transformers() -> None:
    model = small_mixture()
    generation = Generation(context=60, batch=3, chunk=8, end=())
    compiled = planish.compile(model, inputs=(torch.arange(3, 21).reshape(1, 18),), generate=generation)
    stream = compiled.generate(_PROMPTS, max_new_tokens=12)
    list(stream)
    assert stream.ids == [greedy(model, prompt, 12) for prompt in _PROMPTS]


def rounded(model: nn.Module) -> nn.Module:
    """A copy whose matrices, but embeddings and routers, are rounded to 127 steps of a row's largest magnitude."""
    model = copy.deepcopy(model)
    for name, weight in model.named_parameters():
        if weight.ndim > 1 and "embed" not in name and not name.endswith("mlp.gate.weight"):
            scale = (weight.detach().abs().amax(-1, keepdim=True) / 127).half().float()
            weight.data = (weight.detach() / scale).round() * scale
    return model


def test_experts_in_8_bits_give_the_tokens_of_rounded_weights() -> None:
    model = small_mixture()
    compiled = planish.compile(
        model,
        inputs=(torch.arange(3, 21).reshape(1, 18),),
        generate=Generation(context=60, chunk=8, end=()),
        passes=["quantize-weights{bits=8,embeddings=false}"],
    )
    stream = compiled.generate(_PROMPTS[0], max_new_tokens=16)
    list(stream)
    assert stream.ids == greedy(rounded(model), _PROMPTS[0], 16)
