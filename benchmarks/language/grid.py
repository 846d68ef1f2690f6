"""Which cases a language run measures: the whole grid, its headlines, or a short form."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import product
from typing import Any, TypeVar

from benchmarks.language.peers import (
    CTRANSLATE2,
    LLAMA_CPP,
    ONNX_GENAI,
    OPENVINO_GENAI,
    PEERS,
    PLANISH,
    PLANISH_INT8_ACTIVATIONS,
    LanguagePeer,
)
from benchmarks.language.results import Effort
from benchmarks.language.source import LLAMA_1B, SMOLLM2, SOURCES, Source
from planish.errors import InputError, nearest

KINDS = ("int4", "int8", "bf16", "f32")
CASES = ("decode-16", "prefill-128", "prefill-512", "decode-512", "prefill-2048", "decode-2048")
_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class Sitting:
    """A model in a format at a batch, for which peers are prepared once.

    `prompts` are the lengths of the prompts, ascending; after those in `decoded`, decode is timed as well as prefill.
    """

    source: Source
    kind: str
    batch: int
    prompts: tuple[int, ...]
    decoded: frozenset[int]

    def key(self, prompt: int) -> tuple[str, str, int, int]:
        """Which case of the results it is after prompts of that length."""
        return self.source.name, self.kind, self.batch, prompt

    def __str__(self) -> str:
        return f"{self.source.name} {self.kind}, batch {self.batch}"


@dataclass(frozen=True, slots=True)
class Grid:
    """Every model in every format at every batch in every case: `prefill-TOKENS` or `decode-TOKENS`."""

    models: tuple[Source, ...] = SOURCES
    formats: tuple[str, ...] = KINDS
    batches: tuple[int, ...] = (1, 8)
    cases: tuple[str, ...] = CASES


@dataclass(frozen=True, slots=True)
class Preset:
    """Grids measured one after another under the same peers with the same effort."""

    grids: tuple[Grid, ...] = (Grid(),)
    peers: tuple[LanguagePeer, ...] = PEERS
    effort: Effort = field(default_factory=Effort)

    def sittings(self) -> tuple[Sitting, ...]:
        """In order, each model, format and batch once; batch 1 comes first."""
        wanted: dict[tuple[str, str, int], Sitting] = {}
        for grid in self.grids:
            for batch, kind, source in product(grid.batches, grid.formats, grid.models):
                before = wanted.get((source.name, kind, batch), Sitting(source, kind, batch, (), frozenset()))
                wanted[source.name, kind, batch] = _extended(before, grid.cases)
        return tuple(wanted.values())


FULL = Preset()
# What the aims are about: the formats of four and eight bits, and prefill on the matrix units.
HEADLINE = Preset(
    (
        Grid(formats=("int4", "int8"), batches=(1,), cases=("decode-16", "decode-512")),
        Grid(models=(LLAMA_1B,), formats=("bf16",), batches=(1,), cases=("prefill-512",)),
        Grid(formats=("int4",), batches=(8,), cases=("decode-16",)),
    ),
    (PLANISH, PLANISH_INT8_ACTIVATIONS, LLAMA_CPP, OPENVINO_GENAI, ONNX_GENAI, CTRANSLATE2),
    Effort(rounds=2, limit_seconds=15.0),
)
QUICK = Preset(
    (
        Grid((SMOLLM2,), ("int4", "int8"), (1,), ("decode-16", "decode-512")),
        Grid((LLAMA_1B,), ("int4",), (1,), ("decode-16", "decode-512")),
    ),
    (PLANISH, LLAMA_CPP, OPENVINO_GENAI),
    Effort(rounds=2, tokens=17, limit_seconds=20.0),
)


def chosen(
    preset: Preset,
    *,
    models: str = "",
    formats: str = "",
    peers: str = "",
    batches: tuple[int, ...] = (),
    cases: str = "",
    **effort: Any,
) -> Preset:
    """The preset with what is given in place of its own: names separated by commas, fields of `Effort` that are set.

    Raises InputError on a name that is not known.
    """
    changes: dict[str, Any] = {
        "models": _named(models, SOURCES, [source.name for source in SOURCES]),
        "formats": _named(formats, KINDS, KINDS),
        "batches": batches,
        "cases": tuple(_words(cases)),
    }
    given = {name: value for name, value in changes.items() if value}
    for case in given.get("cases", ()):
        _prompt_of(case)
    named = _named(peers, PEERS, [peer.name for peer in PEERS])
    spent = replace(preset.effort, **{name: value for name, value in effort.items() if value is not None})
    return Preset(tuple(replace(grid, **given) for grid in preset.grids), named or preset.peers, spent)


def _extended(sitting: Sitting, cases: Sequence[str]) -> Sitting:
    found = {_prompt_of(case) for case in cases}
    prompts = tuple(sorted({*sitting.prompts, *(prompt for prompt, _ in found)}))
    return replace(sitting, prompts=prompts, decoded=sitting.decoded | {prompt for prompt, decoded in found if decoded})


def _prompt_of(case: str) -> tuple[int, bool]:
    """The length of the prompt, and whether decode is timed after it."""
    matched = re.fullmatch(r"(prefill|decode)-([1-9]\d*)", case)
    if not matched:
        raise InputError(f"a case is prefill-TOKENS or decode-TOKENS, not '{case}'{nearest(case, CASES)}")
    return int(matched[2]), matched[1] == "decode"


def _words(text: str) -> list[str]:
    return [word.strip() for word in text.split(",") if word.strip()]


def _named(words: str, items: Sequence[_T], names: Sequence[str]) -> tuple[_T, ...]:
    wanted = _words(words)
    if unknown := sorted(set(wanted) - set(names)):
        raise InputError(f"nothing to measure is called '{unknown[0]}'{nearest(unknown[0], names)}")
    return tuple(item for item, name in zip(items, names, strict=True) if name in wanted)
