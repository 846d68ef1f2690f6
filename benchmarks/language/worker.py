"""A peer in a process of its own, so that libraries share neither threads nor memory, and may crash."""

import multiprocessing
import os
import time
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any

from benchmarks.language.peers.peer import Generated, LanguagePeer, Setting
from benchmarks.language.source import Ids, Source, cache_folder
from benchmarks.memory import memory_bytes
from benchmarks.peers import PeerError

PREPARE_SECONDS = 900.0
_STOP_SECONDS = 10.0


@dataclass(frozen=True, slots=True)
class Ready:
    """A prepared peer: seconds of preparation, the most memory of its process so far in MiB, whether it made files."""

    seconds: float
    peak_mib: int
    converted: bool


class Worker:
    """A peer prepared in a new process; `ready` says what that took. Raises PeerError with its reason."""

    def __init__(self, peer: LanguagePeer, source: Source, kind: str, setting: Setting) -> None:
        spawn = multiprocessing.get_context("spawn")
        self._name = peer.name
        self._pipe, theirs = spawn.Pipe()
        self._process = spawn.Process(target=_serve, args=(theirs, peer, source, kind, setting), daemon=True)
        self._process.start()
        theirs.close()
        self.ready: Ready = self._answer(PREPARE_SECONDS)

    def generate(self, prompts: Ids, count: int, limit_seconds: float) -> Generated:
        """See `Session.generate`. A process that has no answer in time is ended, and PeerError says so."""
        self._pipe.send((prompts, count))
        generated: Generated = self._answer(limit_seconds)
        return generated

    def close(self) -> None:
        """Ends the process."""
        if self._process.is_alive():
            self._pipe.send(None)
            self._process.join(_STOP_SECONDS)
        if self._process.is_alive():
            self._process.kill()
            self._process.join()
        self._pipe.close()

    def _answer(self, limit_seconds: float) -> Any:
        try:
            if not self._pipe.poll(limit_seconds):
                self._process.kill()
                raise PeerError(f"{self._name} had no answer within the limit of {limit_seconds:g} s")
            answer = self._pipe.recv()
        except EOFError as error:
            self._process.join(_STOP_SECONDS)
            raise PeerError(f"{self._name} ended its process with status {self._process.exitcode}") from error
        if isinstance(answer, str):
            raise PeerError(answer)
        return answer


def prepared(peer: LanguagePeer, source: Source, kind: str, setting: Setting) -> Worker:
    """A worker whose process has nothing but loaded files: where it made them first, another takes its place."""
    worker = Worker(peer, source, kind, setting)
    if not worker.ready.converted:
        return worker
    worker.close()
    return Worker(peer, source, kind, setting)


def _serve(pipe: Connection, peer: LanguagePeer, source: Source, kind: str, setting: Setting) -> None:
    _silence()
    start, before = time.perf_counter(), _files()
    try:
        session = peer.prepare(source, kind, setting)
        session.generate(source.prompts(setting.batch, 4, 0), 3)
        pipe.send(Ready(time.perf_counter() - start, memory_bytes("VmHWM") >> 20, _files() != before))
        while (request := pipe.recv()) is not None:
            pipe.send(session.generate(*request))
    except (PeerError, MemoryError, OSError, RuntimeError, ValueError) as error:
        pipe.send(str(error) if isinstance(error, PeerError) else f"{peer.name}: {type(error).__name__}: {error}")


def _files() -> set[str]:
    return {path.name for path in cache_folder().iterdir()} if cache_folder().exists() else set()


def _silence() -> None:
    """What libraries print would mix with the progress."""
    nothing = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nothing, 1)
    os.dup2(nothing, 2)
