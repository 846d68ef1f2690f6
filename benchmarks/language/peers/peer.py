"""What a peer of the language benchmark is: a way to generate greedily, with the time of every token."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from itertools import pairwise
from typing import Protocol

from benchmarks.language.source import Ids, Shape, Source
from benchmarks.peers import PeerError


@dataclass(frozen=True, slots=True)
class Setting:
    """How a peer is to run: rows at once, tokens a row at most, threads."""

    batch: int
    context: int
    threads: int


@dataclass(frozen=True, slots=True)
class Generated:
    """One generation: milliseconds to the first token, then between tokens; `tokens` has one list a row."""

    first_ms: float
    token_ms: tuple[float, ...]
    tokens: tuple[tuple[int, ...], ...]


def timed(start: float, moments: Sequence[float], tokens: Iterable[Iterable[int]]) -> Generated:
    """A generation that began at `start` and had a token of every row at each of `moments`, in seconds."""
    between = tuple((after - before) * 1e3 for before, after in pairwise(moments))
    rows = tuple(tuple(int(token) for token in row) for row in tokens)
    return Generated((moments[0] - start) * 1e3, between, rows)


class Session(Protocol):
    """A model ready to generate."""

    def generate(self, prompts: Ids, count: int) -> Generated:
        """Greedily continues `prompts` int64 `(rows, length)`, equally long, by `count` tokens; ends of text count."""


@dataclass(frozen=True, slots=True)
class Storage:
    """How a peer stores and computes one format: bits a weight with scales, bits a cached number, and words.

    `compute` is the dtype whose peak bounds a prefill; `detail` says group, rounding and activations.
    """

    weight_bits: float
    head_bits: float
    cache_bits: float
    compute: str
    detail: str

    def token_bytes(self, shape: Shape, context: int, batch: int) -> float:
        """Bytes that one decode step cannot do without: every weight once, the cache of `context` tokens a row."""
        weights = shape.linear_weights * self.weight_bits + shape.head_weights * self.head_bits
        return (weights + batch * context * shape.cached * self.cache_bits) / 8


@dataclass(frozen=True, slots=True)
class LanguagePeer:
    """A runtime of language models; `missing` gives the reason for each format that it does not have."""

    name: str
    package: str
    formats: Mapping[str, Storage]
    build: Callable[[Source, str, Setting], Session]
    missing: Mapping[str, str] = field(default_factory=dict)

    def version(self) -> str:
        """The version of the package; PeerError with the command that installs it where it is absent."""
        try:
            return version(self.package)
        except PackageNotFoundError as error:
            raise PeerError(f"{self.name} is not installed; run 'pip install {self.package}'") from error

    def check(self, kind: str) -> None:
        """PeerError with the reason where the peer is absent or has no such format."""
        self.version()
        if kind not in self.formats:
            raise PeerError(f"{self.name} has no {kind}: {self.missing.get(kind, 'it is not offered')}")

    def prepare(self, source: Source, kind: str, setting: Setting) -> Session:
        """A session; PeerError with the reason where there can be none."""
        self.check(kind)
        try:
            return self.build(source, kind, setting)
        except Exception as error:
            raise PeerError(f"{self.name} cannot run {source.name}: {type(error).__name__}: {error}") from error
