"""Files of an artifact on their way in: threads hash them where they are, or read them once and hash what they read."""

import hashlib
import mmap
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from io import FileIO
from pathlib import Path
from queue import SimpleQueue
from typing import Final, Protocol

from planish.errors import ArtifactError
from planish.runtime.blocks import HUGE, Block
from planish.runtime.manifest import FileEntry

PIECE_BYTES: Final = 32 << 20  # large calls: each waits for the interpreter's lock, which others hold for long
THREADS: Final = min(16, os.cpu_count() or 1)


class Landing(Protocol):
    """Where one thread puts what it reads, at most `chunk_bytes` at a time.

    `place` gives memory for `count` bytes of the file from `start` on, `landed` says that they are there; the memory
    stays as it is until the second `place` after it, so that it is hashed meanwhile.
    """

    @property
    def chunk_bytes(self) -> int: ...

    def place(self, start: int, count: int) -> memoryview: ...

    def landed(self, start: int, count: int) -> None: ...


@dataclass(frozen=True, slots=True)
class Reading:
    """A file that threads read piece by piece; without an `entry` its hash is not looked at."""

    name: str
    parts: Sequence[Future[bytes]]
    entry: FileEntry | None

    def finish(self) -> None:
        """Wait until all of it is there; raises ArtifactError where it cannot be read, or is not what was recorded."""
        digests = [part.result() for part in self.parts]
        if self.entry is not None and joined(digests, self.entry.piece_bytes) != self.entry.sha256:
            raise damaged(self.name)

    def stop(self) -> None:
        """Begin no further piece, and wait for those that were begun."""
        for part in self.parts:
            part.cancel()
        wait(self.parts)


class Intake:
    """The files of a folder, whose hashes are compared with the `entries` of a manifest where `contents`."""

    def __init__(
        self, folder: Path, entries: Mapping[str, FileEntry], pool: ThreadPoolExecutor, *, contents: bool
    ) -> None:
        self._folder, self._entries, self._pool, self._contents = folder, entries, pool, contents
        self._readings: list[Reading] = []

    def check(self, names: Iterable[str]) -> None:
        """Begin to hash files where they are, the largest first; `finish` tells what comes of it."""
        for name in sorted(names, key=lambda name: -self._entries[name].bytes) if self._contents else ():
            entry = self._entries[name]
            self._readings.append(Reading(name, hashing(self._pool, self._folder / name, entry), entry))

    def read(self, name: str, landing: Callable[[], Landing]) -> Reading:
        """Begin to read a file, and to hash what was read; each thread has a landing of its own."""
        path, entry, free = self._folder / name, self._entries[name], SimpleQueue[Landing]()
        for _ in range(THREADS):
            free.put(landing())

        def piece(start: int, end: int) -> bytes:
            own = free.get()
            try:
                return _read(path, start, end, own, hashed=self._contents)
            finally:
                free.put(own)

        parts = [self._pool.submit(piece, *ends) for ends in _pieces(entry)]
        return Reading(name, parts, entry if self._contents else None)

    def into_memory(self, name: str) -> memoryview:
        """Begin to read a safetensors file into huge pages, of which its data begin one; it is there when `finish`
        returns."""
        size, before = self._entries[name].bytes, -_data_start(self._folder / name) % HUGE
        memory = Block(before + size).memory[before:]
        self._readings.append(self.read(name, lambda: _InMemory(memory)))
        return memory.toreadonly()

    def finish(self) -> None:
        """Wait for what was begun, but for a `read`; raises ArtifactError naming the first file that is altered."""
        for reading in self._readings:
            reading.finish()


@dataclass(frozen=True, slots=True)
class _InMemory:
    memory: memoryview
    chunk_bytes: int = PIECE_BYTES

    def place(self, start: int, count: int) -> memoryview:
        """See `Landing`."""
        return self.memory[start : start + count]

    def landed(self, start: int, count: int) -> None:
        """It stays where it is."""


def undescribed(size: int) -> FileEntry:
    """The entry of a file of so many bytes before it is hashed."""
    return FileEntry("", size, PIECE_BYTES if size > PIECE_BYTES else 0)


def hashing(pool: ThreadPoolExecutor, path: Path, entry: FileEntry) -> list[Future[bytes]]:
    """The hashes of the pieces of a file, as its entry divides it."""
    return [pool.submit(_hash_range, path, *ends) for ends in _pieces(entry)]


def hash_file(path: Path) -> str:
    """The sha256 of a file, in hex."""
    return _hash_range(path, 0, path.stat().st_size).hex()


def joined(digests: Sequence[bytes], piece_bytes: int) -> str:
    """The hash of a file, in hex, from those of its pieces."""
    return (hashlib.sha256(b"".join(digests)).digest() if piece_bytes else digests[0]).hex()


def damaged(name: str) -> ArtifactError:
    """The error of a file whose hash is another than the manifest's."""
    return ArtifactError(f"'{name}' is damaged: its hash is not the recorded one; save or download the artifact again")


def _data_start(path: Path) -> int:
    """Where the data of a safetensors file begin, by the length of its header, which may be wrong as long as nothing is
    checked."""
    try:
        with path.open("rb", buffering=0) as file:
            return 8 + int.from_bytes(file.read(8), "little")
    except OSError as error:
        raise ArtifactError(f"cannot read '{path}': {error}") from error


def _pieces(entry: FileEntry) -> list[tuple[int, int]]:
    step = entry.piece_bytes or max(1, entry.bytes)
    return [(start, min(start + step, entry.bytes)) for start in range(0, max(1, entry.bytes), step)]


def _read(path: Path, begin: int, end: int, landing: Landing, *, hashed: bool) -> bytes:
    """Read a piece of a file chunk by chunk; its sha256 where it is to be hashed."""
    digest = hashlib.sha256()
    try:
        with path.open("rb", buffering=0) as file:
            file.seek(begin)
            for start in range(begin, end, landing.chunk_bytes):
                count = min(landing.chunk_bytes, end - start)
                place = landing.place(start, count)
                _fill(file, place)
                landing.landed(start, count)
                if hashed:
                    digest.update(place)
    except (OSError, EOFError) as error:
        raise ArtifactError(f"cannot read '{path}': {error}") from error
    return digest.digest()


def _fill(file: FileIO, place: memoryview) -> None:
    left = place
    while len(left):
        count = file.readinto(left)
        if not count:
            raise EOFError("it became shorter while it was read; load it again")
        left = left[count:]


def _hash_range(path: Path, begin: int, end: int) -> bytes:
    """The sha256 of the bytes of a file from `begin`, a multiple of the system's pages, to `end`."""
    digest = hashlib.sha256()
    try:
        with path.open("rb", buffering=0) as file:
            if begin == end:
                return digest.digest()
            with mmap.mmap(file.fileno(), end - begin, access=mmap.ACCESS_READ, offset=begin) as data:
                for start in range(0, end - begin, PIECE_BYTES):
                    with memoryview(data) as view, view[start : start + PIECE_BYTES] as piece:
                        digest.update(piece)
                    data.madvise(mmap.MADV_DONTNEED)  # so that no more than a piece counts as this process's memory
            return digest.digest()
    except (OSError, ValueError) as error:
        raise ArtifactError(f"cannot read '{path}': {error}") from error
