"""Whether the float artifact's greedy text is that of transformers."""

from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from pydantic import TypeAdapter

from benchmarks.results import Machine, read, write
from benchmarks.run import Say, code_digest, machine
from benchmarks.zoo.data import austen, faq
from benchmarks.zoo.smollm2 import encode

FORMAT = 1
_SKIPPED_CHARACTERS = 400_000
_APART_CHARACTERS = 20_000
_PROMPT_CHARACTERS = 120


@dataclass(frozen=True, slots=True)
class Continuation:
    """The ids of a prompt and the greedy `tokens` of transformers after it.

    `parted` is the first place where planish has another token, `other`; both None where there is none.
    """

    prompt: tuple[int, ...]
    tokens: tuple[int, ...]
    parted: int | None = None
    other: int | None = None


@dataclass(frozen=True, slots=True)
class GreedySuite:
    """One run; `versions` are those of the packages compared, `code` a hash of planish's sources."""

    name: str
    created: str
    machine: Machine
    versions: dict[str, str]
    code: str
    model: str
    prompts: int
    tokens: int
    identical: int
    results: tuple[Continuation, ...]
    format: int = FORMAT


_SUITE = TypeAdapter(GreedySuite)


def save_greedy(suite: GreedySuite, path: Path) -> None:
    """Writes the suite as JSON, all at once."""
    write(_SUITE.dump_json(suite, indent=1), path)


def load_greedy(path: Path) -> GreedySuite:
    """The suite in a JSON file; InputError where it cannot be read or is something else."""
    return read(_SUITE, path, what="greedy texts", form=FORMAT)


def greedy_markdown(suite: GreedySuite) -> str:
    """How many texts are identical, and where the others part."""
    title = f"{suite.model}: {suite.identical} of {suite.prompts} texts of {suite.tokens} tokens are transformers' own"
    lines = [
        f"- prompt {number}: token {found.parted} is {found.other}, transformers has {found.tokens[found.parted]}"
        for number, found in enumerate(suite.results)
        if found.parted is not None
    ]
    return "\n".join([title, *lines]) + "\n"


def greedy_prompts(count: int) -> list[list[int]]:
    """Token ids of passages, by turns of Austen and of the FAQ."""
    texts = austen(), faq()
    starts = [_SKIPPED_CHARACTERS + _APART_CHARACTERS * i for i in range(count)]
    return [encode(texts[i % 2][start : start + _PROMPT_CHARACTERS]) for i, start in enumerate(starts)]


def run_greedy(
    module: Any, prompts: list[list[int]], tokens: int, name: str, path: Path, *, threads: int, say: Say
) -> GreedySuite:
    """Compiles transformers' `module` in f32 with an f32 cache, continues every prompt by both, and writes `path`."""
    import planish

    say("compiling")
    context = max(map(len, prompts)) + tokens
    generation = planish.Generation(context=context, chunk=64, cache="f32", end=())
    example = torch.zeros((2, 16), dtype=torch.int64)
    compiled = planish.compile(module, "cpu", inputs=(example,), generate=generation, threads=threads)
    results = compared(
        lambda ids: [int(token) for token in compiled.generate(ids, max_new_tokens=tokens)],
        lambda ids: reference_greedy(module, ids, tokens),
        prompts,
        say,
    )
    suite = GreedySuite(
        name,
        datetime.now(UTC).isoformat(timespec="seconds"),
        machine(threads),
        {package: version(package) for package in ("planish", "torch", "transformers")},
        code_digest(),
        type(module).__name__,
        len(prompts),
        tokens,
        sum(found.parted is None for found in results),
        results,
    )
    save_greedy(suite, path)
    return suite


def compared(
    ours: Callable[[list[int]], list[int]],
    theirs: Callable[[list[int]], list[int]],
    prompts: list[list[int]],
    say: Say,
) -> tuple[Continuation, ...]:
    """Every prompt continued in two ways."""
    results = []
    for number, ids in enumerate(prompts, 1):
        say(f"prompt {number} of {len(prompts)}")
        found, wanted = ours(ids), theirs(ids)
        parted = next((i for i, (a, b) in enumerate(zip(found, wanted, strict=True)) if a != b), None)
        other = None if parted is None else found[parted]
        results.append(Continuation(tuple(ids), tuple(wanted), parted, other))
    return tuple(results)


def reference_greedy(module: Any, ids: list[int], tokens: int) -> list[int]:
    """transformers' own generation, which no token ends."""
    given = torch.tensor([ids])
    found = module.generate(
        given,
        attention_mask=torch.ones_like(given),
        do_sample=False,
        max_new_tokens=tokens,
        min_new_tokens=tokens,
        eos_token_id=None,
        pad_token_id=0,
        use_cache=True,
    )
    continued: list[int] = found[0, len(ids) :].tolist()
    return continued
