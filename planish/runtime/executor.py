"""Runs the functions of a plan over numpy arrays or torch tensors."""

import ctypes
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from statistics import median
from typing import Any, Final

import numpy as np

from planish.errors import ArtifactError, InputError
from planish.runtime import operands
from planish.runtime.bound import BoundCall, NativeCall
from planish.runtime.frame import Frame, Memory, Sized
from planish.runtime.functions import Functions
from planish.runtime.library import NativeEntry, NativeLibrary
from planish.runtime.plan import FunctionPlan, NativeStep, Plan, Step, TensorSpec, TorchStep
from planish.runtime.profile import CallProfile, ProfileRow
from planish.runtime.tensors import TensorFile
from planish.runtime.values import ValueId

_CACHED_SHAPES: Final = 64


class CompiledFunction:
    """One entry function of an artifact: called like the model, from any number of threads at once."""

    def __init__(
        self, name: str, plan: FunctionPlan, entries: Mapping[str, NativeEntry], memory: Memory, threads: int
    ) -> None:
        self.name, self.plan, self.threads = name, plan, threads
        self._entries, self._memory = entries, memory
        self._solver = plan.solver()
        self._types = tuple(str(spec.type) for spec in plan.inputs)
        self._labels = _labels_by_step(plan)
        self._sized: dict[tuple[tuple[int, ...], ...], Sized] = {}

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """The model's result, as torch tensors where an input is one, as numpy arrays otherwise.

        Raises InputError with the input, what it takes and what was given.
        """
        results = self.run(self.leaves(args, kwargs))
        return self.plan.result.build(iter(results))

    def leaves(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> list[Any]:
        """The input tensors of a call, in the order of the plan; raises InputError naming the input at fault."""
        return self.plan.signature.leaves(args, kwargs, self._types)

    def run(self, leaves: Sequence[Any]) -> list[Any]:
        """The output tensors for the input tensors, both flat and in the order of the plan."""
        return self._run(leaves, None)

    def bind(self, leaves: Sequence[np.ndarray[Any, Any]]) -> Callable[[], list[Any]]:
        """`run` for these very arrays, whose contents may change from call to call; results keep their memory.

        Only one such call may run at a time. Raises InputError on an array that would have to be copied.
        """
        native = [step for step in self.plan.steps if isinstance(step, NativeStep)]
        if len(native) < len(self.plan.steps) or any(spec.dtype == "bf16" for spec in self.plan.outputs):
            return lambda: self.run(leaves)
        inputs = [operands.take(spec, leaf) for spec, leaf in zip(self.plan.inputs, leaves, strict=True)]
        for spec, operand, leaf in zip(self.plan.inputs, inputs, leaves, strict=True):
            if operand.owner is not leaf:
                raise InputError(f"input '{spec.name}' is not contiguous and cannot be bound; pass a copy")
        sized = self._sizes_of(tuple(operand.shape for operand in inputs))
        frame = Frame(self.plan, sized, inputs, self._memory, None)
        calls = tuple(self._native_call(step, frame) for step in native)
        outputs = [frame.get(ValueId("output", i)).owner for i in range(len(self.plan.outputs))]
        return BoundCall(calls, outputs, self._memory.arenas, sized.arena_bytes, (frame,))

    def profile(self, *args: Any, repeat: int = 10, **kwargs: Any) -> CallProfile:
        """The time of each kernel: medians over `repeat` calls after one that is not counted."""
        return self.profile_leaves(self.leaves(args, kwargs), repeat=repeat)

    def profile_leaves(self, leaves: Sequence[Any], *, repeat: int = 10) -> CallProfile:
        """`profile` for input tensors as `run` takes them."""
        if repeat < 1:
            raise InputError(f"repeat is {repeat}; a profile needs at least one call")
        self._run(leaves, None)
        walls: list[float] = []
        samples: list[list[float]] = []
        for _ in range(repeat):
            times = [np.zeros(max(1, len(labels))) for labels in self._labels]
            start = time.perf_counter()
            self._run(leaves, times)
            walls.append(time.perf_counter() - start)
            samples.append([float(second) for step in times for second in step])
        wall = median(walls)
        rows = tuple(
            ProfileRow(*label, ms=1e3 * median(seconds), share=median(seconds) / wall)
            for label, seconds in zip(self._rows(), zip(*samples, strict=True), strict=True)
        )
        return CallProfile(self.name, rows, 1e3 * wall, self.threads, repeat)

    def __repr__(self) -> str:
        inputs = ", ".join(f"{spec.name}: {spec.type}" for spec in self.plan.inputs)
        return f"{self.name}({inputs}) -> {', '.join(map(str, self.plan.outputs))}"

    def _run(self, leaves: Sequence[Any], times: list[np.ndarray[Any, Any]] | None) -> list[Any]:
        inputs = [operands.take(spec, leaf) for spec, leaf in zip(self.plan.inputs, leaves, strict=True)]
        sized = self._sizes_of(tuple(operand.shape for operand in inputs))
        torch = operands.loaded_torch() if any(operands.is_torch(operand.owner) for operand in inputs) else None
        frame = Frame(self.plan, sized, inputs, self._memory, torch)
        with self._memory.arenas.borrow(sized.arena_bytes) as arena:
            for i in range(len(self.plan.steps)):
                self._run_step(i, frame, arena, None if times is None else times[i])
        return [operands.give(frame.get(ValueId("output", i)), spec.dtype) for i, spec in enumerate(self.plan.outputs)]

    def _run_step(self, index: int, frame: Frame, arena: int, times: np.ndarray[Any, Any] | None) -> None:
        step, start = self.plan.steps[index], time.perf_counter()
        if isinstance(step, TorchStep):
            frame.run_torch(step)
        else:
            assert isinstance(step, NativeStep), "a device's step runs on its own executor"
            self._run_native(step, frame, arena, times if self._labels[index] else None)
            if self._labels[index]:
                return
        if times is not None:
            times[0] = time.perf_counter() - start

    def _native_call(self, step: NativeStep, frame: Frame) -> NativeCall:
        return NativeCall(
            step.entry,
            self._entries[step.entry].run,
            _pointers([frame.get(value).address for value in step.inputs]),
            _pointers([frame.get(value).address for value in step.outputs]),
            frame.sized.array,
            self._memory.weights_address,
            self.threads,
        )

    def _run_native(self, step: NativeStep, frame: Frame, arena: int, times: np.ndarray[Any, Any] | None) -> None:
        code = self._entries[step.entry].run(
            _pointers([frame.get(value).address for value in step.inputs]),
            _pointers([frame.get(value).address for value in step.outputs]),
            frame.sized.array,
            self._memory.weights_address,
            arena,
            self.threads,
            None if times is None else times.ctypes.data_as(ctypes.POINTER(ctypes.c_double)),
        )
        if code != 0:
            raise ArtifactError(f"{step.entry} of {self.name} failed with code {code} on sizes {frame.sized.sizes}")

    def _sizes_of(self, shapes: tuple[tuple[int, ...], ...]) -> Sized:
        if (known := self._sized.get(shapes)) is not None:
            return known
        solved = self._solver.solve(shapes)
        values = [solved[size.name] for size in self.plan.sizes]
        array = (ctypes.c_int64 * max(1, len(values)))(*values)
        arenas = [entry.arena_bytes(array, self.threads) for entry in self._entries.values()]
        outputs, crossing = _shapes(self.plan.outputs, solved), _shapes(self.plan.values, solved)
        sized = Sized(solved, array, outputs, crossing, max(arenas, default=0))
        if len(self._sized) >= _CACHED_SHAPES:
            self._sized = {}
        self._sized[shapes] = sized
        return sized

    def _rows(self) -> Iterator[tuple[str, str, str, str]]:
        for step, labels in zip(self.plan.steps, self._labels, strict=True):
            yield from labels or [_step_label(step)]


class Executable(Functions[CompiledFunction]):
    """A loaded artifact. Calling it calls its `main` function, or its only one.

    `threads` is how many each call uses, at most and by default the number of cores that the process has: threads that
    share a core wait for one another.
    """

    def __init__(
        self, plan: Plan, library: NativeLibrary | None, weights: TensorFile, *, threads: int | None = None
    ) -> None:
        if threads is not None and (type(threads) is not int or threads < 1):
            raise InputError(f"threads is {threads!r}; a call needs at least one, as an integer")
        memory = Memory(weights, plan.weights)
        self.plan = plan
        cores = library.threads() if library else 1
        self.threads = min(threads or cores, cores)
        self.functions: Mapping[str, CompiledFunction] = {
            name: CompiledFunction(name, function, _entries(function, library), memory, self.threads)
            for name, function in plan.functions.items()
        }

    def __repr__(self) -> str:
        return f"Executable({'; '.join(map(repr, self.functions.values()))}; {self.threads} threads)"


def _entries(function: FunctionPlan, library: NativeLibrary | None) -> dict[str, NativeEntry]:
    names = [step.entry for step in function.steps if isinstance(step, NativeStep)]
    return {name: library.entry(name) for name in names} if library else {}


def _labels_by_step(plan: FunctionPlan) -> list[list[tuple[str, str, str, str]]]:
    labels: list[list[tuple[str, str, str, str]]] = [[] for _ in plan.steps]
    for call in plan.calls:
        labels[call.segment].append((call.label, call.op, call.template, call.scope))
    return labels


def _step_label(step: Step) -> tuple[str, str, str, str]:
    if isinstance(step, TorchStep):
        return step.target, step.target, "torch", step.scope
    return (step.entry, "", "native", "") if isinstance(step, NativeStep) else ("", "", "device", "")


def _shapes(specs: Sequence[TensorSpec], sizes: Mapping[str, int]) -> tuple[tuple[int, ...], ...]:
    return tuple(tuple(dimension.evaluate(sizes) for dimension in spec.shape) for spec in specs)


def _pointers(addresses: list[int]) -> "ctypes.Array[ctypes.c_void_p]":
    return (ctypes.c_void_p * max(1, len(addresses)))(*addresses)
