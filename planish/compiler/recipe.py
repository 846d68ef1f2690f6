"""Passes as one line of text: `fold-constants{limit=3}`; a field that has its default is omitted."""

import re
from collections.abc import Iterable, Mapping
from dataclasses import MISSING, Field, fields
from types import UnionType
from typing import Any, get_args, get_origin, get_type_hints

from planish.compiler.ir import Attr
from planish.compiler.pass_ import Pass
from planish.compiler.text import attr_text, parse_attr, split
from planish.errors import ParseError, PassError, nearest

_TEXT = re.compile(r"([\w-]+)\s*(?:\{(.*)\})?$", re.DOTALL)


def pass_text(of: Pass) -> str:
    """The line that `parse_pass` reads back as an equal pass."""
    options = [f"{f.name}={attr_text(getattr(of, f.name))}" for f in _fields(type(of)) if not _is_default(of, f)]
    return of.name + ("{" + ", ".join(options) + "}" if options else "")


def recipe_text(passes: Iterable[Pass]) -> str:
    """The passes separated by ` ; `."""
    return " ; ".join(map(pass_text, passes))


def parse_pass(text: str, known: Iterable[type[Pass]]) -> Pass:
    """The pass of a line; raises PassError naming the unknown pass or option, or the option of a wrong type."""
    by_name = {kind.name: kind for kind in known}
    match = _TEXT.match(text.strip())
    if not match:
        raise PassError(f"{text!r} is no pass; write `name` or `name{{option=value}}`")
    if match[1] not in by_name:
        raise PassError(f"no pass is called '{match[1]}'{nearest(match[1], by_name)}")
    kind = by_name[match[1]]
    options = dict(_option(word, kind) for word in split(match[2] or ""))
    try:
        return kind(**options)
    except (TypeError, ValueError) as error:
        raise PassError(f"{kind.name}: {error}") from error


def parse_recipe(text: str, known: Iterable[type[Pass]]) -> tuple[Pass, ...]:
    """The passes of a text with one pass a line or separated by `;`."""
    kinds = tuple(known)
    return tuple(parse_pass(part, kinds) for part in re.split(r"[;\n]", text) if part.strip())


def option_types(kind: type[Pass]) -> Mapping[str, Any]:
    """The options of a pass with their types."""
    hints = get_type_hints(kind)
    return {f.name: hints[f.name] for f in _fields(kind)}


def _fields(kind: type[Pass]) -> tuple[Field[Any], ...]:
    return fields(kind)  # type: ignore[arg-type]


def _is_default(of: Pass, option: Field[Any]) -> bool:
    default = option.default if option.default_factory is MISSING else option.default_factory()
    return bool(getattr(of, option.name) == default)


def _option(word: str, kind: type[Pass]) -> tuple[str, Attr]:
    types = option_types(kind)
    name, equals, written = (part.strip() for part in word.partition("="))
    if name not in types:
        known = nearest(name, types) if types else "; it has none"
        raise PassError(f"{kind.name} has no option '{name}'{known}")
    try:
        value = parse_attr(written)
    except ParseError as error:
        raise PassError(f"{kind.name}: option '{name}': {error}") from error
    if not equals or not _fits(value, types[name]):
        raise PassError(f"{kind.name}: option '{name}' is {_type_text(types[name])}, not {written or 'nothing'}")
    return name, float(value) if types[name] is float and isinstance(value, int) else value


def _fits(value: Attr, kind: Any) -> bool:
    if isinstance(kind, UnionType):
        return any(_fits(value, part) for part in get_args(kind))
    if get_origin(kind) is tuple:
        return isinstance(value, tuple) and all(_fits(v, get_args(kind)[0]) for v in value)
    if kind is float:
        return isinstance(value, int | float) and not isinstance(value, bool)
    if kind is int:
        return isinstance(value, int) and not isinstance(value, bool)
    return value is None if kind is type(None) else isinstance(value, kind)


def _type_text(kind: Any) -> str:
    if isinstance(kind, UnionType):
        return " or ".join(_type_text(part) for part in get_args(kind))
    if get_origin(kind) is tuple:
        return f"a list of {_type_text(get_args(kind)[0])}"
    words = {int: "an integer", float: "a number", str: "a quoted string", bool: "true or false", type(None): "none"}
    return words.get(kind, str(kind))
