"""Language models on a device: caches stay there, ids go in and come out, logits only where the host samples."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any, Final

import numpy as np

from planish.errors import InputError
from planish.runtime.device.executor import DeviceExecutable, DeviceFunction
from planish.runtime.device.frame import Weights
from planish.runtime.device.launcher import Launcher
from planish.runtime.device.memory import check_room, no_room
from planish.runtime.dtypes import TORCH, DTypeName
from planish.runtime.generation.generator import NO_MAIN, GeneratesText, Generator
from planish.runtime.generation.scores import Array, Scores
from planish.runtime.generation.session import Function, Session
from planish.runtime.generation.settings import Settings
from planish.runtime.generation.tokenizer import Tokenizer
from planish.runtime.plan import Plan

_KEPT: Final = 8  # batch sizes whose recorded steps stay on the device


@dataclass(frozen=True, slots=True)
class DeviceScores:
    """Logits that lie in a tensor of the device."""

    tensor: Any

    def likeliest(self) -> tuple[Array, Array]:
        """See `Scores`; two numbers of each row come back, in one copy."""
        import torch

        tokens = self.tensor.argmax(dim=1, keepdim=True)
        # f64 holds ids and logits exactly
        found, largest = torch.cat((tokens.double(), self.tensor.gather(1, tokens).double()), 1).cpu().numpy().T
        return found.astype(np.int64), largest

    def logits(self) -> Array:
        """See `Scores`."""
        host: Array = self.tensor.cpu().numpy()
        return host


class DeviceSession(Session):
    """A session whose caches are tensors of the device.

    Raises ArtifactError, before anything is allocated, where they and the work memory do not fit there.
    """

    def __init__(self, prefill: DeviceFunction, decode: DeviceFunction, settings: Settings, launcher: Launcher) -> None:
        import torch

        self._device = launcher.device
        caches, work = session_bytes(prefill, decode, settings)
        what = f"generating {settings.batch} x {settings.context} tokens, {caches} bytes of caches and {work} for work,"
        check_room(launcher, caches + work, what)
        self._steps: dict[int, tuple[list[Any], Callable[[], list[Any]]]] = {}  # the recorded one of each batch
        try:
            super().__init__(prefill, decode, settings)
        except torch.OutOfMemoryError as error:
            raise no_room(launcher, caches + work, what) from error

    def _cache(self, shape: tuple[int, ...], dtype: DTypeName) -> Any:
        import torch

        with torch.inference_mode(False):  # a session serves calls inside and outside of that mode
            return torch.zeros(shape, dtype=getattr(torch, TORCH[dtype]), device=self._device)

    def _scores(self, logits: Any) -> Scores:
        return DeviceScores(logits)

    def _host(self, array: Any) -> Array:
        host: Array = array.cpu().numpy()
        return host

    def _bound(self, inputs: Sequence[Array]) -> Callable[[], list[Any]]:
        import torch

        rows = len(inputs[0])
        if (bound := self._steps.pop(rows, None)) is None:
            with torch.inference_mode(False):
                there = [torch.from_numpy(given).to(self._device, copy=True) for given in inputs]
            bound = there, self._decode.bind([*there, *self._caches])
        self._steps[rows] = bound  # the latest one last
        if len(self._steps) > _KEPT:
            del self._steps[next(iter(self._steps))]
        (there, repeat), hosts = bound, [torch.from_numpy(given) for given in inputs]

        def step() -> list[Any]:
            for own, host in zip(there, hosts, strict=True):
                own.copy_(host)
            return repeat()

        return step

    def _keep(self, results: Sequence[Any]) -> None:
        for cache, result in zip(self._caches, results, strict=True):
            if result.data_ptr() != cache.data_ptr():
                cache.copy_(result)


class DeviceLanguageExecutable(GeneratesText, DeviceExecutable):
    """A loaded artifact of a language model on a device."""

    def __init__(
        self, plan: Plan, launcher: Launcher, weights: Weights, settings: Settings, tokenizer: Tokenizer | None
    ) -> None:
        super().__init__(plan, launcher, weights)

        functions = self.function("prefill"), self.function("decode")

        def session(prefill: Function, decode: Function, made: Settings) -> Session:
            return DeviceSession(*functions, made, launcher)

        self.generator = Generator(*functions, settings, tokenizer, session)

    @property
    def main(self) -> DeviceFunction:
        """Raises InputError: a language model has none."""
        raise InputError(NO_MAIN)


def session_bytes(prefill: DeviceFunction, decode: DeviceFunction, settings: Settings) -> tuple[int, int]:
    """The bytes of the caches of a session, and those that its largest call takes beside them."""
    rows, chunk = settings.batch, min(settings.chunk, settings.context)
    specs = [spec.type for spec in prefill.plan.inputs[3:]]
    shapes = [tuple(d.evaluate({"rows": rows}) for d in spec.shape) for spec in specs]
    caches = sum(prod(shape) * spec.itemsize for shape, spec in zip(shapes, specs, strict=True))
    calls = [f.needs(((rows, tokens), (rows,), (rows,), *shapes)) for f, tokens in ((prefill, chunk), (decode, 1))]
    return caches, max(needed.work_bytes for needed in calls)
