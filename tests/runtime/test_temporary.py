"""Temporary folders: those of killed processes are removed, those of living ones and of others stay."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from planish.runtime.temporary import own_folder, owned_folder

_OWNER = """
import sys, time
from pathlib import Path
from planish.runtime.temporary import own_folder
folder = own_folder(Path(sys.argv[1]))
(folder.path / "data").write_text("x")
print(folder.path, flush=True)
time.sleep(600)
"""


def _owner(parent: Path) -> tuple[subprocess.Popen[str], Path]:
    process = subprocess.Popen([sys.executable, "-c", _OWNER, str(parent)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    return process, Path(process.stdout.readline().strip())


def test_the_folder_of_a_killed_process_goes_with_the_next_one(tmp_path: Path) -> None:
    process, left = _owner(tmp_path)
    with process:
        with owned_folder(tmp_path) as own:
            assert sorted(tmp_path.iterdir()) == sorted([left, own])
        process.send_signal(signal.SIGKILL)
    assert (left / "data").exists()
    with owned_folder(tmp_path) as own:
        assert list(tmp_path.iterdir()) == [own]
    assert list(tmp_path.iterdir()) == []


def test_own_folders_stay_until_they_are_removed(tmp_path: Path) -> None:
    first, second = own_folder(tmp_path), own_folder(tmp_path)
    assert sorted(tmp_path.iterdir()) == sorted([first.path, second.path])
    assert first.path.stat().st_mode & 0o077 == 0
    first.remove()
    assert list(tmp_path.iterdir()) == [second.path]
    second.remove()


@pytest.mark.parametrize("kind", ["another name", "no lock", "a link", "a linked lock"])
def test_what_is_not_such_a_folder_is_left_alone(tmp_path: Path, kind: str) -> None:
    other = tmp_path / "other"
    other.mkdir()
    (other / "owner.lock").touch()
    (other / "data").touch()
    match kind:
        case "no lock":
            (tmp_path / "planish-here").mkdir()
        case "a link":
            (tmp_path / "planish-here").symlink_to(other)
        case "a linked lock":
            (tmp_path / "planish-here").mkdir()
            (tmp_path / "planish-here" / "owner.lock").symlink_to(other / "owner.lock")
    before = sorted(tmp_path.rglob("*"))
    own_folder(tmp_path).remove()
    assert sorted(tmp_path.rglob("*")) == before


def test_a_folder_of_another_kind_is_left_alone(tmp_path: Path) -> None:
    process, left = _owner(tmp_path)
    with process:
        process.send_signal(signal.SIGKILL)
    own_folder(tmp_path, prefix=".a.", suffix=".partial").remove()
    assert (left / "data").exists()


def test_without_locks_nothing_is_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(handle: int, operation: int) -> None:
        raise OSError(95, os.strerror(95))

    with monkeypatch.context() as patch:
        patch.setattr("fcntl.flock", refuse)
        folder = own_folder(tmp_path)
    assert not (folder.path / "owner.lock").exists()
    own_folder(tmp_path).remove()
    assert folder.path.exists()
    folder.remove()
