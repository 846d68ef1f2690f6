"""glassllm, a LLaMA-style decoder of 0.85M parameters (package glassllm, which runs it in NumPy)."""

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from benchmarks.zoo.model import Call, Inputs, Quality, ZooModel
from benchmarks.zoo.perplexity import austen_perplexity
from benchmarks.zoo.text import prose, windows

_CONTEXT = 128


def load() -> nn.Module:
    """The weights in transformers' LLaMA: token ids `(batch, length)` to logits `(batch, length, 1024)`."""
    from glassllm import load_pretrained  # type: ignore[import-untyped]
    from transformers import LlamaConfig, LlamaForCausalLM

    source, _ = load_pretrained("en")
    stored = {name: torch.from_numpy(value.data).float() for name, value in source.named_parameters().items()}
    shape = source.cfg
    config = LlamaConfig(
        vocab_size=shape.vocab_size,
        hidden_size=shape.d_model,
        intermediate_size=stored["blocks.0.ffn.W1"].shape[1],
        num_hidden_layers=shape.n_layers,
        num_attention_heads=shape.n_heads,
        num_key_value_heads=shape.n_kv_heads,
        max_position_embeddings=shape.max_len,
        rms_norm_eps=shape.eps,
        rope_parameters={"rope_type": "default", "rope_theta": shape.rope_base},
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=None,
        use_cache=False,
    )
    model: nn.Module = LlamaForCausalLM(config)
    weights = _weights(stored, shape.n_layers, shape.d_model // shape.n_heads)
    model.load_state_dict(dict(weights))
    return model.eval()


def encode(text: str) -> list[int]:
    """The tokens of a text."""
    from glassllm import load_pretrained

    tokens: list[int] = load_pretrained("en")[1].encode(text)
    return tokens


def inputs(batch: int, length: int | None) -> Inputs:
    """Token ids `(batch, length)` int64 of technical English; `length` is at most 128."""
    length = length or _CONTEXT
    return {"input_ids": windows(encode(prose()[: 8 * batch * length]), batch, length)}


def quality(call: Call) -> Quality:
    """Perplexity on 64 windows of 128 tokens of Austen."""
    return austen_perplexity(call, encode, count=64, length=_CONTEXT)


def _weights(stored: dict[str, Tensor], layers: int, head: int) -> Iterator[tuple[str, Tensor]]:
    yield "model.embed_tokens.weight", stored["E"]
    yield "lm_head.weight", stored["E"]
    yield "model.norm.weight", stored["norm_f.gamma"]
    for layer in range(layers):
        source, target = f"blocks.{layer}", f"model.layers.{layer}"
        yield f"{target}.input_layernorm.weight", stored[f"{source}.norm1.gamma"]
        yield f"{target}.post_attention_layernorm.weight", stored[f"{source}.norm2.gamma"]
        for name in ("q", "k"):
            yield f"{target}.self_attn.{name}_proj.weight", _halved(stored[f"{source}.attn.W_{name.upper()}"].T, head)
        for name in ("v", "o"):
            yield f"{target}.self_attn.{name}_proj.weight", stored[f"{source}.attn.W_{name.upper()}"].T
        for old, new in (("W1", "gate"), ("W3", "up"), ("W2", "down")):
            yield f"{target}.mlp.{new}_proj.weight", stored[f"{source}.ffn.{old}"].T


def _halved(weight: Tensor, head: int) -> Tensor:
    """Rows of each head reordered from rotary pairs that are neighbours to pairs that lie half a head apart."""
    order = torch.cat([torch.arange(0, head, 2), torch.arange(1, head, 2)])
    return weight.reshape(-1, head, weight.shape[1])[:, order].reshape(weight.shape)


GLASSLLM = ZooModel(
    name="glassllm",
    description="glassllm, LLaMA-style, 4 layers, d128, context 128, 0.85M parameters",
    load=load,
    inputs=inputs,
    dynamic={"input_ids": {0: "batch", 1: "length"}},
    sizes={"batch": (1, 64), "length": (2, _CONTEXT)},
    quality=quality,
    length=_CONTEXT,
)
