"""The device part of plan.json: compiled kernels, and the launches of a step with what each passes."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, TypeAlias, cast

from planish.errors import ParseError
from planish.runtime.dims import Dimension
from planish.runtime.dtypes import DTypeName, read_dtype
from planish.runtime.fields import Field, Json
from planish.runtime.values import ValueId

Place: TypeAlias = Literal["value", "weight", "slot", "scratch"]


@dataclass(frozen=True, slots=True)
class KernelSpec:
    """A compiled kernel: its file in the artifact, its symbol there, and what a block of it takes.

    `registers` and `spilled_bytes` are of one thread, `shared_bytes` is dynamic shared memory.
    """

    file: str
    symbol: str
    num_warps: int
    shared_bytes: int
    registers: int
    spilled_bytes: int

    def to_json(self) -> Json:
        return {name: getattr(self, name) for name in self.__slots__}

    @classmethod
    def from_json(cls, field: Field) -> "KernelSpec":
        members = field.object(*cls.__slots__)
        counts = (members[name].integer() for name in ("num_warps", "shared_bytes", "registers", "spilled_bytes"))
        return cls(members["file"].text(), members["symbol"].text(), *counts)


@dataclass(frozen=True, slots=True)
class Address:
    """A pointer that a kernel takes: `offset` bytes into a value, a slot of the arena, the scratch memory, or the
    weights (whose `key` is None, and whose offset is from the start of all of them).

    `dtype` is that of the elements which the kernel sees there.
    """

    place: Place
    key: ValueId | int | None
    offset: Dimension
    dtype: DTypeName

    def to_json(self) -> Json:
        key = self.key.to_json() if isinstance(self.key, ValueId) else self.key
        return {"place": self.place, "key": key, "offset": _dimension(self.offset), "dtype": self.dtype}

    @classmethod
    def from_json(cls, field: Field) -> "Address":
        members = field.object("place", "key", "offset", "dtype")
        place = cast(Place, members["place"].text("value", "weight", "slot", "scratch"))
        key: ValueId | int | None = None
        if place == "value":
            key = ValueId.from_json(members["key"])
        elif place == "slot":
            key = members["key"].integer()
        return cls(place, key, read_dimension(members["offset"]), read_dtype(members["dtype"]))


@dataclass(frozen=True, slots=True)
class Integer:
    """An integer that a kernel takes, of 4 or 8 bytes."""

    value: Dimension
    bytes: int

    def to_json(self) -> Json:
        return {"integer": _dimension(self.value), "bytes": self.bytes}

    @classmethod
    def from_json(cls, field: Field) -> "Integer":
        members = field.object("integer", "bytes")
        return cls(read_dimension(members["integer"]), members["bytes"].integer(4))


@dataclass(frozen=True, slots=True)
class Float:
    """A 32-bit floating-point number that a kernel takes."""

    value: float

    def to_json(self) -> Json:
        return {"float": self.value}


Argument: TypeAlias = Address | Integer | Float


@dataclass(frozen=True, slots=True)
class LaunchChoice:
    """The kernel that serves sizes up to `most` (None: all), and its grid over the named sizes."""

    most: int | None
    kernel: str
    grid: tuple[Dimension, Dimension, Dimension]

    def to_json(self) -> Json:
        return {"most": self.most, "kernel": self.kernel, "grid": [_dimension(d) for d in self.grid]}

    @classmethod
    def from_json(cls, field: Field) -> "LaunchChoice":
        members = field.object("most", "kernel", "grid")
        most = None if members["most"].value is None else members["most"].integer()
        grid = tuple(members["grid"].each(read_dimension))
        if len(grid) != 3:
            raise members["grid"].error("three dimensions")
        return cls(most, members["kernel"].text(), (grid[0], grid[1], grid[2]))


@dataclass(frozen=True, slots=True)
class LaunchSpec:
    """One launch: the first of `choices` whose `most` is not below the value of `size`, with the arguments in order."""

    size: Dimension
    choices: tuple[LaunchChoice, ...]
    arguments: tuple[Argument, ...]

    def to_json(self) -> Json:
        return {
            "size": _dimension(self.size),
            "choices": [choice.to_json() for choice in self.choices],
            "arguments": [argument.to_json() for argument in self.arguments],
        }

    @classmethod
    def from_json(cls, field: Field) -> "LaunchSpec":
        members = field.object("size", "choices", "arguments")
        return cls(
            read_dimension(members["size"]),
            tuple(members["choices"].each(LaunchChoice.from_json)),
            tuple(members["arguments"].each(_read_argument)),
        )

    def choice(self, sizes: Mapping[str, int]) -> LaunchChoice:
        """The kernel and grid for these sizes."""
        value = self.size.evaluate(sizes)
        return next(c for c in self.choices if c.most is None or value <= c.most)


@dataclass(frozen=True, slots=True)
class DeviceCall:
    """One kernel of the plan: its launches in order, which share `scratch` bytes."""

    launches: tuple[LaunchSpec, ...]
    scratch: Dimension

    def to_json(self) -> Json:
        return {"launches": [launch.to_json() for launch in self.launches], "scratch": _dimension(self.scratch)}

    @classmethod
    def from_json(cls, field: Field) -> "DeviceCall":
        members = field.object("launches", "scratch")
        return cls(tuple(members["launches"].each(LaunchSpec.from_json)), read_dimension(members["scratch"]))


@dataclass(frozen=True, slots=True)
class DeviceStep:
    """Kernels that run one after another on the device. `slots` are the bytes of the parts of the arena."""

    calls: tuple[DeviceCall, ...]
    slots: tuple[Dimension, ...]
    inputs: tuple[ValueId, ...]
    outputs: tuple[ValueId, ...]

    def kernels(self) -> set[str]:
        """The names of the kernels that the step may launch."""
        return {choice.kernel for call in self.calls for launch in call.launches for choice in launch.choices}

    def reads(self) -> tuple[ValueId, ...]:
        return self.inputs

    def writes(self) -> tuple[ValueId, ...]:
        return self.outputs

    def to_json(self) -> Json:
        return {
            "kind": "device",
            "calls": [call.to_json() for call in self.calls],
            "slots": [_dimension(slot) for slot in self.slots],
            "inputs": [value.to_json() for value in self.inputs],
            "outputs": [value.to_json() for value in self.outputs],
        }

    @classmethod
    def from_json(cls, field: Field) -> "DeviceStep":
        members = field.object("kind", "calls", "slots", "inputs", "outputs")
        reads, writes = (tuple(members[name].each(ValueId.from_json)) for name in ("inputs", "outputs"))
        calls, slots = members["calls"].each(DeviceCall.from_json), members["slots"].each(read_dimension)
        return cls(tuple(calls), tuple(slots), reads, writes)


def read_dimension(field: Field) -> Dimension:
    """A dimension: an integer, or the text of an expression over sizes."""
    if isinstance(field.value, str):
        try:
            return Dimension.parse(field.value)
        except ParseError as error:
            raise field.error(f"a dimension ({error})") from error
    return Dimension.parse(field.integer())


def _read_argument(field: Field) -> Argument:
    members = field.members()
    if "float" in members:
        return Float(field.object("float")["float"].number())
    return Integer.from_json(field) if "integer" in members else Address.from_json(field)


def _dimension(dimension: Dimension) -> Json:
    return dimension.text if dimension.constant is None else dimension.constant
