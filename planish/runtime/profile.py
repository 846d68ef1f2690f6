"""Where the time of a call goes: one row a kernel, and the same by module scope."""

from collections.abc import Iterable
from dataclasses import asdict, dataclass

from planish.runtime.fields import Json


@dataclass(frozen=True, slots=True)
class ProfileRow:
    """One kernel or torch op: the median of its milliseconds per call and its share of the wall time."""

    label: str
    op: str
    template: str
    scope: str
    ms: float
    share: float


@dataclass(frozen=True, slots=True)
class ScopeRow:
    """The sum over the rows of one module scope."""

    scope: str
    calls: int
    ms: float
    share: float


@dataclass(frozen=True, slots=True)
class CallProfile:
    """The profile of one function on one set of inputs; prints as a table.

    `wall_ms` is the median time of a whole call in milliseconds, with the work around the kernels.
    """

    function: str
    rows: tuple[ProfileRow, ...]
    wall_ms: float
    threads: int
    repeat: int

    def by_scope(self, depth: int = 3) -> tuple[ScopeRow, ...]:
        """Time by the first `depth` parts of the scope, such as `encoder.layer.0`, in order of first use."""
        grouped: dict[str, list[ProfileRow]] = {}
        for row in self.rows:
            grouped.setdefault(".".join(row.scope.split(".")[:depth]), []).append(row)
        return tuple(
            ScopeRow(scope, len(rows), sum(row.ms for row in rows), sum(row.share for row in rows))
            for scope, rows in grouped.items()
        )

    def to_json(self) -> dict[str, Json]:
        return asdict(self)

    def __str__(self) -> str:
        head = (
            f"{self.function}: {self.wall_ms:.3f} ms a call, {self.threads} threads, median of {self.repeat}; "
            f"kernels {sum(row.ms for row in self.rows):.3f} ms"
        )
        scopes = [(row.scope or "(top)", str(row.calls), _ms(row.ms), _percent(row.share)) for row in self.by_scope()]
        slowest = sorted(self.rows, key=lambda row: -row.ms)[:20]
        kernels = [(r.label, r.op, r.template, r.scope, _ms(r.ms), _percent(r.share)) for r in slowest]
        return "\n\n".join(
            (
                head,
                _table(("scope", "calls", "ms", "share"), scopes),
                _table(("kernel", "op", "template", "scope", "ms", "share"), kernels),
            )
        )


def _ms(value: float) -> str:
    return f"{value:.4f}"


def _percent(share: float) -> str:
    return f"{100 * share:.1f}%"


def _table(head: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> str:
    lines = [head, *rows]
    widths = [max(len(line[column]) for line in lines) for column in range(len(head))]
    return "\n".join("  ".join(c.ljust(w) for c, w in zip(line, widths, strict=True)).rstrip() for line in lines)
