"""Real data for quality metrics, unpacked from Debian packages into a cache without installing them."""

import gzip
import html
import os
import re
import shutil
import struct
import subprocess
import tempfile
import wave
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

_DOWNLOAD_SECONDS = 300
_STRING_VECTOR = b"\x00\x00\x00\x10"


class DataError(RuntimeError):
    """Real data that a metric needs is not on this machine and cannot be fetched."""


@dataclass(frozen=True, slots=True)
class Utterance:
    """Speech at 16 kHz, samples in [-1, 1], with its transcript in lower-case words."""

    samples: NDArray[np.float32]
    transcript: str


@dataclass(frozen=True, slots=True)
class Gloss:
    """A WordNet noun: its definition and the first sentence that shows its use."""

    definition: str
    example: str


def unpack(package: str, cache: Path | None = None) -> Path:
    """The folder that holds the files of a Debian package; fetched with apt once, then kept.

    Raises `DataError` where apt or dpkg is missing or the download fails.
    """
    root = cache or Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "planish" / "data"
    folder = root / package
    if folder.is_dir():
        return folder
    root.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=root) as scratch:
        _run(["apt-get", "download", package], Path(scratch), package, folder)
        archive = next(Path(scratch).glob("*.deb"))
        _run(["dpkg", "-x", archive.name, "files"], Path(scratch), package, folder)
        _keep(Path(scratch) / "files", folder)
    return folder


def glosses() -> tuple[Gloss, ...]:
    """Every WordNet 3.0 noun whose entry has a definition over 20 characters and an example."""
    text = (unpack("wordnet-base") / "usr/share/wordnet/data.noun").read_text(encoding="utf-8", errors="replace")
    entries = (line.split(" | ", 1)[1] for line in text.splitlines() if not line.startswith("  "))
    found = (re.match(r'([^;"]{20,}?);\s*"([^"]+)"', entry.strip()) for entry in entries)
    return tuple(Gloss(match[1].strip(), match[2]) for match in found if match)


def austen() -> str:
    """Six novels by Jane Austen as plain text, 4 MB, from the R package janeaustenr."""
    database = unpack("r-cran-janeaustenr") / "usr/lib/R/site-library/janeaustenr/data/Rdata.rdb"
    objects = (_string_vector(data) for data in _lazy_load(database.read_bytes()))
    return "\n\n\n".join("\n".join(lines) for lines in objects if len(lines) > 1000)


def faq() -> str:
    """An Anarchist FAQ as plain text, 11 MB of modern English, from the HTML of the package anarchism."""
    folder = unpack("anarchism") / "usr/share/doc/anarchism/html"
    return "\n\n".join(
        _plain(path.read_text(encoding="utf-8", errors="replace")) for path in sorted(folder.glob("*.html"))
    )


def utterances() -> tuple[Utterance, ...]:
    """Five sentences read aloud for LibriVox, from the test data of pocketsphinx."""
    folder = unpack("pocketsphinx-testdata") / "usr/share/pocketsphinx/test/data/librivox"
    lines = (folder / "transcription").read_text(encoding="utf-8").splitlines()
    found = (re.match(r"<s> (.*) </s> \((.*)\)", line) for line in lines)
    return tuple(Utterance(_samples(folder / f"{match[2]}.wav"), match[1]) for match in found if match)


def fashion_mnist(split: str, count: int) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """The first `count` images `(count, 28, 28)` and labels `(count,)` of the split "train" or "t10k"."""
    folder = unpack("dataset-fashion-mnist") / "usr/share/datasets/fashion-mnist"
    images = gzip.decompress((folder / f"{split}-images-idx3-ubyte.gz").read_bytes())
    labels = gzip.decompress((folder / f"{split}-labels-idx1-ubyte.gz").read_bytes())
    pixels = np.frombuffer(images, np.uint8, offset=16).reshape(-1, 28, 28)
    return pixels[:count], np.frombuffer(labels, np.uint8, offset=8)[:count]


def _run(command: list[str], folder: Path, package: str, target: Path) -> None:
    remedy = f"run it as root after 'apt-get update', or unpack the package into {target}"
    try:
        subprocess.run(command, cwd=folder, check=True, capture_output=True, text=True, timeout=_DOWNLOAD_SECONDS)
    except FileNotFoundError as error:
        raise DataError(f"{command[0]} is not on this machine, so {package} cannot be fetched; {remedy}") from error
    except subprocess.TimeoutExpired as error:
        raise DataError(f"{' '.join(command)} took over {_DOWNLOAD_SECONDS} s; {remedy}") from error
    except subprocess.CalledProcessError as error:
        reason = (error.stderr.strip().splitlines() or ["no reason given"])[-1]
        raise DataError(f"{' '.join(command)} failed: {reason}; {remedy}") from error


def _keep(files: Path, folder: Path) -> None:
    try:
        files.rename(folder)
    except OSError:
        if not folder.is_dir():
            raise
        shutil.rmtree(files)


def _lazy_load(database: bytes) -> Iterator[bytes]:
    """The serialised objects of an R lazy-load database: each has a 4-byte length, then a zlib stream."""
    while database:
        stream = zlib.decompressobj()
        yield stream.decompress(database[4:])
        database = stream.unused_data


def _string_vector(data: bytes) -> list[str]:
    """The first character vector in an R object in XDR form (R Internals, section 1.8); empty if it has none."""
    start = data.find(_STRING_VECTOR)
    if start < 0:
        return []
    (count,) = struct.unpack_from(">I", data, start + 4)
    position, lines = start + 8, []
    for _ in range(count):
        (size,) = struct.unpack_from(">i", data, position + 4)
        end = position + 8 + max(size, 0)
        lines.append(data[position + 8 : end].decode("utf-8", "replace"))
        position = end
    return lines


def _plain(page: str) -> str:
    """The words of an HTML page, a blank line between blocks."""
    page = re.sub(r"(?is)<(script|style|head).*?</\1>", "", page)
    page = re.sub(r"(?i)</?(p|br|div|h\d|li|tr|blockquote)[^>]*>", "\n", page)
    words = re.sub(r"[ \t]+", " ", html.unescape(re.sub(r"<[^>]+>", "", page)))
    return re.sub(r"\n\s*\n+", "\n\n", words).strip()


def _samples(path: Path) -> NDArray[np.float32]:
    with wave.open(str(path)) as audio:
        frames = audio.readframes(audio.getnframes())
    return np.frombuffer(frames, np.int16).astype(np.float32) / np.float32(32768)
