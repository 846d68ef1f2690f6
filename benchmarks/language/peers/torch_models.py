"""PyTorch: transformers' model as it is, and under torch.compile with torchao's weight-only formats."""

import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.language.peers.peer import Generated, LanguagePeer, Session, Setting, Storage, timed
from benchmarks.language.source import Ids, Source

_GROUP = 32
_CACHE_UNIT = 64


class _Torch:
    """Calls `prefill` and `decode`, which are `(ids, positions, cache) -> logits`, on a cache for so many tokens."""

    def __init__(
        self, prefill: Callable[..., Tensor], decode: Callable[..., Tensor], cache: Callable[[int], Any]
    ) -> None:
        self._prefill, self._decode, self._cache = prefill, decode, cache

    def generate(self, prompts: Ids, count: int) -> Generated:
        with torch.inference_mode():
            return self._generate(torch.from_numpy(prompts), count)

    def _generate(self, ids: Tensor, count: int) -> Generated:
        length = ids.shape[1]
        cache = self._cache(length + count)
        start = time.perf_counter()
        last = self._prefill(ids, torch.arange(length), cache).argmax(-1, keepdim=True)
        found, moments = [last], [time.perf_counter()]
        for step in range(count - 1):
            last = self._decode(last, torch.tensor([length + step]), cache).argmax(-1, keepdim=True)
            found.append(last)
            moments.append(time.perf_counter())
        return timed(start, moments, torch.cat(found, dim=1).tolist())


def _step(model: Any) -> Callable[..., Tensor]:
    def step(ids: Tensor, positions: Tensor, cache: Any) -> Tensor:
        result = model(
            input_ids=ids,
            position_ids=positions[None],
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=1,
        )
        logits: Tensor = result.logits[:, -1]
        return logits

    return step


def build_eager(source: Source, kind: str, setting: Setting) -> Session:
    """The module in f32 or bf16 with a growing cache."""
    from transformers import DynamicCache

    torch.set_num_threads(setting.threads)
    model: Any = source.load().to(torch.bfloat16 if kind == "bf16" else torch.float32)
    step = _step(model)
    return _Torch(step, step, lambda length: DynamicCache(config=model.config))


def build_compiled(source: Source, kind: str, setting: Setting) -> Session:
    """The module with a cache as long as prompt and answer need; a new length is compiled when it first comes."""
    from transformers import StaticCache

    torch.set_num_threads(setting.threads)
    model: Any = source.load().to(torch.float32 if kind == "f32" else torch.bfloat16)
    if kind in ("int8", "int4"):
        _quantize(model, kind)
    step = _step(model)
    decode = torch.compile(step, dynamic=False)
    session = _Torch(
        torch.compile(step, dynamic=True),
        decode,
        lambda length: StaticCache(config=model.config, max_cache_len=-(-length // _CACHE_UNIT) * _CACHE_UNIT),
    )
    session.generate(np.full((setting.batch, 4), 200), 3)
    return session


def _quantize(model: Any, kind: str) -> None:
    from torchao.prototype.quantization.int4 import PrototypeInt4WeightOnlyConfig  # type: ignore[import-not-found]
    from torchao.quantization import Int8WeightOnlyConfig, quantize_  # type: ignore[import-not-found]

    if model.config.tie_word_embeddings:
        model.lm_head.weight = torch.nn.Parameter(model.lm_head.weight.detach().clone())
    quantize_(model, Int8WeightOnlyConfig() if kind == "int8" else PrototypeInt4WeightOnlyConfig(group_size=_GROUP))


EAGER = LanguagePeer(
    "eager",
    "torch",
    {
        "f32": Storage(32, 32, 32, "f32", "f32 weights and cache"),
        "bf16": Storage(16, 16, 16, "bf16", "bf16 weights and cache"),
    },
    build_eager,
    {"int8": "PyTorch alone stores no 8-bit linear maps", "int4": "PyTorch alone stores no 4-bit linear maps"},
)
TORCHAO = LanguagePeer(
    "torch.compile + torchao",
    "torchao",
    {
        "f32": Storage(32, 32, 32, "f32", "f32 weights and cache, torch.compile alone"),
        "bf16": Storage(16, 16, 16, "bf16", "bf16 weights and cache, torch.compile alone"),
        "int8": Storage(8, 8, 16, "bf16", "one scale a row, bf16 activations and cache"),
        "int4": Storage(5, 5, 16, "bf16", "groups of 32 with bf16 scale and zero, bf16 activations and cache"),
    },
    build_compiled,
)
