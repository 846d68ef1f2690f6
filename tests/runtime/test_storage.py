"""Hostile zips, full disks and kills at any instant."""

import hashlib
import stat
import struct
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from planish.errors import ArtifactError
from planish.runtime.artifact import write
from planish.runtime.inspection import inspect
from planish.runtime.intake import hash_file
from planish.runtime.loading import load
from planish.runtime.manifest import FileEntry
from planish.runtime.storage import check_files, describe_files, read_member
from tests.runtime.small import affine_contents, expected

X = np.ones((2, 4), np.float32)
Members = dict[str, bytes]


@pytest.mark.parametrize("size", [0, 1, 4096, 8192, 10000])
def test_a_file_is_hashed_piece_by_piece(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, size: int) -> None:
    data = np.random.default_rng(0).bytes(size)
    (tmp_path / "file").write_bytes(data)
    monkeypatch.setattr("planish.runtime.intake.PIECE_BYTES", 4096)
    assert hash_file(tmp_path / "file") == hashlib.sha256(data).hexdigest()


def test_a_large_file_has_the_hash_of_its_pieces_hashes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = np.random.default_rng(0).bytes((5 << 20) + 17)
    (tmp_path / "large").write_bytes(data)
    (tmp_path / "small").write_bytes(data[:100])
    monkeypatch.setattr("planish.runtime.intake.PIECE_BYTES", 2 << 20)
    found = describe_files(tmp_path)
    pieces = [hashlib.sha256(data[start : start + (2 << 20)]).digest() for start in range(0, len(data), 2 << 20)]
    assert found["large"] == FileEntry(hashlib.sha256(b"".join(pieces)).hexdigest(), len(data), 2 << 20)
    assert found["small"] == FileEntry(hashlib.sha256(data[:100]).hexdigest(), 100)
    check_files(tmp_path, found, contents=True)
    assert read_member(tmp_path, "large", found["large"]) == data


@pytest.mark.parametrize("place", [0, 3 << 20, (5 << 20) + 16])
def test_a_changed_byte_of_any_piece_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: int) -> None:
    data = bytearray((5 << 20) + 17)
    (tmp_path / "large").write_bytes(data)
    monkeypatch.setattr("planish.runtime.intake.PIECE_BYTES", 2 << 20)
    found = describe_files(tmp_path)
    data[place] = 1
    (tmp_path / "large").write_bytes(data)
    with pytest.raises(ArtifactError, match="'large' is damaged: its hash is not the recorded one"):
        check_files(tmp_path, found, contents=True)


def repack(archive: Path, change: Callable[[zipfile.ZipFile], None], *, drop: str = "") -> Path:
    """A new zip of the members of `archive` but `drop`, with what `change` adds."""
    path = archive.with_name("tricky.zip")
    with zipfile.ZipFile(archive) as source, zipfile.ZipFile(path, "w") as target:
        for member in source.infolist():
            if member.filename != drop:
                target.writestr(member.filename, source.read(member))
        change(target)
    return path


def refused(path: Path, words: str, tmp_path: Path) -> None:
    before = set(tmp_path.rglob("*"))
    for read in (load, inspect):
        with pytest.raises(ArtifactError, match=words):
            read(path)
    assert set(tmp_path.rglob("*")) == before


@pytest.mark.parametrize(
    "name", ["../evil", "kernels/../../evil", "/tmp/evil", "a\\..\\evil", "c:evil", "./evil", "a//b"]
)
def test_refuses_a_name_that_leaves_the_folder(archive: Path, tmp_path: Path, name: str) -> None:
    path = repack(archive, lambda file: file.writestr(name, "evil"))
    refused(path, "the zip holds .*evil|b', which (is not a relative path|has an empty part)", tmp_path)


def test_refuses_a_link(archive: Path, tmp_path: Path) -> None:
    link = zipfile.ZipInfo("program.txt")
    link.external_attr = (stat.S_IFLNK | 0o777) << 16
    path = repack(archive, lambda file: file.writestr(link, "/etc/passwd"), drop="program.txt")
    refused(path, "the zip holds 'program.txt', which is a link or a device", tmp_path)


def test_refuses_a_name_twice(archive: Path, tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match="Duplicate name"):
        path = repack(archive, lambda file: file.writestr("program.txt", "another"))
    refused(path, "the zip holds 'program.txt' twice", tmp_path)


def test_refuses_compression_and_so_bombs(archive: Path, tmp_path: Path) -> None:
    path = repack(
        archive, lambda file: file.writestr("program.txt", bytes(10_000_000), zipfile.ZIP_DEFLATED), drop="program.txt"
    )
    refused(path, r"the zip holds 'program.txt', which is compressed", tmp_path)


def test_refuses_members_that_overlap(archive: Path, tmp_path: Path) -> None:
    raw = archive.read_bytes()
    end = raw.rindex(b"PK\5\6")
    count, size, start = struct.unpack("<HII", raw[end + 10 : end + 20])
    name = b"kernels/model.so"
    record = raw.rindex(b"PK\1\2", start, raw.index(name, start))
    length = 46 + len(name) + sum(struct.unpack("<HH", raw[record + 30 : record + 34]))
    added = b"".join(raw[record : record + length].replace(name, b"kernels/model.%02d" % i) for i in range(5))
    tail = raw[end : end + 8] + struct.pack("<HHII", count + 5, count + 5, size + len(added), start) + raw[end + 20 :]
    (tmp_path / "overlap.zip").write_bytes(raw[:end] + added + tail)
    refused(tmp_path / "overlap.zip", "the zip unpacks to more than its own size", tmp_path)


def test_refuses_what_the_manifest_does_not_list_as_it_is(archive: Path) -> None:
    with pytest.raises(ArtifactError, match=r"'more\.txt' is in the artifact but not in its manifest"):
        load(repack(archive, lambda file: file.writestr("more.txt", "text")))
    with pytest.raises(ArtifactError, match=r"'program\.txt' is missing from the artifact"):
        load(repack(archive, lambda file: None, drop="program.txt"))
    with pytest.raises(ArtifactError, match=r"'program\.txt' has 4 bytes, not 19"):
        load(repack(archive, lambda file: file.writestr("program.txt", "main"), drop="program.txt"))
    with pytest.raises(ArtifactError, match=r"'program\.txt' is damaged"):
        load(repack(archive, lambda file: file.writestr("program.txt", "x" * 19), drop="program.txt"))


CHILD = """
import os, signal, sys
from pathlib import Path
from planish.runtime.artifact import write
from tests.runtime.small import affine_contents

contents = affine_contents(Path(sys.argv[1]), recipe=("new",))
path, instant, events = Path(sys.argv[2]), int(sys.argv[3]), 0

def count(event, arguments):
    global events
    if event in ("open", "os.mkdir", "os.rename", "os.remove", "os.rmdir", "shutil.rmtree", "ctypes.dlsym"):
        events += 1
        if events == instant:
            os.kill(os.getpid(), signal.SIGKILL)

sys.addaudithook(count)
write(path, contents)
print(events)
"""


def save_in_child(library: Path, path: Path, instant: int) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", CHILD, str(library), str(path), str(instant)]
    return subprocess.run(command, capture_output=True, text=True, check=False, cwd=Path(__file__).parents[2])


@pytest.mark.parametrize("suffix", ["planish", "zip"])
def test_a_save_killed_at_any_instant_leaves_the_old_artifact_or_the_new_one(
    library: Path, tmp_path: Path, suffix: str
) -> None:
    events = int(save_in_child(library, tmp_path / f"count.{suffix}", 0).stdout)
    assert events > 10
    states = []
    for instant in sorted({1, 2, *np.linspace(3, events, 8, dtype=int).tolist(), events - 1}):
        place = tmp_path / str(instant)
        place.mkdir()
        path = place / f"model.{suffix}"
        write(path, affine_contents(library, recipe=("old",)))
        assert save_in_child(library, path, instant).returncode == -9
        np.testing.assert_array_equal(load(path)(X).y, expected(X))
        states.append(inspect(path).recipe)
        leftovers = [item for item in place.iterdir() if item != path]
        assert all(item.name.endswith(".partial") for item in leftovers)
        for item in leftovers:
            with pytest.raises(ArtifactError, match=r"it has no manifest\.json"):
                load(item)
    assert states == sorted(states, reverse=True)
    assert states[0] == ("old",)


LIMITED = """
import resource, sys
from pathlib import Path
import numpy as np
from planish.errors import ArtifactError
from planish.runtime.artifact import write
from tests.runtime.small import affine_contents

contents = affine_contents(Path(sys.argv[1]), weights={"w": np.zeros(1 << 20, np.float32)}, golden={})
resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, 1 << 20))
try:
    write(sys.argv[2], contents)
except ArtifactError as error:
    print(error)
"""


@pytest.mark.parametrize("name", ["model.planish", "model.zip"])
def test_a_full_disk_is_an_error_and_leaves_nothing(library: Path, tmp_path: Path, name: str) -> None:
    command = [sys.executable, "-c", LIMITED, str(library), str(tmp_path / name)]
    child = subprocess.run(command, capture_output=True, text=True, check=True, cwd=Path(__file__).parents[2])
    assert f"cannot save '{tmp_path / name}': [Errno 27] File too large; nothing was changed there" in child.stdout
    assert list(tmp_path.iterdir()) == []
