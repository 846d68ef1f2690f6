"""The GPU that the benchmark runs on: compiles for it, records and times what runs there."""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import torch

import planish
from benchmarks.timing import Timing
from planish.hardware_profiles import Profile
from planish.targets import profile_of

_FLUSHED_BYTES = 256 << 20  # more than any L2 has, and long enough to write that the host is ahead of the device
_COPIED_BYTES = 1 << 30


class Hardware(Protocol):
    """What measurements ask of a device; `device` is torch's name of it.

    `times` gives the time of each callable, which puts work on torch's current stream and waits for nothing, each call
    after the L2 was overwritten; `recorded` gives what repeats the work of a callable without the speed of Python.
    """

    @property
    def device(self) -> str: ...

    @property
    def profile(self) -> Profile: ...

    def compile(self, module: torch.nn.Module, **options: Any) -> Any: ...

    def recorded(self, call: Callable[[], object]) -> Callable[[], object]: ...

    def times(self, calls: Mapping[str, Callable[[], object]], seconds: float) -> dict[str, Timing]: ...

    def wait(self) -> None: ...


@dataclass(frozen=True, slots=True)
class Cuda:
    """The GPU at hand."""

    device: str = "cuda"
    flushed_bytes: int = _FLUSHED_BYTES

    @property
    def profile(self) -> Profile:
        """That of the GPU at hand."""
        return profile_of("gpu")

    def compile(self, module: torch.nn.Module, **options: Any) -> Any:
        """`planish.compile` for it."""
        return planish.compile(module, "gpu", **options)

    def times(self, calls: Mapping[str, Callable[[], object]], seconds: float, least: int = 10) -> dict[str, Timing]:
        """Rounds that time each callable once go on until `seconds` have passed, and are `least` at least."""
        flushed = torch.empty(self.flushed_bytes, dtype=torch.uint8, device=self.device)
        for call in calls.values():
            for _ in range(3):
                call()
        self.wait()
        pairs: dict[str, list[tuple[Any, Any]]] = {name: [] for name in calls}
        start, rounds = time.perf_counter(), 0
        while rounds < least or time.perf_counter() - start < seconds:
            for name, call in calls.items():
                pairs[name].append(_timed(call, flushed))
            self.wait()
            rounds += 1
        return {name: Timing(tuple(a.elapsed_time(b) for a, b in found)) for name, found in pairs.items()}

    def recorded(self, call: Callable[[], object]) -> Callable[[], object]:
        """The call as a CUDA graph; it runs three times, on a stream of its own."""
        stream: Any = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(2):
                call()
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            call()
        return graph.replay

    def wait(self) -> None:
        """Until the device has done everything."""
        torch.cuda.synchronize()

    def copy_gbs(self, size_bytes: int = _COPIED_BYTES) -> float:
        """10^9 bytes a second, read and written, of a copy within the device."""
        source = torch.empty(size_bytes, dtype=torch.uint8, device=self.device)
        target = torch.empty_like(source)
        found = self.times({"copy": lambda: target.copy_(source)}, 0.1)
        return 2e-6 * size_bytes / found["copy"].median_ms


def _timed(call: Callable[[], object], flushed: torch.Tensor) -> tuple[Any, Any]:
    start: Any = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
    end: Any = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
    flushed.zero_()
    start.record()
    call()
    end.record()
    return start, end
