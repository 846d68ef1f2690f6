"""Benchmark results as a picture: latency beside eager, one group of bars a case, with the machine's limit."""

from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.results import Case, Suite
from benchmarks.table import speed

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_WIDTH = 0.8


def plot(suite: Suite, path: Path) -> None:
    """Writes a PNG of latency relative to eager (lower is better); a black line marks the roofline limit."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(max(6.0, 1.6 * len(suite.cases)), 4.5), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    _bars(axes, suite)
    _limits(axes, suite.cases)
    axes.set_xticks(range(len(suite.cases)), [f"{case.model}\nbatch {case.batch}" for case in suite.cases], fontsize=8)
    axes.set_ylabel("latency / eager")
    axes.set_title(f"{suite.machine.processor}, {suite.machine.threads} threads", fontsize=10)
    axes.grid(axis="y", alpha=0.3)
    figure.legend(loc="outside lower center", ncols=len(suite.peers) + 1, fontsize=8)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150, format="png")


def relative(suite: Suite, peer: str) -> list[float]:
    """The latency of `peer` over that of eager in each case; 0 where there is none."""
    found = ((case, case.result(peer)) for case in suite.cases)
    return [1 / faster if result and (faster := speed(case, result)) else 0.0 for case, result in found]


def _bars(axes: "Axes", suite: Suite) -> None:
    shown = [peer for peer in suite.peers if any(relative(suite, peer))]
    width = _WIDTH / max(1, len(shown))
    for index, peer in enumerate(shown):
        left = [group - _WIDTH / 2 + (index + 0.5) * width for group in range(len(suite.cases))]
        axes.bar(left, relative(suite, peer), width, label=peer)


def _limits(axes: "Axes", cases: tuple[Case, ...]) -> None:
    known = [(group, case, case.result("eager")) for group, case in enumerate(cases)]
    heights = [(group, case.limit.ms / eager.median_ms) for group, case, eager in known if eager and eager.median_ms]
    if heights:
        groups, values = zip(*heights, strict=True)
        left, right = [group - _WIDTH / 2 for group in groups], [group + _WIDTH / 2 for group in groups]
        axes.hlines(values, left, right, colors="black", label="limit of the machine")
