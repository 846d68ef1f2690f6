"""Memory of this process at whole pages, in huge pages where it is large."""

import ctypes
import math
import mmap
import sys
from collections.abc import Sequence
from itertools import accumulate
from typing import Any, Final

import numpy as np

HUGE: Final = 2 << 20
_MADV_HUGEPAGE: Final = 14


class Block:
    """`size` bytes of zeros at a multiple of the page size, of 2 MiB from 2 MiB on.

    `memory` are the bytes: who holds it, or an array over it, keeps the block.
    """

    def __init__(self, size: int) -> None:
        self.size = size
        huge = size >= HUGE
        reserved = _reserve(size + HUGE if huge else size)
        start = ctypes.addressof(ctypes.c_char.from_buffer(reserved))
        offset = -start % HUGE if huge else 0
        self.address = start + offset
        self.memory = memoryview(reserved)[offset : offset + size]
        advise_huge_pages(self.address, size)


def zeros(types: Sequence[tuple[tuple[int, ...], type[Any]]], together: int = 64 << 20) -> list[np.ndarray[Any, Any]]:
    """Arrays of zeros of the given shapes and dtypes, in one block if they have at most `together` bytes.

    There each begins at a multiple of 64 bytes. Larger ones, of which only parts may be used, are on their own.
    """
    sizes = [-(-math.prod(shape) * np.dtype(kind).itemsize // 64) * 64 for shape, kind in types]
    if sum(sizes) > together:
        return [np.zeros(shape, kind) for shape, kind in types]
    memory, starts = Block(max(1, sum(sizes))).memory, accumulate(sizes, initial=0)
    return [
        np.frombuffer(memory, kind, math.prod(shape), start).reshape(shape)
        for (shape, kind), start in zip(types, starts, strict=False)
    ]


def advise_huge_pages(address: int, size: int) -> None:
    """Ask for huge pages in the whole 2 MiB units of a range of memory; a wish that a system may not fulfil."""
    start, end = -(-address // HUGE) * HUGE, (address + size) // HUGE * HUGE
    if sys.platform == "linux" and start < end:
        ctypes.CDLL(None).madvise(ctypes.c_void_p(start), ctypes.c_size_t(end - start), _MADV_HUGEPAGE)


def _reserve(size: int) -> mmap.mmap:
    # Shared mappings, the default, take huge pages by another setting, which is mostly off.
    if hasattr(mmap, "MAP_PRIVATE"):
        return mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    return mmap.mmap(-1, size)
