"""What `generate` returns: tokens as they are chosen, and what is known of them so far."""

import time
from collections.abc import Generator, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Literal

from planish.runtime.generation.sampling import Sampler
from planish.runtime.generation.text import Pieces, StopText

FinishReason = Literal["end", "stop", "length", "context"]
REASONS: Final[dict[FinishReason, str]] = {
    "end": "a token that ends texts",
    "stop": "a stop token or string",
    "length": "max_new_tokens",
    "context": "the end of the context that the model was compiled for",
}


class Token(int):
    """A token id that carries the text which became certain with it; without a tokenizer that is empty."""

    text: str

    def __new__(cls, id: int, text: str = "") -> "Token":  # noqa: A002 - the word of tokenizers
        token = int.__new__(cls, id)
        token.text = text
        return token

    @property
    def id(self) -> int:
        """The id as a plain int."""
        return int(self)

    def __repr__(self) -> str:
        return f"Token({int(self)}, {self.text!r})"


@dataclass(slots=True)
class Row:
    """One prompt and what follows it. At most `limit` tokens are made; `limited_by` says what sets that limit."""

    prompt: Sequence[int]
    sampler: Sampler
    limit: int
    limited_by: FinishReason
    end: frozenset[int]
    stop_ids: frozenset[int]
    pieces: Pieces | None
    stop_text: StopText
    tokens: list[Token] = field(default_factory=list)
    finish_reason: FinishReason | None = None

    def take(self, chosen: int) -> Token:
        """The next token, by its id; sets the reason where it is the last one."""
        self.sampler.note((chosen,))
        token = Token(chosen, self._text(chosen))
        self.tokens.append(token)
        return token

    def _text(self, chosen: int) -> str:
        self.finish_reason = self._reason(chosen)
        if self.pieces is None:
            return ""
        silent = self.finish_reason in ("end", "stop")
        piece = self.pieces.flush() if silent else self.pieces.push(chosen)
        if self.finish_reason in ("length", "context"):
            piece += self.pieces.flush()
        text = self.stop_text.push(piece)
        if self.stop_text.found:
            self.finish_reason = "stop"
        elif self.finish_reason is not None:
            text += self.stop_text.flush()
        return text

    def _reason(self, chosen: int) -> FinishReason | None:
        if chosen in self.stop_ids:
            return "stop"
        if chosen in self.end:
            return "end"
        return self.limited_by if len(self.tokens) + 1 == self.limit else None


@dataclass(slots=True)
class Clock:
    """Seconds (`time.perf_counter`) at the first request, at the first token and at the last one so far."""

    start: float = 0.0
    first: float = 0.0
    last: float = 0.0
    steps: int = 0

    def begin(self) -> None:
        """The first token was asked for."""
        self.start = time.perf_counter()

    def tick(self) -> None:
        """A token of each row is there."""
        self.last = time.perf_counter()
        self.first = self.first or self.last
        self.steps += 1


Steps = Generator[list[Token | None], None, None]


class _Running:
    """Tokens of rows until all have ended. Closing it, or leaving its `with` block, gives the caches back."""

    def __init__(self, rows: Sequence[Row], steps: Steps, clock: Clock) -> None:
        self._rows, self._steps, self._clock = rows, steps, clock

    def close(self) -> None:
        """End the generation now."""
        self._steps.close()

    @property
    def seconds_to_first(self) -> float:
        """From asking for the first token to having it; 0 before."""
        return max(0.0, self._clock.first - self._clock.start)

    @property
    def tokens_per_second(self) -> float:
        """Tokens of all rows a second after the first of each; 0 before there are two."""
        made = sum(len(row.tokens) for row in self._rows) - len(self._rows)
        return made / (self._clock.last - self._clock.first) if self._clock.steps > 1 else 0.0

    def __enter__(self) -> Any:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


class Stream(_Running):
    """The tokens that follow one prompt, computed as they are asked for."""

    def __iter__(self) -> "Stream":
        return self

    def __next__(self) -> Token:
        token = next(self._steps)[0]
        assert token is not None
        return token

    @property
    def prompt(self) -> tuple[int, ...]:
        """The ids of the prompt."""
        return tuple(self._rows[0].prompt)

    @property
    def ids(self) -> list[int]:
        """The ids so far, with the one that ended the text."""
        return [int(token) for token in self._rows[0].tokens]

    @property
    def text(self) -> str:
        """The text so far, without a stop string; empty where there is no tokenizer."""
        return "".join(token.text for token in self._rows[0].tokens)

    @property
    def finish_reason(self) -> FinishReason | None:
        """Why it ended: "end", "stop", "length" or "context"; None while it runs or where it was closed."""
        return self._rows[0].finish_reason


class BatchStream(_Running):
    """The tokens that follow several prompts: a list a step, with None for those that have ended."""

    def __iter__(self) -> "BatchStream":
        return self

    def __next__(self) -> list[Token | None]:
        return next(self._steps)

    @property
    def ids(self) -> list[list[int]]:
        """The ids of each row so far."""
        return [[int(token) for token in row.tokens] for row in self._rows]

    @property
    def texts(self) -> list[str]:
        """The text of each row so far."""
        return ["".join(token.text for token in row.tokens) for row in self._rows]

    @property
    def finish_reasons(self) -> list[FinishReason | None]:
        """Why each row ended, None for those that have not."""
        return [row.finish_reason for row in self._rows]
