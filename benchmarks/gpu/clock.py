"""Times what runs on a GPU by its events: each call after the L2 was overwritten, callables in turns."""

import time
from collections.abc import Callable, Mapping
from typing import Any

from benchmarks.timing import Timing

_FLUSHED_BYTES = 256 << 20  # more than any L2 has, and long enough to write that the host is ahead of the device


def on_events(calls: Mapping[str, Callable[[], object]], *, seconds: float, least: int = 10) -> dict[str, Timing]:
    """Milliseconds of each callable, which puts work on torch's current stream and waits for nothing.

    Every round times each of them once; rounds go on until `seconds` have passed, and are `least` at least.
    """
    import torch

    flushed = torch.empty(_FLUSHED_BYTES, dtype=torch.uint8, device="cuda")
    for call in calls.values():
        for _ in range(3):
            call()
    torch.cuda.synchronize()
    pairs: dict[str, list[tuple[Any, Any]]] = {name: [] for name in calls}
    start, rounds = time.perf_counter(), 0
    while rounds < least or time.perf_counter() - start < seconds:
        for name, call in calls.items():
            pairs[name].append(_timed(call, flushed))
        torch.cuda.synchronize()
        rounds += 1
    return {name: Timing(tuple(a.elapsed_time(b) for a, b in found)) for name, found in pairs.items()}


def recorded(call: Callable[[], object]) -> Callable[[], object]:
    """The call as a CUDA graph, so that nobody is timed by the speed of its Python."""
    import torch

    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(2):
            call()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        call()
    return graph.replay


def copy_gbs(size_bytes: int = 1 << 30) -> float:
    """10^9 bytes a second, read and written, of a copy within the device."""
    import torch

    source = torch.empty(size_bytes, dtype=torch.uint8, device="cuda")
    target = torch.empty_like(source)
    found = on_events({"copy": lambda: target.copy_(source)}, seconds=0.1)
    return 2e-6 * size_bytes / found["copy"].median_ms


def _timed(call: Callable[[], object], flushed: Any) -> tuple[Any, Any]:
    import torch

    start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    flushed.zero_()
    start.record()
    call()
    end.record()
    return start, end
