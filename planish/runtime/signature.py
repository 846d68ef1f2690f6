"""How a compiled function is called: its parameters in order and the tensors inside the arguments."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from planish.errors import InputError, nearest
from planish.runtime.fields import Field, Json
from planish.runtime.tree import Tree, describe


@dataclass(frozen=True, slots=True)
class Parameter:
    """One parameter and the form of its argument; one without tensors may be left out of a call."""

    name: str
    tree: Tree


@dataclass(frozen=True, slots=True)
class Signature:
    """The parameters in order; the first `positional` ones may be given by place, and all by name.

    `rest` names the parameter, a tuple, that takes the positional arguments after those, as `*rest` does.
    """

    parameters: tuple[Parameter, ...]
    positional: int
    rest: str = ""

    def __post_init__(self) -> None:
        names = [parameter.name for parameter in self.parameters]
        if len(set(names)) != len(names):
            raise ValueError(f"parameters need distinct names, not {names}")
        if not 0 <= self.positional <= len(names):
            raise ValueError(f"{self.positional} of {len(names)} parameters cannot be positional")
        if self.rest and self.rest not in names[self.positional :]:
            raise ValueError(f"no parameter that only has a name is called '{self.rest}'")

    @classmethod
    def of_example(
        cls,
        arguments: Mapping[str, Any],
        is_tensor: Callable[[Any], bool],
        *,
        positional: int | None = None,
        rest: str = "",
    ) -> "Signature":
        """The signature of a call whose arguments, by parameter name and in order, are examples."""
        parameters = tuple(Parameter(name, describe(value, is_tensor, name)) for name, value in arguments.items())
        return cls(parameters, len(parameters) if positional is None else positional, rest)

    @property
    def names(self) -> tuple[str, ...]:
        """A readable name for every tensor, in the order of `leaves`."""
        return tuple(name for parameter in self.parameters for name in parameter.tree.paths(parameter.name))

    @property
    def count(self) -> int:
        """The number of tensors in a call."""
        return sum(parameter.tree.count for parameter in self.parameters)

    def leaves(self, args: Sequence[Any], kwargs: Mapping[str, Any], types: Sequence[str] = ()) -> list[Any]:
        """The tensors of a call in order: parameter by parameter, depth first.

        `types` are texts such as `f32[B, 4]`, one a tensor, for the messages. Raises InputError on a
        missing, surplus or unknown argument and on one of another form than the example had.
        """
        given = self._bind(args, kwargs)
        found: list[Any] = []
        for parameter in self.parameters:
            if parameter.name in given:
                found += parameter.tree.leaves(given[parameter.name], parameter.name)
            elif parameter.tree.count:
                takes = f"; it takes {types[len(found)]}" if types and parameter.tree.kind == "tensor" else ""
                raise InputError(f"input '{parameter.name}' is missing{takes}")
        return found

    def to_json(self) -> Json:
        return {
            "positional": self.positional,
            "rest": self.rest,
            "parameters": [{"name": p.name, "tree": p.tree.to_json()} for p in self.parameters],
        }

    @classmethod
    def from_json(cls, field: Field) -> "Signature":
        """The signature that `to_json` wrote; raises ArtifactError with the path of what is wrong."""
        members = field.object("positional", "parameters", optional=("rest",))
        parameters = members["parameters"].each(_read_parameter)
        try:
            return cls(parameters, members["positional"].integer(), members["rest"].text() if "rest" in members else "")
        except ValueError as error:
            raise field.error(f"a signature ({error})") from error

    def _bind(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> dict[str, Any]:
        given = dict(zip(self._names(), args[: self.positional], strict=False))
        if self.rest and len(args) >= self.positional and self.rest not in kwargs:
            given[self.rest] = tuple(args[self.positional :])
        elif len(args) > self.positional:
            names = ", ".join(self._names()) or "none"
            raise InputError(f"{len(args)} inputs were given by place, {self.positional} can be; inputs: {names}")
        for name, value in kwargs.items():
            if name not in self._names():
                raise InputError(f"no input is called '{name}'{nearest(name, self._names())}")
            if name in given:
                raise InputError(f"input '{name}' was given twice, by place and by name")
            given[name] = value
        return given

    def _names(self) -> Iterator[str]:
        return (parameter.name for parameter in self.parameters)


def _read_parameter(field: Field) -> Parameter:
    members = field.object("name", "tree")
    return Parameter(members["name"].text(), Tree.from_json(members["tree"]))
