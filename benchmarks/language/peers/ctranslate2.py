"""CTranslate2, with the folder that its own converter makes."""

import time
from pathlib import Path
from typing import Any

from benchmarks.language.peers.peer import Generated, LanguagePeer, Session, Setting, Storage, timed
from benchmarks.language.source import Ids, Source

_KINDS = {"f32": "float32", "int8": "int8"}


class _CTranslate2:
    def __init__(self, folder: Path, kind: str, setting: Setting) -> None:
        import ctranslate2  # type: ignore[import-untyped]

        self._generator = ctranslate2.Generator(
            str(folder), device="cpu", compute_type=_KINDS[kind], inter_threads=1, intra_threads=setting.threads
        )
        self._words = _vocabulary(folder)

    def generate(self, prompts: Ids, count: int) -> Generated:
        moments: list[float] = []
        rows: list[list[int]] = [[] for _ in prompts]

        def stepped(result: Any) -> bool:
            rows[result.batch_id].append(int(result.token_id))
            if len(rows[result.batch_id]) > len(moments):
                moments.append(time.perf_counter())
            return False

        words = [[self._words[token] for token in row] for row in prompts.tolist()]
        start = time.perf_counter()
        self._generator.generate_batch(
            words,
            max_length=count,
            min_length=count,
            sampling_topk=1,
            include_prompt_in_result=False,
            callback=stepped,
        )
        return timed(start, moments, rows)


def _vocabulary(folder: Path) -> list[str]:
    import json

    words: list[str] = json.loads((folder / "vocabulary.json").read_text(encoding="utf-8"))
    return words


def build(source: Source, kind: str, setting: Setting) -> Session:
    """The model in the converter's float32 or int8; the cache is f32."""
    return _CTranslate2(source.file(f"ctranslate2-{kind}", lambda path: _convert(source, kind, path)), kind, setting)


def _convert(source: Source, kind: str, path: Path) -> None:
    from ctranslate2.converters import TransformersConverter  # type: ignore[import-untyped]

    TransformersConverter(str(source.folder()), load_as_float16=False).convert(str(path), quantization=_KINDS[kind])


CTRANSLATE2 = LanguagePeer(
    "ctranslate2",
    "ctranslate2",
    {
        "f32": Storage(32, 32, 32, "f32", "f32 weights and cache"),
        "int8": Storage(8, 8, 32, "i8", "one scale a row, int8 activations with one scale a token, f32 cache"),
    },
    build,
    {
        "bf16": "on this CPU it computes in f32 and int8 alone",
        "int4": "its 4-bit weights (AWQ) run on GPUs only",
    },
)
