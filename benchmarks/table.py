"""Benchmark results as a Markdown table: milliseconds, speed beside eager, error and share of the limit."""

from collections.abc import Iterable
from math import exp, log
from typing import TYPE_CHECKING

from benchmarks.results import Case, Result, Suite

if TYPE_CHECKING:
    from benchmarks.kernels import KernelSuite

_BASE = "eager"


def markdown(suite: Suite) -> str:
    """The machine in one line, a row for each case and peer, geometric means, quality, and what could not run.

    "others" is how many cores other processes kept busy meanwhile: times with much over 0.1 prove little.
    """
    machine = suite.machine
    parts = [
        f"{suite.name}: {machine.processor}, {machine.threads} threads, {suite.created}",
        rows_text(
            (
                "model",
                "batch",
                "peer",
                "median ms",
                "p10 ms",
                "speed / eager",
                "share of limit",
                "max abs error",
                "others",
            ),
            [_row(case, result) for case in suite.cases for result in case.results if result.median_ms],
        ),
        rows_text(("peer", "geometric mean of speed / eager", "cases"), _means(suite)),
    ]
    if suite.scores:
        rows = [(s.model, s.peer, s.metric, f"{s.value:.4g}", str(s.samples)) for s in suite.scores]
        parts.append(rows_text(("model", "peer", "metric", "value", "samples"), rows))
    failures = [
        f"- {case.model}, batch {case.batch}: {r.failure}" for case in suite.cases for r in case.results if r.failure
    ]
    return "\n\n".join([*parts, "\n".join(failures)] if failures else parts) + "\n"


def speed(case: Case, result: Result) -> float | None:
    """How many times faster than eager by the medians; None where one of the two is missing."""
    base = case.result(_BASE)
    if base is None or base.median_ms is None or result.median_ms is None:
        return None
    return base.median_ms / result.median_ms


def _row(case: Case, result: Result) -> tuple[str, ...]:
    faster, median = speed(case, result), result.median_ms or float("nan")
    return (
        case.model,
        str(case.batch),
        result.peer,
        f"{median:.2f}",
        f"{result.p10_ms:.2f}",
        "" if faster is None else f"{faster:.2f}",
        f"{case.limit.ms / median:.2f}",
        f"{result.max_abs_error:.1e}",
        "" if case.other_cores is None else f"{case.other_cores:.2f}",
    )


def _means(suite: Suite) -> list[tuple[str, ...]]:
    rows: list[tuple[str, ...]] = []
    for peer in suite.peers:
        found = [(case, case.result(peer)) for case in suite.cases]
        speeds = [value for case, result in found if result and (value := speed(case, result)) is not None]
        if speeds:
            rows.append((peer, f"{exp(sum(map(log, speeds)) / len(speeds)):.2f}", str(len(speeds))))
    return rows


def rows_text(header: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> str:
    """A Markdown table."""
    lines = [header, ("---",) * len(header), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def kernel_markdown(suite: "KernelSuite") -> str:
    """A row for each kernel: time, rate, the machine's limit around it, and the share that was reached."""
    header = (
        "kernel",
        "dtype",
        "rows",
        "kernel ms",
        "call ms",
        "eager ms",
        "G/s",
        "limit G/s",
        "share",
        "bound",
        "max abs error",
    )
    rows = [
        (
            result.name,
            result.dtype,
            str(result.rows),
            *(f"{ms:.4f}" for ms in (result.kernels_ms, result.call_ms, result.eager_ms)),
            f"{result.rate:.0f}",
            f"{result.limit:.0f}",
            f"{result.share:.2f}",
            result.bound,
            f"{result.max_abs_error:.1e}",
        )
        for result in suite.results
    ]
    return "\n\n".join([rows_text(header, rows), *(f"- {failure}" for failure in suite.failures)]) + "\n"
