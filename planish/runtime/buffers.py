"""Memory that calls borrow, reused from call to call and in huge pages where it is large: arenas and outputs.

Fresh memory costs a page fault for every 4 KiB that a call writes, more than writing it. An output's memory is lent: it
returns when the caller's array or tensor and everything that shares its memory are gone.
"""

import sys
import threading
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Final, Protocol

import numpy as np

from planish.runtime.blocks import Block, advise_huge_pages

LENT_BYTES: Final = 64 << 10
"""Outputs below this many bytes are not lent: the allocators of numpy and torch reuse such memory themselves."""

_KEPT_BYTES: Final = 256 << 20
_OWN_REFERENCES: Final = 3


class ArenaPool:
    """Arenas for calls that may run at the same time; there are as many as calls ever overlapped."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._free: list[Block] = []

    @contextmanager
    def borrow(self, size: int) -> Iterator[int]:
        """The address of `size` bytes at a multiple of 64, for the duration of the block; 0 for none."""
        if size <= 0:
            yield 0
            return
        with self._lock:
            arena = self._free.pop() if self._free else None
        if arena is None or arena.size < size:
            arena = Block(size)
        try:
            yield arena.address
        finally:
            with self._lock:
                self._free.append(arena)


class OutputPool:
    """Memory of outputs, lent to callers and lent again when they have let go of it; safe from any thread.

    Memory is lent again for outputs of exactly its size. The pool keeps at most `kept_bytes`, lent memory included;
    beyond that it forgets what was lent longest ago, which then ends with the caller's last reference.
    """

    def __init__(self, kept_bytes: int = _KEPT_BYTES) -> None:
        self._lock = threading.Lock()
        self._kept_bytes = kept_bytes
        self._loans: list[_Loan] = []

    def array(self, size: int) -> np.ndarray[Any, Any]:
        """`size` writable bytes of any content, aligned to a page; from 1 byte on."""
        lent: np.ndarray[Any, Any] = self._lend(size, _Bytes, lambda: _Bytes(Block(size)))
        return lent

    def storage(self, size: int, torch: Any) -> Any:
        """A resizable torch storage of `size` bytes of any content on the CPU."""
        if not hasattr(torch._C, "_storage_Use_Count"):
            return _new_storage(size, torch)
        return self._lend(size, _Storage, lambda: _Storage(_new_storage(size, torch), torch))

    def _lend(self, size: int, kind: type["_Bytes | _Storage"], make: Callable[[], "_Loan"]) -> Any:
        with self._lock:
            found = next(
                (loan for loan in self._loans if loan.size == size and type(loan) is kind and loan.ended), None
            )
            if found is not None:
                self._loans.remove(found)
        loan = found or make()
        lent = loan.lend()
        with self._lock:
            self._loans.append(loan)
            while sum(loan.size for loan in self._loans) > self._kept_bytes:
                del self._loans[0]
        return lent


class _Loan(Protocol):
    @property
    def size(self) -> int: ...

    @property
    def ended(self) -> bool:
        """Nobody but the pool can reach the memory, and it is as it was when it was lent."""

    def lend(self) -> Any: ...


class _Bytes:
    def __init__(self, block: Block) -> None:
        self.size = block.size
        self._block = block
        self._lent: weakref.ref[np.ndarray[Any, Any]] | None = None

    @property
    def ended(self) -> bool:
        return self._lent is not None and self._lent() is None

    def lend(self) -> np.ndarray[Any, Any]:
        # views of this array keep it alive, not only the memory
        lent: np.ndarray[Any, Any] = np.frombuffer(self._block.memory, np.uint8)
        self._lent = weakref.ref(lent)
        return lent


class _Storage:
    def __init__(self, storage: Any, torch: Any) -> None:
        self._storage, self._torch = storage, torch
        self._address = storage.data_ptr()
        self.size: int = storage.nbytes()

    @property
    def ended(self) -> bool:
        storage = self._storage
        # A storage has one Python object, ours, which the caller may hold (we: field, local, argument).
        if self._torch._C._storage_Use_Count(storage._cdata) != 1 or sys.getrefcount(storage) > _OWN_REFERENCES:
            return False
        # One that was resized, shared with other processes or exported to numpy (no resizing then) is not as before.
        as_before = storage.data_ptr() == self._address and storage.nbytes() == self.size
        return bool(as_before and storage.resizable())

    def lend(self) -> Any:
        return self._storage


def _new_storage(size: int, torch: Any) -> Any:
    storage = torch.empty(size, dtype=torch.uint8, device="cpu").untyped_storage()
    advise_huge_pages(storage.data_ptr(), size)
    return storage
