"""A loaded language model: prompts in, tokens out."""

import math
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypedDict, TypeGuard, Unpack

import numpy as np

from planish.errors import GenerationError, InputError, nearest
from planish.runtime.executor import CompiledFunction, Executable
from planish.runtime.generation.sampling import Sampler, Sampling
from planish.runtime.generation.scores import Scores
from planish.runtime.generation.session import Function, Session, check_prompt
from planish.runtime.generation.settings import Settings
from planish.runtime.generation.stream import BatchStream, Clock, FinishReason, Row, Steps, Stream, Token
from planish.runtime.generation.text import Pieces, StopText
from planish.runtime.generation.tokenizer import Tokenizer
from planish.runtime.library import NativeLibrary
from planish.runtime.plan import Plan
from planish.runtime.profile import CallProfile
from planish.runtime.tensors import TensorFile

NO_MAIN = "a language model was compiled to generate and has no other call; use generate or chat"
Stop = str | int | Sequence[str | int]


class Options(TypedDict, total=False):
    """What `planish.LanguageModel.generate` takes beside the prompt."""

    max_new_tokens: int
    temperature: float | None
    top_k: int | None
    top_p: float | None
    min_p: float | None
    repetition_penalty: float | None
    stop: Stop | None
    seed: int | None


class Generator:
    """Generates by two functions. Calls from several threads run side by side, each with caches of its own."""

    def __init__(
        self,
        prefill: Function,
        decode: Function,
        settings: Settings,
        tokenizer: Tokenizer | None = None,
        session: Callable[[Function, Function, Settings], Session] = Session,
    ) -> None:
        self.settings, self.tokenizer = settings, tokenizer
        self._new_session = session
        self._functions = prefill, decode
        self._lock = threading.Lock()
        self._idle: Session | None = None

    def generate(self, prompt: Any, **options: Unpack[Options]) -> Stream | BatchStream:
        """See `planish.LanguageModel.generate`."""
        prompts, single, text = self._prompts(prompt)
        return self._started(self._rows(prompts, options, text=text), single)

    def chat(self, messages: str | Sequence[Mapping[str, Any]], **options: Unpack[Options]) -> Stream:
        """See `planish.LanguageModel.chat`."""
        tokenizer = self._text_by("chat")
        given = [{"role": "user", "content": messages}] if isinstance(messages, str) else messages
        prompt = self._ids(tokenizer.encode(tokenizer.chat(given), special=False))
        stream = self._started(self._rows([prompt], options, text=True), True)
        assert isinstance(stream, Stream)
        return stream

    def function(self, name: str) -> Function:
        """`prefill` or `decode`; raises InputError on another name."""
        named = dict(zip(("prefill", "decode"), self._functions, strict=True))
        if name not in named:
            raise InputError(f"the artifact has no function '{name}'{nearest(name, named)}")
        return named[name]

    def session(self) -> Session:
        """Fresh or used caches, to be handed to `give_back`."""
        with self._lock:
            session, self._idle = self._idle, None
        return session or self._new_session(*self._functions, self.settings)

    def give_back(self, session: Session) -> None:
        """Keep the caches for the next generation, those of one at most and none that hold undefined numbers."""
        with self._lock:
            self._idle = self._idle if session.damaged else session

    def _started(self, rows: Sequence[Row], single: bool) -> Stream | BatchStream:
        clock = Clock()
        steps = self._steps(rows, clock)
        return Stream(rows, steps, clock) if single else BatchStream(rows, steps, clock)

    def _steps(self, rows: Sequence[Row], clock: Clock) -> Steps:
        clock.begin()
        session = self.session()
        try:
            scores = session.start([row.prompt for row in rows], [row.sampler for row in rows])
            while True:
                tokens = _taken(scores, rows, session)
                clock.tick()
                yield tokens
                if all(row.finish_reason for row in rows):
                    break
                scores = session.step([None if row.finish_reason else row.tokens[-1] for row in rows])
        finally:
            self.give_back(session)

    def _prompts(self, given: Any) -> tuple[list[list[int]], bool, bool]:
        """The ids of every prompt, whether it is a single one, and whether there was text."""
        given = _plain(given)
        if isinstance(given, str):
            return [self._ids(given)], True, True
        if not isinstance(given, list | tuple | range):
            raise InputError(f"generate: a prompt is text, token ids or a list of either, not a {type(given).__name__}")
        inner = [_plain(each) for each in given]
        if not any(isinstance(each, str | list | tuple | range) for each in inner):
            return [self._ids(inner)], True, False
        if len(inner) > self.settings.batch:
            raise InputError(
                f"generate: {len(inner)} prompts were given, the model was compiled for a batch of "
                f"{self.settings.batch}; give fewer, or compile with planish.Generation(batch={len(inner)})"
            )
        read = [self._ids(each, f"the prompt of row {i}") for i, each in enumerate(inner)]
        return read, False, any(isinstance(each, str) for each in inner)

    def _ids(self, prompt: Any, name: str = "the prompt") -> list[int]:
        if isinstance(prompt, str):
            prompt = self._text_by("generate").encode(prompt)
        if not isinstance(prompt, list | tuple | range):
            raise InputError(f"generate: every prompt of a batch is text or a list of token ids, not {prompt!r}")
        for token in prompt:
            if not _is_whole(token):
                raise InputError(f"generate: a token id is an integer, not {token!r}")
        check_prompt(prompt, self.settings, name)
        return [int(token) for token in prompt]

    def _limits(self, max_new_tokens: int, stop: Stop | None) -> "_Limits":
        if not _is_whole(max_new_tokens) or max_new_tokens < 1:
            raise InputError(f"generate: max_new_tokens is an integer of at least 1, not {max_new_tokens!r}")
        each = () if stop is None else tuple(stop) if isinstance(stop, list | tuple | set | frozenset) else (stop,)
        strings = tuple(one for one in each if isinstance(one, str))
        ids = [one for one in each if _is_whole(one)]
        if len(ids) + len(strings) < len(each) or "" in strings:
            raise InputError(f"generate: stop is text, a token id or a list of those, none empty, not {stop!r}")
        if strings:
            self._text_by("stop")
        for token in ids:
            if not 0 <= token < self.settings.vocabulary:
                raise InputError(f"generate: the stop token {token} is outside 0..{self.settings.vocabulary - 1}")
        return _Limits(int(max_new_tokens), frozenset(map(int, ids)), strings)

    def _rows(self, prompts: list[list[int]], options: Options, *, text: bool) -> list[Row]:
        if unknown := sorted(options.keys() - Options.__annotations__.keys()):
            raise InputError(f"generate has no option '{unknown[0]}'{nearest(unknown[0], Options.__annotations__)}")
        chosen: dict[str, Any] = {
            name: value for name, value in options.items() if name not in ("max_new_tokens", "stop")
        }
        sampling = Sampling(**chosen)
        limits = self._limits(options.get("max_new_tokens", 128), options.get("stop"))
        return [self._row(ids, i, sampling, limits, text=text) for i, ids in enumerate(prompts)]

    def _row(self, prompt: list[int], place: int, sampling: Sampling, limits: "_Limits", *, text: bool) -> Row:
        sampler = Sampler(sampling, self.settings.vocabulary, row=place)
        sampler.note(prompt)
        # the last token is chosen and never read, so it needs no place
        room = self.settings.context - len(prompt) + 1
        reason: FinishReason = "length" if limits.tokens <= room else "context"
        pieces = Pieces(self._text_by("text"), prompt) if text or limits.strings else None
        end = frozenset(self.settings.end)
        count = min(limits.tokens, room)
        return Row(prompt, sampler, count, reason, end, limits.ids, pieces, StopText(limits.strings))

    def _text_by(self, what: str) -> Tokenizer:
        if self.tokenizer is None:
            raise InputError(
                f"{what}: the artifact has no tokenizer, so give token ids; to give text, compile with "
                "planish.Generation(tokenizer=...)"
            )
        return self.tokenizer


class GeneratesText:
    """What a loaded language model does on any machine. `generator` makes text; the functions are `prefill` and
    `decode`."""

    generator: Generator
    plan: Plan
    threads: int

    def generate(self, prompt: Any, **options: Unpack[Options]) -> Stream | BatchStream:
        """See `planish.LanguageModel.generate`."""
        return self.generator.generate(prompt, **options)

    def chat(self, messages: str | Sequence[Mapping[str, Any]], **options: Unpack[Options]) -> Stream:
        """See `planish.LanguageModel.chat`."""
        return self.generator.chat(messages, **options)

    def profile_step(
        self, function: str = "decode", *, past: int = 0, tokens: int = 1, rows: int = 1, repeat: int = 10
    ) -> CallProfile:
        """See `planish.LanguageModel.profile`."""
        made = self.generator.settings
        width = 1 if function == "decode" else tokens
        if not (0 <= past <= made.context - width and 1 <= tokens <= made.chunk and 1 <= rows <= made.batch):
            raise InputError(
                f"profile: past {past}, tokens {tokens} and rows {rows} do not fit a context of {made.context}, "
                f"chunks of {made.chunk} and a batch of {made.batch}"
            )
        leaves = self.generator.session().leaves(rows, width, past)
        return self.generator.function(function).profile_leaves(leaves, repeat=repeat)


class LanguageExecutable(GeneratesText, Executable):
    """A loaded artifact of a language model for a CPU."""

    def __init__(
        self,
        plan: Plan,
        library: NativeLibrary | None,
        weights: TensorFile,
        settings: Settings,
        *,
        tokenizer: Tokenizer | None = None,
        threads: int | None = None,
    ) -> None:
        super().__init__(plan, library, weights, threads=threads)
        self.generator = Generator(self.function("prefill"), self.function("decode"), settings, tokenizer)

    @property
    def main(self) -> CompiledFunction:
        """Raises InputError: a language model has none."""
        raise InputError(NO_MAIN)


@dataclass(frozen=True, slots=True)
class _Limits:
    """How many tokens to make at most, and what ends a text before."""

    tokens: int
    ids: frozenset[int]
    strings: tuple[str, ...]


def _taken(scores: Scores, rows: Sequence[Row], session: Session) -> list[Token | None]:
    """The next token of each running row."""
    chosen, largest = scores.chosen([None if row.finish_reason else row.sampler for row in rows])
    if not all(map(math.isfinite, largest)):
        _refuse_undefined(largest, rows, session)
    return [None if row.finish_reason else row.take(token) for row, token in zip(rows, chosen, strict=True)]


def _refuse_undefined(largest: Sequence[float], rows: Sequence[Row], session: Session) -> None:
    """Raise GenerationError naming the layer where the largest logit of a running row is not finite."""
    for place, (row, top) in enumerate(zip(rows, largest, strict=True)):
        if row.finish_reason is None and not math.isfinite(top):
            session.damaged = True
            raise GenerationError(
                f"generate: the logits after {len(row.prompt) + len(row.tokens)} tokens of row {place} hold {top}: "
                f"{session.first_undefined()}; check the weights of that layer, or whether the model overflows"
            )


def _is_whole(given: object) -> TypeGuard[int]:
    """Whether it is a whole number, which True and False are not here."""
    return isinstance(given, int | np.integer) and not isinstance(given, bool)


def _plain(given: Any) -> Any:
    """An array or tensor as lists."""
    return given.tolist() if hasattr(given, "tolist") else given
