"""The state of one generation: caches, and the calls of `prefill` and `decode` that fill them."""

import re
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import numpy as np

from planish.errors import InputError
from planish.runtime.blocks import zeros
from planish.runtime.dtypes import DTypeName
from planish.runtime.generation.sampling import Sampler
from planish.runtime.generation.scores import Array, HostScores, Scores
from planish.runtime.generation.settings import Settings
from planish.runtime.plan import FunctionPlan
from planish.runtime.profile import CallProfile


class Function(Protocol):
    """A compiled function, as `planish.runtime.executor.CompiledFunction` is one."""

    @property
    def plan(self) -> FunctionPlan: ...

    def run(self, leaves: Sequence[Any], /) -> list[Any]: ...

    def bind(self, leaves: Sequence[Any], /) -> Callable[[], list[Any]]: ...

    def profile_leaves(self, leaves: Sequence[Any], /, *, repeat: int) -> CallProfile: ...


class Session:
    """Caches for up to `settings.batch` rows of `settings.context` tokens; one generation at a time.

    Memory that no token has reached takes no room, but for the rest of huge pages where caches are small.
    """

    def __init__(self, prefill: Function, decode: Function, settings: Settings) -> None:
        self._prefill, self._decode, self._settings = prefill, decode, settings
        sizes = {"rows": settings.batch}
        specs = [(spec.name, spec.type) for spec in prefill.plan.inputs[3:]]
        types = [(tuple(d.evaluate(sizes) for d in type_.shape), type_.dtype) for _, type_ in specs]
        self._stored = dict(zip((name for name, _ in specs), self._empty(types), strict=True))
        self._step: Callable[[], list[Any]] | None = None
        self._rows = 0
        donated = {output for output, _ in decode.plan.donated}
        self._in_place = donated.issuperset(range(1, 1 + len(specs)))
        self.damaged = False

    def start(self, prompts: Sequence[Sequence[int]], samplers: Sequence[Sampler] = ()) -> Scores:
        """The logits after each prompt; reads them in chunks and forgets what was there before.

        Prompts have from 1 to `context` ids, all in the vocabulary. `samplers` are those by which the token of each row
        will be asked for, in this step and the next ones.
        """
        self._prepare(len(prompts), samplers)
        self._past[:] = 0
        counts = np.array([len(prompt) for prompt in prompts])
        found: Any = None
        for start in range(0, int(counts.max()), self._settings.chunk):
            count = np.clip(counts - start, 0, self._settings.chunk)
            logits = self._read([prompt[start : start + n] for prompt, n in zip(prompts, count, strict=True)], count)
            ended = (count > 0) & (counts <= start + self._settings.chunk)
            found = self._joined(found, logits, ended)
        return self._first(found)

    def step(self, tokens: Sequence[int | None]) -> Scores:
        """The logits after one more token of each row, None for rows that have ended.

        They are valid until the next call. No row may hold `context` tokens already.
        """
        assert self._step is not None
        # Weights have passed through the caches since the last token: plain numbers touch less than array expressions.
        for row, token in enumerate(tokens):
            self._id_places[row], self._count_places[row] = token or 0, token is not None
        results = self._step()
        if not self._in_place:
            self._keep(results)
        for row, token in enumerate(tokens):
            self._past_places[row] += token is not None
        return self._scores(results)

    def leaves(self, rows: int, tokens: int, past: int) -> list[Any]:
        """Inputs of either function: tokens of id 0 behind `past` others, and the caches as they are."""
        ids = np.zeros((rows, tokens), np.int64)
        each = np.ones(rows, np.int64)
        return [ids, past * each, tokens * each, *(array[:rows] for array in self._stored.values())]

    def first_undefined(self) -> str:
        """Where the caches first hold a number that is not finite, in words."""
        held = int(self._past.max())
        for name, cache in self._stored.items():
            array = self._host(cache[: self._rows, :, :held])
            if array.dtype.kind == "f" and not np.isfinite(array).all():
                layer = re.sub(r"\D*(\d+).*", r"\1", name)
                what = "keys" if ".k" in name else "values"
                return f"they begin in the {what} of layer {layer} (of {self._layers()}, from 0)"
        return f"the keys and values of all {self._layers()} layers are finite, so they begin after the last of these"

    @property
    def cache_bytes(self) -> int:
        """Bytes of all caches when they are full."""
        return sum(int(array.nbytes) for array in self._stored.values())

    def _empty(self, types: Sequence[tuple[tuple[int, ...], DTypeName]]) -> Sequence[Any]:
        """Empty caches of the given shapes and dtypes."""
        return zeros([(shape, _NUMPY[dtype]) for shape, dtype in types])

    def _first(self, logits: Any) -> Scores:
        """The logits after prompts."""
        return HostScores(logits)

    def _scores(self, results: Sequence[Any]) -> Scores:
        """What a step found."""
        return HostScores(results[0], results[-1] if len(results) > 1 + len(self._caches) else None)

    def _host(self, array: Any) -> Array:
        """A result or a part of a cache as an array."""
        host: Array = array
        return host

    def _bound(self, inputs: Sequence[Array]) -> Callable[[], list[Any]]:
        """A step of `decode` on `inputs`, whose contents change, and the caches."""
        return self._decode.bind([*inputs, *self._caches])

    def _layers(self) -> int:
        return len({name.split(".")[1] for name in self._stored})

    def _prepare(self, rows: int, samplers: Sequence[Sampler]) -> None:
        """Get ready for so many rows, whose tokens are to be chosen by the samplers."""
        if self._step is None or rows != self._rows:
            self._bind(rows)

    def _joined(self, found: Any, logits: Any, ended: Array) -> Any:
        """The logits found so far, or None, with those of the rows whose prompts have ended."""
        found = np.array(logits) if found is None else found
        found[ended] = logits[ended]
        return found

    def _arguments(self, rows: int) -> tuple[Array, Array, Array]:
        """Memory for the ids i64[rows, 1], the tokens before them and the tokens of each row, i64[rows]; zeros."""
        return np.zeros((rows, 1), np.int64), np.zeros(rows, np.int64), np.zeros(rows, np.int64)

    def _bind(self, rows: int) -> None:
        """Arguments of `decode` for so many rows, whose contents change while the memory stays."""
        self._rows, self._step = rows, None
        self._caches = [array[:rows] for array in self._stored.values()]
        self._ids, self._past, self._count = self._arguments(rows)
        self._id_places, self._past_places, self._count_places = self._ids[:, 0].data, self._past.data, self._count.data
        self._step = self._bound([self._ids, self._past, self._count])

    def _read(self, tokens: Sequence[Sequence[int]], count: Array) -> Any:
        ids = np.zeros((len(tokens), int(count.max())), np.int64)
        for row, given in zip(ids, tokens, strict=True):
            row[: len(given)] = given
        results = self._prefill.run([ids, self._past, count, *self._caches])
        self._keep(results)
        self._past += count
        return results[0]

    def _keep(self, results: Sequence[Array]) -> None:
        for cache, result in zip(self._caches, results[1:], strict=False):  # chosen tokens may follow
            if result is not cache:
                np.copyto(cache, result)


_NUMPY = {"f32": np.float32, "f16": np.float16, "i8": np.int8, "u8": np.uint8}


def check_prompt(prompt: Sequence[int], settings: Settings, name: str = "the prompt") -> None:
    """Raise InputError where a prompt is empty, longer than the context, or has ids outside the vocabulary."""
    if not prompt:
        raise InputError(f"generate: {name} is empty; give at least one token, such as the token that begins a text")
    if len(prompt) > settings.context:
        raise InputError(
            f"generate: {name} has {len(prompt)} tokens, the model was compiled for a context of "
            f"{settings.context}; shorten it, or compile with planish.Generation(context={len(prompt)}) or more"
        )
    for place, token in enumerate(prompt):
        if not 0 <= token < settings.vocabulary:
            raise InputError(
                f"generate: token {token} at place {place} of {name} is outside the vocabulary of "
                f"{settings.vocabulary} (0..{settings.vocabulary - 1}); is it of another tokenizer?"
            )
