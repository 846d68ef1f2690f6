"""Whether the float artifact's greedy text is that of transformers."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from benchmarks.run import Say
from benchmarks.zoo.data import austen, faq
from benchmarks.zoo.smollm2 import encode

_SKIPPED_CHARACTERS = 400_000
_APART_CHARACTERS = 20_000
_PROMPT_CHARACTERS = 120


@dataclass(frozen=True, slots=True)
class Agreement:
    """Of `prompts` greedy texts of `tokens` tokens, how many are identical, and where each parts (None: nowhere)."""

    prompts: int
    tokens: int
    identical: int
    parted: tuple[int | None, ...]


def greedy_prompts(count: int) -> list[list[int]]:
    """Token ids of passages, by turns of Austen and of the FAQ."""
    texts = austen(), faq()
    starts = [_SKIPPED_CHARACTERS + _APART_CHARACTERS * i for i in range(count)]
    return [encode(texts[i % 2][start : start + _PROMPT_CHARACTERS]) for i, start in enumerate(starts)]


def run_greedy(module: Any, prompts: list[list[int]], tokens: int, *, threads: int, say: Say) -> Agreement:
    """Compiles transformers' `module` in f32 with an f32 cache and continues every prompt by both."""
    import planish

    say("compiling")
    context = max(map(len, prompts)) + tokens
    generation = planish.Generation(context=context, chunk=64, cache="f32", end=())
    example = torch.zeros((2, 16), dtype=torch.int64)
    compiled = planish.compile(module, "cpu", inputs=(example,), generate=generation, threads=threads)
    return agreement(
        lambda ids: [int(token) for token in compiled.generate(ids, max_new_tokens=tokens)],
        lambda ids: reference_greedy(module, ids, tokens),
        prompts,
        tokens,
        say,
    )


def agreement(
    ours: Callable[[list[int]], list[int]],
    theirs: Callable[[list[int]], list[int]],
    prompts: list[list[int]],
    tokens: int,
    say: Say,
) -> Agreement:
    """Compares two ways to continue the prompts."""
    parted: list[int | None] = []
    for number, ids in enumerate(prompts, 1):
        say(f"prompt {number} of {len(prompts)}")
        pairs = enumerate(zip(ours(ids), theirs(ids), strict=True))
        parted.append(next((place for place, (a, b) in pairs if a != b), None))
    return Agreement(len(prompts), tokens, parted.count(None), tuple(parted))


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
