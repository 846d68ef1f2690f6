"""A strict reader of parsed JSON: every complaint names the path of the value at fault."""

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import NoReturn, TypeAlias, TypeVar, cast

from planish.errors import ArtifactError

Json: TypeAlias = "bool | int | float | str | list[Json] | dict[str, Json] | None"
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Field:
    """One JSON value and its path in the file, such as `plan.json: functions.main.steps[0]`."""

    value: Json
    path: str

    def object(self, *required: str, optional: tuple[str, ...] = ()) -> dict[str, "Field"]:
        """The members of an object that has all `required` keys and no key beyond the `optional` ones."""
        members = self.members()
        for key in required:
            if key not in members:
                raise ArtifactError(f"{self.path} has no '{key}'; the artifact is damaged or was written by hand")
        for key in members:
            if key not in required and key not in optional:
                raise ArtifactError(f"{self.path} has the unknown key '{key}'; known: {', '.join(required + optional)}")
        return members

    def members(self) -> dict[str, "Field"]:
        """The members of an object with any keys."""
        if not isinstance(self.value, dict):
            raise self.error("an object")
        separator = "." if ": " in self.path else ": "
        return {key: Field(value, f"{self.path}{separator}{key}") for key, value in self.value.items()}

    def items(self) -> Iterator["Field"]:
        """The items of a list."""
        if not isinstance(self.value, list):
            raise self.error("a list")
        return (Field(value, f"{self.path}[{i}]") for i, value in enumerate(self.value))

    def each(self, read: Callable[["Field"], T]) -> tuple[T, ...]:
        """`read` of every item of a list."""
        return tuple(read(item) for item in self.items())

    def text(self, *choices: str) -> str:
        """A string, one of `choices` where there are any."""
        if not isinstance(self.value, str) or (choices and self.value not in choices):
            raise self.error(f"one of {', '.join(choices)}" if choices else "a string")
        return self.value

    def integer(self, low: int = 0) -> int:
        """An integer that is at least `low`."""
        if isinstance(self.value, bool) or not isinstance(self.value, int) or self.value < low:
            raise self.error(f"an integer of at least {low}")
        return self.value

    def number(self) -> float:
        """A finite number that is not negative."""
        if isinstance(self.value, bool) or not isinstance(self.value, int | float) or not 0 <= self.value < 1e300:
            raise self.error("a number of at least 0")
        return float(self.value)

    def error(self, expected: str) -> ArtifactError:
        """The error that says what was expected here and what was found."""
        found = repr(self.value)
        return ArtifactError(
            f"{self.path} should be {expected}, not {found if len(found) <= 60 else found[:57] + '...'}"
        )


def parse_json(text: bytes, name: str) -> Json:
    """The JSON of a file; raises ArtifactError on bad UTF-8, bad JSON, a repeated key, NaN or an infinity."""

    def refuse_constant(word: str) -> NoReturn:
        raise ValueError(f"{word} is not JSON")

    def distinct(pairs: list[tuple[str, Json]]) -> dict[str, Json]:
        found = dict(pairs)
        if len(found) != len(pairs):
            raise ValueError("an object repeats a key")
        return found

    try:
        return cast(Json, json.loads(text.decode(), parse_constant=refuse_constant, object_pairs_hook=distinct))
    except (ValueError, RecursionError) as error:
        raise ArtifactError(f"{name} is damaged: {error}; save or download the artifact again") from error
