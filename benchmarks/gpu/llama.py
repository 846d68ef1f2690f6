"""Language models of LLaMA's shapes with random weights that lose nothing in 4 bits."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from benchmarks.gpu.cases import GpuCase, exact_weights
from benchmarks.zoo.llama_1b import without_initialisation

GROUP = 128


@dataclass(frozen=True, slots=True)
class Shape:
    """Hidden and intermediate width, heads, key and value heads, vocabulary."""

    hidden: int
    intermediate: int
    heads: int
    cache_heads: int
    vocabulary: int

    def linear_weights(self, layers: int) -> int:
        """Weights of all linear maps, the head among them."""
        attention = 2 * self.hidden * self.hidden * (self.heads + self.cache_heads) // self.heads
        return layers * (attention + 3 * self.hidden * self.intermediate) + self.hidden * self.vocabulary

    def cached(self, layers: int) -> int:
        """Numbers that a token leaves in the caches."""
        return 2 * layers * self.hidden // self.heads * self.cache_heads


# TinyLlama 1.1B, LLaMA 3 8B and 70B, and one for tests
SHAPES: Mapping[str, Shape] = {
    "1b": Shape(2048, 5632, 32, 4, 32000),
    "8b": Shape(4096, 14336, 32, 8, 128256),
    "70b": Shape(8192, 28672, 64, 8, 128256),
    "tiny": Shape(128, 128, 2, 1, 96),
}


# of a number in heads of 128: codes and an f32 scale a head, or codes and two f16 numbers a group of 32
_CACHE_BYTES: Mapping[str, float] = {"f16": 2.0, "i8": 1 + 4 / 128, "i4": 5 / 8}


@dataclass(frozen=True, slots=True)
class DecodeCase:
    """One sequence decoded token by token in 4 bits with caches in f16, i8 or i4, beside torch in f16.

    `sizes` are tokens in the cache, and `answer` tokens are generated to time those between them. Peers are torch as it
    is and compiled layer by layer.
    """

    name: str
    shape: str
    layers: int
    sizes: tuple[int, ...] = (128, 2048)
    context: int = 4096
    chunk: int = 512
    answer: int = 33
    group: str = "decode"
    peers: tuple[str, ...] = ("torch", "torch.compile")
    tolerance: float = 4e-2
    tune: int | None = None
    timeout_seconds: float = 420.0
    cache: str = "f16"

    def moved_bytes(self, past: int) -> float:
        """Of a step: all weights in 4 bits with a scale a group, and the caches."""
        shape = SHAPES[self.shape]
        weights = shape.linear_weights(self.layers) * (4 + 16 / GROUP) / 8
        return weights + _CACHE_BYTES[self.cache] * past * shape.cached(self.layers)

    def flops(self, past: int) -> float:
        """Of a step."""
        shape = SHAPES[self.shape]
        return 2.0 * shape.linear_weights(self.layers) + 4.0 * past * shape.hidden * self.layers


def llama(shape: str, layers: int) -> Any:
    """Transformers' LLaMA with so many layers of the shape, in f16 on the CPU, without a cache.

    Its weights are drawn on the GPU where there is one.
    """
    from transformers import LlamaConfig, LlamaForCausalLM

    sizes = SHAPES[shape]
    config = LlamaConfig(
        vocab_size=sizes.vocabulary,
        hidden_size=sizes.hidden,
        intermediate_size=sizes.intermediate,
        num_hidden_layers=layers,
        num_attention_heads=sizes.heads,
        num_key_value_heads=sizes.cache_heads,
        max_position_embeddings=8192,
        tie_word_embeddings=False,
        use_cache=False,
        dtype="float16",
    )
    model = without_initialisation(LlamaForCausalLM, config)
    for seed, parameter in enumerate(model.parameters()):
        if parameter.ndim > 1:
            rows, columns = parameter.shape
            parameter.data = exact_weights(rows, columns, bits=4, group=min(GROUP, columns), seed=seed)
        else:
            parameter.data = torch.ones(parameter.shape, dtype=torch.float16)
    return model.eval()


_KINDS: Mapping[str, tuple[float, tuple[str, ...] | None, str, float]] = {
    # bits of a weight, passes, the dtype that bounds, tolerance
    "int4": (4 + 16 / GROUP, ("quantize-weights{bits=4}",), "f16", 2e-2),
    "w8a8": (8, ('quantize-weights{bits=8, activations="int8"}',), "i8", 1e-1),
    "f16": (16, None, "f16", 2e-2),
}


def model_case(shape: str, layers: int, kind: str) -> GpuCase:
    """A model without a cache that reads prompts; torch.compile is a peer."""
    sizes, (bits, passes, rate, tolerance) = SHAPES[shape], _KINDS[kind]
    weights = sizes.linear_weights(layers)

    def inputs(length: int) -> tuple[Tensor, ...]:
        return (torch.randint(0, sizes.vocabulary, (1, length), generator=torch.Generator().manual_seed(length)),)

    return GpuCase(
        name=f"llama-{shape}-{layers}-layers-{kind}",
        group=f"prefill {kind}",
        module=lambda: llama(shape, layers),
        inputs=inputs,
        sizes=(2048,),
        axes=({1: "length"},),
        flops=lambda n: 2.0 * n * weights,
        moved_bytes=lambda n: weights * bits / 8 + 2.0 * n * sizes.vocabulary,
        passes=passes,
        rate=rate,
        tolerance=tolerance,
        peers=("torch", "torch.compile"),
    )


MODELS: tuple[GpuCase, ...] = tuple(model_case("8b", 2, kind) for kind in ("w8a8", "f16", "int4"))
# a quarter of the layers first: the whole model takes minutes to compile
DECODES: tuple[DecodeCase, ...] = (DecodeCase("decode-8b-8-layers", "8b", 8), DecodeCase("decode-8b", "8b", 32))
# a few layers, so that weights and caches weigh as much; how far rounded keys move random logits was never measured
CACHES: tuple[DecodeCase, ...] = tuple(
    DecodeCase(f"decode-8b-{kind}-cache", "8b", 2, (4000,), peers=("torch",), tolerance=limit, cache=kind)
    for kind, limit in (("i8", 1e-1), ("i4", 4e-1))
)
