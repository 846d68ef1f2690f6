"""One variant of a kernel to be timed, as plain data that another process gets, and what comes of it."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypeAlias

from planish.runtime.device.launcher import Whole
from planish.runtime.dtypes import DTypeName
from planish.runtime.launches import KernelSpec

REFERENCE, CANDIDATE = "reference", "candidate"


@dataclass(frozen=True, slots=True)
class Block:
    """Memory of so many bytes, filled with `pattern` again and again; with zeros where that is empty."""

    size: int
    pattern: bytes = b""


@dataclass(frozen=True, slots=True)
class Place:
    """The address `start` bytes into a block, seen as elements of `dtype`."""

    block: int
    start: int
    dtype: DTypeName


Given: TypeAlias = Place | Whole | float


@dataclass(frozen=True, slots=True)
class Seen:
    """Elements of a block: `[i, j, ...]` lies at `offset + i * strides[0] + ...`, counted in elements of `dtype`."""

    block: int
    dtype: DTypeName
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    offset: int


@dataclass(frozen=True, slots=True)
class Drawn:
    """Elements that lie in their block in the order of a kernel: those of `data`, or of its `rows`, i32 numbers of rows
    of the last axis, where there are any."""

    dtype: DTypeName
    shape: tuple[int, ...]
    data: bytes
    rows: bytes = b""


@dataclass(frozen=True, slots=True)
class Meaning:
    """What the kernel is to compute: a graph as text over its `operands`.

    Each result may be off by `allowed` times the largest magnitude of its kind. Where a result `continues` an operand,
    by its place, that is in the result's memory before the kernel runs.
    """

    graph: str
    operands: tuple[Seen | Drawn, ...]
    allowed: tuple[float, ...]
    continues: tuple[int | None, ...]


@dataclass(frozen=True, slots=True)
class Loaded:
    """A compiled kernel and the grid that it is launched with."""

    spec: KernelSpec
    code: bytes
    grid: tuple[int, int, int]


@dataclass(frozen=True, slots=True)
class Stage:
    """A launch."""

    kernel: Loaded
    arguments: tuple[Given, ...]


@dataclass(frozen=True, slots=True)
class Trial:
    """The launch of one variant, `candidate`, which must do what the `meaning` says.

    `before` and `after` are the other launches of the kernel, so that what the whole kernel computes can be compared:
    its `results`. Without all of them there are none, and nothing is compared. Where torch cannot compute the meaning,
    the candidate must do what `reference` does; where that is the candidate itself, its results are told.
    `rotated_bytes` is how much memory launches must use in turns so that none finds what it reads in the L2.
    """

    backend: str
    blocks: tuple[Block, ...]
    arguments: tuple[Given, ...]
    reference: Loaded
    candidate: Loaded
    before: tuple[Stage, ...]
    after: tuple[Stage, ...]
    results: tuple[Seen, ...]
    rotated_bytes: int
    meaning: Meaning | None = None

    def kernels(self) -> Mapping[str, Loaded]:
        """All kernels by the names that they are launched with."""
        named = {REFERENCE: self.reference, CANDIDATE: self.candidate}
        for word, stages in (("before", self.before), ("after", self.after)):
            named |= {f"{word}{i}": stage.kernel for i, stage in enumerate(stages)}
        return named


@dataclass(frozen=True, slots=True)
class Sample:
    """Some elements of a result in f32, as bytes, and by how much they may be off."""

    dtype: DTypeName
    elements: bytes
    allowed: float


@dataclass(frozen=True, slots=True)
class Times:
    """Seconds of one launch among many; with samples of its results where nothing was there to compare them with."""

    median_seconds: float
    p10_seconds: float
    samples: tuple["Sample", ...] = ()


@dataclass(frozen=True, slots=True)
class Dropped:
    """The variant cannot be used, and why: it computes something `wrong`, or does not run."""

    reason: str
    wrong: bool = False


@dataclass(frozen=True, slots=True)
class Skipped:
    """Nothing was measured, which is no fault of the variant."""

    reason: str


Outcome: TypeAlias = Times | Dropped | Skipped
