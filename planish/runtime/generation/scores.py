"""The logits of a step, wherever they lie: all of them, or of each row the token that is chosen by them."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import isfinite
from typing import Any, Protocol

import numpy as np

from planish.runtime.generation.sampling import Sampler

Array = np.ndarray[Any, Any]


class Scores(Protocol):
    """Logits f32[rows, V] after one more token of each row; valid until the next step."""

    def likeliest(self) -> tuple[list[int], list[float]]:
        """The tokens with the largest logits, the first among equals, and those logits of each row.

        Where a row has numbers that are undefined, the first of these counts as the largest.
        """

    def logits(self) -> Array:
        """All of them, as an array of the host."""

    def chosen(self, samplers: Sequence[Sampler | None]) -> tuple[list[int], list[float]]:
        """The next token of each row by its sampler, and its largest logit as `likeliest` gives it.

        A row without a sampler, and one whose largest logit is not finite, gives any token.
        """


@dataclass(frozen=True, slots=True)
class HostScores:
    """Logits that lie in an array; `pairs` f64[rows, 2] are their likeliest tokens and the largest logits, if known."""

    array: Array
    pairs: Array | None = None

    def likeliest(self) -> tuple[list[int], list[float]]:
        """See `Scores`."""
        if self.pairs is not None:
            return from_pairs(self.pairs)
        tokens = self.array.argmax(axis=1)  # half the time of max
        return tokens.tolist(), self.array[np.arange(len(tokens)), tokens].tolist()

    def logits(self) -> Array:
        """See `Scores`."""
        return self.array

    def chosen(self, samplers: Sequence[Sampler | None]) -> tuple[list[int], list[float]]:
        """See `Scores`."""
        return chosen_on_host(self, samplers)


def from_pairs(pairs: Array) -> tuple[list[int], list[float]]:
    """Tokens and logits of `greedy_tokens` and `sampled_tokens`."""
    rows = pairs.tolist()
    return [int(token) for token, _ in rows], [largest for _, largest in rows]


def chosen_on_host(scores: Scores, samplers: Sequence[Sampler | None]) -> tuple[list[int], list[float]]:
    """`Scores.chosen` by the samplers; all logits are fetched only where a row needs more than the largest."""
    tokens, largest = scores.likeliest()
    drawing = [i for i, s in enumerate(samplers) if s is not None and not s.is_greedy and isfinite(largest[i])]
    if drawing:
        logits = scores.logits()
        for i in drawing:
            tokens[i] = samplers[i].choose(logits[i])  # type: ignore[union-attr]
    return tokens, largest
