"""Runs the functions of a plan on a device, over torch tensors."""

import time
from collections.abc import Callable, Mapping, Sequence
from itertools import accumulate
from statistics import median
from typing import Any, Final

from planish.errors import InputError
from planish.runtime.device.frame import Frame, Sized, Weights
from planish.runtime.device.graphs import Recorded, Recordings
from planish.runtime.device.launcher import Launcher
from planish.runtime.device.operands import give, take
from planish.runtime.functions import Functions
from planish.runtime.launches import DeviceStep
from planish.runtime.plan import FunctionPlan, Plan, Step
from planish.runtime.profile import CallProfile, ProfileRow
from planish.runtime.values import ValueId

_ALIGNMENT: Final = 256  # of slots in the arena, as torch aligns what it allocates
_CACHED_SHAPES: Final = 64


class DeviceFunction:
    """One entry function of an artifact on a device: called like the model, from any number of threads and streams."""

    def __init__(self, name: str, plan: FunctionPlan, launcher: Launcher, weights: Weights) -> None:
        self.name, self.plan = name, plan
        self._launcher, self._weights = launcher, weights
        self._solver = plan.solver()
        self._types = tuple(str(spec.type) for spec in plan.inputs)
        self._sized: dict[tuple[tuple[int, ...], ...], Sized] = {}
        # results that take the memory of inputs are for the caller's tensors, and torch may wait for the device
        whole = all(isinstance(step, DeviceStep) for step in plan.steps) and not plan.donated
        self._recordings = Recordings(launcher, self._run) if whole else None

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """The model's result, where the first tensor of the inputs is; numpy arrays where no input is a tensor.

        Raises InputError with the input, what it takes and what was given.
        """
        return self.plan.result.build(iter(self.run(self.leaves(args, kwargs))))

    def leaves(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> list[Any]:
        """The input tensors of a call, in the order of the plan; raises InputError naming the input at fault."""
        return self.plan.signature.leaves(args, kwargs, self._types)

    def run(self, leaves: Sequence[Any]) -> list[Any]:
        """The output tensors for the input tensors, both flat and in the order of the plan."""
        inputs = self._taken(leaves)
        return give(self._run(inputs) if self._recordings is None else self._recordings.call(inputs), leaves)

    def bind(self, leaves: Sequence[Any]) -> Callable[[], list[Any]]:
        """`run` for these very tensors of the device, whose contents may change from call to call; results keep their
        memory.

        Raises InputError on a tensor that would have to be copied.
        """
        for spec, leaf, taken in zip(self.plan.inputs, leaves, self._taken(leaves), strict=True):
            if taken.data_ptr() != getattr(leaf, "data_ptr", int)():
                raise InputError(
                    f"input '{spec.name}' does not lie aligned and contiguous on {self._launcher.device} and cannot be "
                    "bound; pass a copy"
                )
        if all(isinstance(step, DeviceStep) for step in self.plan.steps):
            return Recorded(self._launcher, self._run, leaves).repeat
        return lambda: self._run(leaves)

    def profile(self, *args: Any, repeat: int = 10, **kwargs: Any) -> CallProfile:
        """The time of each kernel: medians over `repeat` calls after one that is not counted, each waited for."""
        return self.profile_leaves(self.leaves(args, kwargs), repeat=repeat)

    def profile_leaves(self, leaves: Sequence[Any], *, repeat: int = 10) -> CallProfile:
        """`profile` for input tensors as `run` takes them."""
        if repeat < 1:
            raise InputError(f"repeat is {repeat}; a profile needs at least one call")
        inputs = self._taken(leaves)
        self._run(inputs)
        walls, samples = zip(*(self._timed(inputs) for _ in range(repeat)), strict=True)
        wall = median(walls)
        rows = tuple(
            ProfileRow(call.label, call.op, call.template, call.scope, ms=1e3 * median(s), share=median(s) / wall)
            for call, s in zip(self.plan.calls, zip(*samples, strict=True), strict=True)
        )
        return CallProfile(self.name, rows, 1e3 * wall, 1, repeat)

    def sizes_of(self, shapes: tuple[tuple[int, ...], ...]) -> Sized:
        """What follows from the shapes of the inputs; raises InputError where they do not fit."""
        if (known := self._sized.get(shapes)) is None:
            if len(self._sized) >= _CACHED_SHAPES:
                self._sized = {}
            known = self._sized[shapes] = _sized(self.plan, self._solver.solve(shapes))
        return known

    def __repr__(self) -> str:
        inputs = ", ".join(f"{spec.name}: {spec.type}" for spec in self.plan.inputs)
        return f"{self.name}({inputs}) -> {', '.join(map(str, self.plan.outputs))}"

    def _taken(self, leaves: Sequence[Any]) -> list[Any]:
        device = self._launcher.device
        return [take(spec, leaf, device) for spec, leaf in zip(self.plan.inputs, leaves, strict=True)]

    def _frame(self, inputs: Sequence[Any]) -> Frame:
        import torch

        sized = self.sizes_of(tuple(tuple(t.shape) for t in inputs))
        device = self._launcher.device
        blocks = [
            torch.empty(size, dtype=torch.uint8, device=device) for size in (sized.arena_bytes, sized.scratch_bytes)
        ]
        return Frame(self.plan, sized, inputs, self._weights, self._launcher, (blocks[0], blocks[1]))

    def _run(self, inputs: Sequence[Any]) -> list[Any]:
        frame = self._frame(inputs)
        for i, step in enumerate(self.plan.steps):
            frame.run(i, step)
        return [frame.get(ValueId("output", i)) for i in range(len(self.plan.outputs))]

    def _timed(self, inputs: Sequence[Any]) -> tuple[float, list[float]]:
        """The seconds of a whole call, and of each kernel of a second one in which each is waited for."""
        start = time.perf_counter()
        self._run(inputs)
        self._launcher.wait()
        wall = time.perf_counter() - start
        frame, seconds = self._frame(inputs), []
        for i, step in enumerate(self.plan.steps):
            for part in step.calls if isinstance(step, DeviceStep) else (None,):
                start = time.perf_counter()
                frame.run(i, step) if part is None else frame.launch(i, part)
                self._launcher.wait()
                seconds.append(time.perf_counter() - start)
        return wall, seconds


class DeviceExecutable(Functions[DeviceFunction]):
    """A loaded artifact on a device. Calling it calls its `main` function, or its only one."""

    def __init__(self, plan: Plan, launcher: Launcher, weights: Weights) -> None:
        self.plan = plan
        self.threads = 1
        self.functions: Mapping[str, DeviceFunction] = {
            name: DeviceFunction(name, function, launcher, weights) for name, function in plan.functions.items()
        }

    def __repr__(self) -> str:
        return f"DeviceExecutable({'; '.join(map(repr, self.functions.values()))})"


def _sized(plan: FunctionPlan, sizes: Mapping[str, int]) -> Sized:
    slots = tuple(_starts(step, sizes) for step in plan.steps)
    device_calls = [call for step in plan.steps if isinstance(step, DeviceStep) for call in step.calls]
    scratch = max((call.scratch.evaluate(sizes) for call in device_calls), default=0)
    return Sized(sizes, tuple(s[:-1] for s in slots), max((s[-1] for s in slots), default=0), scratch)


def _starts(step: Step, sizes: Mapping[str, int]) -> tuple[int, ...]:
    """Where the slots of the step begin, and the bytes of all of them."""
    members = step.slots if isinstance(step, DeviceStep) else ()
    wide = (-(-slot.evaluate(sizes) // _ALIGNMENT) * _ALIGNMENT for slot in members)
    return tuple(accumulate(wide, initial=0))
