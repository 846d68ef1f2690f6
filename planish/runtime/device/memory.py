"""What a call takes of a device's memory, told before it is taken."""

import gc
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from math import prod
from typing import Final, Protocol

from planish.errors import ArtifactError
from planish.runtime.launches import DeviceStep
from planish.runtime.plan import FunctionPlan, Step, TensorSpec
from planish.runtime.values import ValueId

_ALIGNMENT: Final = 256  # of slots in the arena, as torch aligns what it allocates


@dataclass(frozen=True, slots=True)
class Sized:
    """What follows from one set of input shapes.

    `slots` says where the slots of each step begin in the arena, `ended` which values no step after it reads. The bytes
    are those of a call: of the arena, of the scratch memory of the kernels, of the results, and of the values between
    steps where they take the most.
    """

    sizes: Mapping[str, int]
    slots: tuple[tuple[int, ...], ...]
    ended: tuple[tuple[ValueId, ...], ...]
    arena_bytes: int
    scratch_bytes: int
    output_bytes: int
    value_bytes: int

    @property
    def work_bytes(self) -> int:
        """Bytes that a call takes beside its inputs and the weights."""
        return self.arena_bytes + self.scratch_bytes + self.output_bytes + self.value_bytes


class Room(Protocol):
    """A device by its name, and the bytes that torch could allocate there."""

    @property
    def name(self) -> str: ...

    def free_bytes(self) -> int: ...


def check_room(device: Room, needed: int, what: str) -> None:
    """Raise ArtifactError where the device has fewer free bytes than are needed."""
    if needed > device.free_bytes():
        gc.collect()  # models that nobody uses any more may wait for it
    if needed > device.free_bytes():
        raise no_room(device, needed, what)


def no_room(device: Room, needed: int, what: str) -> ArtifactError:
    """The error of a device without memory enough, with the bytes that are needed and those that are free."""
    return ArtifactError(
        f"{what} takes {needed} bytes on the {device.name}, which has {device.free_bytes()} free; free some there, "
        "or use smaller sizes or fewer bits"
    )


def sized(plan: FunctionPlan, sizes: Mapping[str, int]) -> Sized:
    """What follows from the values of the named sizes."""
    slots = tuple(_starts(step, sizes) for step in plan.steps)
    device_calls = [call for step in plan.steps if isinstance(step, DeviceStep) for call in step.calls]
    ended = _ended(plan)
    return Sized(
        sizes,
        slots=tuple(s[:-1] for s in slots),
        ended=ended,
        arena_bytes=max((s[-1] for s in slots), default=0),
        scratch_bytes=max((call.scratch.evaluate(sizes) for call in device_calls), default=0),
        output_bytes=_output_bytes(plan, sizes),
        value_bytes=_value_bytes(plan, ended, sizes),
    )


def described(sizes: Mapping[str, int]) -> str:
    """The named sizes, for errors."""
    return ", ".join(f"{name}={value}" for name, value in sizes.items()) or "its inputs"


def _output_bytes(plan: FunctionPlan, sizes: Mapping[str, int]) -> int:
    donated = {output for output, _ in plan.donated}
    return sum(_wide(spec, sizes) for i, spec in enumerate(plan.outputs) if i not in donated)


def _value_bytes(plan: FunctionPlan, ended: Sequence[Sequence[ValueId]], sizes: Mapping[str, int]) -> int:
    """The most bytes that values between steps take at once."""
    held = most = 0
    for step, gone in zip(plan.steps, ended, strict=True):
        held += sum(_wide(plan.values[int(v.key)], sizes) for v in step.writes() if v.kind == "value")
        most = max(most, held)
        held -= sum(_wide(plan.values[int(v.key)], sizes) for v in gone)
    return most


def _ended(plan: FunctionPlan) -> tuple[tuple[ValueId, ...], ...]:
    """For each step the values between steps that none after it reads."""
    last = {v: i for i, step in enumerate(plan.steps) for v in (*step.reads(), *step.writes()) if v.kind == "value"}
    return tuple(tuple(v for v, end in last.items() if end == i) for i in range(len(plan.steps)))


def _starts(step: Step, sizes: Mapping[str, int]) -> tuple[int, ...]:
    """Where the slots of the step begin, and the bytes of all of them."""
    members = step.slots if isinstance(step, DeviceStep) else ()
    return tuple(accumulate((_aligned(slot.evaluate(sizes)) for slot in members), initial=0))


def _wide(spec: TensorSpec, sizes: Mapping[str, int]) -> int:
    return _aligned(prod(dimension.evaluate(sizes) for dimension in spec.shape) * spec.itemsize)


def _aligned(size: int) -> int:
    return -(-size // _ALIGNMENT) * _ALIGNMENT
