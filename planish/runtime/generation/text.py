"""Text as tokens come: whole characters, held back while they may become a stop string."""

from collections.abc import Sequence

from planish.runtime.generation.tokenizer import Tokenizer

_CONTEXT_TOKENS = 8
# A character has at most 4 bytes, so what is incomplete for longer is no character.
_LONGEST_CHARACTER = 4
_INCOMPLETE = "�"


class Pieces:
    """Turns ids into text one by one; characters whose bytes are still to come are held back."""

    def __init__(self, tokenizer: Tokenizer, prompt: Sequence[int]) -> None:
        self._tokenizer = tokenizer
        # Whether a word begins with a space depends on what stands before it.
        self._ids = list(prompt[-_CONTEXT_TOKENS:])
        self._known = len(self._ids)
        self._text = tokenizer.decode(self._ids)

    def push(self, token: int) -> str:
        """The text that the token completes."""
        self._ids.append(token)
        whole = self._tokenizer.decode(self._ids)
        held = len(self._ids) - self._known
        if whole.endswith(_INCOMPLETE) and held < _LONGEST_CHARACTER:
            return ""
        return self._released(whole)

    def flush(self) -> str:
        """What was held back."""
        return self._released(self._tokenizer.decode(self._ids))

    def _released(self, whole: str) -> str:
        piece = whole[len(self._text) :]
        self._ids = self._ids[-max(_CONTEXT_TOKENS, len(self._ids) - self._known) :]
        self._known, self._text = len(self._ids), self._tokenizer.decode(self._ids)
        return piece


class StopText:
    """Text up to the first of some strings; what may be the beginning of one is held back."""

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = tuple(stops)
        self._held = ""
        self.found = False

    def push(self, piece: str) -> str:
        """The text that is certain now; `found` tells that a stop string came, which ends it."""
        text = self._held + piece
        places = [place for stop in self._stops if (place := text.find(stop)) >= 0]
        if places:
            self.found, self._held = True, ""
            return text[: min(places)]
        kept = max((_overlap(text, stop) for stop in self._stops), default=0)
        self._held = text[len(text) - kept :]
        return text[: len(text) - kept]

    def flush(self) -> str:
        """What was held back."""
        held, self._held = self._held, ""
        return held


def _overlap(text: str, stop: str) -> int:
    """The length of the longest end of `text` that begins `stop`."""
    return next((n for n in range(min(len(text), len(stop) - 1), 0, -1) if text.endswith(stop[:n])), 0)
