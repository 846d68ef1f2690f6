"""Recorded calls: the launches of a call with one set of shapes, repeated as one."""

import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Any, Final

from planish.runtime.device.launcher import Launcher

_KEPT: Final = 8  # sets of shapes, whose inputs, arena and outputs stay on the device
_SEEN: Final = 2  # calls with the same shapes before they are recorded: one alone would pay for three


class Recorded:
    """One call that is repeated on its own memory."""

    def __init__(self, launcher: Launcher, run: Callable[[Sequence[Any]], list[Any]], inputs: Sequence[Any]) -> None:
        self.inputs = inputs
        self.outputs: list[Any] = []
        self._lock = threading.Lock()

        def body() -> None:
            self.outputs = run(self.inputs)

        self._repeat = launcher.recorded(body)

    def repeat(self) -> list[Any]:
        """Run again on the inputs as they are now; the outputs are overwritten by the next call."""
        self._repeat()
        return self.outputs

    def call(self, inputs: Sequence[Any]) -> list[Any]:
        """Run on copies of other inputs, and give outputs of their own."""
        with self._lock:
            for own, given in zip(self.inputs, inputs, strict=True):
                own.copy_(given)
            return [output.clone() for output in self.repeat()]


class Recordings:
    """The recorded calls of a function by shapes, the latest used ones; `run` is what is recorded."""

    def __init__(self, launcher: Launcher, run: Callable[[Sequence[Any]], list[Any]]) -> None:
        self._launcher, self._run = launcher, run
        self._seen: dict[tuple[Any, ...], int] = {}
        self._kept: OrderedDict[tuple[Any, ...], Recorded] = OrderedDict()
        self._lock = threading.Lock()

    def call(self, inputs: Sequence[Any]) -> list[Any]:
        """The outputs for the inputs, recorded where their shapes have been seen before."""
        recorded = self._of(tuple(tuple(t.shape) for t in inputs), inputs)
        return self._run(inputs) if recorded is None else recorded.call(inputs)

    def _of(self, shapes: tuple[Any, ...], inputs: Sequence[Any]) -> Recorded | None:
        with self._lock:
            if shapes in self._kept:
                self._kept.move_to_end(shapes)
                return self._kept[shapes]
            self._seen[shapes] = self._seen.get(shapes, 0) + 1
            if self._seen[shapes] < _SEEN:
                return None
            recorded = self._kept[shapes] = Recorded(self._launcher, self._run, [t.clone() for t in inputs])
            if len(self._kept) > _KEPT:
                self._kept.popitem(last=False)
            return recorded
