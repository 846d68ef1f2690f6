"""OpenVINO GenAI on its CPU plugin, reading the model from GGUF as it offers."""

import time
from typing import Any

import numpy as np

from benchmarks.language.peers.peer import Generated, LanguagePeer, Session, Setting, Storage
from benchmarks.language.source import Ids, Source

_KINDS = {"f32": "f16", "bf16": "f16", "int8": "q8_0", "int4": "q4_0"}


_PRECISIONS: dict[str, dict[str, Any]] = {
    "f32": {"INFERENCE_PRECISION_HINT": "f32", "KV_CACHE_PRECISION": "f32"},
    "bf16": {"INFERENCE_PRECISION_HINT": "bf16"},
}


class _OpenVino:
    def __init__(self, path: str, kind: str, setting: Setting) -> None:
        import openvino  # type: ignore[import-untyped]
        import openvino_genai  # type: ignore[import-untyped]

        self._tensor, self._api = openvino.Tensor, openvino_genai
        options: dict[str, Any] = {"INFERENCE_NUM_THREADS": setting.threads, "PERFORMANCE_HINT": "LATENCY"}
        options |= _PRECISIONS.get(kind, {})
        self._pipeline = openvino_genai.LLMPipeline(path, "CPU", **options)

    def generate(self, prompts: Ids, count: int) -> Generated:
        wanted = self._api.GenerationConfig()
        wanted.max_new_tokens = wanted.min_new_tokens = count
        wanted.ignore_eos = True
        wanted.do_sample = False
        wanted.apply_chat_template = False
        inputs = self._api.TokenizedInputs(self._tensor(prompts), self._tensor(np.ones_like(prompts)))
        start = time.perf_counter()
        result = self._pipeline.generate(inputs, wanted)
        wall_ms = (time.perf_counter() - start) * 1e3
        # its m_durations has each step once for every row, divided by the rows
        between = tuple(float(step) for step in np.diff(result.perf_metrics.raw_metrics.m_new_token_times))
        return Generated(wall_ms - sum(between), between, tuple(tuple(row) for row in result.tokens))


def build(source: Source, kind: str, setting: Setting) -> Session:
    """The pipeline over the GGUF file; f32 and bf16 are stored as f16, the widest type that it reads there."""
    from benchmarks.language.gguf_file import gguf_file

    return _OpenVino(str(gguf_file(source, _KINDS[kind])), kind, setting)


OPENVINO_GENAI = LanguagePeer(
    "openvino-genai",
    "openvino-genai",
    {
        "f32": Storage(16, 16, 32, "f32", "f16 weights, f32 arithmetic and cache"),
        "bf16": Storage(16, 16, 8.25, "bf16", "f16 weights, bf16 arithmetic, u8 cache"),
        "int8": Storage(8.5, 8.5, 8.25, "i8", "Q8_0: groups of 32, f16 scales, int8 activations, u8 cache"),
        "int4": Storage(4.5, 4.5, 8.25, "i8", "Q4_0: groups of 32, f16 scales, int8 activations, u8 cache"),
    },
    build,
)
