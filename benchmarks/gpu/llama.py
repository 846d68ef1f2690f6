"""Language models of LLaMA's shapes with random weights that lose nothing in 4 bits."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from benchmarks.gpu.cases import GpuCase, exact_weights
from benchmarks.zoo.llama_1b import without_initialisation

_GROUP = 128
# hidden, intermediate, heads, key and value heads, vocabulary: TinyLlama 1.1B, LLaMA 3 8B and 70B
_SHAPES: Mapping[str, tuple[int, int, int, int, int]] = {
    "1b": (2048, 5632, 32, 4, 32000),
    "8b": (4096, 14336, 32, 8, 128256),
    "70b": (8192, 28672, 64, 8, 128256),
}


def llama(shape: str, layers: int) -> nn.Module:
    """Transformers' LLaMA with so many layers of the shape, in f16, without a cache."""
    from transformers import LlamaConfig, LlamaForCausalLM

    hidden, intermediate, heads, cache_heads, vocabulary = _SHAPES[shape]
    config = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=hidden,
        intermediate_size=intermediate,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=cache_heads,
        max_position_embeddings=8192,
        tie_word_embeddings=False,
        use_cache=False,
        dtype="float16",
    )
    model: nn.Module = without_initialisation(LlamaForCausalLM, config)
    for seed, parameter in enumerate(model.parameters()):
        if parameter.ndim > 1:
            parameter.data = exact_weights(*parameter.shape, bits=4, group=_GROUP, seed=seed)
        else:
            parameter.data = torch.ones(parameter.shape, dtype=torch.float16)
    return model.eval()


def linear_weights(shape: str, layers: int) -> int:
    """Weights of all linear maps, the head among them."""
    hidden, intermediate, heads, cache_heads, vocabulary = _SHAPES[shape]
    attention = 2 * hidden * hidden * (heads + cache_heads) // heads
    return layers * (attention + 3 * hidden * intermediate) + hidden * vocabulary


def model_case(shape: str, layers: int, *, bits: int) -> GpuCase:
    """A whole model without a cache: a step of one token, and prompts; torch.compile is a peer."""
    weights, vocabulary = linear_weights(shape, layers), _SHAPES[shape][-1]

    def inputs(length: int) -> tuple[Tensor, ...]:
        return (torch.randint(0, vocabulary, (1, length), generator=torch.Generator().manual_seed(length)),)

    return GpuCase(
        name=f"llama-{shape}-{layers}-layers-{'int4' if bits == 4 else 'f16'}",
        group="model",
        module=lambda: llama(shape, layers),
        inputs=inputs,
        sizes=(1, 128, 2048),
        axes=({1: "length"},),
        flops=lambda n: 2.0 * n * weights,
        moved_bytes=lambda n: weights * ((4 + 16 / _GROUP) / 8 if bits == 4 else 2) + 2.0 * n * vocabulary,
        passes=("quantize-weights{bits=4}",) if bits == 4 else None,
        tolerance=2e-2,
        peers=("torch", "torch.compile"),
    )


MODELS: tuple[GpuCase, ...] = tuple(model_case("8b", 4, bits=bits) for bits in (4, 16))
