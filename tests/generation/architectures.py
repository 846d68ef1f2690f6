"""Small causal language models of every architecture that generation is tested on, with fixed random weights."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
import transformers
from torch import nn

hub: Any = transformers  # configurations take fields of their bases, which their types do not show

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
# exporting takes most of the time, so that one layer is enough where attention and feed-forward are llama's
_ONE = {**_SIZES, "num_hidden_layers": 1}
_GATED_ONE = {**_GATED, "num_hidden_layers": 1}


def build(kind: type[nn.Module], config: transformers.PreTrainedConfig, *, attention: str = "sdpa") -> nn.Module:
    """The model of a configuration with weights wide enough that a wrong token shows in the logits."""
    torch.manual_seed(0)
    config._attn_implementation = attention
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
    config = hub.GPT2Config(vocab_size=100, n_positions=64, n_embd=32, n_layer=2, n_head=4, **tokens)
    return build(hub.GPT2LMHeadModel, config)


def llama() -> nn.Module:
    return build(hub.LlamaForCausalLM, hub.LlamaConfig(**_GATED))


def mistral() -> nn.Module:
    return build(hub.MistralForCausalLM, hub.MistralConfig(sliding_window=8, **_GATED))


def qwen2() -> nn.Module:
    return build(hub.Qwen2ForCausalLM, hub.Qwen2Config(**_GATED))


def qwen3() -> nn.Module:
    return build(hub.Qwen3ForCausalLM, hub.Qwen3Config(head_dim=8, **_GATED_ONE))


def phi3() -> nn.Module:
    return build(hub.Phi3ForCausalLM, hub.Phi3Config(**_GATED_ONE))


def opt() -> nn.Module:
    config = hub.OPTConfig(ffn_dim=48, word_embed_proj_dim=32, **_ONE)
    return build(hub.OPTForCausalLM, config)


def falcon() -> nn.Module:
    config = hub.FalconConfig(multi_query=True, alibi=False, new_decoder_architecture=False, **_ONE)
    return build(hub.FalconForCausalLM, config)


def falcon_alibi() -> nn.Module:
    config = hub.FalconConfig(multi_query=True, alibi=True, parallel_attn=False, **_SIZES)
    return build(hub.FalconForCausalLM, config)


def gpt_neox() -> nn.Module:
    return build(hub.GPTNeoXForCausalLM, hub.GPTNeoXConfig(intermediate_size=48, **_ONE))


def gemma() -> nn.Module:
    return build(hub.GemmaForCausalLM, hub.GemmaConfig(head_dim=8, **_GATED))


def gemma2(layers: int = 2) -> nn.Module:
    config = hub.Gemma2Config(head_dim=8, sliding_window=8, **{**_GATED, "num_hidden_layers": layers})
    return build(hub.Gemma2ForCausalLM, config, attention="eager")


def mixtral() -> nn.Module:
    config = hub.MixtralConfig(num_local_experts=4, num_experts_per_tok=2, sliding_window=None, **_GATED)
    return build(hub.MixtralForCausalLM, config)


def bloom() -> nn.Module:
    tokens: dict[str, Any] = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
    config = hub.BloomConfig(vocab_size=100, hidden_size=32, n_layer=2, n_head=4, **tokens)
    return build(hub.BloomForCausalLM, config, attention="eager")


def gemma3() -> nn.Module:
    kinds = ["sliding_attention", "full_attention"]
    config = hub.Gemma3TextConfig(head_dim=8, sliding_window=8, layer_types=kinds, **_GATED)
    return build(hub.Gemma3ForCausalLM, config)


def starcoder2() -> nn.Module:
    return build(hub.Starcoder2ForCausalLM, hub.Starcoder2Config(sliding_window=8, **_GATED))


def qwen3_moe() -> nn.Module:
    experts = {"num_experts": 8, "num_experts_per_tok": 2, "moe_intermediate_size": 24, "decoder_sparse_step": 1}
    config = hub.Qwen3MoeConfig(head_dim=8, **experts, **_GATED)
    return build(hub.Qwen3MoeForCausalLM, config)


def phi() -> nn.Module:
    config = hub.PhiConfig(partial_rotary_factor=0.5, intermediate_size=48, **_SIZES)
    return build(hub.PhiForCausalLM, config)


_GPT: dict[str, Any] = {"vocab_size": 100, "n_positions": 64, "n_embd": 32, "n_layer": 1, "n_head": 4, "rotary_dim": 4}


def gptj() -> nn.Module:
    config = hub.GPTJConfig(bos_token_id=1, eos_token_id=2, **_GPT)
    return build(hub.GPTJForCausalLM, config, attention="eager")


def codegen() -> nn.Module:
    config = hub.CodeGenConfig(bos_token_id=1, eos_token_id=2, **_GPT)
    return build(hub.CodeGenForCausalLM, config, attention="eager")


def llama_yarn() -> nn.Module:
    rope = {"rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0, "original_max_position_embeddings": 16}
    return build(hub.LlamaForCausalLM, hub.LlamaConfig(rope_parameters=rope, **_GATED))


def mpt() -> nn.Module:
    config = hub.MptConfig(d_model=32, n_heads=4, n_layers=2, max_seq_len=80, expansion_ratio=2, vocab_size=100)
    return build(hub.MptForCausalLM, config, attention="eager")


def llama4() -> nn.Module:
    experts = {"num_local_experts": 4, "num_experts_per_tok": 1, "interleave_moe_layer_step": 2}
    config = hub.Llama4TextConfig(head_dim=8, attention_chunk_size=64, intermediate_size_mlp=48, **experts, **_GATED)
    return build(hub.Llama4ForCausalLM, config)


def deepseek_v3() -> nn.Module:
    latent = {"q_lora_rank": 16, "kv_lora_rank": 16, "qk_nope_head_dim": 8, "qk_rope_head_dim": 4, "v_head_dim": 12}
    experts = {"n_routed_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 24, "n_group": 2}
    more = {"n_shared_experts": 1, "first_k_dense_replace": 1, "topk_group": 1}
    config = hub.DeepseekV3Config(**latent, **experts, **more, **{**_GATED, "num_key_value_heads": 4})
    return build(hub.DeepseekV3ForCausalLM, config)


def gpt_oss() -> nn.Module:
    kinds, experts = ["sliding_attention", "full_attention"], {"num_local_experts": 4, "num_experts_per_tok": 2}
    config = hub.GptOssConfig(head_dim=8, sliding_window=8, layer_types=kinds, **experts, **_GATED)
    return build(hub.GptOssForCausalLM, config, attention="eager")


ARCHITECTURES: Mapping[str, Callable[[], nn.Module]] = {
    make.__name__: make
    for make in (
        *(gpt2, llama, mistral, qwen2, qwen3, phi3, opt, falcon, falcon_alibi),
        *(gpt_neox, gemma, gemma2, gemma3, mixtral, bloom),
        *(starcoder2, qwen3_moe, phi, gptj, codegen, llama_yarn, mpt, llama4, deepseek_v3, gpt_oss),
    )
}
