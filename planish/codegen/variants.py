"""What a cost model said of the ways to run a kernel: rows of the compile report."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import median


@dataclass(frozen=True, slots=True)
class VariantRow:
    """One way to run a launch for sizes up to `most` (None: all above), and its `seconds` when `size` is what it was
    judged at.

    `basis` is "predicted" or "measured", `predicted_seconds` what the model says in either case, `bound` what takes
    most of the predicted time, `chosen` whether it was taken; `refused` says why it could not be.
    """

    kernel: str
    launch: int
    most: int | None
    size: int
    variant: str
    seconds: float
    basis: str
    bound: str
    chosen: bool
    refused: str | None = None
    predicted_seconds: float | None = None

    def __str__(self) -> str:
        if self.refused is not None:
            return f"{self.variant}: {self.refused}"
        return f"{self.variant}: {1e6 * self.seconds:.1f} us {self.basis}{self._off()}, {self.bound}"

    def _off(self) -> str:
        if self.basis != "measured" or self.predicted_seconds is None:
            return ""
        return f" ({1e6 * self.predicted_seconds:.1f} predicted)"


def model_error(rows: Iterable[VariantRow]) -> tuple[int, float] | None:
    """How many rows were measured, and by what factor the predicted times are off in the median (1: not at all)."""
    factors = [
        max(row.seconds, row.predicted_seconds) / min(row.seconds, row.predicted_seconds)
        for row in rows
        if row.basis == "measured" and row.predicted_seconds and row.refused is None
    ]
    return (len(factors), median(factors)) if factors else None


@dataclass(frozen=True, slots=True)
class Pick:
    """The model's choice among the measured variants of one launch for one range of sizes.

    `slowdown` is the measured time of the variant that the model would take over that of the best.
    """

    kernel: str
    launch: int
    size: int
    variants: int
    slowdown: float


def picks(rows: Iterable[VariantRow]) -> tuple[Pick, ...]:
    """What the model alone would have taken, for each launch and range of which at least two variants were measured."""
    contests: dict[tuple[str, int, int | None], list[VariantRow]] = {}
    for row in rows:
        if row.basis == "measured" and row.refused is None:
            contests.setdefault((row.kernel, row.launch, row.most), []).append(row)
    return tuple(_pick(contest) for contest in contests.values() if len(contest) > 1)


def _pick(rows: Sequence[VariantRow]) -> Pick:
    taken = min(rows, key=lambda row: row.predicted_seconds or row.seconds)
    return Pick(rows[0].kernel, rows[0].launch, rows[0].size, len(rows), taken.seconds / min(r.seconds for r in rows))
