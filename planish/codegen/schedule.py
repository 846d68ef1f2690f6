"""The schedule: steps of native and torch work, one arena planned by liveness, and where barriers are needed."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import sympy

from planish.codegen.batches import Loop, batch_loops
from planish.codegen.select import Choice, Selection, TorchCall, Work
from planish.compiler.ir import Value
from planish.compiler.types import Dim, evaluate_dim, simplify

ALIGNMENT = 64


@dataclass(frozen=True, slots=True)
class Storage:
    """Where a buffer lies: `kind` is input, output, value (crosses steps), weight or slot (in the arena)."""

    kind: str
    key: int | str


@dataclass(slots=True)
class Slot:
    """A part of the arena that buffers share one after another; it is as large as the largest of them."""

    members: list[Dim] = field(default_factory=list)
    hint: int = 0


@dataclass(frozen=True, slots=True, eq=False)
class Kernels:
    """A native step: its calls, and for each whether a barrier must stand before it.

    `loops` run a few positions of the batch at a time; the values in `passing` live within one turn of a loop.
    """

    calls: tuple[Choice, ...]
    barriers: tuple[bool, ...]
    slots: tuple[Slot, ...]
    loops: tuple[Loop, ...] = ()
    passing: frozenset[Value] = frozenset()


Step = Kernels | TorchCall


@dataclass(frozen=True, slots=True, eq=False)
class Schedule:
    """What runs, in order, and the storage of every buffer's root value. `crossing` are the values of kind value."""

    steps: tuple[Step, ...]
    storage: Mapping[Value, Storage]
    crossing: tuple[Value, ...]


def schedule(selection: Selection, *, by_image: bool = True) -> Schedule:
    """Split the work into steps at torch calls and give every buffer a place.

    `by_image` lets runs of convolutions go through a batch a few images at a time, for the caches of a CPU.
    """
    runs = _runs(selection.work)
    storage = dict(_fixed(selection))
    crossing = tuple(v for v in _crossing(runs) if v not in storage)
    storage.update({v: Storage("value", i) for i, v in enumerate(crossing)})
    steps: list[Step] = []
    for run in runs:
        if isinstance(run[0], TorchCall):
            steps.append(run[0])
        else:
            calls = [w for w in run if isinstance(w, Choice)]
            loops = batch_loops(calls, selection.graph.hints()) if by_image else ()
            steps.append(_kernels(calls, storage, selection, loops))
    return Schedule(tuple(steps), storage, crossing)


def _runs(work: Sequence[Work]) -> list[list[Work]]:
    """Maximal runs of kernels; a torch call is a run of its own."""
    runs: list[list[Work]] = []
    for each in work:
        if runs and isinstance(each, Choice) and isinstance(runs[-1][0], Choice):
            runs[-1].append(each)
        else:
            runs.append([each])
    return runs


def buffer_bytes(value: Value) -> Dim:
    """Bytes of the value's buffer, a multiple of the alignment."""
    total: Dim = value.dtype.itemsize
    for dim in value.shape:
        total = total * dim
    return simplify(total)


def written(work: Work) -> tuple[Value, ...]:
    """The root values whose buffers the work fills."""
    return work.node.values if isinstance(work, TorchCall) else tuple(work.call.results)


def read(work: Work) -> tuple[Value, ...]:
    """The root values whose buffers the work reads."""
    return tuple(dict.fromkeys(work.roots.values()))


def _fixed(selection: Selection) -> Iterator[tuple[Value, Storage]]:
    for i, value in enumerate(selection.graph.inputs):
        yield value, Storage("input", i)
    for work in selection.work:
        for value in read(work):
            if value.node.op.name == "weight":
                yield value, Storage("weight", str(value.node.attrs["name"]))
    for i, value in enumerate(selection.outputs):
        yield value, Storage("output", i)


def _crossing(runs: Sequence[Sequence[Work]]) -> tuple[Value, ...]:
    """Values that one step writes and a later one reads, or that torch writes."""
    home = {value: i for i, run in enumerate(runs) for work in run for value in written(work)}
    outside = {v for i, run in enumerate(runs) for work in run for v in read(work) if home.get(v, i) != i}
    by_torch = {v for run in runs for work in run if isinstance(work, TorchCall) for v in work.node.values}
    return tuple(v for v in home if v in outside or v in by_torch)


def _kernels(
    calls: Sequence[Choice], storage: dict[Value, Storage], selection: Selection, loops: tuple[Loop, ...]
) -> Kernels:
    slots: list[Slot] = []
    free: list[int] = []
    hints = selection.graph.hints()
    lives = _lives(calls, loops)
    ours = [v for v in lives if v not in storage]
    for i in range(len(calls)):
        for value in (v for v in ours if lives[v].first == i):
            storage[value] = Storage("slot", _take(slots, free, buffer_bytes(value), hints))
        free += sorted(int(storage[v].key) for v in ours if lives[v].last == i)
    passing = frozenset(v for v in ours if lives[v].within_loop)
    return Kernels(tuple(calls), _barriers(calls, storage), tuple(slots), loops, passing)


@dataclass(frozen=True, slots=True)
class _Life:
    """The first and last call during which the buffer of a result must not be used for another."""

    first: int
    last: int
    within_loop: bool = False


def _lives(calls: Sequence[Choice], loops: tuple[Loop, ...]) -> dict[Value, _Life]:
    """Of every result, in order. A loop comes back to its calls: what crosses its border lives throughout."""
    lives: dict[Value, _Life] = {}
    last = {v: i for i, choice in enumerate(calls) for v in read(choice)}
    for i, choice in enumerate(calls):
        for out in written(choice):
            end = last.get(out, i)
            before, after = (next((loop for loop in loops if at in loop), None) for at in (i, end))
            if before is not None and before is after:
                lives[out] = _Life(i, end, True)
                continue
            inside = [loop.last - 1 for loop in loops for at, c in enumerate(calls) if at in loop and out in read(c)]
            lives[out] = _Life(i if before is None else before.first, max([end, *inside]))
    return lives


def _take(slots: list[Slot], free: list[int], size: Dim, hints: Mapping[str, int]) -> int:
    """The free slot whose expected size fits best, or a new one."""
    hint = evaluate_dim(size, hints)
    best = min(free, key=lambda i: (abs(slots[i].hint - hint), i), default=None)
    if best is None:
        slots.append(Slot())
        best = len(slots) - 1
    else:
        free.remove(best)
    slots[best].members.append(size)
    slots[best].hint = max(slots[best].hint, hint)
    return best


def _barriers(calls: Sequence[Choice], storage: Mapping[Value, Storage]) -> tuple[bool, ...]:
    """A barrier stands before a call that reads what calls since the last one wrote, or overwrites what they used."""
    needed, reads, writes = [], set[Storage](), set[Storage]()
    for choice in calls:
        mine, out = {storage[v] for v in read(choice)}, {storage[v] for v in written(choice)}
        wait = bool(mine & writes or out & reads or out & writes)
        if wait:
            reads, writes = set(), set()
        needed.append(wait)
        reads |= mine
        writes |= out
    return tuple(needed)


def slot_size(slot: Slot) -> sympy.Expr | int:
    """The size of a slot as one expression over the named sizes."""
    distinct = list(dict.fromkeys(slot.members))
    return distinct[0] if len(distinct) == 1 else sympy.Max(*distinct)
