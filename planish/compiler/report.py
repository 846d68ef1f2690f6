"""What every pass of a pipeline did: one row a pass, as a table or as JSON."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Refused:
    """A rule that matched in `scope` and did not fire there for `reason`."""

    rule: str
    scope: str
    reason: str


@dataclass(frozen=True, slots=True)
class Totals:
    """A program in numbers: computed nodes, bytes of its weights, operations, bytes moved by nodes run one by one.

    `roofline_ms` is the least time that the profile allows for them, None without a profile.
    """

    ops: int
    weight_bytes: int
    flops: int
    bytes_moved: int
    roofline_ms: float | None = None


@dataclass(frozen=True, slots=True)
class Row:
    """One pass: its text, contract and time, what its rules did, the program before and after.

    `error` is the largest change of an output relative to the largest reference output, None where nothing was checked.
    """

    name: str
    contract: str
    time_ms: float
    applied: Mapping[str, int]
    refused: tuple[Refused, ...]
    before: Totals
    after: Totals
    error: float | None = None


@dataclass(frozen=True, slots=True)
class Report:
    """The rows of a pipeline in order."""

    rows: tuple[Row, ...]

    def refusals(self) -> tuple[Refused, ...]:
        """Everything that matched and did not fire, over all passes."""
        return tuple(r for row in self.rows for r in row.refused)

    def to_json(self) -> dict[str, Any]:
        """Plain data for a JSON file, from which `from_json` makes an equal report."""
        return {"rows": [{**asdict(row), "refused": [asdict(r) for r in row.refused]} for row in self.rows]}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> "Report":
        """The report of `to_json`'s data."""
        return cls(tuple(_row(row) for row in data["rows"]))

    def text(self) -> str:
        """An aligned table, one line a pass, and the refusals in short with their counts."""
        lines = [_HEADER, *(_cells(row) for row in self.rows)]
        widths = [max(len(line[i]) for line in lines) for i in range(len(_HEADER))]
        table = ["  ".join(_aligned(line, widths)).rstrip() for line in lines]
        return "\n".join([*table, *_total_lines(self.rows), *_refusal_lines(self.rows)])

    def __str__(self) -> str:
        return self.text()


_HEADER = ("pass", "contract", "ms", "applied", "refused", "ops", "weights", "GFLOP", "moved", "roofline ms", "error")


def _row(row: Mapping[str, Any]) -> Row:
    return Row(
        row["name"],
        row["contract"],
        row["time_ms"],
        row["applied"],
        tuple(Refused(**r) for r in row["refused"]),
        Totals(**row["before"]),
        Totals(**row["after"]),
        row["error"],
    )


def _cells(row: Row) -> tuple[str, ...]:
    after = row.after
    return (
        row.name,
        row.contract,
        f"{row.time_ms:.1f}",
        str(sum(row.applied.values())),
        str(len(row.refused)),
        str(after.ops) if after.ops == row.before.ops else f"{row.before.ops} -> {after.ops}",
        _megabytes(after.weight_bytes),
        f"{after.flops / 1e9:.3f}",
        _megabytes(after.bytes_moved),
        "-" if after.roofline_ms is None else f"{after.roofline_ms:.3f}",
        "-" if row.error is None else f"{row.error:.1e}",
    )


def _megabytes(count: int) -> str:
    return f"{count / 1e6:.1f} MB"


def _aligned(line: Sequence[str], widths: Sequence[int]) -> list[str]:
    left = {0, 1}
    return [c.ljust(w) if i in left else c.rjust(w) for i, (c, w) in enumerate(zip(line, widths, strict=True))]


def _total_lines(rows: Sequence[Row]) -> list[str]:
    if not rows:
        return ["no pass ran"]
    first, last = rows[0].before, rows[-1].after
    moved = f"{_megabytes(first.bytes_moved)} -> {_megabytes(last.bytes_moved)} moved"
    return ["", f"{first.ops} -> {last.ops} ops, {moved}, {sum(r.time_ms for r in rows):.0f} ms in passes"]


def _refusal_lines(rows: Sequence[Row]) -> list[str]:
    counts = Counter((r.rule, r.reason) for row in rows for r in row.refused)
    where = {(r.rule, r.reason): r.scope for row in reversed(rows) for r in reversed(row.refused)}
    shown = [f"  {n} x {rule}: {reason} (in '{where[rule, reason]}')" for (rule, reason), n in counts.most_common()]
    return ["refused:", *shown] if shown else []
