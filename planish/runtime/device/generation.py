"""Language models on a device: caches stay there, ids go in and logits come out."""

from collections.abc import Callable, Sequence
from typing import Any

from planish.errors import InputError
from planish.runtime.device.executor import DeviceExecutable, DeviceFunction
from planish.runtime.device.frame import Weights
from planish.runtime.device.launcher import Launcher
from planish.runtime.dtypes import TORCH, DTypeName
from planish.runtime.generation.generator import NO_MAIN, GeneratesText, Generator
from planish.runtime.generation.session import Array, Function, Session
from planish.runtime.generation.settings import Settings
from planish.runtime.generation.tokenizer import Tokenizer
from planish.runtime.plan import Plan


class DeviceSession(Session):
    """A session whose caches are tensors of the device."""

    def __init__(self, prefill: Function, decode: Function, settings: Settings, device: Any) -> None:
        self._device = device
        super().__init__(prefill, decode, settings)

    def _cache(self, shape: tuple[int, ...], dtype: DTypeName) -> Any:
        import torch

        return torch.zeros(shape, dtype=getattr(torch, TORCH[dtype]), device=self._device)

    def _host(self, array: Any) -> Array:
        host: Array = array.cpu().numpy()
        return host

    def _bound(self, inputs: Sequence[Array]) -> Callable[[], list[Any]]:
        import torch

        hosts = [torch.from_numpy(given) for given in inputs]
        there = [host.to(self._device, copy=True) for host in hosts]
        repeat = self._decode.bind([*there, *self._caches])

        def step() -> list[Any]:
            for own, host in zip(there, hosts, strict=True):
                own.copy_(host)
            logits, *caches = repeat()
            return [self._host(logits), *caches]

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

        def session(prefill: Function, decode: Function, made: Settings) -> Session:
            return DeviceSession(prefill, decode, made, launcher.device)

        functions = self.function("prefill"), self.function("decode")
        self.generator = Generator(*functions, settings, tokenizer, session)

    @property
    def main(self) -> DeviceFunction:
        """Raises InputError: a language model has none."""
        raise InputError(NO_MAIN)
