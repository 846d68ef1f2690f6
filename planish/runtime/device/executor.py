"""Runs the functions of a plan on a device, over torch tensors."""

import time
from collections.abc import Callable, Mapping, Sequence
from statistics import median
from typing import Any, Final

from planish.errors import InputError
from planish.runtime.device.frame import Frame, Weights
from planish.runtime.device.graphs import Around, Recorded, Recordings, segments
from planish.runtime.device.launcher import Launcher
from planish.runtime.device.memory import Sized, check_room, described, no_room, sized
from planish.runtime.device.operands import give, take
from planish.runtime.functions import Functions
from planish.runtime.launches import DeviceStep
from planish.runtime.plan import FunctionPlan, Plan
from planish.runtime.profile import CallProfile, ProfileRow

_CACHED_SHAPES: Final = 64


class DeviceFunction:
    """One entry function of an artifact on a device: called like the model, from any number of threads and streams."""

    def __init__(self, name: str, plan: FunctionPlan, launcher: Launcher, weights: Weights) -> None:
        self.name, self.plan = name, plan
        self._launcher, self._weights = launcher, weights
        self._solver = plan.solver()
        self._types = tuple(str(spec.type) for spec in plan.inputs)
        self._sized: dict[tuple[tuple[int, ...], ...], Sized] = {}
        self._recordings = Recordings(
            launcher, self._run, self._recorded, lambda inputs: self._sizes(inputs).work_bytes
        )
        self._records = not plan.donated  # results in the memory of inputs are for the caller's own tensors

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
        with self._launcher.entered():
            inputs = self._taken(leaves)
            return give(self._recordings.call(inputs) if self._records else self._run(inputs), leaves)

    def bind(
        self,
        leaves: Sequence[Any],
        *,
        before: Callable[[], None] | None = None,
        then: Callable[[Sequence[Any]], Callable[[], None]] | None = None,
    ) -> Callable[[], list[Any]]:
        """`run` for these very tensors of the device, whose contents may change from call to call; results keep their
        memory. Calls of one binding belong on one stream.

        `before`, and what `then` gives for the results, are work on the device that is recorded with the call. The call
        runs twice at once, on what the tensors hold. Raises InputError on a tensor that would have to be copied.
        """
        with self._launcher.entered():
            self._uncopied(leaves)
            recorded = self._recorded(leaves, before, then)

        def repeat() -> list[Any]:
            with self._launcher.entered():
                return recorded.repeat()

        return repeat

    def at_once(self, leaves: Sequence[Any]) -> list[Any]:
        """`run` for tensors of the device, which is not recorded; the results stay there."""
        with self._launcher.entered():
            return self._run(self._taken(leaves))

    def prepared(self, leaves: Sequence[Any]) -> tuple[Callable[[], None], list[Any]]:
        """What puts a call for these tensors of the device there, for the `then` of a binding, and its results.

        The call runs once now. Raises InputError as `bind` does.
        """
        inputs = self._uncopied(leaves)
        self._run(inputs)
        frame = self._frame(inputs)
        return frame.run_all, frame.outputs()

    def profile(self, *args: Any, repeat: int = 10, **kwargs: Any) -> CallProfile:
        """The time of each kernel: medians over `repeat` calls after one that is not counted, each waited for."""
        return self.profile_leaves(self.leaves(args, kwargs), repeat=repeat)

    def profile_leaves(self, leaves: Sequence[Any], *, repeat: int = 10) -> CallProfile:
        """`profile` for input tensors as `run` takes them."""
        if repeat < 1:
            raise InputError(f"repeat is {repeat}; a profile needs at least one call")
        with self._launcher.entered():
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
        """What follows from the shapes of the inputs.

        Raises InputError where they do not fit, and ArtifactError, with both numbers, where the device has less memory
        free than a call takes.
        """
        if (known := self._sized.get(shapes)) is None:
            known = self.needs(shapes)
            check_room(self._launcher, known.work_bytes, f"calling {self.name} with {described(known.sizes)}")
            if len(self._sized) >= _CACHED_SHAPES:
                self._sized = {}
            self._sized[shapes] = known
        return known

    def needs(self, shapes: tuple[tuple[int, ...], ...]) -> Sized:
        """`sizes_of` whether or not the device has the memory."""
        return sized(self.plan, self._solver.solve(shapes))

    def __repr__(self) -> str:
        inputs = ", ".join(f"{spec.name}: {spec.type}" for spec in self.plan.inputs)
        return f"{self.name}({inputs}) -> {', '.join(map(str, self.plan.outputs))}"

    def _taken(self, leaves: Sequence[Any]) -> list[Any]:
        device = self._launcher.device
        return [take(spec, leaf, device) for spec, leaf in zip(self.plan.inputs, leaves, strict=True)]

    def _uncopied(self, leaves: Sequence[Any]) -> list[Any]:
        found = self._taken(leaves)
        for spec, leaf, taken in zip(self.plan.inputs, leaves, found, strict=True):
            if taken.data_ptr() != getattr(leaf, "data_ptr", int)():
                raise InputError(
                    f"input '{spec.name}' does not lie aligned and contiguous on {self._launcher.device} and cannot be "
                    "bound; pass a copy"
                )
        return found

    def _sizes(self, inputs: Sequence[Any]) -> Sized:
        return self.sizes_of(tuple(tuple(t.shape) for t in inputs))

    def _frame(self, inputs: Sequence[Any]) -> Frame:
        import torch

        found = self._sizes(inputs)
        device = self._launcher.device
        arena, scratch = (
            torch.empty(size, dtype=torch.uint8, device=device) for size in (found.arena_bytes, found.scratch_bytes)
        )
        self._launcher.hold(self._weights.memory)
        return Frame(self.plan, found, inputs, self._weights, self._launcher, (arena, scratch))

    def _run(self, inputs: Sequence[Any]) -> list[Any]:
        import torch

        try:
            frame = self._frame(inputs)
            frame.run_all()
            return frame.outputs()
        except torch.OutOfMemoryError as error:
            known = self._sizes(inputs)
            what = f"calling {self.name} with {described(known.sizes)}"
            raise no_room(self._launcher, known.work_bytes, what) from error

    def _recorded(
        self,
        inputs: Sequence[Any],
        before: Callable[[], None] | None = None,
        then: Callable[[Sequence[Any]], Callable[[], None]] | None = None,
    ) -> Recorded:
        import torch

        self._run(inputs)
        with torch.inference_mode(False):  # memory that is made in that mode could only be written in it
            frame = self._frame(inputs)
            around = Around(before, None if then is None else then(frame.outputs()))
            return Recorded(self._launcher, frame, self.plan, segments(self.plan, torch), around)

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
                frame.run(i) if part is None else frame.launch(i, part)
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
