"""Results of the GPU benchmark as data, JSON, Markdown and a picture."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from math import exp, log
from pathlib import Path
from statistics import median
from typing import Any, TypeAlias

from pydantic import TypeAdapter

from benchmarks.results import read, write
from benchmarks.table import rows_text
from planish.codegen.variants import Pick, VariantRow, model_error, picks
from planish.errors import InputError

FORMAT = 2
_NEAR = 1.15  # times the best: what a pick of the model may cost


@dataclass(frozen=True, slots=True)
class GpuResult:
    """One case at one size: median and p10 milliseconds by what ran it, or why there is nothing in `failure`.

    `limit_ms` is from the profile's peak and bandwidth, `error` relative to the largest magnitude of the reference.
    `picks` compares the static model's choices with the best of the variants that were measured, and `model_factor` is
    the median factor by which its times are off; `facts` are further numbers by name, and `notes` say why there are no
    times of a peer, or no other number.
    """

    case: str
    group: str
    size: int
    median_ms: Mapping[str, float] = field(default_factory=dict)
    p10_ms: Mapping[str, float] = field(default_factory=dict)
    limit_ms: float | None = None
    error: float | None = None
    tolerance: float | None = None
    prepare_seconds: float | None = None
    failure: str | None = None
    picks: tuple[Pick, ...] = ()
    model_factor: float | None = None
    facts: Mapping[str, float] = field(default_factory=dict)
    notes: Mapping[str, str] = field(default_factory=dict)

    @property
    def key(self) -> tuple[str, int]:
        """What names the measurement in a file."""
        return self.case, self.size

    @property
    def correct(self) -> bool:
        """Whether planish's result is as near to the reference as it should be."""
        return self.error is not None and self.tolerance is not None and self.error <= self.tolerance

    def speed(self, peer: str) -> float | None:
        """How many times faster than the peer planish is by the medians."""
        ours, theirs = self.median_ms.get("planish"), self.median_ms.get(peer)
        return theirs / ours if ours and theirs else None


@dataclass(frozen=True, slots=True)
class Asked:
    """What the process that measures is asked for: sizes of a case by its name."""

    case: str
    sizes: tuple[int, ...]
    seconds: float
    tune: int


Measure: TypeAlias = Callable[[Asked], Iterator[GpuResult]]


@dataclass(frozen=True, slots=True)
class GpuSuite:
    """One run on one GPU; `versions` are of the driver, torch, Triton and planish's sources, `copy_gbs` measured."""

    device: str
    created: str
    versions: Mapping[str, str]
    copy_gbs: float
    results: tuple[GpuResult, ...] = ()
    format: int = FORMAT

    def with_results(self, results: Iterable[GpuResult]) -> "GpuSuite":
        """The suite with these results in the place of older ones of the same measurement."""
        new = {result.key: result for result in results}
        return replace(self, results=(*(r for r in self.results if r.key not in new), *new.values()))

    def measured(self, case: str, size: int) -> bool:
        """Whether the suite holds a time of planish for it; what failed is tried again."""
        return any(r.key == (case, size) and r.failure is None for r in self.results)

    def failed(self, case: str) -> bool:
        """Whether something of the case failed."""
        return any(r.case == case and r.failure is not None for r in self.results)


def of_variants(rows: Iterable[VariantRow]) -> dict[str, Any]:
    """The members of a result that follow from the variants of a compile report."""
    rows = tuple(rows)
    off = model_error(rows)
    return {"picks": picks(rows), "model_factor": None if off is None else off[1]}


_SUITE = TypeAdapter(GpuSuite)


def save(suite: GpuSuite, path: Path) -> None:
    """Writes the suite as JSON, whole or not at all."""
    write(_SUITE.dump_json(suite, indent=1), path)


def load(path: Path) -> GpuSuite:
    """The suite in a JSON file; InputError where it is something else."""
    return read(_SUITE, path, what="results of a GPU", form=FORMAT)


def resumed(path: Path, begun: GpuSuite) -> GpuSuite:
    """The suite at `path` to go on with, else `begun`; InputError where that is of another device or other sources."""
    if not path.exists():
        return begun
    found = load(path)
    if (found.device, found.versions) != (begun.device, begun.versions):
        raise InputError(f"'{path}' was measured on {found.device} with {dict(found.versions)}; use --fresh or --name")
    return found


def gpu_markdown(suite: GpuSuite) -> str:
    """A row for each case and size, the geometric mean of each group beside torch, and what failed."""
    header = (
        "case",
        "size",
        "planish us",
        "torch us",
        "speed / torch",
        "speed / compiled",
        "share of limit",
        "error",
        "correct",
    )
    done = [r for r in suite.results if r.failure is None]
    versions = ", ".join(f"{name} {version}" for name, version in suite.versions.items())
    parts = [
        f"{suite.device}: {versions}; copies at {suite.copy_gbs:.0f} GB/s; {suite.created}",
        rows_text(header, map(_row, done)),
        rows_text(("group", "geometric mean of speed / torch", "cases"), _means(done)),
    ]
    parts += [text for text in (_facts(done), _model(done)) if text]
    failures = [f"- {r.case}, size {r.size}: {r.failure}" for r in suite.results if r.failure]
    failures += [f"- {r.case}, size {r.size}, no {name}: {why}" for r in done for name, why in r.notes.items()]
    return "\n\n".join([*parts, "\n".join(failures)] if failures else parts) + "\n"


def plot_gpu(suite: GpuSuite, path: Path) -> None:
    """Writes a PNG: the speed of planish beside torch over the size, a line for each case."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9.0, 5.0), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    for case in dict.fromkeys(r.case for r in suite.results):
        points = [(r.size, s) for r in suite.results if r.case == case and (s := r.speed("torch")) is not None]
        if points:
            axes.plot(*zip(*sorted(points), strict=True), marker="o", label=case)
    axes.axhline(1.0, color="black", linewidth=0.8)
    axes.set(xscale="log", yscale="log", xlabel="rows or length", ylabel="speed / torch", title=suite.device)
    axes.grid(alpha=0.3)
    figure.legend(loc="outside right upper", fontsize=7)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150, format="png")


def _row(result: GpuResult) -> tuple[str, ...]:
    ours, theirs = result.median_ms.get("planish"), result.median_ms.get("torch")
    faster, compiled = result.speed("torch"), result.speed("torch.compile")
    return (
        result.case,
        str(result.size),
        "" if ours is None else f"{1e3 * ours:.1f}",
        "" if theirs is None else f"{1e3 * theirs:.1f}",
        "" if faster is None else f"{faster:.2f}",
        "" if compiled is None else f"{compiled:.2f}",
        "" if ours is None or result.limit_ms is None else f"{result.limit_ms / ours:.2f}",
        "" if result.error is None else f"{result.error:.1e}",
        "yes" if result.correct else "NO",
    )


def _means(results: list[GpuResult]) -> list[tuple[str, ...]]:
    rows: list[tuple[str, ...]] = []
    for group in dict.fromkeys(r.group for r in results):
        speeds = [s for r in results if r.group == group and (s := r.speed("torch")) is not None]
        if speeds:
            rows.append((group, f"{exp(sum(map(log, speeds)) / len(speeds)):.2f}", str(len(speeds))))
    return rows


def _facts(results: list[GpuResult]) -> str:
    rows = [(r.case, str(r.size), name, f"{value:.3g}") for r in results for name, value in r.facts.items()]
    return rows_text(("case", "size", "what", "value"), rows) if rows else ""


def _model(results: list[GpuResult]) -> str:
    """How the static model chose and predicted, and the picks that cost more than they may."""
    found = [(r, pick) for r in results for pick in r.picks]
    if not found:
        return ""
    bad = [(r.case, p.kernel, str(p.size), f"{p.slowdown:.2f}") for r, p in found if p.slowdown > _NEAR]
    factors = [r.model_factor for r in results if r.model_factor is not None]
    near = len(found) - len(bad)
    line = (
        f"The static model's pick is within {_NEAR - 1:.0%} of the best measured variant for {near} of {len(found)} "
        f"calls ({near / len(found):.0%}); its times are off by a factor of {median(factors):.2f} (median of cases)."
    )
    return "\n\n".join([line, rows_text(("case", "kernel", "size", "slower than the best"), bad)] if bad else [line])
