"""Writes a nested dictionary of plain values as TOML."""

import json
from collections.abc import Mapping
from typing import TypeAlias

Plain: TypeAlias = bool | int | float | str | list["Plain"] | dict[str, "Plain"]


def emit_toml(facts: Mapping[str, Plain]) -> str:
    """TOML text of `facts`: values first, then tables one level deep, then arrays of such tables."""
    values = {key: value for key, value in facts.items() if not _nested(value)}
    blocks = [_lines(values)]
    for key, value in facts.items():
        if isinstance(value, dict):
            blocks.append(f"[{key}]\n{_lines(value)}")
        elif isinstance(value, list) and _nested(value):
            blocks.extend(f"[[{key}]]\n{_lines(row)}" for row in value if isinstance(row, dict))
    return "\n".join(blocks)


def _nested(value: Plain) -> bool:
    return isinstance(value, dict) or (isinstance(value, list) and any(isinstance(row, dict) for row in value))


def _lines(values: Mapping[str, Plain]) -> str:
    return "".join(f"{key} = {_value(value)}\n" for key, value in values.items())


def _value(value: Plain) -> str:
    if isinstance(value, list):
        return f"[{', '.join(_value(item) for item in value)}]"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str):
        # TOML's basic strings are JSON's, but for the delete character, which they exclude.
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    return repr(value)
