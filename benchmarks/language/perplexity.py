"""Perplexity of formats of weights and caches on real text, by the full-sequence graph, compiled or evaluated."""

import gc
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import torch
from pydantic import TypeAdapter
from torch import Tensor, nn

import planish
from benchmarks.language.quality import Format, Subject
from benchmarks.results import Machine, write
from benchmarks.run import Say, machine
from benchmarks.zoo import Call
from benchmarks.zoo.data import austen, faq
from benchmarks.zoo.perplexity import perplexity
from benchmarks.zoo.text import windows
from planish.compiler.evaluate import evaluate
from planish.compiler.importers import import_torch
from planish.compiler.pass_ import Context, Pass
from planish.compiler.pipeline import Pipeline
from planish.compiler.recipe import parse_pass
from planish.errors import PlanishError
from planish.passes import ALL, EXACT

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
    by: str
    results: tuple[Perplexity, ...] = ()


def run_perplexity(
    subjects: tuple[Subject, ...],
    formats: tuple[Format, ...],
    name: str,
    path: Path,
    *,
    windows: int,
    threads: int,
    reference: bool,
    say: Say,
) -> PerplexitySuite:
    """Measures every model in every format on every text; the JSON at `path` is brought up to date after each.

    With `reference` the passes' result runs on the reference evaluator instead of compiled kernels.
    """
    torch.set_num_threads(threads)
    created, at, results = datetime.now(UTC).isoformat(timespec="seconds"), machine(threads), []
    by = "reference evaluator" if reference else "compiled"
    suite = PerplexitySuite(name, created, at, by)
    for subject in subjects:
        module = subject.load()
        make = referenced(module, subject.window) if reference else compiler(module, subject.window, threads)
        texts = {text: tokens_of(subject, read(), windows) for text, read in TEXTS.items()}
        for kind in (None, *formats):
            say(f"{subject.name}: {kind.name if kind else 'eager'}")
            results += _measure(subject, module, kind, texts, make)
            suite = PerplexitySuite(name, created, at, by, tuple(results))
            write(TypeAdapter(PerplexitySuite).dump_json(suite, indent=1), path)
            gc.collect()
    return suite


def tokens_of(subject: Subject, text: str, count: int) -> Tensor:
    """`count` windows of the middle of a text: `(count, window)` int64."""
    part = text[_SKIPPED_CHARACTERS:][: count * subject.window * _CHARACTERS_PER_TOKEN]
    return windows(subject.encode(part), count, subject.window)


def _measure(
    subject: Subject,
    module: nn.Module,
    kind: Format | None,
    texts: dict[str, Tensor],
    make: Callable[[Format], Call],
) -> list[Perplexity]:
    name = kind.name if kind else "eager"
    try:
        call = make(kind) if kind else lambda ids: module(input_ids=ids)
    except PlanishError as error:
        return [Perplexity(subject.name, name, text, None, 0, str(error)) for text in texts]
    return [
        Perplexity(subject.name, name, text, perplexity(call, ids), ids.numel() - len(ids))
        for text, ids in texts.items()
    ]


def compiler(module: nn.Module, window: int, threads: int) -> Callable[[Format], Call]:
    """Compiles the full-sequence graph for windows of `window` tokens in a format; PlanishError where it cannot be."""

    def make(kind: Format) -> Call:
        passes: list[Pass | str] = [*EXACT, *kind.passes]
        call: Call = planish.compile(module, "cpu", inputs=(_example(window),), passes=passes, threads=threads)
        return call

    return make


def referenced(module: nn.Module, window: int) -> Callable[[Format], Call]:
    """The same graphs on the reference evaluator."""
    imported = import_torch(module, (_example(window),), {})
    program, _ = Pipeline(EXACT).run(imported.program, Context())

    def make(kind: Format) -> Call:
        passes = tuple(parse_pass(each, ALL) if isinstance(each, str) else each for each in kind.passes)
        changed, _ = Pipeline(passes).run(program, Context())
        return lambda ids: evaluate(changed.main, (ids,), changed.weights)

    return make


def _example(window: int) -> Tensor:
    return torch.zeros((1, window), dtype=torch.int64)


def perplexity_markdown(suite: PerplexitySuite) -> str:
    """A row for each model and format, a column for each text, and a line for each that could not be measured."""
    head = ("model", "format", *TEXTS)
    found = {(r.model, r.kind, r.text): r for r in suite.results}
    keys = list(dict.fromkeys((r.model, r.kind) for r in suite.results))
    rows = [(model, kind, *(_cell(found.get((model, kind, text))) for text in TEXTS)) for model, kind in keys]
    table = "\n".join(f"| {' | '.join(line)} |" for line in [head, ("---",) * len(head), *rows])
    failures = [f"- {r.model} {r.kind}, {r.text}: {r.failure}" for r in suite.results if r.failure]
    return "\n\n".join([table, *failures]) + "\n"


def _cell(result: Perplexity | None) -> str:
    return "" if result is None or result.value is None else f"{result.value:.3f}"
