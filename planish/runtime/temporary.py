"""Temporary folders that know whether their process still runs, so that those of killed processes are removed."""

import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

_LOCK: Final = "owner.lock"


@dataclass(frozen=True, slots=True)
class OwnedFolder:
    """A folder that this process owns for as long as it holds a lock on a file in it."""

    path: Path
    handle: int

    def remove(self) -> None:
        """Delete the folder; called once."""
        shutil.rmtree(self.path, ignore_errors=True)
        os.close(self.handle)


def own_folder(parent: Path | None = None, *, prefix: str = "planish-", suffix: str = "") -> OwnedFolder:
    """A new empty folder in `parent`, by default the system's for temporary files.

    Folders of the same kind there whose process was killed are removed first. Raises OSError where none can be made.
    """
    parent = parent or Path(tempfile.gettempdir())
    _sweep(parent, prefix, suffix)
    path = Path(tempfile.mkdtemp(prefix=prefix, suffix=suffix, dir=parent))
    # A lock file is locked before it has its name: one that is found unlocked has lost its owner.
    fresh = path / f"{_LOCK}.new"
    handle = os.open(fresh, os.O_CREAT | os.O_EXCL | os.O_RDWR | os.O_CLOEXEC, 0o600)
    if _locked(handle):
        fresh.rename(path / _LOCK)
    return OwnedFolder(path, handle)


@contextmanager
def owned_folder(parent: Path | None = None, *, prefix: str = "planish-", suffix: str = "") -> Iterator[Path]:
    """`own_folder` while the block runs."""
    folder = own_folder(parent, prefix=prefix, suffix=suffix)
    try:
        yield folder.path
    finally:
        folder.remove()


def _sweep(parent: Path, prefix: str, suffix: str) -> None:
    for path in _listed(parent):
        if path.name.startswith(prefix) and path.name.endswith(suffix) and _is_own(path):
            _remove_abandoned(path)


def _listed(parent: Path) -> list[Path]:
    try:
        return list(parent.iterdir())
    except OSError:
        return []


def _is_own(path: Path) -> bool:
    try:
        return not path.is_symlink() and path.is_dir() and path.stat().st_uid == os.getuid()
    except OSError:
        return False


def _remove_abandoned(path: Path) -> None:
    try:
        handle = os.open(path / _LOCK, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
    except OSError:
        return
    try:
        if _locked(handle) and os.fstat(handle).st_nlink:
            shutil.rmtree(path, ignore_errors=True)
    finally:
        os.close(handle)


def _locked(handle: int) -> bool:
    """Whether the lock is ours now; never where the file system has no locks."""
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True
