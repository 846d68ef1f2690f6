"""Recorded calls: the work of a call with one set of shapes, repeated as one or a few graphs."""

import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any, Final

from planish.runtime.device.frame import Frame
from planish.runtime.device.launcher import Launcher
from planish.runtime.launches import DeviceStep
from planish.runtime.plan import FunctionPlan, Step, TorchStep
from planish.runtime.torch_step import overload_of

_KEPT: Final = 8  # calls, whose inputs, work memory and outputs stay on the device
_SEEN: Final = 2  # calls with the same shapes before they are recorded: one alone would pay for three
_IDLE: Final = 64  # calls for which a recorded one was not repeated when it gives way to another
_COUNTED: Final = 1024  # shapes whose calls are counted

# what synchronizes with the device, or asks for memory by what it finds there; source: torch._inductor.utils
# (FORBIDDEN_CUDAGRAPH_OPS), and for the factorizations that they report failures to the host
_UNRECORDABLE: Final = ("aten._local_scalar_dense.", "aten._assert_scalar.", "aten.linalg_", "aten._linalg_")
_UNRECORDABLE_TAGS: Final = ("dynamic_output_shape", "data_dependent_output", "cudagraph_unsafe")
_INDEXED: Final = ("aten.index.Tensor", "aten.index_put.default", "aten._unsafe_index.Tensor")


@dataclass(frozen=True, slots=True)
class Segment:
    """Steps of a plan, by their places, that are recorded together, or run one by one."""

    places: tuple[int, ...]
    recorded: bool


def segments(plan: FunctionPlan, torch: Any) -> tuple[Segment, ...]:
    """The steps of the plan as runs that can be recorded, and those between them."""
    safe = [isinstance(s, DeviceStep) or refusal(s, plan, torch) is None for s in plan.steps]
    found = []
    for recorded, group in groupby(range(len(plan.steps)), key=safe.__getitem__):
        places = tuple(group)
        # a graph of views alone would be empty
        has_kernels = any(isinstance(plan.steps[i], DeviceStep) for i in places)
        found.append(Segment(places, recorded and has_kernels))
    return tuple(found)


def refusal(step: Step, plan: FunctionPlan, torch: Any) -> str | None:
    """Why a step that runs as torch cannot be recorded, or None."""
    if not isinstance(step, TorchStep):
        return "only kernels of the device and torch run there"
    if step.target.startswith(_UNRECORDABLE):
        return f"{step.target} waits for the device"
    if step.target == "aten.topk.default" and torch.version.hip:
        return f"{step.target} cannot be repeated on AMD GPUs"
    if step.target in _INDEXED:
        masked = any(plan.dtype(value) in ("bool", "u8", None) for value in step.reads()[1:])
        return f"{step.target} counts the elements of a mask" if masked else None
    tags = {tag.name for tag in overload_of(step, torch).tags}
    return next((f"{step.target} is {tag.replace('_', ' ')}" for tag in _UNRECORDABLE_TAGS if tag in tags), None)


@dataclass(frozen=True, slots=True)
class Around:
    """Work on the device that belongs to every repetition of a call, in front of it and behind it."""

    before: Callable[[], None] | None = None
    after: Callable[[], None] | None = None


class Recorded:
    """One call that is repeated on its own memory; what cannot be recorded of it runs between the graphs.

    The call must have run once before: what libraries allocate on their first call is not to be recorded. What is
    `around` it is recorded with it.
    """

    def __init__(
        self, launcher: Launcher, frame: Frame, plan: FunctionPlan, runs: Sequence[Segment], around: Around
    ) -> None:
        self._outputs = frame.outputs()
        self._repeats: list[Callable[[], None]] = []
        for i, segment in enumerate(runs):
            own = Around(around.before if i == 0 else None, around.after if i == len(runs) - 1 else None)
            for repeat in _repeats(launcher, frame, plan, segment, own, alone=len(runs) == 1):
                repeat()  # recording computes nothing, and what follows reads what is computed here
                self._repeats.append(repeat)
        self._held = frame, around  # whose memory the graphs work on

    def repeat(self) -> list[Any]:
        """Run again on the inputs as they are now; the outputs are overwritten by the next call."""
        for repeat in self._repeats:
            repeat()
        return self._outputs


def _repeats(
    launcher: Launcher, frame: Frame, plan: FunctionPlan, segment: Segment, around: Around, *, alone: bool
) -> Iterator[Callable[[], None]]:
    if segment.recorded:
        body = frame.run_all if alone else lambda: frame.run(*segment.places)
        yield launcher.recorded(lambda: _in_turn(around.before, body, around.after))
        return
    if around.before is not None:
        yield launcher.recorded(around.before)
    for i in segment.places:
        step = plan.steps[i]
        assert isinstance(step, TorchStep)
        yield frame.settled(i, step)
    if around.after is not None:
        yield launcher.recorded(around.after)


def _in_turn(*works: Callable[[], None] | None) -> None:
    for work in works:
        if work is not None:
            work()


def _copied(tensor: Any) -> Any:
    """A copy that calls inside and outside of torch's inference mode can write."""
    import torch

    with torch.inference_mode(False):
        return tensor.clone()


@dataclass(slots=True)
class _Kept:
    """A recorded call with the inputs that it reads, and the number of the call that repeated it last."""

    inputs: Sequence[Any]
    recorded: Recorded
    used: int


class Recordings:
    """The recorded calls of a function by stream and shapes.

    What is recorded on one stream is repeated on it alone: calls of a stream follow each other on the device, those of
    several have memory of their own and need not wait for one another.
    """

    def __init__(
        self,
        launcher: Launcher,
        run: Callable[[Sequence[Any]], list[Any]],
        record: Callable[[Sequence[Any]], Recorded],
        needed: Callable[[Sequence[Any]], int],
    ) -> None:
        self._launcher, self._run, self._record, self._needed = launcher, run, record, needed
        self._seen: dict[tuple[Any, ...], int] = {}
        self._kept: OrderedDict[tuple[Any, ...], _Kept] = OrderedDict()
        self._calls = 0
        self._lock = threading.Lock()

    def call(self, inputs: Sequence[Any]) -> list[Any]:
        """The outputs for the inputs, in memory of their own; recorded where their shapes have been seen before."""
        key = (self._launcher.lane(), *(tuple(t.shape) for t in inputs))
        with self._lock:  # until the outputs are copied: another thread may use the same stream
            self._calls += 1
            if (kept := self._of(key, inputs)) is not None:
                for own, given in zip(kept.inputs, inputs, strict=True):
                    own.copy_(given)
                return [output.clone() for output in kept.recorded.repeat()]
        return self._run(inputs)

    def _of(self, key: tuple[Any, ...], inputs: Sequence[Any]) -> _Kept | None:
        if (kept := self._kept.get(key)) is not None:
            self._kept.move_to_end(key)
            kept.used = self._calls
            return kept
        if len(self._seen) >= _COUNTED:
            self._seen.clear()
        self._seen[key] = self._seen.get(key, 0) + 1
        if self._seen[key] < _SEEN or not self._has_place():
            return None
        if self._needed(inputs) + sum(t.nbytes for t in inputs) > self._launcher.free_bytes():
            self._seen[key] = -_IDLE  # asking costs a call of the driver
            return None
        own = [_copied(t) for t in inputs]
        kept = self._kept[key] = _Kept(own, self._record(own), self._calls)
        return kept

    def _has_place(self) -> bool:
        """Whether another call may be recorded, in the place of one that is not in use any more if need be."""
        if len(self._kept) < _KEPT:
            return True
        oldest = next(iter(self._kept))
        if self._calls - self._kept[oldest].used < _IDLE:
            return False
        del self._kept[oldest]
        return True
