"""Artifacts on disk: checking the files of a folder, unpacking a zip, and publishing either all at once."""

import ctypes
import hashlib
import os
import shutil
import stat
import zipfile
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Final

from planish.errors import ArtifactError
from planish.runtime.intake import THREADS, Intake, damaged, hashing, joined, undescribed
from planish.runtime.manifest import MAXIMUM_BYTES, NAME, FileEntry, Manifest, unsafe_path
from planish.runtime.temporary import owned_folder

_CHUNK: Final = 1 << 20
_EXCHANGE: Final = 2
_HERE: Final = -100


@contextmanager
def opened(path: Path) -> Iterator[Path]:
    """The artifact at `path` as a folder: itself, or a private copy of a zip's files while the block runs."""
    if path.is_dir():
        yield path
    elif path.is_file():
        with owned_folder() as folder:
            (folder / "artifact").mkdir()
            unpack(path, folder / "artifact")
            yield folder / "artifact"
    else:
        raise ArtifactError(f"there is no artifact at '{path}'")


def read_manifest(path: Path) -> Manifest:
    """The manifest of a folder or a zip."""
    if path.is_dir():
        return Manifest.from_bytes(_read_limited(path / NAME))
    with _zip(path) as archive:
        return _zip_manifest(archive)


def read_member(path: Path, name: str, entry: FileEntry) -> bytes:
    """One small file of a folder or a zip, checked against its entry in the manifest."""
    if path.is_dir():
        data = _read_limited(path / name)
    else:
        with _zip(path) as archive:
            data = _read_member(archive, name)
    step = entry.piece_bytes or max(1, len(data))
    parts = [hashlib.sha256(data[at : at + step]).digest() for at in range(0, max(1, len(data)), step)]
    found = joined(parts, entry.piece_bytes)
    if len(data) != entry.bytes or found != entry.sha256:
        raise damaged(name)
    return data


def check_files(folder: Path, files: Mapping[str, FileEntry], *, contents: bool) -> None:
    """Raise ArtifactError naming the first file that is missing, extra, of a wrong size or (`contents`) altered."""
    with checking(folder, files, contents=contents) as intake:
        intake.check(files)
        intake.finish()


@contextmanager
def checking(folder: Path, files: Mapping[str, FileEntry], *, contents: bool) -> Iterator[Intake]:
    """What hashes and reads files while the block runs, which have the right names and sizes; see `check_files`."""
    _check_sizes(_list_files(folder), files)
    pool = ThreadPoolExecutor(THREADS)
    try:
        yield Intake(folder, files, pool, contents=contents)
    finally:
        pool.shutdown(cancel_futures=True)


def _check_sizes(found: Mapping[str, int], files: Mapping[str, FileEntry]) -> None:
    if missing := sorted(files.keys() - found.keys()):
        raise ArtifactError(f"'{missing[0]}' is missing from the artifact; save or download it again")
    if extra := sorted(found.keys() - files.keys() - {NAME}):
        raise ArtifactError(f"'{extra[0]}' is in the artifact but not in its manifest; remove it")
    for name, entry in files.items():
        if found[name] != entry.bytes:
            raise ArtifactError(
                f"'{name}' has {found[name]} bytes, not {entry.bytes}; save or download the artifact again"
            )


def describe_files(folder: Path) -> dict[str, FileEntry]:
    """The entries for a manifest of all files in a folder, in the order of their names."""
    sizes = {name: size for name, size in sorted(_list_files(folder).items()) if name != NAME}
    entries = {name: undescribed(size) for name, size in sizes.items()}
    with ThreadPoolExecutor(THREADS) as pool:
        found = {name: hashing(pool, folder / name, entry) for name, entry in entries.items()}
        digests = {name: [part.result() for part in parts] for name, parts in found.items()}
    return {name: replace(e, sha256=joined(digests[name], e.piece_bytes)) for name, e in entries.items()}


def unpack(path: Path, folder: Path) -> None:
    """The files of a zip into `folder`, after checking their names, kinds and sizes against its manifest."""
    with _zip(path) as archive:
        manifest = _zip_manifest(archive)
        for member in archive.infolist():
            entry = manifest.files.get(member.filename)
            if member.filename != NAME and entry is None:
                raise ArtifactError(f"'{member.filename}' is in the artifact but not in its manifest; remove it")
            if entry is not None and member.file_size != entry.bytes:
                raise ArtifactError(f"'{member.filename}' has {member.file_size} bytes, not {entry.bytes}")
        if missing := sorted(manifest.files.keys() - set(archive.namelist())):
            raise ArtifactError(f"'{missing[0]}' is missing from the artifact; save or download it again")
        _extract(archive, folder)


def publish(staged: Path, path: Path, *, overwrite: bool) -> None:
    """Move a finished folder or file to `path` in one step, replacing what is there if `check_target` lets it.

    What was replaced is then beside `staged` or in its place, for the caller to remove.
    """
    check_target(path, overwrite=overwrite)
    if not os.path.lexists(path) or (path.is_file() and staged.is_file()):
        staged.replace(path)
    elif not _exchange(staged, path):
        path.rename(staged.with_name("replaced"))
        staged.rename(path)


def check_target(path: Path, *, overwrite: bool) -> None:
    """Raise ArtifactError where something other than an artifact would be replaced, unless `overwrite`."""
    if os.path.lexists(path) and not overwrite and not _is_artifact(path):
        raise ArtifactError(f"'{path}' exists and is no artifact; give another path, or overwrite=True to replace it")


@contextmanager
def staging(path: Path) -> Iterator[Path]:
    """A new empty folder beside `path`, removed at the end; failures to write become ArtifactErrors about `path`."""
    try:
        with owned_folder(path.parent, prefix=f".{path.name}.", suffix=".partial") as folder:
            yield folder
    except OSError as error:
        # A failed copytree lists (source, target, reason) for each file; the first tells enough.
        listed = isinstance(error, shutil.Error) and isinstance(error.args[0], list)
        what = error.args[0][0][2] if listed else error
        raise ArtifactError(f"cannot save '{path}': {what}; nothing was changed there, save elsewhere") from error


def pack(folder: Path, path: Path) -> None:
    """A zip of the folder's files, stored, whose bytes depend on their names and contents alone."""
    with zipfile.ZipFile(path, "x", zipfile.ZIP_STORED) as archive:
        for name in sorted(_list_files(folder)):
            member = zipfile.ZipInfo(name, date_time=(1980, 1, 1, 0, 0, 0))
            member.create_system, member.external_attr = 3, (stat.S_IFREG | 0o644) << 16
            member.file_size = (folder / name).stat().st_size
            with (folder / name).open("rb") as source, archive.open(member, "w") as target:
                shutil.copyfileobj(source, target, _CHUNK)


def _list_files(folder: Path) -> dict[str, int]:
    found = {}
    for path in sorted(folder.rglob("*")):
        status = path.lstat()
        if stat.S_ISREG(status.st_mode):
            found[path.relative_to(folder).as_posix()] = status.st_size
        elif not stat.S_ISDIR(status.st_mode):
            raise ArtifactError(f"'{path.relative_to(folder)}' is a link or a device; an artifact holds plain files")
    return found


def _read_limited(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            data = file.read(MAXIMUM_BYTES + 1)
    except FileNotFoundError as error:
        what = "is no artifact: it has no manifest.json" if path.name == NAME else f"lacks '{path.name}'"
        raise ArtifactError(f"'{path.parent}' {what}") from error
    except OSError as error:
        raise ArtifactError(f"cannot read '{path}': {error}") from error
    if len(data) > MAXIMUM_BYTES:
        raise ArtifactError(f"'{path.name}' is over the {MAXIMUM_BYTES >> 20} MiB that such a file may have")
    return data


@contextmanager
def _zip(path: Path) -> Iterator[zipfile.ZipFile]:
    try:
        with zipfile.ZipFile(path) as archive:
            _check_members(archive, path.stat().st_size)
            yield archive
    except FileNotFoundError as error:
        raise ArtifactError(f"there is no artifact at '{path}'") from error
    except (zipfile.BadZipFile, EOFError, NotImplementedError) as error:
        raise ArtifactError(f"'{path}' is no intact zip ({error}); save or download the artifact again") from error


def _check_members(archive: zipfile.ZipFile, available: int) -> None:
    seen: set[str] = set()
    for member in archive.infolist():
        if why := unsafe_path(member.filename) or _unsafe_member(member):
            raise ArtifactError(f"the zip holds {member.filename!r}, which {why}; it was not made by planish")
        if member.filename in seen:
            raise ArtifactError(f"the zip holds {member.filename!r} twice; it was not made by planish")
        seen.add(member.filename)
    # Stored members cannot be larger than the file together, unless they overlap.
    if sum(member.file_size for member in archive.infolist()) > available:
        raise ArtifactError("the zip unpacks to more than its own size; it was not made by planish")


def _unsafe_member(member: zipfile.ZipInfo) -> str | None:
    kind = stat.S_IFMT(member.external_attr >> 16)
    if kind not in (0, stat.S_IFREG):
        return "is a link or a device"
    if member.compress_type != zipfile.ZIP_STORED or member.file_size != member.compress_size:
        return "is compressed (planish stores files as they are; zip -0 does too)"
    return "is encrypted" if member.flag_bits & 1 else None


def _zip_manifest(archive: zipfile.ZipFile) -> Manifest:
    if NAME not in archive.namelist():
        raise ArtifactError(f"'{archive.filename}' is no artifact: it has no {NAME}")
    return Manifest.from_bytes(_read_member(archive, NAME))


def _read_member(archive: zipfile.ZipFile, name: str) -> bytes:
    if archive.getinfo(name).file_size > MAXIMUM_BYTES:
        raise ArtifactError(f"'{name}' is over the {MAXIMUM_BYTES >> 20} MiB that such a file may have")
    return archive.read(name)


def _extract(archive: zipfile.ZipFile, folder: Path) -> None:
    for member in archive.infolist():
        target = folder / member.filename
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            with archive.open(member) as source, target.open("xb") as file:
                shutil.copyfileobj(source, file, _CHUNK)
        except zipfile.BadZipFile as error:
            raise damaged(member.filename) from error
        except OSError as error:
            raise ArtifactError(f"cannot unpack '{member.filename}' to '{folder}': {error}; set TMPDIR") from error


def _is_artifact(path: Path) -> bool:
    if path.is_symlink() or not (path.is_dir() or zipfile.is_zipfile(path)):
        return False
    if path.is_dir():
        return (path / NAME).is_file()
    with zipfile.ZipFile(path) as archive:
        return NAME in archive.namelist()


def _exchange(left: Path, right: Path) -> bool:
    # A rename cannot replace a folder that has files; Linux can swap the two names at once.
    swap = getattr(ctypes.CDLL(None), "renameat2", None)
    return swap is not None and swap(_HERE, os.fsencode(left), _HERE, os.fsencode(right), _EXCHANGE) == 0
