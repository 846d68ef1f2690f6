"""Files on their way in: read once, in pieces, by several threads, and hashed where they land."""

import hashlib
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from planish.errors import ArtifactError
from planish.runtime.intake import Intake
from planish.runtime.manifest import FileEntry

PIECE = 1 << 20
DATA = np.random.default_rng(0).bytes(3 * PIECE + 4321)
HASH = hashlib.sha256(
    b"".join(hashlib.sha256(DATA[start : start + PIECE]).digest() for start in range(0, len(DATA), PIECE))
).hexdigest()
ENTRY = FileEntry(HASH, len(DATA), PIECE)


class Buffers:
    """Two buffers in turn, from which what has landed is copied to its place when the buffer is used again."""

    chunk_bytes = 70_000

    def __init__(self, there: bytearray) -> None:
        self.there, self.buffers, self.turn = there, [bytearray(self.chunk_bytes) for _ in range(2)], 0
        self.sent: list[tuple[int, int] | None] = [None, None]
        self.threads: set[int] = set()

    def place(self, start: int, count: int) -> memoryview:
        self.threads.add(threading.get_ident())
        self.turn ^= 1
        self.flush(self.turn)
        return memoryview(self.buffers[self.turn])[:count]

    def landed(self, start: int, count: int) -> None:
        self.sent[self.turn] = (start, count)

    def flush(self, turn: int) -> None:
        if (sent := self.sent[turn]) is not None:
            self.there[sent[0] : sum(sent)] = self.buffers[turn][: sent[1]]
            self.sent[turn] = None


@pytest.fixture
def pool() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(3) as made:
        yield made


def intake(folder: Path, pool: ThreadPoolExecutor, entry: FileEntry = ENTRY, *, contents: bool = True) -> Intake:
    (folder / "file").write_bytes(DATA)
    return Intake(folder, {"file": entry}, pool, contents=contents)


@pytest.mark.parametrize("entry", [ENTRY, FileEntry(hashlib.sha256(DATA).hexdigest(), len(DATA))])
def test_what_lands_is_the_file_and_has_its_hash(tmp_path: Path, pool: ThreadPoolExecutor, entry: FileEntry) -> None:
    there, made = bytearray(len(DATA)), []

    def landing() -> Buffers:
        made.append(Buffers(there))
        return made[-1]

    intake(tmp_path, pool, entry).read("file", landing).finish()
    for each in made:
        each.flush(0)
        each.flush(1)
    assert bytes(there) == DATA


@pytest.mark.parametrize("place", [0, PIECE + 5, len(DATA) - 1])
def test_a_changed_byte_is_found_where_it_landed(tmp_path: Path, pool: ThreadPoolExecutor, place: int) -> None:
    taken = intake(tmp_path, pool)
    changed = bytearray(DATA)
    changed[place] ^= 1
    (tmp_path / "file").write_bytes(changed)
    reading = taken.read("file", lambda: Buffers(bytearray(len(DATA))))
    with pytest.raises(ArtifactError, match="'file' is damaged: its hash is not the recorded one; save or download"):
        reading.finish()
    memory = taken.into_memory("file")
    with pytest.raises(ArtifactError, match="'file' is damaged"):
        taken.finish()
    assert bytes(memory) == changed


def test_without_contents_nothing_is_hashed(tmp_path: Path, pool: ThreadPoolExecutor) -> None:
    taken = intake(tmp_path, pool, FileEntry("another", len(DATA), PIECE), contents=False)
    memory = taken.into_memory("file")
    taken.check(["file"])
    taken.finish()
    assert bytes(memory) == DATA
    assert memory.readonly


def test_a_file_that_became_shorter_is_named(tmp_path: Path, pool: ThreadPoolExecutor) -> None:
    taken = intake(tmp_path, pool)
    (tmp_path / "file").write_bytes(DATA[:-1])
    with pytest.raises(
        ArtifactError, match=r"cannot read '.*file': it became shorter while it was read; load it again"
    ):
        taken.read("file", lambda: Buffers(bytearray(len(DATA)))).finish()


def test_a_reading_that_is_stopped_begins_no_further_piece(tmp_path: Path) -> None:
    begun, go = threading.Event(), threading.Event()

    class Slow(Buffers):
        places: list[int] = []  # noqa: RUF012

        def place(self, start: int, count: int) -> memoryview:
            self.places.append(start)
            begun.set()
            assert go.wait(10)
            return super().place(start, count)

    with ThreadPoolExecutor(1) as pool:
        reading = intake(tmp_path, pool).read("file", lambda: Slow(bytearray(len(DATA))))
        assert begun.wait(10)
        for part in reading.parts[1:]:
            part.cancel()
        go.set()
        reading.stop()
    assert max(Slow.places) < PIECE
    assert all(part.done() for part in reading.parts)
