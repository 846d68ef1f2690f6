"""Launchers: what puts the launches of a plan on a device."""

import ctypes
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeAlias

from planish.runtime.device.driver import Driver, Function
from planish.runtime.launches import KernelSpec


@dataclass(frozen=True, slots=True)
class Whole:
    """An integer argument of 4 or 8 bytes."""

    value: int
    bytes: int


# a tensor of torch stands for its address, a float for 32 bits of it
Passed: TypeAlias = Any | Whole | float


class Launcher(Protocol):
    """Launches kernels by their name in the plan, in order, on the device's current stream; `wait` is for them all.

    `recorded` gives what repeats the launches of `body`, on the same memory, for far less than each costs alone.
    """

    device: Any

    def launch(self, kernel: str, grid: tuple[int, int, int], arguments: Sequence[Passed]) -> None: ...

    def wait(self) -> None: ...

    def recorded(self, body: Callable[[], None]) -> Callable[[], None]: ...


class DriverLauncher:
    """Launches compiled kernels through the driver, on torch's current stream."""

    def __init__(
        self, driver: Driver, device: Any, kernels: Mapping[str, KernelSpec], code: Mapping[str, bytes], warp_size: int
    ) -> None:
        import torch

        self.device = device
        self._driver, self._torch = driver, torch
        with torch.cuda.device(device):
            torch.cuda.current_stream().synchronize()  # makes the device's context the current one of this thread
            self._functions: Mapping[str, Function] = {
                name: driver.function(
                    name,
                    code[name],
                    spec.symbol,
                    threads=spec.num_warps * warp_size,
                    shared_bytes=spec.shared_bytes,
                )
                for name, spec in kernels.items()
            }

    def launch(self, kernel: str, grid: tuple[int, int, int], arguments: Sequence[Passed]) -> None:
        """Launch on the stream that torch would use now."""
        stream = self._torch.cuda.current_stream(self.device).cuda_stream
        self._driver.launch(self._functions[kernel], grid, stream, packed(arguments))

    def wait(self) -> None:
        """Until everything on that stream is done."""
        self._torch.cuda.current_stream(self.device).synchronize()

    def recorded(self, body: Callable[[], None]) -> Callable[[], None]:
        """The launches of `body`, and of torch within it, as a CUDA graph; `body` runs twice."""
        torch = self._torch
        stream = torch.cuda.Stream(self.device)
        stream.wait_stream(torch.cuda.current_stream(self.device))
        with torch.cuda.stream(stream):
            body()  # what libraries allocate on their first call must not be recorded
        torch.cuda.current_stream(self.device).wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            body()
        return lambda: graph.replay()


def packed(arguments: Sequence[Passed]) -> list["ctypes._SimpleCData[Any]"]:
    """The arguments as the kernel's parameters, with the two scratch pointers that Triton appends, null here."""
    found: list[ctypes._SimpleCData[Any]] = []
    for argument in arguments:
        if isinstance(argument, Whole):
            found.append((ctypes.c_int64 if argument.bytes == 8 else ctypes.c_int32)(argument.value))
        elif isinstance(argument, float):
            found.append(ctypes.c_float(argument))
        else:
            found.append(ctypes.c_void_p(argument.data_ptr()))
    return [*found, ctypes.c_void_p(0), ctypes.c_void_p(0)]
