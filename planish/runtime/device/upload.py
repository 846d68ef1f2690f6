"""Weights from their file to a device: read by several threads into pinned memory, and sent from there meanwhile."""

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from queue import SimpleQueue
from typing import Any, Final, Protocol

from planish.runtime.tensors import TensorFile

_PIECE_BYTES: Final = 8 << 20
_READERS: Final = 8
_SPARE: Final = 2  # buffers that are being sent while every thread fills one


class Staging(Protocol):
    """A buffer of the host that the device reads from; `send` starts when `ready` has waited for the one before."""

    def ready(self) -> memoryview: ...

    def send(self, start: int, count: int) -> None: ...


def uploaded(weights: TensorFile, device: Any) -> Any:
    """All data of the file on the device, in one block of bytes; it is there when this returns."""
    import torch

    there = torch.empty(weights.data.nbytes, dtype=torch.uint8, device=device)
    stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
    stream.wait_stream(torch.cuda.current_stream(device))  # memory may have been another's up to here
    try:
        send(weights, lambda size: _Pinned(there, size, stream), _PIECE_BYTES)
    finally:
        stream.synchronize()  # before anybody else gets the memory, also where reading failed
    return there


def send(weights: TensorFile, staging: Callable[[int], Staging], piece_bytes: int) -> None:
    """Read the data of the file in pieces into buffers of `staging`, and send each to its place."""
    total = weights.data.nbytes
    starts = range(0, total, piece_bytes)
    readers = min(_READERS, os.cpu_count() or 1, max(1, len(starts)))
    free: SimpleQueue[Staging] = SimpleQueue()
    for _ in range(min(readers + _SPARE, len(starts))):
        free.put(staging(min(piece_bytes, total)))

    def move(start: int) -> None:
        count = min(piece_bytes, total - start)
        buffer = free.get()
        try:
            weights.read_into(start, buffer.ready()[:count])
            buffer.send(start, count)
        finally:
            free.put(buffer)

    with ThreadPoolExecutor(readers) as pool:
        for done in [pool.submit(move, start) for start in starts]:
            done.result()


class _Pinned:
    """Pinned memory whose copies to `there` are put on a stream of their own."""

    def __init__(self, there: Any, size: int, stream: Any) -> None:
        import torch

        self._there, self._stream = there, stream
        self._buffer = torch.empty(size, dtype=torch.uint8, pin_memory=True)
        self._view = self._buffer.numpy().data
        self._sent = torch.cuda.Event()  # type: ignore[no-untyped-call]

    def ready(self) -> memoryview:
        """The buffer, once the device has read what was sent last."""
        self._sent.synchronize()
        return self._view

    def send(self, start: int, count: int) -> None:
        """Copy the first `count` bytes to the place `start` of the device's block."""
        import torch

        with torch.cuda.stream(self._stream):
            self._there[start : start + count].copy_(self._buffer[:count], non_blocking=True)
            self._sent.record(self._stream)
