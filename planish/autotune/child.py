"""Work in a process of its own: what crashes or hangs there is a failure here, and the next request starts anew.

A kernel that writes outside of its memory takes the whole process's GPU context with it.
"""

import multiprocessing
from collections.abc import Callable
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from multiprocessing.context import SpawnProcess
from typing import Any, Generic, TypeVar

from planish.errors import PlanishError

_Asked = TypeVar("_Asked")
_Told = TypeVar("_Told")
_ENDING_SECONDS = 5.0


class ChildError(Exception):
    """What was asked failed; the text says how."""


class ChildUnavailable(ChildError):
    """The process cannot even be made ready; the text says why."""


@dataclass(frozen=True, slots=True)
class _Fault:
    """What the process raised, as text."""

    text: str


def _nothing() -> None:
    pass


@dataclass(slots=True)
class Child(Generic[_Asked, _Told]):
    """A process that answers requests with `answer` after one call of `prepare`; it must be able to import both.

    `parent` says whether it has children itself, who outlive an interpreter that does not `end` it.
    """

    answer: Callable[[_Asked], _Told]
    prepare: Callable[[], None] = _nothing
    parent: bool = False
    starting_seconds: float = 120.0
    _process: SpawnProcess | None = None
    _pipe: Connection | None = field(default=None)

    def run(self, asked: _Asked, *, timeout: float) -> _Told:
        """The answer. Raises ChildError where it raised, died or took longer than `timeout` seconds, ChildUnavailable
        where the process could not be prepared."""
        pipe = self._started()
        try:
            pipe.send(asked)
        except OSError as error:
            raise ChildError(f"the process died with status {self._ended()}") from error
        told: _Told = self._received(timeout)
        return told

    def end(self) -> None:
        """Stop the process, whatever it does."""
        if self._process is not None:
            self._process.kill()
        self._ended()

    def _started(self) -> Connection:
        if self._pipe is None:
            context = multiprocessing.get_context("spawn")
            self._pipe, theirs = context.Pipe()
            given = (theirs, self.answer, self.prepare)
            self._process = context.Process(target=_serve, args=given, daemon=not self.parent)
            self._process.start()
            theirs.close()
            try:
                self._received(self.starting_seconds)
            except ChildError as error:
                raise ChildUnavailable(str(error)) from error
        return self._pipe

    def _received(self, timeout: float) -> Any:
        assert self._pipe is not None
        if not self._pipe.poll(timeout):
            self.end()
            raise ChildError(f"took longer than {timeout:.0f} s")
        try:
            found = self._pipe.recv()
        except (EOFError, ConnectionResetError) as error:
            code = self._ended()
            raise ChildError(f"the process died with status {code}") from error
        if isinstance(found, _Fault):
            self.end()
            raise ChildError(found.text)
        return found

    def _ended(self) -> int | None:
        process, self._process, self._pipe = self._process, None, None
        if process is None:
            return None
        process.join(_ENDING_SECONDS)
        return process.exitcode


def _serve(pipe: Connection, answer: Callable[[Any], Any], prepare: Callable[[], None]) -> None:
    pipe.send(_attempt(prepare))
    while True:
        try:
            asked = pipe.recv()
        except EOFError:
            return
        pipe.send(_attempt(answer, asked))


def _attempt(call: Callable[..., Any], *asked: Any) -> Any:
    try:
        return call(*asked)
    except (PlanishError, RuntimeError, ImportError, AssertionError, ValueError) as error:
        return _Fault(f"{type(error).__name__}: {' '.join(str(error).split())[:500]}")
