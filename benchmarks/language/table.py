"""Language results as Markdown: tokens a second, and shares of bandwidth and peak measured in the same run."""

from benchmarks.language.results import LanguageCase, LanguageSuite, PeerResult, Turns

_STEADY = 0.85  # of a bandwidth that is the same: between runs it varies by a tenth
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

    "share of stream" is the bytes of a step over its median time, beside the bandwidth measured just before and after:
    beside the better of both, and the worse one too where memory was another meanwhile;
    "share of peak" the operations of the prompt over its median time, beside the peak of the dtype computed with;
    "same tokens" how many of 16 greedy tokens after a text are those of eager in f32.
    """
    machine = suite.machine
    rows = [row for case in suite.cases for row in _case_rows(case)]
    lines = [_HEAD, ("---",) * len(_HEAD), *rows]
    title = f"{suite.name}: {machine.processor}, {machine.threads} threads, {suite.created}"
    parts = [title, "\n".join(f"| {' | '.join(line)} |" for line in lines), *_rates(suite)]
    details = sorted({f"- {r.peer}: {c.kind}: {r.detail}" for c in suite.cases for r in c.results if r.detail})
    return "\n\n".join([*parts, "\n".join(details), "\n".join(_remarks(suite))]).rstrip() + "\n"


def stream_share(turns: Turns, result: PeerResult) -> str:
    """The part of the stream bandwidth that the median decode step reaches; "0.57 to 0.98" where that changed."""
    read = result.token_bytes / (result.token_median_ms * 1e-3) * 1e-9
    worse, better = (pick(rates.bandwidth_gbs for rates in turns.rates) for pick in (min, max))
    return f"{read / better:.2f}" if worse > _STEADY * better else f"{read / better:.2f} to {read / worse:.2f}"


def peak_share(turns: Turns, result: PeerResult) -> float | None:
    """The part of the peak of the peer's compute dtype that the median prefill reaches."""
    peak = turns.peak_gops(result.compute)
    return None if peak is None else result.prefill_flops / (result.first_median_ms * 1e-3) / (peak * 1e9)


def _case_rows(case: LanguageCase) -> list[tuple[str, ...]]:
    return [_row(case, turns, result) for turns in case.turns for result in turns.results if result.first_ms]


def _row(case: LanguageCase, turns: Turns, result: PeerResult) -> tuple[str, ...]:
    peak = peak_share(turns, result)
    return (
        case.model,
        case.kind,
        str(case.batch),
        str(case.context),
        result.peer,
        *(_decode_cells(case, turns, result) if result.token_ms else ("",) * 5),
        f"{case.batch * case.context * 1e3 / result.first_median_ms:.0f}",
        "" if peak is None else f"{peak:.2f} {result.compute}",
        "" if result.same_tokens is None else str(result.same_tokens),
    )


def _decode_cells(case: LanguageCase, turns: Turns, result: PeerResult) -> tuple[str, ...]:
    return (
        f"{case.batch * 1e3 / result.token_median_ms:.1f}",
        f"{result.token_median_ms:.2f}",
        f"{result.token_p10_ms:.2f}",
        f"{result.token_bytes / 1e6:.1f}",
        stream_share(turns, result),
    )


def _remarks(suite: LanguageSuite) -> list[str]:
    """Failures and notes, each once a model, format and batch, with the lengths of the prompts that it is about."""
    found: dict[tuple[str, str], list[str]] = {}
    for case in suite.cases:
        for result in case.results:
            if remark := result.failure or result.note:
                contexts = found.setdefault((f"{case.model} {case.kind}, batch {case.batch}", remark), [])
                contexts.append(str(case.context))
    return [f"- {where}, {' '.join(contexts)} tokens: {remark}" for (where, remark), contexts in found.items()]


def _rates(suite: LanguageSuite) -> list[str]:
    lines = []
    for case in suite.cases:
        for turns in case.turns:
            peaks = ", ".join(f"{dtype} {turns.peak_gops(dtype) or 0:.0f}" for dtype in turns.rates[0].peak_gops)
            others = "unknown" if turns.other_cores is None else f"{turns.other_cores:.2f}"
            lines.append(
                f"- {case.model} {case.kind}, batch {case.batch}, {case.context} tokens: stream "
                f"{turns.bandwidth_gbs:.1f} GB/s, peak Gop/s {peaks}; other processes used {others} cores"
            )
    return ["\n".join(lines)] if lines else []
