"""The logits of a step, wherever they lie: all of them, or of each row the token that has the largest."""

from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

Array = np.ndarray[Any, Any]


class Scores(Protocol):
    """Logits f32[rows, V] after one more token of each row; valid until the next step."""

    def likeliest(self) -> tuple[Array, Array]:
        """The tokens i64[rows] with the largest logits, the first among equals, and those logits of each row.

        Where a row has numbers that are undefined, the first of these counts as the largest.
        """

    def logits(self) -> Array:
        """All of them, as an array of the host."""


@dataclass(frozen=True, slots=True)
class HostScores:
    """Logits that lie in an array."""

    array: Array

    def likeliest(self) -> tuple[Array, Array]:
        """See `Scores`."""
        tokens = self.array.argmax(axis=1)  # half the time of max
        return tokens, self.array[np.arange(len(tokens)), tokens]

    def logits(self) -> Array:
        """See `Scores`."""
        return self.array
