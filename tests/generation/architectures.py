"""Small causal language models of every architecture that generation is tested on, with fixed random weights."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
import transformers
from torch import nn

_SIZES: dict[str, Any] = {
    "vocab_size": 100,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
_GATED: dict[str, Any] = {**_SIZES, "num_key_value_heads": 2, "intermediate_size": 48}


def build(
    kind: type[nn.Module], config: transformers.PreTrainedConfig, *, attention: str = "sdpa", experts: str | None = None
) -> nn.Module:
    """The model of a configuration with weights wide enough that a wrong token shows in the logits."""
    torch.manual_seed(0)
    config._attn_implementation = attention
    if experts is not None:
        config._experts_implementation = experts
    model = kind(config).eval()
    generator = torch.Generator().manual_seed(1)
    for tensor in model.parameters():
        if tensor.ndim > 1:
            tensor.data = 0.15 * torch.randn(tensor.shape, generator=generator)
        else:
            tensor.data += 0.1 * torch.rand(tensor.shape, generator=generator)
    return model


def gpt2() -> nn.Module:
    tokens: dict[str, Any] = {"bos_token_id": 1, "eos_token_id": 2}
    config = transformers.GPT2Config(vocab_size=100, n_positions=64, n_embd=32, n_layer=2, n_head=4, **tokens)
    return build(transformers.GPT2LMHeadModel, config)


def llama() -> nn.Module:
    return build(transformers.LlamaForCausalLM, transformers.LlamaConfig(**_GATED))


def mistral() -> nn.Module:
    return build(transformers.MistralForCausalLM, transformers.MistralConfig(sliding_window=8, **_GATED))


def qwen2() -> nn.Module:
    return build(transformers.Qwen2ForCausalLM, transformers.Qwen2Config(**_GATED))


def qwen3() -> nn.Module:
    return build(transformers.Qwen3ForCausalLM, transformers.Qwen3Config(head_dim=8, **_GATED))


def phi3() -> nn.Module:
    return build(transformers.Phi3ForCausalLM, transformers.Phi3Config(**_GATED))


def opt() -> nn.Module:
    config = transformers.OPTConfig(ffn_dim=48, word_embed_proj_dim=32, **_SIZES)
    return build(transformers.OPTForCausalLM, config)


def falcon() -> nn.Module:
    config = transformers.FalconConfig(multi_query=True, alibi=False, new_decoder_architecture=False, **_SIZES)
    return build(transformers.FalconForCausalLM, config)


def falcon_alibi() -> nn.Module:
    config = transformers.FalconConfig(multi_query=True, alibi=True, parallel_attn=False, **_SIZES)
    return build(transformers.FalconForCausalLM, config)


def gpt_neox() -> nn.Module:
    return build(transformers.GPTNeoXForCausalLM, transformers.GPTNeoXConfig(intermediate_size=48, **_SIZES))


def gemma() -> nn.Module:
    return build(transformers.GemmaForCausalLM, transformers.GemmaConfig(head_dim=8, **_GATED))


def gemma2() -> nn.Module:
    config = transformers.Gemma2Config(head_dim=8, sliding_window=8, **_GATED)
    return build(transformers.Gemma2ForCausalLM, config, attention="eager")


def mixtral() -> nn.Module:
    config = transformers.MixtralConfig(num_local_experts=4, num_experts_per_tok=2, sliding_window=None, **_GATED)
    return build(transformers.MixtralForCausalLM, config, experts="batched_mm")


def bloom() -> nn.Module:
    tokens: dict[str, Any] = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
    config = transformers.BloomConfig(vocab_size=100, hidden_size=32, n_layer=2, n_head=4, **tokens)
    return build(transformers.BloomForCausalLM, config, attention="eager")


ARCHITECTURES: Mapping[str, Callable[[], nn.Module]] = {
    make.__name__: make
    for make in (
        *(gpt2, llama, mistral, qwen2, qwen3, phi3, opt, falcon, falcon_alibi),
        *(gpt_neox, gemma, gemma2, mixtral, bloom),
    )
}
