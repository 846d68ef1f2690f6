"""`LanguageModel`: a compiled model that generates text."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NoReturn, Unpack

from planish.api import CompiledModel
from planish.errors import InputError
from planish.runtime.generation.generator import GeneratesText, Generator, Options
from planish.runtime.generation.settings import Settings
from planish.runtime.generation.stream import BatchStream, Stream
from planish.runtime.generation.tokenizer import Tokenizer
from planish.runtime.profile import CallProfile
from planish.runtime.storage import read_manifest

if TYPE_CHECKING:
    from planish.hardware_profiles import Roofline


class LanguageModel(CompiledModel):
    """A compiled language model, what `compile` with `generate=` and `load` of such an artifact return.

    Calls may come from several threads; each generation has caches of its own while it runs.
    """

    def generate(self, prompt: Any, **options: Unpack[Options]) -> Stream | BatchStream:
        """The tokens that follow a prompt, computed one by one as the result is iterated.

        prompt: text, or token ids (a list, a numpy array or a torch tensor [S]); or up to `batch` of either, of any
            lengths (a list of texts, of lists, or an array [B, S]).
        max_new_tokens: how many tokens to make at most, by default 128. At the end of the context it stops before that.
        temperature: 0 takes the likeliest token each time; above, logits are divided by it and a token is drawn. By
            default 0, or 1 where top_k, top_p or min_p is given.
        top_k: draws among the k likeliest. top_p: among the likeliest whose probabilities reach p together. min_p:
            among those at least min_p times as likely as the likeliest. Applied in this order.
        repetition_penalty: above 1 makes tokens that the prompt or the answer holds already less likely.
        stop: token ids and texts that end the answer; a text is cut off, a token id is the last token.
        seed: makes draws repeatable.

        Iterating the `Stream` of one prompt gives a `Token` at a time: an int, its id, with `.text`, what became
        certain with it. Text is decoded where the prompt is text or a stop text is given. The `BatchStream` of several
        gives a list a step, with None for rows that have ended. Both tell the `finish_reason` ("end": a token that ends
        texts, "stop", "length", "context"), the text and the speed so far, and may be closed at any time.

        Raises InputError on an empty prompt, one longer than the context, ids outside the vocabulary, more prompts than
        the batch, options out of range and text without a tokenizer; GenerationError, while it runs, where the model
        gives numbers that are not finite.
        """
        return self.generator.generate(prompt, **options)

    def chat(self, messages: str | Sequence[Mapping[str, Any]], **options: Unpack[Options]) -> Stream:
        """The answer to messages `{"role": "user", "content": "..."}`, or to one text, by the chat template.

        Options are those of `generate`. Raises InputError where the artifact has no tokenizer or no chat template, or
        the template refuses the messages.
        """
        return self.generator.chat(messages, **options)

    @property
    def generator(self) -> Generator:
        """The runtime's object that generates."""
        executable = self.executable
        assert isinstance(executable, GeneratesText)
        return executable.generator

    @property
    def settings(self) -> Settings:
        """Context, batch, chunk, vocabulary, end tokens and cache."""
        settings = read_manifest(self._path).generation
        assert settings is not None
        return settings

    @property
    def tokenizer(self) -> Tokenizer | None:
        """What makes ids of text, or None."""
        return self.generator.tokenizer

    def profile(self, *args: Any, repeat: int = 10, **kwargs: Any) -> CallProfile:
        """The time of each kernel in one step of `function`: medians over `repeat` steps.

        `profile("decode", past=512)` is the step after 512 tokens, `profile("prefill", tokens=128)` reads 128 at once;
        `rows=` is the batch. Raises InputError on sizes that were not compiled.
        """
        executable = self.executable
        assert isinstance(executable, GeneratesText)
        return executable.profile_step(*args, repeat=repeat, **kwargs)

    def roofline(self, **sizes: int) -> "Roofline":
        """The least time that this machine's measured rates allow for one step of `decode` with full caches."""
        return self._roofline("decode", sizes)

    def __call__(self, *args: Any, **kwargs: Any) -> NoReturn:
        """Raises InputError: a language model generates."""
        raise InputError("a language model was compiled to generate; call .generate(prompt) or .chat(messages)")

    def __repr__(self) -> str:
        made = self.settings
        return (
            f"LanguageModel(context={made.context}, batch={made.batch}, chunk={made.chunk}, cache={made.cache!r}, "
            f"vocabulary={made.vocabulary})"
        )


__all__ = ["BatchStream", "LanguageModel", "Stream"]
