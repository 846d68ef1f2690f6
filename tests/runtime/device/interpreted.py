"""Artifacts of GPUs without one: a program is built for a device, and its launches run in Triton's interpreter."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import numpy
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from planish.codegen.triton.build import Library, build_for_device
from planish.codegen.triton.compile import Binary, Request
from planish.codegen.triton.device import Device
from planish.codegen.triton.kernel import Launch, Number, Variant
from planish.codegen.triton.sources import resolved
from planish.codegen.triton.token_functions import with_token_functions
from planish.compilation import _interfaces
from planish.compilation_generation import interfaces, language, with_sizes, with_split
from planish.compiler.importers import Imported, import_torch
from planish.compiler.pass_ import Context, Pass
from planish.compiler.pipeline import Pipeline
from planish.generation import Generation
from planish.hardware_profiles import load_profile
from planish.passes import EXACT
from planish.runtime.device.executor import DeviceExecutable
from planish.runtime.device.frame import Weights
from planish.runtime.device.generation import DeviceLanguageExecutable
from planish.runtime.device.launcher import Part, Passed, Whole
from planish.runtime.device.load import placed
from planish.runtime.tensors import TensorFile, write_weights
from tests.codegen.triton.harness import small


class InterpretedLauncher:
    """Runs the kernels of a built program on tensors of the CPU."""

    device = torch.device("cpu")
    name = "interpreter"

    def __init__(self, kernels: Mapping[str, tuple[Launch, Variant]]) -> None:
        self.kernels = kernels
        self.launched: list[str] = []
        self.recordings = 0
        self.free, self.stream = 1 << 40, 0
        self._tape: list[Callable[[], object]] | None = None
        self.given: list[Sequence[Passed]] = []

    def launch(self, kernel: str, grid: tuple[int, int, int], arguments: Sequence[Passed]) -> None:
        if self._tape is not None:
            self._tape.append(lambda: self.launch(kernel, grid, arguments))
            return
        launch, variant = self.kernels[kernel]
        self.launched.append(kernel)
        self.given.append(arguments)
        if 0 in grid:
            return
        given = iter(arguments)
        passed: dict[str, Any] = {}
        for name, argument in launch.arguments.items():
            if isinstance(argument, tuple):
                passed[name] = tuple(_plain(next(given)) for _ in argument)
            elif isinstance(argument, Number) and isinstance(argument.value, int):
                passed[name] = argument.value
            else:
                passed[name] = _plain(next(given))
        assert next(given, None) is None
        constants = {**launch.constants, **variant.constants}
        known = resolved(constants)
        with numpy.errstate(all="ignore"):
            launch.function[grid](**passed, **known)

    def wait(self) -> None:
        """Everything is done when a launch returns."""

    @contextmanager
    def entered(self) -> Iterator[None]:
        yield

    def lane(self) -> int:
        return self.stream

    def hold(self, tensor: Any) -> None:
        """Nothing is freed while it is in use."""

    def free_bytes(self) -> int:
        return self.free

    def pinned(self, count: int) -> torch.Tensor:
        return torch.zeros(count, dtype=torch.uint8)

    def recorded(self, body: Callable[[], None]) -> Callable[[], None]:
        """As a graph does: what `body` launches, and torch computes in it, repeated on the addresses that it had."""
        self.recordings += 1
        tape = self._tape = []
        with _Taped(tape):
            body()
        self._tape = None

        def repeat() -> None:
            for work in tape:
                work()

        return repeat


class _Taped(TorchDispatchMode):
    """Notes the ops of torch instead of keeping what they compute, which is undefined as in a recording."""

    def __init__(self, tape: list[Callable[[], object]]) -> None:
        super().__init__()
        self._tape = tape

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        tensors = [
            t for t in (result if isinstance(result, tuple | list) else (result,)) if isinstance(t, torch.Tensor)
        ]
        given = {t.untyped_storage().data_ptr() for t in args if isinstance(t, torch.Tensor)}
        if func is torch.ops.aten.empty.memory_format or given & {t.untyped_storage().data_ptr() for t in tensors}:
            if func._schema.is_mutable:
                self._tape.append(lambda: func(*args, **(kwargs or {})))
            return result

        def again() -> None:
            found = func(*args, **(kwargs or {}))
            for old, new in zip(tensors, found if isinstance(found, tuple | list) else (found,), strict=True):
                old.copy_(new)

        self._tape.append(again)
        for tensor in tensors:
            tensor.fill_(0 if tensor.dtype is torch.bool else 77)
        return result


def executable(
    net: nn.Module,
    inputs: tuple[Any, ...],
    folder: Path,
    *,
    dynamic: Any = None,
    profile: str = "h200",
    lossy: Sequence[Pass] = (),
) -> DeviceExecutable:
    """The net built for the profile, to be run by the real executor in the interpreter; `lossy` passes come last."""
    imported = import_torch(net.eval(), inputs, {}, dynamic=dynamic)
    target = load_profile(profile)
    program, _ = Pipeline((*EXACT, *lossy)).run(imported.program, Context(target, dict(imported.program.main.hints())))
    library = Library(small(profile), compiler=uncompiled)
    built = build_for_device(program, _interfaces(imported, program, None), library.device, library=library)
    write_weights(folder / "weights.safetensors", built.weights)
    file = TensorFile(folder / "weights.safetensors", aligned=True)
    weights = placed(file, torch.from_numpy(file.data.copy()), built.plan.weights)
    return DeviceExecutable(built.plan, InterpretedLauncher(library.variants()), weights)


def language_executable(
    net: nn.Module,
    ids: torch.Tensor,
    folder: Path,
    generation: Generation,
    *,
    profile: str = "h200",
    lossy: Sequence[Pass] = (),
    on_device: bool = True,
) -> DeviceLanguageExecutable:
    """A language model built for the profile, to generate by the real runtime in the interpreter.

    `on_device` says whether it has kernels that choose tokens.
    """
    imported, kwargs = _language_model(net, tuple(ids.shape), generation.batch > 1)
    target, passes = load_profile(profile), with_split((*EXACT, *lossy), generation)
    program, _ = Pipeline(passes).run(imported.program, Context(target, dict(imported.program.main.hints())))
    if on_device:
        program, _ = with_token_functions(program, small(profile))
    library = Library(small(profile), compiler=uncompiled)
    built = build_for_device(program, interfaces(program), library.device, library=library)
    write_weights(folder / "weights.safetensors", built.weights)
    memory = torch.from_numpy(TensorFile(folder / "weights.safetensors", aligned=True).data.copy())
    settings = language(net, imported, program, generation, (ids,), kwargs).settings
    launcher = InterpretedLauncher(library.variants())
    return DeviceLanguageExecutable(built.plan, launcher, Weights(memory, {}), settings, None)


@cache
def _language_model(net: nn.Module, shape: tuple[int, int], several: bool) -> tuple[Imported, dict[str, Any]]:
    """The model as it is imported for all generations of one row, or of several, and its keyword arguments."""
    ids = torch.full(shape, 5)
    kwargs, dynamic = with_sizes(net, (ids,), {}, None, Generation(batch=2 if several else 1))
    return import_torch(net.eval(), (ids,), kwargs, dynamic=dynamic), kwargs


def _plain(value: Passed) -> Any:
    if isinstance(value, Whole):
        return value.value
    value = value.tensor() if isinstance(value, Part) else value
    bits = isinstance(value, torch.Tensor) and value.dtype in (torch.bool, torch.float8_e4m3fn)
    return value.view(torch.uint8) if bits else value


def uncompiled(requests: Sequence[Request], device: Device) -> tuple[Binary, ...]:
    """Binaries without code: the interpreter runs the functions themselves."""
    return tuple(Binary(r.name, b"", "", r.num_warps, 0, 32, 0, 0.0) for r in requests)
