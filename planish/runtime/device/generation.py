"""Language models on a device: caches stay there, ids go in and come out, logits only where the host must choose."""

import weakref
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any, Final

import numpy as np

from planish.errors import InputError
from planish.runtime.device.choosing import CHOICES, LARGEST, Choosing, StepMemory
from planish.runtime.device.executor import DeviceExecutable, DeviceFunction
from planish.runtime.device.frame import Weights
from planish.runtime.device.launcher import Launcher
from planish.runtime.device.memory import check_room, no_room
from planish.runtime.dtypes import TORCH, DTypeName
from planish.runtime.generation.generator import NO_MAIN, GeneratesText, Generator
from planish.runtime.generation.sampling import CONTROLS, Sampler
from planish.runtime.generation.scores import Array, Scores, chosen_on_host, from_pairs
from planish.runtime.generation.session import Function, Session
from planish.runtime.generation.settings import Settings
from planish.runtime.generation.tokenizer import Tokenizer
from planish.runtime.plan import Plan

_KEPT: Final = 8  # batch sizes whose recorded steps stay on the device


@dataclass(frozen=True, slots=True)
class DeviceScores:
    """Logits that lie in a tensor of the device; `pairs` f64[rows, 2] are the tokens that it chose, and the largest."""

    tensor: Any
    pairs: Array | None = None

    def likeliest(self) -> tuple[list[int], list[float]]:
        """See `Scores`; two numbers of each row come back, in one copy."""
        import torch

        tokens = self.tensor.argmax(dim=1, keepdim=True)
        # f64 holds ids and logits exactly
        return from_pairs(torch.cat((tokens.double(), self.tensor.gather(1, tokens).double()), 1).cpu().numpy())

    def logits(self) -> Array:
        """See `Scores`."""
        host: Array = self.tensor.cpu().numpy()
        return host

    def chosen(self, samplers: Sequence[Sampler | None]) -> tuple[list[int], list[float]]:
        """See `Scores`."""
        if self.pairs is None:
            return chosen_on_host(self, samplers)
        return from_pairs(self.pairs)


class DeviceSession(Session):
    """A session whose caches are tensors of the device, where tokens are chosen if the artifact has kernels for it.

    What a step reads is copied there, and what it chose back, in its recording. `spare` holds memory of sessions that
    have ended: page-locked memory is not freed while another session may be recording.

    Raises ArtifactError, before anything is allocated, where they and the work memory do not fit there.
    """

    def __init__(
        self, functions: Mapping[str, DeviceFunction], settings: Settings, launcher: Launcher, spare: list[Any]
    ) -> None:
        import torch

        self._device, self._launcher = launcher.device, launcher
        self._functions = functions
        caches, work = session_bytes(functions, settings)
        what = f"generating {settings.batch} x {settings.context} tokens, {caches} bytes of caches and {work} for work,"
        check_room(launcher, caches + work, what)
        self._steps: dict[tuple[int, Choosing], Callable[[], list[Any]]] = {}  # the recorded ones
        self._choosing = Choosing(None)
        self._samplers: tuple[Sampler, ...] = ()
        self._seen: Any = None
        with torch.inference_mode(False):  # a session serves calls inside and outside of that mode
            self._memory = spare.pop() if spare else launcher.pinned(StepMemory.bytes(settings.batch))
        weakref.finalize(self, spare.append, self._memory)
        try:
            super().__init__(functions["prefill"], functions["decode"], settings)
            if "sample" in functions:
                self._seen = self._cache((settings.batch, settings.vocabulary), "u8")
        except torch.OutOfMemoryError as error:
            raise no_room(launcher, caches + work, what) from error

    def step(self, tokens: Sequence[int | None]) -> Scores:
        """See `Session`."""
        self._note([token is not None for token in tokens])
        return super().step(tokens)

    def _empty(self, types: Sequence[tuple[tuple[int, ...], DTypeName]]) -> Sequence[Any]:
        return [self._cache(shape, dtype) for shape, dtype in types]

    def _cache(self, shape: tuple[int, ...], dtype: DTypeName) -> Any:
        import torch

        with torch.inference_mode(False):  # a session serves calls inside and outside of that mode
            return torch.zeros(shape, dtype=getattr(torch, TORCH[dtype]), device=self._device)

    def _prepare(self, rows: int, samplers: Sequence[Sampler]) -> None:
        choosing = Choosing.by(samplers, [name for name in CHOICES if name in self._functions])
        if self._step is None or (rows, choosing) != (self._rows, self._choosing):
            self._choosing = choosing
            self._bind(rows)
        self._samplers = tuple(samplers)
        if choosing.penalizes:
            for row, sampler in zip(self._seen, samplers, strict=False):
                row.zero_() if sampler.seen is None else row.copy_(_tensor(sampler.seen.view(np.uint8)))
        self._note([True] * rows)

    def _note(self, running: Sequence[bool]) -> None:
        """The options of the rows for their next tokens; those that have ended take the largest."""
        if self._choosing.function == "sample":
            for row, (sampler, goes_on) in enumerate(zip(self._samplers, running, strict=True)):
                self._controls[row] = sampler.controls() if goes_on else LARGEST

    def _joined(self, found: Any, logits: Any, ended: Array) -> Any:
        if found is None:
            return logits
        rows = _tensor(np.flatnonzero(ended)).to(self._device)
        return found.index_copy_(0, rows, logits.index_select(0, rows))

    def _first(self, logits: Any) -> Scores:
        if self._choosing.function is None:
            return DeviceScores(logits)
        given = self._choosing.inputs(logits, self._seen, _tensor(self._controls).to(self._device))
        (pairs,) = self._functions[self._choosing.function].at_once(given)
        return DeviceScores(logits, pairs.cpu().numpy())

    def _scores(self, results: Sequence[Any]) -> Scores:
        return DeviceScores(results[0], None if self._choosing.function is None else self._host_step.chosen.numpy())

    def _host(self, array: Any) -> Array:
        host: Array = array.cpu().numpy()
        return host

    def _arguments(self, rows: int) -> tuple[Array, Array, Array]:
        import torch

        with torch.inference_mode(False):
            self._memory.zero_()
            step = self._host_step = StepMemory.of(self._memory, rows)
        self._controls = step.controls.numpy()
        return step.ids.numpy(), step.past.numpy(), step.count.numpy()

    def _bound(self, inputs: Sequence[Array]) -> Callable[[], list[Any]]:
        key = self._rows, self._choosing
        repeat, wait = self._steps.pop(key, None) or self._record(), self._launcher.wait
        self._steps[key] = repeat  # the latest one last
        if len(self._steps) > _KEPT:
            del self._steps[next(iter(self._steps))]

        def step() -> list[Any]:
            results = repeat()
            wait()  # what was chosen is there, and what comes next may be written
            return results

        return step

    def _record(self) -> Callable[[], list[Any]]:
        import torch

        host, memory = self._host_step, self._cache((StepMemory.bytes(self._rows),), "u8")
        with torch.inference_mode(False):
            there = StepMemory.of(memory, self._rows)

        def then(results: Sequence[Any]) -> Callable[[], None]:
            return self._choice(results[0], host, there)

        return self._functions["decode"].bind(
            [there.ids, there.past, there.count, *self._caches],
            before=lambda: there.given.copy_(host.given, non_blocking=True),
            then=then if self._choosing.function else None,
        )

    def _choice(self, logits: Any, host: StepMemory, there: StepMemory) -> Callable[[], None]:
        """What chooses tokens by the logits of a step, behind it, and brings them to the host."""
        assert self._choosing.function is not None
        given = self._choosing.inputs(logits.zero_(), self._seen, there.controls)
        choose, (pairs,) = self._functions[self._choosing.function].prepared(given)

        seen = self._seen[: self._rows] if self._choosing.penalizes else None

        def work() -> None:
            if seen is not None:
                seen.scatter_(1, there.ids, 1)  # the tokens of this step are there from now on
            choose()
            host.chosen.copy_(pairs, non_blocking=True)

        return work

    def _keep(self, results: Sequence[Any]) -> None:
        for cache, result in zip(self._caches, results[1:], strict=True):
            if result.data_ptr() != cache.data_ptr():
                cache.copy_(result)


class DeviceLanguageExecutable(GeneratesText, DeviceExecutable):
    """A loaded artifact of a language model on a device."""

    def __init__(
        self, plan: Plan, launcher: Launcher, weights: Weights, settings: Settings, tokenizer: Tokenizer | None
    ) -> None:
        super().__init__(plan, launcher, weights)

        functions, spare = self.functions, list[Any]()

        def session(prefill: Function, decode: Function, made: Settings) -> Session:
            return DeviceSession(functions, made, launcher, spare)

        self.generator = Generator(self.function("prefill"), self.function("decode"), settings, tokenizer, session)

    @property
    def main(self) -> DeviceFunction:
        """Raises InputError: a language model has none."""
        raise InputError(NO_MAIN)


def session_bytes(functions: Mapping[str, DeviceFunction], settings: Settings) -> tuple[int, int]:
    """The bytes of the caches of a session, and those that its largest call takes beside them."""
    prefill, decode, rows = functions["prefill"], functions["decode"], settings.batch
    specs = [spec.type for spec in prefill.plan.inputs[3:]]
    shapes = [tuple(d.evaluate({"rows": rows}) for d in spec.shape) for spec in specs]
    caches = sum(prod(shape) * spec.itemsize for shape, spec in zip(shapes, specs, strict=True))
    chunk = min(settings.chunk, settings.context)
    calls = [f.needs(((rows, tokens), (rows,), (rows,), *shapes)) for f, tokens in ((prefill, chunk), (decode, 1))]
    return caches, max(needed.work_bytes for needed in calls) + _choice_bytes(functions, settings)


def _choice_bytes(functions: Mapping[str, DeviceFunction], settings: Settings) -> int:
    if "sample" not in functions:
        return 0
    logits = (settings.batch, settings.vocabulary)
    return prod(logits) + functions["sample"].needs((logits, logits, (logits[0], len(CONTROLS)))).work_bytes


def _tensor(given: Array) -> Any:
    """The array as a tensor."""
    import torch

    return torch.from_numpy(given)
