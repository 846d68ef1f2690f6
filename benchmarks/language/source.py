"""The language models of the benchmark, and the files that peers read them from."""

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from benchmarks.zoo import llama_1b, smollm2
from planish.runtime.temporary import owned_folder

Ids = NDArray[np.int64]
_SCRATCH = "partial-"


@dataclass(frozen=True, slots=True)
class Shape:
    """What the bytes and operations of a token are counted from; widths in numbers, not bytes."""

    layers: int
    hidden: int
    intermediate: int
    heads: int
    cache_heads: int
    head_width: int
    vocabulary: int

    @property
    def linear_weights(self) -> int:
        """Weights of the projections of all layers, the head left out."""
        attention = 2 * self.hidden * (self.heads + self.cache_heads) * self.head_width
        return self.layers * (attention + 3 * self.hidden * self.intermediate)

    @property
    def head_weights(self) -> int:
        """Weights of the map to the logits."""
        return self.hidden * self.vocabulary

    @property
    def cached(self) -> int:
        """Numbers that one token leaves in the caches of all layers."""
        return 2 * self.layers * self.cache_heads * self.head_width

    def flops(self, tokens: int) -> float:
        """Operations of a prompt of `tokens` tokens whose last logits alone are computed; a multiply-add is two."""
        attention = 2 * self.layers * self.heads * self.head_width * tokens * (tokens + 1)
        return 2.0 * self.linear_weights * tokens + 2.0 * self.head_weights + attention


@dataclass(frozen=True, slots=True)
class Source:
    """A causal language model: `load()` gives transformers' module in the dtype that its weights have."""

    name: str
    description: str
    load: Callable[[], nn.Module]
    shape: Shape

    def prompts(self, batch: int, length: int, seed: int) -> Ids:
        """Random token ids `(batch, length)` that no other seed gives, so that no peer has seen a prefix of them."""
        random = np.random.default_rng([seed, batch, length])
        return random.integers(100, self.shape.vocabulary, size=(batch, length), dtype=np.int64)

    def file(self, name: str, write: Callable[[Path], None]) -> Path:
        """The file or folder `name` made of this model, written by `write` where it is not there yet."""
        path = cache_folder() / f"{self.name}-{name}"
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            with owned_folder(path.parent, prefix=_SCRATCH) as scratch:
                write(scratch / "part")
                (scratch / "part").rename(path)
        return path

    def forget(self, start: str, end: str) -> None:
        """Remove the files whose names begin with `start`, but those that end with `end`."""
        if not cache_folder().exists():
            return
        with owned_folder(cache_folder(), prefix=_SCRATCH) as scratch:
            for path in cache_folder().glob(f"{self.name}-{start}*"):
                if not path.name.endswith(end):
                    path.rename(scratch / path.name)  # what is removed by halves must not be found under its name

    def folder(self) -> Path:
        """The model as transformers saves it, with a tokenizer of exactly its vocabulary."""
        return self.file("transformers", self._save)

    def _save(self, path: Path) -> None:
        from transformers import PreTrainedTokenizerFast

        model: Any = self.load()
        model.config.use_cache = True
        model.save_pretrained(path)
        kind: Any = PreTrainedTokenizerFast
        tokenizer = kind(tokenizer_object=smollm2.tokenizer_of(self.shape.vocabulary))
        tokenizer.eos_token = tokenizer.bos_token = "<|endoftext|>"
        tokenizer.save_pretrained(path)


def cache_folder() -> Path:
    """Where converted models are kept: `planish/language` under $XDG_CACHE_HOME, or under ~/.cache."""
    root = os.environ.get("XDG_CACHE_HOME")
    return (Path(root) if root else Path.home() / ".cache") / "planish" / "language"


def load_smollm2() -> nn.Module:
    """SmolLM2 without the mark of the quantized file that it came from, since transformers will not cast or save it.

    The weights are those that were read, not a second copy.
    """
    model: Any = smollm2.load()
    config = model.config.to_dict()
    del config["quantization_config"]
    with torch.device("meta"):
        plain = type(model)(type(model.config).from_dict(config))
    plain.load_state_dict(model.state_dict(), assign=True)
    for name, buffer in model.named_buffers():
        owner, _, last = name.rpartition(".")
        setattr(plain.get_submodule(owner), last, buffer)
    plain.tie_weights()
    module: nn.Module = plain.eval()
    return module


SMOLLM2 = Source(
    "smollm2",
    "SmolLM2-135M-Instruct, head tied to the embedding, 134.5M parameters, f32",
    load_smollm2,
    Shape(30, 576, 1536, 9, 3, 64, 49152),
)
LLAMA_1B = Source(
    "llama-1.1b",
    "LLaMA of 1.1 billion random parameters (TinyLlama's shape), bf16",
    llama_1b.load,
    Shape(22, 2048, 5632, 32, 4, 64, 32000),
)
SOURCES: tuple[Source, ...] = (SMOLLM2, LLAMA_1B)
