"""Text to token ids and back, by the tokenizer.json and the chat template of an artifact."""

import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import TYPE_CHECKING, Any, NoReturn

from planish.errors import BackendMissing, InputError

if TYPE_CHECKING:
    import tokenizers

_INSTALL = "pip install 'planish[generate]'"
_MESSAGE = "{'role': 'user', 'content': '...'}"


@dataclass(slots=True)
class Tokenizer:
    """A tokenizer that is read when text first needs it.

    `definition` is tokenizer.json, `template` the Jinja text of a chat, empty where there is none, and `special` the
    tokens that it may name.
    """

    definition: str
    template: str = ""
    special: Mapping[str, str] = field(default_factory=dict)
    _lock: Any = field(default_factory=threading.Lock, repr=False)
    _read: "tokenizers.Tokenizer | None" = field(default=None, repr=False)

    def encode(self, text: str, *, special: bool = True) -> list[int]:
        """The ids of a text; with the tokens that the tokenizer puts around it where `special`."""
        ids: list[int] = self._tokenizer().encode(text, add_special_tokens=special).ids
        return ids

    def decode(self, ids: Sequence[int]) -> str:
        """The text of ids, without special tokens."""
        text: str = self._tokenizer().decode(list(ids), skip_special_tokens=True)
        return text

    def chat(self, messages: Sequence[Mapping[str, Any]]) -> str:
        """The prompt that the chat template makes of messages `{"role": ..., "content": ...}`.

        Raises InputError where there is no template or it does not take the messages.
        """
        if not self.template:
            raise InputError("chat: the artifact has no chat template; give the whole prompt to generate as text")
        if not isinstance(messages, Sequence):
            raise InputError(f"chat: messages are a list of {_MESSAGE}, or one text, not {messages!r}")
        for message in messages:
            if not isinstance(message, Mapping) or "role" not in message:
                raise InputError(f"chat: a message is {_MESSAGE}, not {message!r}")
        return _render(self.template, messages, self.special)

    def _tokenizer(self) -> "tokenizers.Tokenizer":
        with self._lock:
            if self._read is None:
                self._read = _parse(self.definition)
        return self._read


def _parse(definition: str) -> "tokenizers.Tokenizer":
    try:
        from tokenizers import Tokenizer as Parsed
    except ImportError as error:
        raise BackendMissing(f"text needs the library tokenizers: {_INSTALL}; token ids need nothing") from error
    parsed = Parsed.from_str(definition)
    # stored settings for training would cut or fill prompts
    parsed.no_truncation()
    parsed.no_padding()
    return parsed


def _render(template: str, messages: Sequence[Mapping[str, Any]], special: Mapping[str, str]) -> str:
    try:
        from jinja2 import TemplateError
        from jinja2.ext import loopcontrols
        from jinja2.sandbox import ImmutableSandboxedEnvironment
    except ImportError as error:
        raise BackendMissing(f"chat templates need the library jinja2: {_INSTALL}") from error

    def refuse(message: str) -> NoReturn:
        raise TemplateError(message)

    # as transformers sets it up, whose templates these are
    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols])
    environment.globals["raise_exception"] = refuse
    environment.globals["strftime_now"] = lambda form: datetime.now().strftime(form)
    try:
        compiled = environment.from_string(template)
        return compiled.render(messages=list(messages), add_generation_prompt=True, **special)
    except TemplateError as error:
        raise InputError(f"chat: the template refuses these messages: {error}") from error
