"""Values of a function as its plan names them."""

from dataclasses import dataclass
from typing import Literal, TypeAlias, cast

from planish.runtime.fields import Field, Json

ValueKind: TypeAlias = Literal["input", "output", "value", "weight"]


@dataclass(frozen=True, slots=True)
class ValueId:
    """A value by its kind and its index in the function, or its name for a weight."""

    kind: ValueKind
    key: int | str

    def to_json(self) -> Json:
        return [self.kind, self.key]

    @classmethod
    def from_json(cls, field: Field) -> "ValueId":
        parts = tuple(field.items())
        if len(parts) != 2:
            raise field.error("a pair of kind and index")
        kind = cast(ValueKind, parts[0].text("input", "output", "value", "weight"))
        return cls(kind, parts[1].text() if kind == "weight" else parts[1].integer())

    def __str__(self) -> str:
        return f"{self.kind} {self.key}"
