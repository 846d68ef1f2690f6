"""Launchers: what puts the launches of a plan on a device."""

import ctypes
import os
import threading
import weakref
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass
from typing import Any, Final, Protocol, TypeAlias

from planish.errors import ArtifactError
from planish.runtime.device.driver import Driver, Function
from planish.runtime.launches import KernelSpec


@dataclass(frozen=True, slots=True)
class Whole:
    """An integer argument of 4 or 8 bytes."""

    value: int
    bytes: int


@dataclass(frozen=True, slots=True)
class Part:
    """A block of bytes on the device from `start` on, which the kernel sees as elements of a dtype of torch."""

    memory: Any
    start: int
    dtype: Any

    def data_ptr(self) -> int:
        """The address of the first element."""
        return int(self.memory.data_ptr()) + self.start

    def tensor(self) -> Any:
        """The elements, as far as they are whole."""
        count = (self.memory.numel() - self.start) // self.dtype.itemsize
        return self.memory[self.start : self.start + count * self.dtype.itemsize].view(self.dtype)


# a tensor of torch and a part stand for their addresses, a float for 32 bits of it
Passed: TypeAlias = Any | Part | Whole | float


class Launcher(Protocol):
    """Launches kernels by their name in the plan, in order, on the stream that torch would use; `wait` is for them all.

    `entered` is to surround everything that uses the device in a thread. `lane` is the same for work that runs in the
    order in which it was put there. `hold` keeps the memory of a tensor from others until the work of the lane is done,
    also when the tensor is dropped. `free_bytes` is what torch could allocate. `recorded` gives what repeats the work
    of `body`, which runs but does nothing, on the same memory, for far less than its launches cost. `pinned` gives
    bytes of the host, zeros, that copies of the lane read and write while the host goes on.
    """

    device: Any
    name: str

    def launch(self, kernel: str, grid: tuple[int, int, int], arguments: Sequence[Passed]) -> None: ...

    def wait(self) -> None: ...

    def entered(self) -> AbstractContextManager[None]: ...

    def lane(self) -> int: ...

    def hold(self, tensor: Any) -> None: ...

    def free_bytes(self) -> int: ...

    def recorded(self, body: Callable[[], None]) -> Callable[[], None]: ...

    def pinned(self, count: int) -> Any: ...


# One recording at a time in the process: torch waits for the whole device before it records, which nobody may while
# another thread records.
_RECORDING: Final = threading.Lock()
# The kernels of launchers that are gone; a launcher may go at any instant, also in the middle of a recording.
_DROPPED: Final[deque["_Dropped"]] = deque()


class DriverLauncher:
    """Launches compiled kernels through the driver, on torch's current stream.

    Raises ArtifactError where the device cannot hold a block of a kernel, or the driver refuses one.
    """

    def __init__(
        self, driver: Driver, device: Any, kernels: Mapping[str, KernelSpec], code: Mapping[str, bytes], warp_size: int
    ) -> None:
        import torch

        self.device = device
        self.name = str(torch.cuda.get_device_name(device))
        self._driver, self._torch = driver, torch
        # a stream of its own: the default one cannot be recorded, and torch's for recordings belongs to all
        self._recorder = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        check_kernels(kernels, torch.cuda.get_device_properties(device), self.name)
        with torch.cuda.device(device):
            torch.cuda.current_stream().synchronize()  # makes the device's context the current one of this thread
            driver.enter()
            self._functions: dict[str, Function] = {}
            self._graphs: dict[int, Any] = {}
            dropped = _Dropped(driver, device, self._functions, self._graphs, os.getpid())
            ended = weakref.finalize(self, _drop, dropped)
            ended.atexit = False  # the driver unloads them when the process ends
            for name, spec in kernels.items():
                threads = spec.num_warps * warp_size
                self._functions[name] = driver.function(
                    name, code[name], spec.symbol, threads=threads, shared_bytes=spec.shared_bytes
                )
        unload_dropped()

    def launch(self, kernel: str, grid: tuple[int, int, int], arguments: Sequence[Passed]) -> None:
        """Launch on the stream that torch would use now."""
        self._driver.launch(self._functions[kernel], grid, self.lane(), packed(arguments))

    def wait(self) -> None:
        """Until everything on that stream is done."""
        self._torch.cuda.current_stream(self.device).synchronize()

    @contextmanager
    def entered(self) -> Iterator[None]:
        """The device is the current one of torch, and of the driver, in this thread."""
        with self._torch.cuda.device(self.device):
            self._driver.enter()
            yield

    def lane(self) -> int:
        """The handle of the stream."""
        return int(self._torch.cuda.current_stream(self.device).cuda_stream)

    def hold(self, tensor: Any) -> None:
        """Tell torch's allocator that the stream uses the tensor, which may be of another one."""
        tensor.record_stream(self._torch.cuda.current_stream(self.device))

    def free_bytes(self) -> int:
        """See the function."""
        return free_bytes(self.device)

    def recorded(self, body: Callable[[], None]) -> Callable[[], None]:
        """The launches of `body`, and of torch within it, as a CUDA graph, replayed on the stream of the moment.

        Other threads may go on: what they do is checked against this recording only where they take part in it.
        """
        torch = self._torch
        graph = torch.cuda.CUDAGraph()
        with _RECORDING, torch.cuda.graph(graph, stream=self._recorder, capture_error_mode="thread_local"):
            body()
        unload_dropped()
        self._graphs[id(graph)] = graph
        replay = _Replay(self, graph.replay)
        weakref.finalize(replay, self._graphs.pop, id(graph), None).atexit = False
        return replay

    def pinned(self, count: int) -> Any:
        """Page-locked memory."""
        return self._torch.zeros(count, dtype=self._torch.uint8, pin_memory=True)


class _Replay:
    """Repeats a recording, and holds its launcher and so the kernels meanwhile."""

    def __init__(self, launcher: DriverLauncher, replay: Callable[[], None]) -> None:
        self._launcher, self._replay = launcher, replay

    def __call__(self) -> None:
        self._replay()


@dataclass(frozen=True, slots=True)
class _Dropped:
    """What a launcher that is gone has left on its device: kernels, and graphs which launch them."""

    driver: Driver
    device: Any
    functions: Mapping[str, Function]
    graphs: dict[int, Any]
    process: int

    def unload(self) -> None:
        """Wait for the device, which may still run the kernels; graphs go first."""
        import torch

        with torch.cuda.device(self.device):
            torch.cuda.synchronize(self.device)
            for graph in self.graphs.values():
                graph.reset()
            self.driver.enter()
            for function in self.functions.values():
                self.driver.unload(function)


def _drop(dropped: _Dropped) -> None:
    if dropped.process == os.getpid():  # a forked process has no part in them
        _DROPPED.append(dropped)
        unload_dropped()


def unload_dropped() -> None:
    """Unload the kernels of launchers that are gone, unless a recording goes on: then the next call does it."""
    import torch

    if not torch.cuda.is_initialized():  # type: ignore[no-untyped-call]  # no context could hold any
        _DROPPED.clear()
    if not _DROPPED or not _RECORDING.acquire(blocking=False):
        return
    try:
        while _DROPPED and not torch.cuda.is_current_stream_capturing():
            with suppress(RuntimeError):  # after a fault the context is lost, and they are
                _DROPPED.popleft().unload()
    finally:
        _RECORDING.release()


def free_bytes(device: Any) -> int:
    """What the device has free, and what torch has and does not use."""
    from torch import cuda

    free: int = cuda.mem_get_info(device)[0]
    return free + int(cuda.memory_reserved(device) - cuda.memory_allocated(device))


def check_kernels(kernels: Mapping[str, KernelSpec], properties: Any, name: str) -> None:
    """Raise ArtifactError where a block of a kernel takes more shared memory than the device gives one."""
    has = getattr(properties, "shared_memory_per_block_optin", None) or properties.shared_memory_per_block
    for kernel, spec in kernels.items():
        if spec.shared_bytes > has:
            raise ArtifactError(
                f"kernel '{kernel}' takes {spec.shared_bytes} bytes of shared memory a block, the {name} gives {has}; "
                "compile the model for this GPU"
            )


def packed(arguments: Sequence[Passed]) -> list["ctypes._SimpleCData[Any]"]:
    """The arguments as the kernel's parameters, with the two scratch pointers that Triton appends, null here.

    Raises ArtifactError for an integer that its parameter does not hold.
    """
    found: list[ctypes._SimpleCData[Any]] = []
    for argument in arguments:
        if isinstance(argument, Whole):
            found.append(_integer(argument))
        elif isinstance(argument, float):
            found.append(ctypes.c_float(argument))
        else:
            found.append(ctypes.c_void_p(argument.data_ptr()))
    return [*found, ctypes.c_void_p(0), ctypes.c_void_p(0)]


def _integer(argument: Whole) -> "ctypes._SimpleCData[Any]":
    if argument.bytes == 8:
        return ctypes.c_int64(argument.value)
    if not -(1 << 31) <= argument.value < 1 << 31:  # ctypes would cut it
        raise ArtifactError(f"a kernel counts up to {argument.value}, over its 32 bits; call with smaller sizes")
    return ctypes.c_int32(argument.value)
