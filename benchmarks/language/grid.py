"""Which cases a language run measures: what the user chose, or the short form."""

from collections.abc import Sequence
from typing import TypeVar

from benchmarks.language.peers import (
    LLAMA_CPP,
    OPENVINO_GENAI,
    PEERS,
    PLANISH,
)
from benchmarks.language.run import Grid
from benchmarks.language.source import LLAMA_1B, SMOLLM2, SOURCES
from planish.errors import InputError, nearest

_KINDS = ("f32", "int8", "int4")
_T = TypeVar("_T")


def chosen_grids(
    models: str, formats: str, peers: str, contexts: tuple[int, ...], batches: tuple[int, ...], threads: int
) -> tuple[Grid, ...]:
    """One grid over names separated by commas, all for an empty text; InputError on a name that is not known."""
    sources = _named(models, SOURCES, [source.name for source in SOURCES])
    kinds = _named(formats, _KINDS, _KINDS)
    chosen = _named(peers, PEERS, [peer.name for peer in PEERS])
    cases = tuple((source, kind) for source in sources for kind in kinds)
    return (Grid(cases, chosen, contexts, batches, threads),)


def quick_grids(threads: int) -> tuple[Grid, ...]:
    """SmolLM2 in int4 and int8 and the 1.1B shape in int4 after 16 and 512 tokens, against the two fastest peers.

    Less than four minutes where the models were converted and compiled before.
    """
    fast = (PLANISH, LLAMA_CPP, OPENVINO_GENAI)
    return (
        Grid(((SMOLLM2, "int4"), (SMOLLM2, "int8")), fast, (16, 512), threads=threads, rounds=2),
        Grid(((LLAMA_1B, "int4"),), fast, (16, 512), threads=threads, tokens=17, rounds=2),
    )


def _named(words: str, items: Sequence[_T], names: Sequence[str]) -> tuple[_T, ...]:
    wanted = {word.strip() for word in words.split(",") if word.strip()}
    if unknown := sorted(wanted - set(names)):
        raise InputError(f"nothing to measure is called '{unknown[0]}'{nearest(unknown[0], names)}")
    return tuple(item for item, name in zip(items, names, strict=True) if name in wanted or not wanted)
