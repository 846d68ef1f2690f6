"""`Generation`: how a compiled language model is to generate; and the tokenizer that its artifact gets."""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from planish.errors import InputError
from planish.runtime.generation.tokenizer import Tokenizer

_SPECIAL = ("bos_token", "eos_token", "unk_token", "pad_token")


@dataclass(frozen=True, slots=True)
class Generation:
    """How a language model generates.

    context: tokens of a row, prompt and answer together, that the caches have room for.
    batch: rows that one call generates at most.
    chunk: tokens of a prompt that one step reads; longer ones take several. The memory of a step grows with it.
    cache: how keys and values are kept: "f32", "f16" (half the memory), "i8" (about a quarter, with a small error) or,
        on GPUs, "i4" (a sixth, with an error that small models show).
    tokenizer: a tokenizer of transformers, a `tokenizers.Tokenizer`, or the path of a tokenizer.json or of the folder
        that holds one; None leaves token ids as the only input.
    end: token ids that end a text, or one; by default those of the model's and the tokenizer's configuration.

    Raises InputError on a value out of its range.
    """

    context: int = 2048
    batch: int = 1
    chunk: int = 512
    cache: str = "f32"
    tokenizer: Any = None
    end: int | Sequence[int] | None = None

    def __post_init__(self) -> None:
        for name in ("context", "batch", "chunk"):
            if type(value := getattr(self, name)) is not int or value < 1:
                raise InputError(f"Generation: {name} is an integer of at least 1, not {value!r}")
        if self.cache not in ("f32", "f16", "i8", "i4"):
            raise InputError(f"Generation: cache is 'f32', 'f16', 'i8' or 'i4', not {self.cache!r}")
        for token in self.given_end or ():
            if type(token) is not int or token < 0:
                raise InputError(f"Generation: end holds token ids, not {token!r}")

    @property
    def given_end(self) -> tuple[int, ...] | None:
        """`end` as a tuple; raises InputError where it is neither that nor an id."""
        if self.end is None or isinstance(self.end, int):
            return None if self.end is None else (self.end,)
        if not isinstance(self.end, Iterable):
            raise InputError(f"Generation: end is a token id or a list of them, not {self.end!r}")
        return tuple(self.end)


def tokenizer_of(given: Any) -> Tokenizer | None:
    """What an artifact stores of a tokenizer; raises InputError where it has no form that runs without Python code."""
    if given is None:
        return None
    if isinstance(given, str | Path):
        return _from_files(Path(given))
    backend = getattr(given, "backend_tokenizer", given)
    if not hasattr(backend, "to_str"):
        raise InputError(
            f"Generation: a {type(given).__name__} has no tokenizer.json; give a fast tokenizer of transformers, a "
            "tokenizers.Tokenizer or a path"
        )
    special = {name: str(token) for name in _SPECIAL if (token := getattr(given, name, None)) is not None}
    template = getattr(given, "chat_template", None) or ""
    return Tokenizer(backend.to_str(), _default_template(template), special)


def end_tokens(generation: Generation, model: Any, tokenizer: Tokenizer | None) -> tuple[int, ...]:
    """The ids that end a text, of `Generation.end` or of the model's configuration and the tokenizer."""
    if (given := generation.given_end) is not None:
        return given
    found: list[int] = []
    for source in (getattr(model, "generation_config", None), getattr(model, "config", None)):
        ids = getattr(source, "eos_token_id", None)
        found += [ids] if isinstance(ids, int) else list(ids or ())
    if tokenizer is not None and "eos_token" in tokenizer.special:
        found += tokenizer.encode(tokenizer.special["eos_token"], special=False)
    return tuple(dict.fromkeys(found))


def _from_files(path: Path) -> Tokenizer:
    folder, file = (path, path / "tokenizer.json") if path.is_dir() else (path.parent, path)
    if not file.is_file():
        raise InputError(f"Generation: there is no tokenizer at '{file}'; give a tokenizer.json or its folder")
    config = _json(folder / "tokenizer_config.json")
    special = {name: text for name in _SPECIAL if (text := _token_text(config.get(name)))}
    stored = folder / "chat_template.jinja"
    template = stored.read_text(encoding="utf-8") if stored.is_file() else config.get("chat_template") or ""
    return Tokenizer(file.read_text(encoding="utf-8"), _default_template(template), special)


def _json(path: Path) -> Mapping[str, Any]:
    if not path.is_file():
        return {}
    try:
        read = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise InputError(f"Generation: '{path}' is no JSON: {error}") from error
    return read if isinstance(read, dict) else {}


def _token_text(given: Any) -> str:
    return str(given.get("content", "")) if isinstance(given, dict) else given or ""


def _default_template(given: Any) -> str:
    """The template named "default" where there are several."""
    named = {each["name"]: each["template"] for each in given} if isinstance(given, list) else given
    return str(named.get("default", "")) if isinstance(named, Mapping) else str(named)
