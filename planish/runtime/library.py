"""The shared library of an artifact: loading it and calling its entries."""

import ctypes
import os
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from planish.errors import ArtifactError

_LOADED: dict[tuple[int, int], ctypes.CDLL] = {}
_LOCK = threading.Lock()
_POINTERS = ctypes.POINTER(ctypes.c_void_p)
_SIZES = ctypes.POINTER(ctypes.c_int64)
_RUN_ARGUMENTS = (
    _POINTERS, _POINTERS, _SIZES, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int32, ctypes.POINTER(ctypes.c_double),
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class NativeEntry:
    """One entry: `run` as declared in planish.h (0 means success) and the arena that a call needs, in bytes."""

    name: str
    run: Callable[..., int]
    arena_bytes: Callable[..., int]


class NativeLibrary:
    """A loaded library; raises ArtifactError where the system cannot load it or an entry is missing."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._library = _open(path)

    def entry(self, name: str) -> NativeEntry:
        run, arena_bytes = self._symbol(name), self._symbol(f"{name}_arena_bytes")
        run.argtypes, run.restype = _RUN_ARGUMENTS, ctypes.c_int32
        arena_bytes.argtypes, arena_bytes.restype = (_SIZES, ctypes.c_int32), ctypes.c_int64
        return NativeEntry(name, run, arena_bytes)

    def threads(self) -> int:
        """The library's default number of threads: the cores that this process may use."""
        function = self._symbol("planish_threads")
        function.argtypes, function.restype = (), ctypes.c_int32
        return max(1, int(function()))

    def _symbol(self, name: str) -> "ctypes._NamedFuncPointer":
        try:
            return self._library[name]
        except AttributeError as error:
            raise ArtifactError(f"{self._path.name} has no function '{name}'; the artifact is inconsistent") from error


def _open(path: Path) -> ctypes.CDLL:
    # The loader returns the library that it already has under a path's spelling even when the file there was
    # replaced, so every file that is loaded gets a spelling of its own. Libraries are never unloaded (their
    # threads live on), hence an inode in the table cannot be reused.
    try:
        status = path.stat()
        with _LOCK:
            identity = (status.st_dev, status.st_ino)
            if identity not in _LOADED:
                spelling = f"{path.parent}/{'./' * len(_LOADED)}{path.name}"
                _LOADED[identity] = ctypes.CDLL(spelling, mode=os.RTLD_LOCAL | os.RTLD_NOW)
            return _LOADED[identity]
    except OSError as error:
        raise ArtifactError(f"the system cannot load '{path}': {error}; compile the model on this machine") from error
