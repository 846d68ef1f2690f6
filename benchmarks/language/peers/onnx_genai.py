"""ONNX Runtime GenAI, with the ONNX file that its own model builder makes."""

import subprocess
import sys
import time
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.language.peers.peer import Generated, LanguagePeer, Session, Setting, Storage, timed
from benchmarks.language.source import Ids, Source

_OPTIONS = {
    "f32": ("fp32", ()),
    "int8": ("int8", ("block_size=32", "accuracy_level=4")),
    "int4": ("int4", ("block_size=32", "accuracy_level=4")),
}
_BUILD_SECONDS = 1800


class _OnnxGenai:
    def __init__(self, folder: Path, setting: Setting) -> None:
        import onnxruntime_genai  # type: ignore[import-untyped]

        self._api: Any = onnxruntime_genai
        self._setting = setting
        config = onnxruntime_genai.Config(str(folder))
        config.overlay(_OVERLAY % setting.threads)
        self._model = onnxruntime_genai.Model(config)

    def generate(self, prompts: Ids, count: int) -> Generated:
        rows, length = prompts.shape
        options = self._api.GeneratorParams(self._model)
        total = length + count
        options.set_search_options(do_sample=False, max_length=total, min_length=total, batch_size=rows)
        generator = self._api.Generator(self._model, options)
        start = time.perf_counter()
        generator.append_tokens(prompts.astype(np.int32).tolist())
        moments = []
        for _ in range(count):
            generator.generate_next_token()
            moments.append(time.perf_counter())
        tokens = [generator.get_sequence(row)[length:] for row in range(rows)]
        return timed(start, moments, tokens)


_OVERLAY = '{"model": {"decoder": {"session_options": {"intra_op_num_threads": %d}}}}'


def build(source: Source, kind: str, setting: Setting) -> Session:
    """The model as the builder exports it for CPUs; the cache is f32 and shared from step to step."""
    return _OnnxGenai(source.file(f"onnx-{kind}", lambda path: _export(source, kind, path)), setting)


def _export(source: Source, kind: str, path: Path) -> None:
    found = find_spec("onnxruntime_genai")
    if found is None or not found.submodule_search_locations:
        raise ImportError("onnxruntime_genai is not installed")
    script = Path(next(iter(found.submodule_search_locations))) / "models" / "builder.py"
    precision, extra = _OPTIONS[kind]
    command = [sys.executable, str(script), "-m", str(source.folder()), "-i", str(source.folder()), "-o", str(path)]
    command += ["-p", precision, "-e", "cpu", "-c", str(path.parent / "cache")]
    command += ["--extra_options", *extra] if extra else []
    done = subprocess.run(command, capture_output=True, text=True, timeout=_BUILD_SECONDS, check=False)
    if done.returncode:
        raise OSError(f"its model builder failed: {(done.stderr.strip().splitlines() or ['no reason given'])[-1]}")


ONNX_GENAI = LanguagePeer(
    "onnxruntime-genai",
    "onnxruntime-genai",
    {
        "f32": Storage(32, 32, 32, "f32", "f32 weights and cache"),
        "int8": Storage(9, 9, 32, "i8", "MatMulNBits: groups of 32, f32 scales, int8 activations, f32 cache"),
        "int4": Storage(5, 5, 32, "i8", "MatMulNBits: groups of 32, f32 scales, int8 activations, f32 cache"),
    },
    build,
    {"bf16": "its kernels for CPUs take no 16-bit floats"},
)
