"""llama.cpp through the C interface that llama-cpp-python carries."""

import time
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.language.peers.peer import Generated, LanguagePeer, Session, Setting, Storage, timed
from benchmarks.language.source import Ids, Source

_KINDS = {"f32": "f32", "bf16": "bf16", "int8": "q8_0", "int4": "q4_0"}
_UNIT = 512


class _LlamaCpp:
    def __init__(self, path: str, setting: Setting) -> None:
        import llama_cpp

        self._api: Any = llama_cpp
        llama_cpp.llama_backend_init()
        options = llama_cpp.llama_model_default_params()
        options.n_gpu_layers = 0
        self._model = llama_cpp.llama_model_load_from_file(path.encode(), options)
        if self._model is None:
            raise OSError(f"llama.cpp cannot load {path}")
        context = llama_cpp.llama_context_default_params()
        context.n_ctx = setting.batch * setting.context
        context.n_batch, context.n_ubatch = max(_UNIT, setting.context), _UNIT
        context.n_seq_max = setting.batch
        context.n_threads = context.n_threads_batch = setting.threads
        self._context = llama_cpp.llama_init_from_model(self._model, context)
        if self._context is None:
            raise OSError("llama.cpp cannot make a context")
        self._vocabulary = llama_cpp.llama_vocab_n_tokens(llama_cpp.llama_model_get_vocab(self._model))
        self._batch = llama_cpp.llama_batch_init(max(context.n_batch, setting.batch), 0, 1)

    def generate(self, prompts: Ids, count: int) -> Generated:
        api = self._api
        api.llama_memory_clear(api.llama_get_memory(self._context), False)
        start = time.perf_counter()
        last = np.array([self._prefill(row, ids) for row, ids in enumerate(prompts)])
        tokens, moments = [last], [time.perf_counter()]
        for step in range(count - 1):
            last = self._decode(last, prompts.shape[1] + step)
            tokens.append(last)
            moments.append(time.perf_counter())
        return timed(start, moments, np.stack(tokens, axis=1))

    def _prefill(self, row: int, ids: NDArray[np.int64]) -> int:
        for index, token in enumerate(ids):
            self._put(index, int(token), index, row, wanted=index == len(ids) - 1)
        self._run(len(ids))
        return self._best(-1)

    def _decode(self, last: NDArray[np.int64], position: int) -> NDArray[np.int64]:
        for row, token in enumerate(last):
            self._put(row, int(token), position, row, wanted=True)
        self._run(len(last))
        return np.array([self._best(row) for row in range(len(last))])

    def _put(self, index: int, token: int, position: int, row: int, *, wanted: bool) -> None:
        batch = self._batch
        batch.token[index], batch.pos[index], batch.logits[index] = token, position, wanted
        batch.n_seq_id[index] = 1
        batch.seq_id[index][0] = row

    def _run(self, count: int) -> None:
        self._batch.n_tokens = count
        if status := self._api.llama_decode(self._context, self._batch):
            raise OSError(f"llama_decode returned {status}")

    def _best(self, index: int) -> int:
        logits = self._api.llama_get_logits_ith(self._context, index)
        return int(np.argmax(np.ctypeslib.as_array(logits, shape=(self._vocabulary,))))


def build(source: Source, kind: str, setting: Setting) -> Session:
    """The model as GGUF, every matrix in the one type; a 16-bit cache and attention as llama.cpp chooses."""
    from benchmarks.language.gguf_file import gguf_file

    return _LlamaCpp(str(gguf_file(source, _KINDS[kind])), setting)


LLAMA_CPP = LanguagePeer(
    "llama.cpp",
    "llama_cpp_python",
    {
        "f32": Storage(32, 32, 16, "f32", "F32 weights, f16 cache"),
        "bf16": Storage(16, 16, 16, "bf16", "BF16 weights, f16 cache"),
        "int8": Storage(8.5, 8.5, 16, "i8", "Q8_0: groups of 32, f16 scales, int8 activations, f16 cache"),
        "int4": Storage(4.5, 4.5, 16, "i8", "Q4_0: groups of 32, f16 scales, int8 activations, f16 cache"),
    },
    build,
)
