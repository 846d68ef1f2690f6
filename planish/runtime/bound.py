"""A function bound to its arguments' memory, for calls in a loop: nothing is checked or allocated from call to call."""

import ctypes
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from planish.errors import ArtifactError
from planish.runtime.buffers import ArenaPool

Pointers = ctypes.Array[ctypes.c_void_p]


@dataclass(frozen=True, slots=True)
class NativeCall:
    """One native step with all that its entry takes but the arena."""

    entry: str
    run: Callable[..., int]
    inputs: Pointers
    outputs: Pointers
    sizes: ctypes.Array[ctypes.c_int64]
    weights: int
    threads: int


@dataclass(frozen=True, slots=True)
class BoundCall:
    """Computes `results` from the contents that the bound inputs have at each call; every call overwrites them.

    One call at a time: they share their outputs.
    """

    calls: tuple[NativeCall, ...]
    results: list[Any]
    arenas: ArenaPool
    arena_bytes: int
    kept: tuple[Any, ...]

    def __call__(self) -> list[Any]:
        """The results; raises ArtifactError where an entry fails."""
        with self.arenas.borrow(self.arena_bytes) as arena:
            for call in self.calls:
                code = call.run(call.inputs, call.outputs, call.sizes, call.weights, arena, call.threads, None)
                if code != 0:
                    raise ArtifactError(f"{call.entry} failed with code {code}")
        return self.results
