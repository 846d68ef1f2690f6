"""A language model without a compiler: numpy functions with the interface of `prefill` and `decode`."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from tokenizers import Tokenizer as Parsed
from tokenizers import decoders, models, pre_tokenizers

from planish.runtime.generation.generator import Generator
from planish.runtime.generation.settings import Settings
from planish.runtime.generation.tokenizer import Tokenizer
from planish.runtime.plan import FunctionPlan, InputSpec, TensorSpec
from planish.runtime.signature import Signature
from planish.runtime.tree import tensor

Array = np.ndarray[Any, Any]
VOCABULARY = 256
Follow = Callable[[Sequence[int]], int]


@dataclass
class FakeFunction:
    """Keeps ids in a cache [B, 1, context, 1] and answers with the token that `follow` gives for all ids so far."""

    context: int
    follow: Follow
    undefined_after: int = 10**9
    donates: bool = True
    calls: list[tuple[int, ...]] = field(default_factory=list)

    @property
    def plan(self) -> FunctionPlan:
        shapes = {"ids": ("i64", ["rows", "tokens"]), "past": ("i64", ["rows"]), "count": ("i64", ["rows"])}
        caches = {f"cache.{i}.{end}": ("f32", ["rows", 1, self.context, 1]) for i in (0, 1) for end in "kv"}
        inputs = tuple(InputSpec(n, TensorSpec.of(d, s)) for n, (d, s) in {**shapes, **caches}.items())  # type: ignore[arg-type]
        return FunctionPlan((), inputs, (), Signature((), 0), tensor(), (), ())

    def run(self, leaves: Sequence[Any], /) -> list[Any]:
        ids, past, count, *caches = leaves
        caches = caches if self.donates else [cache.copy() for cache in caches]
        self.calls.append(tuple(map(int, count)))
        logits = np.zeros((len(ids), VOCABULARY), np.float32)
        for row in range(len(ids)):
            for i in range(int(count[row])):
                for cache in caches:
                    cache[row, 0, past[row] + i, 0] = ids[row, i]
            held = int(past[row] + count[row])
            if held > self.undefined_after:
                caches[2][row, 0, held - 1, 0] = logits[row] = np.nan
            elif count[row]:
                logits[row, self.follow([int(x) for x in caches[0][row, 0, :held, 0]])] = 5.0
        return [logits, *caches]

    def bind(self, leaves: Sequence[Array], /) -> Callable[[], list[Any]]:
        return lambda: self.run(leaves)


def successor(ids: Sequence[int]) -> int:
    """A token that depends on all ids: a wrong or missing one changes it."""
    return (31 * sum((i + 1) * x for i, x in enumerate(ids)) + 7) % VOCABULARY


def saying(text: str, prompt: int = 1) -> Follow:
    """Follows a prompt of `prompt` tokens with the UTF-8 bytes of a text, again and again."""
    data = text.encode()
    return lambda ids: data[(len(ids) - prompt) % len(data)]


def byte_tokenizer(template: str = "") -> Tokenizer:
    """One token a byte, by its value."""
    order = sorted(pre_tokenizers.ByteLevel.alphabet(), key=_byte_of)
    parsed = Parsed(models.BPE(vocab={char: b for b, char in enumerate(order)}, merges=[]))
    parsed.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    parsed.decoder = decoders.ByteLevel()
    return Tokenizer(parsed.to_str(), template, {"bos_token": "<s>"})


def _byte_of(char: str) -> int:
    """The byte that a character of the byte-level alphabet stands for (GPT-2's bytes_to_unicode)."""
    shown = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [b for b in range(256) if b not in shown]
    return ord(char) if ord(char) in shown else others[ord(char) - 256]


def generator(
    follow: Follow = successor,
    *,
    context: int = 64,
    chunk: int = 8,
    batch: int = 3,
    end: tuple[int, ...] = (),
    tokenizer: Tokenizer | None = None,
    **options: Any,
) -> tuple[Generator, FakeFunction, FakeFunction]:
    prefill, decode = FakeFunction(context, follow, **options), FakeFunction(context, follow, **options)
    settings = Settings(context, chunk, batch, VOCABULARY, end, "f32")
    return Generator(prefill, decode, settings, tokenizer), prefill, decode


def continued(prompt: Sequence[int], count: int, follow: Follow = successor) -> list[int]:
    """What must follow the prompt."""
    ids = list(prompt)
    for _ in range(count):
        ids.append(follow(ids))
    return ids[len(prompt) :]
