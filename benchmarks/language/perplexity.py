"""Perplexity of weight formats on real text, through the compiled full-sequence graph."""

import gc
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import torch
from pydantic import TypeAdapter
from torch import Tensor, nn

from benchmarks.language.quality import Subject, WeightFormat
from benchmarks.results import Machine, write
from benchmarks.run import Say, machine
from benchmarks.zoo import Call
from benchmarks.zoo.data import austen, faq
from benchmarks.zoo.perplexity import perplexity
from benchmarks.zoo.text import windows
from planish.errors import PlanishError

TEXTS: dict[str, Callable[[], str]] = {"Austen": austen, "FAQ": faq}
_SKIPPED_CHARACTERS = 200_000
_CHARACTERS_PER_TOKEN = 8


@dataclass(frozen=True, slots=True)
class Perplexity:
    """One model in one format on one text, over `tokens` predictions; `failure` says why there is no value."""

    model: str
    kind: str
    text: str
    value: float | None
    tokens: int
    failure: str | None = None


@dataclass(frozen=True, slots=True)
class PerplexitySuite:
    """One run; "eager" among the kinds is transformers' module as it is."""

    name: str
    created: str
    machine: Machine
    results: tuple[Perplexity, ...] = ()


def run_perplexity(
    subjects: tuple[Subject, ...],
    formats: tuple[WeightFormat, ...],
    name: str,
    path: Path,
    *,
    windows: int,
    threads: int,
    say: Say,
) -> PerplexitySuite:
    """Measures every model in every format on every text; the JSON at `path` is brought up to date after each."""
    torch.set_num_threads(threads)
    created, at, results = datetime.now(UTC).isoformat(timespec="seconds"), machine(threads), []
    suite = PerplexitySuite(name, created, at)
    for subject in subjects:
        module = subject.load()
        texts = {text: tokens_of(subject, read(), windows) for text, read in TEXTS.items()}
        for kind in (None, *formats):
            say(f"{subject.name}: {kind.name if kind else 'eager'}")
            results += _measure(subject, module, kind, texts, threads)
            suite = PerplexitySuite(name, created, at, tuple(results))
            write(TypeAdapter(PerplexitySuite).dump_json(suite, indent=1), path)
            gc.collect()
    return suite


def tokens_of(subject: Subject, text: str, count: int) -> Tensor:
    """`count` windows of the middle of a text: `(count, window)` int64."""
    part = text[_SKIPPED_CHARACTERS:][: count * subject.window * _CHARACTERS_PER_TOKEN]
    return windows(subject.encode(part), count, subject.window)


def _measure(
    subject: Subject, module: nn.Module, kind: WeightFormat | None, texts: dict[str, Tensor], threads: int
) -> list[Perplexity]:
    name = kind.name if kind else "eager"
    try:
        call = compiled(module, kind, subject.window, threads) if kind else lambda ids: module(input_ids=ids)
    except PlanishError as error:
        return [Perplexity(subject.name, name, text, None, 0, str(error)) for text in texts]
    return [
        Perplexity(subject.name, name, text, perplexity(call, ids), ids.numel() - len(ids))
        for text, ids in texts.items()
    ]


def compiled(module: nn.Module, kind: WeightFormat, window: int, threads: int) -> Call:
    """The full-sequence graph for windows of `window` tokens in a format. Raises PlanishError where it cannot be."""
    import planish
    from planish.compiler.pass_ import Pass
    from planish.passes import EXACT

    example = torch.zeros((1, window), dtype=torch.int64)
    passes: list[Pass | str] = [*EXACT, *kind.passes]
    call: Call = planish.compile(module, "cpu", inputs=(example,), passes=passes, threads=threads)
    return call


def perplexity_markdown(suite: PerplexitySuite) -> str:
    """A row for each model and format, a column for each text, and a line for each that could not be measured."""
    head = ("model", "weights", *TEXTS)
    found = {(r.model, r.kind, r.text): r for r in suite.results}
    keys = list(dict.fromkeys((r.model, r.kind) for r in suite.results))
    rows = [(model, kind, *(_cell(found.get((model, kind, text))) for text in TEXTS)) for model, kind in keys]
    table = "\n".join(f"| {' | '.join(line)} |" for line in [head, ("---",) * len(head), *rows])
    failures = [f"- {r.model} {r.kind}, {r.text}: {r.failure}" for r in suite.results if r.failure]
    return "\n\n".join([table, *failures]) + "\n"


def _cell(result: Perplexity | None) -> str:
    return "" if result is None or result.value is None else f"{result.value:.3f}"
