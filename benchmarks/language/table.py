"""Language results as Markdown: tokens a second, and shares of bandwidth and peak measured in the same run."""

from benchmarks.language.results import LanguageCase, LanguageSuite, PeerResult, Point

_HEAD = (
    "model",
    "format",
    "batch",
    "context",
    "peer",
    "decode tokens/s",
    "median ms",
    "p10 ms",
    "MB a step",
    "share of stream",
    "prefill tokens/s",
    "share of peak",
    "same tokens",
)


def language_markdown(suite: LanguageSuite) -> str:
    """The machine in a line, a row for each case, context and peer, how each peer stores, and what could not run.

    "share of stream" is the bytes of a step over its median time, beside the bandwidth measured in the same run;
    "share of peak" the operations of the prompt over its median time, beside the peak of the dtype computed with;
    "same tokens" how many of 16 greedy tokens after a text are those of eager in f32.
    """
    machine = suite.machine
    rows = [row for case in suite.cases for row in _case_rows(case)]
    lines = [_HEAD, ("---",) * len(_HEAD), *rows]
    title = f"{suite.name}: {machine.processor}, {machine.threads} threads, {suite.created}"
    parts = [title, "\n".join(f"| {' | '.join(line)} |" for line in lines), *_rates(suite)]
    failures = [
        f"- {case.model} {case.kind}, batch {case.batch}: {result.failure}"
        for case in suite.cases
        for result in case.results
        if result.failure
    ]
    details = sorted({f"- {r.peer}: {c.kind}: {r.detail}" for c in suite.cases for r in c.results if r.detail})
    return "\n\n".join([*parts, "\n".join(details), "\n".join(failures)]).rstrip() + "\n"


def stream_share(case: LanguageCase, point: Point) -> float:
    """The part of the stream bandwidth that the median decode step reaches."""
    return point.token_bytes / (point.token_median_ms * 1e-3) / (case.bandwidth_gbs * 1e9)


def peak_share(case: LanguageCase, result: PeerResult, point: Point) -> float | None:
    """The part of the peak of the peer's compute dtype that the median prefill reaches."""
    peak = case.peak_gops(result.compute)
    return None if peak is None else point.prefill_flops / (point.first_median_ms * 1e-3) / (peak * 1e9)


def _case_rows(case: LanguageCase) -> list[tuple[str, ...]]:
    found = [(point, result) for result in case.results for point in result.points]
    return [_row(case, result, point) for point, result in sorted(found, key=lambda pair: pair[0].context)]


def _row(case: LanguageCase, result: PeerResult, point: Point) -> tuple[str, ...]:
    peak = peak_share(case, result, point)
    return (
        case.model,
        case.kind,
        str(case.batch),
        str(point.context),
        result.peer,
        f"{case.batch * 1e3 / point.token_median_ms:.1f}",
        f"{point.token_median_ms:.2f}",
        f"{point.token_p10_ms:.2f}",
        f"{point.token_bytes / 1e6:.1f}",
        f"{stream_share(case, point):.2f}",
        f"{case.batch * point.context * 1e3 / point.first_median_ms:.0f}",
        "" if peak is None else f"{peak:.2f} {result.compute}",
        "" if result.same_tokens is None else str(result.same_tokens),
    )


def _rates(suite: LanguageSuite) -> list[str]:
    lines = []
    for case in suite.cases:
        peaks = ", ".join(f"{dtype} {case.peak_gops(dtype) or 0:.0f}" for dtype in case.rates[0].peak_gops)
        others = "unknown" if case.other_cores is None else f"{case.other_cores:.2f}"
        lines.append(
            f"- {case.model} {case.kind}, batch {case.batch}: stream {case.bandwidth_gbs:.1f} GB/s, "
            f"peak Gop/s {peaks}; other processes used {others} cores"
        )
    return ["\n".join(lines)] if lines else []
