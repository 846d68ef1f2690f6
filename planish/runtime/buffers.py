"""Memory that calls borrow: arenas aligned to 64 bytes, reused from call to call."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

_ALIGNMENT = 64


class ArenaPool:
    """Arenas for calls that may run at the same time; there are as many as calls ever overlapped."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._free: list[np.ndarray[Any, Any]] = []

    @contextmanager
    def borrow(self, size: int) -> Iterator[int]:
        """The address of `size` bytes at a multiple of 64, for the duration of the block; 0 for none."""
        if size <= 0:
            yield 0
            return
        with self._lock:
            memory = self._free.pop() if self._free else None
        if memory is None or memory.nbytes < size + _ALIGNMENT:
            memory = np.empty(size + _ALIGNMENT, np.uint8)
        try:
            yield -(-memory.ctypes.data // _ALIGNMENT) * _ALIGNMENT
        finally:
            with self._lock:
                self._free.append(memory)
