"""planish: the model compiled with `generate=`, its weights in the format asked for."""

import hashlib
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from benchmarks.language.peers.peer import Generated, LanguagePeer, Session, Setting, Storage, timed
from benchmarks.language.source import Ids, Source
from benchmarks.run import code_digest

_EXAMPLE = 16


class _Planish:
    def __init__(self, model: Any) -> None:
        self._model = model

    def generate(self, prompts: Ids, count: int) -> Generated:
        rows = prompts.tolist()
        moments: list[float] = []
        found: list[tuple[int, ...]] = []
        start = time.perf_counter()
        for tokens in self._model.generate(rows, max_new_tokens=count):
            moments.append(time.perf_counter())
            found.append(tuple(tokens))
        return timed(start, moments, zip(*found, strict=True))


@dataclass(frozen=True, slots=True)
class Build:
    """Compiles with the passes of the format after the exact ones, and a cache in f16.

    Artifacts are kept by source, batch, context, passes and code; a new one takes the place of those of other code.
    """

    passes: Mapping[str, tuple[str, ...]]

    def __call__(self, source: Source, kind: str, setting: Setting) -> Session:
        """The artifact, compiled once for this code of planish, loaded; no token ends a text."""
        import planish

        passes = self.passes[kind]
        start, end = f"planish-{setting.batch}x{setting.context}-", f"-{code_digest()}"
        name = f"{start}{hashlib.sha256(repr(passes).encode()).hexdigest()[:8]}{end}"

        def make(path: Path) -> None:
            source.forget(start, end)
            _compile(source, passes, setting, path)

        path = source.file(name, make)
        return _Planish(planish.load(path, threads=setting.threads, verify=False))


def _compile(source: Source, passes: tuple[str, ...], setting: Setting, path: Path) -> None:
    import planish

    torch.set_num_threads(setting.threads)
    module: Any = source.load().float()
    example = torch.zeros((max(2, setting.batch), _EXAMPLE), dtype=torch.int64)
    generation = planish.Generation(context=setting.context, batch=setting.batch, cache="f16", end=())
    compiled = planish.compile(module, "cpu", inputs=(example,), generate=generation, passes=passes or None)
    compiled.save(path)


def _peer(name: str, formats: Mapping[str, tuple[Storage, tuple[str, ...]]]) -> LanguagePeer:
    passes = {kind: found for kind, (_, found) in formats.items()}
    missing = dict.fromkeys(
        {"f32", "bf16", "int8", "int4"} - {*passes}, "only its quantized formats differ from planish's"
    )
    return LanguagePeer(name, "planish", {k: s for k, (s, _) in formats.items()}, Build(passes), missing)


PLANISH = _peer(
    "planish",
    {
        "f32": (Storage(32, 32, 16, "f32", "f32 weights, f16 cache"), ()),
        "bf16": (Storage(16, 16, 16, "bf16", "bf16 weights and products, f16 cache"), ("compute-bf16",)),
        "int8": (
            Storage(8, 8, 16, "f32", "one scale a row, float activations, f16 cache"),
            ("quantize-weights{bits=8}",),
        ),
        "int4": (
            Storage(4.125, 4.125, 16, "f32", "groups of 128, f16 scales, float activations, f16 cache"),
            ("quantize-weights{bits=4, group=128}",),
        ),
    },
)
PLANISH_G32 = _peer(
    "planish g32",
    {
        "int4": (
            Storage(4.5, 4.5, 16, "f32", "groups of 32, f16 scales, float activations, f16 cache"),
            ("quantize-weights{bits=4, group=32}",),
        ),
    },
)
PLANISH_INT8_ACTIVATIONS = _peer(
    "planish int8 activations",
    {
        "int8": (
            Storage(8, 8, 16, "i8", "one scale a row, int8 activations, f16 cache"),
            ('quantize-weights{bits=8, activations="int8"}',),
        ),
        "int4": (
            Storage(4.125, 4.125, 16, "i8", "groups of 128, f16 scales, int8 activations, f16 cache"),
            ('quantize-weights{bits=4, group=128, activations="int8"}',),
        ),
    },
)
