"""Memory that calls borrow: arenas aligned to 64 bytes, reused from call to call."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np

_ALIGNMENT = 64


@dataclass(frozen=True, slots=True)
class _Arena:
    memory: np.ndarray[Any, Any]
    address: int
    size: int

    @classmethod
    def of(cls, size: int) -> "_Arena":
        memory = np.empty(size + _ALIGNMENT, np.uint8)
        return cls(memory, -(-memory.ctypes.data // _ALIGNMENT) * _ALIGNMENT, size)


class ArenaPool:
    """Arenas for calls that may run at the same time; there are as many as calls ever overlapped."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._free: list[_Arena] = []

    @contextmanager
    def borrow(self, size: int) -> Iterator[int]:
        """The address of `size` bytes at a multiple of 64, for the duration of the block; 0 for none."""
        if size <= 0:
            yield 0
            return
        with self._lock:
            arena = self._free.pop() if self._free else None
        if arena is None or arena.size < size:
            arena = _Arena.of(size)
        try:
            yield arena.address
        finally:
            with self._lock:
                self._free.append(arena)
