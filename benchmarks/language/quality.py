"""The models, formats of weights and caches whose perplexity is measured."""

from collections.abc import Callable
from dataclasses import dataclass

from torch import nn

from benchmarks.language.rotation import rotated
from benchmarks.language.round_caches import RoundCaches
from benchmarks.zoo import glassllm, smollm2
from planish.compiler.pass_ import Pass


@dataclass(frozen=True, slots=True)
class Subject:
    """A trained model: `load()` gives transformers' module in f32, `window` the tokens that it is asked about."""

    name: str
    load: Callable[[], nn.Module]
    encode: Callable[[str], list[int]]
    window: int


@dataclass(frozen=True, slots=True)
class Format:
    """A way to store weights, or keys and values: the passes that make it, run after the exact ones."""

    name: str
    passes: tuple[str | Pass, ...]


def load_rotated() -> nn.Module:
    """SmolLM2 whose weights do not lie on the 4-bit grid that they are stored on."""
    return rotated(smollm2.load())


MODELS: tuple[Subject, ...] = (
    Subject("smollm2", load_rotated, smollm2.encode, 512),
    Subject("glassllm", glassllm.load, glassllm.encode, 128),
)


def _quantized(name: str, options: str) -> Format:
    return Format(name, (f"quantize-weights{{{options}}}",))


FORMATS: tuple[Format, ...] = (
    Format("f32", ()),
    _quantized("int8", "bits=8"),
    _quantized("int4 g128", "bits=4, group=128"),
    _quantized("int4 g32", "bits=4, group=32"),
    _quantized("int4 g32 asymmetric", "bits=4, group=32, symmetric=false"),
    _quantized("nf4 g64", 'bits=4, group=64, format="nf4"'),
    _quantized("W4A8 g128", 'bits=4, group=128, activations="int8"'),
    _quantized("W8A8", 'bits=8, activations="int8"'),
    Format("i8 caches", (RoundCaches("i8"),)),
    Format("i4 caches", (RoundCaches("i4"),)),
)
