"""Measurements in a process of their own: what crashes or hangs there is a failure here, and the next one starts anew.

A kernel that writes outside of its memory takes the whole process's GPU context with it.
"""

import multiprocessing
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from multiprocessing.context import SpawnProcess
from typing import TypeAlias

from benchmarks.gpu.results import GpuResult
from planish.errors import PlanishError

Measure: TypeAlias = Callable[[str, tuple[int, ...], float], Sequence[GpuResult]]
_ENDING_SECONDS = 5.0


class ChildError(Exception):
    """A measurement failed; the text says how."""


@dataclass(slots=True)
class Child:
    """A process that measures cases by name with `measure`, which it must be able to import."""

    measure: Measure
    _process: SpawnProcess | None = None
    _pipe: Connection | None = field(default=None)

    def run(self, case: str, sizes: tuple[int, ...], *, seconds: float, timeout: float) -> Sequence[GpuResult]:
        """The results of a case; raises ChildError where it raised, died or took longer than `timeout` seconds."""
        pipe = self._started()
        pipe.send((case, sizes, seconds))
        if not pipe.poll(timeout):
            self.end()
            raise ChildError(f"took longer than {timeout:.0f} s")
        try:
            found: Sequence[GpuResult] | str = pipe.recv()
        except EOFError as error:
            code = self._ended()
            raise ChildError(f"the process died with status {code}") from error
        if isinstance(found, str):
            self.end()
            raise ChildError(found)
        return found

    def end(self) -> None:
        """Stop the process, whatever it does."""
        if self._process is not None:
            self._process.kill()
        self._ended()

    def _started(self) -> Connection:
        if self._pipe is None:
            context = multiprocessing.get_context("spawn")
            self._pipe, theirs = context.Pipe()
            self._process = context.Process(target=_serve, args=(theirs, self.measure), daemon=False)
            self._process.start()
            theirs.close()
        return self._pipe

    def _ended(self) -> int | None:
        process, self._process, self._pipe = self._process, None, None
        if process is None:
            return None
        process.join(_ENDING_SECONDS)
        return process.exitcode


def _serve(pipe: Connection, measure: Measure) -> None:
    while True:
        try:
            case, sizes, seconds = pipe.recv()
        except EOFError:
            return
        pipe.send(_attempt(measure, case, sizes, seconds))


def _attempt(measure: Measure, case: str, sizes: tuple[int, ...], seconds: float) -> Sequence[GpuResult] | str:
    try:
        return measure(case, sizes, seconds)
    except (PlanishError, RuntimeError, ImportError, AssertionError, ValueError) as error:
        return f"{type(error).__name__}: {' '.join(str(error).split())[:500]}"
