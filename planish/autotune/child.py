"""Work in a process of its own: what crashes or hangs there is a failure here, and the next request starts anew.

A kernel that writes outside of its memory takes the whole process's GPU context with it.
"""

import multiprocessing
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from multiprocessing.context import SpawnProcess
from typing import Any, Generic, TypeVar

from planish.errors import PlanishError
from planish.runtime.orphans import end_with_parent

_Asked = TypeVar("_Asked")
_Told = TypeVar("_Told")
_ENDING_SECONDS = 5.0
# what is told in words; of anything else the place is told too
_EXPECTED = (PlanishError, RuntimeError, ImportError, AssertionError, ValueError, OSError)


class ChildError(Exception):
    """What was asked failed; the text says how."""


class ChildUnavailable(ChildError):
    """The process cannot even be made ready; the text says why."""


@dataclass(frozen=True, slots=True)
class _Fault:
    """What the process raised, as text."""

    text: str


@dataclass(frozen=True, slots=True)
class _Ended:
    """Nothing more comes."""


def _nothing() -> None:
    pass


@dataclass(slots=True)
class Child(Generic[_Asked, _Told]):
    """A process that answers requests with `answer` after one call of `prepare`; it must be able to import both.

    It ends with this process. `parent` says whether it has children itself, which an interpreter that does not `end` it
    waits for.
    """

    answer: Callable[[_Asked], "_Told | Iterator[_Told]"]
    prepare: Callable[[], None] = _nothing
    parent: bool = False
    starting_seconds: float = 240.0  # where nothing is in the page cache yet
    _process: SpawnProcess | None = None
    _pipe: Connection | None = field(default=None)

    def run(self, asked: _Asked, *, timeout: float) -> _Told:
        """The answer. Raises ChildError where it raised, died or took longer than `timeout` seconds, ChildUnavailable
        where the process could not be prepared."""
        self._send(asked)
        told: _Told = self._received(timeout, timeout)
        return told

    def each(self, asked: _Asked, *, timeout: float) -> Iterator[_Told]:
        """The answers, of an `answer` that gives several, as they come; all of them within `timeout` seconds. Raises as
        `run` does."""
        self._send(asked)
        end = time.monotonic() + timeout
        while not isinstance(told := self._received(max(0.0, end - time.monotonic()), timeout), _Ended):
            yield told

    def end(self) -> None:
        """Stop the process, whatever it does."""
        if self._process is not None:
            self._process.kill()
        self._ended()

    def _send(self, asked: _Asked) -> None:
        pipe = self._started()
        try:
            pipe.send(asked)
        except OSError as error:
            raise ChildError(f"the process died with status {self._ended()}") from error

    def _started(self) -> Connection:
        if self._pipe is None:
            context = multiprocessing.get_context("spawn")
            self._pipe, theirs = context.Pipe()
            given = (theirs, self.answer, self.prepare)
            self._process = context.Process(target=_serve, args=given, daemon=not self.parent)
            self._process.start()
            theirs.close()
            try:
                self._received(self.starting_seconds, self.starting_seconds)
            except ChildError as error:
                raise ChildUnavailable(str(error)) from error
        return self._pipe

    def _received(self, seconds: float, limit: float) -> Any:
        assert self._pipe is not None
        if not self._pipe.poll(seconds):
            self.end()
            raise ChildError(f"took longer than {limit:.0f} s")
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
    end_with_parent()
    for told in _attempts(prepare):
        pipe.send(told)
    while True:
        try:
            asked = pipe.recv()
        except EOFError:
            return
        for told in _attempts(answer, asked):
            pipe.send(told)


def _attempts(call: Callable[..., Any], *asked: Any) -> Iterator[Any]:
    """What the call gives; what it gives one by one, and that it has ended; or what it raised."""
    try:
        found = call(*asked)
        if isinstance(found, Iterator):
            yield from found
            found = _Ended()
        yield found
    except Exception as error:  # noqa: BLE001 (raised again where it was asked for)
        yield _Fault(_words(error))


def _words(error: Exception) -> str:
    text = f"{type(error).__name__}: {' '.join(str(error).split())[:500]}"
    if isinstance(error, _EXPECTED):
        return text
    place = traceback.extract_tb(error.__traceback__)[-1]
    return f"{text} ({place.filename.rpartition('/')[2]}:{place.lineno} in {place.name})"
