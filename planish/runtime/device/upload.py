"""Weights from their file to a device: read once into pinned memory, sent from there, and hashed there meanwhile."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final

from planish.runtime.device.launcher import free_bytes
from planish.runtime.device.memory import check_room, no_room
from planish.runtime.intake import Landing, Reading
from planish.runtime.tensors import TensorFile

# small enough to be hashed in the cache into which they were read, large enough for the interpreter between them
_CHUNK_BYTES: Final = 4 << 20


@contextmanager
def uploading(weights: TensorFile, read: Callable[[Callable[[], Landing]], Reading]) -> Iterator[Any]:
    """All data of the file in one block of bytes on torch's current device, which fills while the block of code runs;
    it is there, and is what was recorded, at the end.

    `read` begins to read the file. Raises ArtifactError where the device has no room, or the file is altered; what was
    sent is freed then, and where the block raises.
    """
    import torch

    device = torch.device("cuda", torch.cuda.current_device())
    there = _allocated(weights.data.nbytes, device)
    stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
    stream.wait_stream(torch.cuda.current_stream(device))  # memory may have been another's up to here
    reading = read(lambda: Pinned(there, weights.start, stream))
    try:
        yield there
        reading.finish()
        stream.synchronize()
    except BaseException:
        reading.stop()
        stream.synchronize()  # before anybody else gets the memory
        there.untyped_storage().resize_(0)  # the error's traceback refers to it
        torch.cuda.empty_cache()
        raise


def _allocated(size: int, device: Any) -> Any:
    import torch

    room, what = _Room(str(torch.cuda.get_device_name(device)), device), "loading the weights"
    check_room(room, size, what)
    try:
        with torch.inference_mode(False):  # threads write it, which are not in the caller's mode
            return torch.empty(size, dtype=torch.uint8, device=device)
    except torch.OutOfMemoryError as error:
        raise no_room(room, size, what) from error


@dataclass(frozen=True, slots=True)
class _Room:
    """The memory of a device of torch; see `check_room`."""

    name: str
    device: Any

    def free_bytes(self) -> int:
        """What torch could allocate."""
        return free_bytes(self.device)


class Pinned:
    """Two buffers of pinned memory that are filled in turn, and from which the data of a file, from its byte `begin`
    on, are copied to `there` on a stream; made when they are first needed."""

    chunk_bytes: int = _CHUNK_BYTES

    def __init__(self, there: Any, begin: int, stream: Any) -> None:
        self._there, self._begin, self._stream = there, begin, stream
        self._buffers: list[tuple[Any, Any]] = []
        self._turn = 0

    def place(self, start: int, count: int) -> memoryview:
        """A part of the next buffer, once the device has read what was sent from it last."""
        self._turn ^= 1
        if len(self._buffers) < 2:
            self._buffers.append(self._made())
            self._turn = len(self._buffers) - 1
        buffer, sent = self._buffers[self._turn]
        sent.synchronize()
        view: memoryview = buffer.numpy().data[:count]
        return view

    def landed(self, start: int, count: int) -> None:
        """Begin to copy them to their place."""
        import torch

        buffer, sent = self._buffers[self._turn]
        skipped = max(0, self._begin - start)  # the header stays here
        if skipped >= count:
            return
        place = start + skipped - self._begin
        with torch.cuda.stream(self._stream):
            self._there[place : start + count - self._begin].copy_(buffer[skipped:count], non_blocking=True)
            sent.record(self._stream)

    def _made(self) -> tuple[Any, Any]:
        import torch

        with torch.cuda.stream(self._stream):  # and so on its device
            buffer = torch.empty(self.chunk_bytes, dtype=torch.uint8, pin_memory=True)
            return buffer, torch.cuda.Event()  # type: ignore[no-untyped-call]
