"""Folds: sums, extremes and their like over vectors of elements, in several registers at once."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from tvm import tirx
from tvm.script.ir_builder import tirx as T  # noqa: N812 - TVM's own name for its script namespace

from planish.codegen.tvm import vector_math as vm
from planish.codegen.tvm.kernel import KernelBuilder, bind, ramp
from planish.codegen.tvm.loops import integer
from planish.codegen.tvm.transpose import halves
from planish.compiler.types import Dim

_NOWHERE = 2**31 - 1  # after every position
State: TypeAlias = "tuple[tirx.PrimExpr, ...]"
Read: TypeAlias = "Callable[[tirx.PrimExpr, int], tirx.PrimExpr]"


@dataclass(frozen=True, slots=True)
class Fold:
    """`step(state, value, position)` takes one more value in; `join` takes two states of different elements together.

    A state is one value a TVM dtype in `dtypes`, first those of `start`. `position` is an int32 per lane. A value that
    `ignored` is given leaves a state as it is; None says that taking a value in twice does no harm.
    """

    dtypes: tuple[str, ...]
    start: tuple[float, ...]
    step: "Callable[[State, tirx.PrimExpr, tirx.PrimExpr], State]"
    join: Callable[[State, State], State]
    ignored: float | None = None


def plain(
    dtype: str, start: float, combine: "Callable[[tirx.PrimExpr, tirx.PrimExpr], tirx.PrimExpr]", *, again: bool
) -> Fold:
    """A fold of one value by an associative function; `again` says whether a value may be taken in twice."""
    return Fold(
        (dtype,),
        (start,),
        lambda state, value, _: (combine(state[0], value),),
        lambda a, b: (combine(a[0], b[0]),),
        None if again else start,
    )


def total(dtype: str) -> Fold:
    """The sum."""
    return plain(dtype, 0, lambda a, b: a + b, again=False)


def moments(dtype: str) -> Fold:
    """The sum and the sum of squares."""
    return Fold(
        (dtype, dtype),
        (0, 0),
        lambda state, value, _: (state[0] + value, state[1] + value * value),
        lambda a, b: (a[0] + b[0], a[1] + b[1]),
        0,
    )


def product(dtype: str) -> Fold:
    """The product."""
    return plain(dtype, 1, lambda a, b: a * b, again=False)


def largest(dtype: str) -> Fold:
    """The maximum; not-a-number if there is one."""
    return plain(dtype, lowest(dtype), lambda a, b: vm.maximum(vm.keep(a), vm.keep(b)), again=True)


def smallest(dtype: str) -> Fold:
    """The minimum; not-a-number if there is one."""
    return plain(dtype, highest(dtype), lambda a, b: vm.minimum(vm.keep(a), vm.keep(b)), again=True)


def peak() -> Fold:
    """The maximum of f32 values among which not-a-numbers may be passed over."""
    return plain("float32", -math.inf, lambda a, b: vm.fast_maximum(vm.keep(a), vm.keep(b)), again=True)


def first_largest(dtype: str) -> Fold:
    """`(value, position)` of the first maximum; the first not-a-number counts as one."""

    def better(a: State, b: State) -> "tirx.PrimExpr":
        """Whether b's value is above a's."""
        above = b[0] > a[0]
        if vm.is_float(a[0]):
            above = vm.either(above, vm.both(vm.is_nan(b[0]), vm.negated(vm.is_nan(a[0]))))
        return above

    def choose(a: State, b: State, wanted: "tirx.PrimExpr") -> State:
        return vm.keep(vm.select(wanted, b[0], a[0])), vm.keep(vm.select(wanted, b[1], a[1]))

    def step(state: State, value: "tirx.PrimExpr", position: "tirx.PrimExpr") -> State:
        a, b = _kept(state), _kept((value, position))
        return choose(a, b, better(a, b))

    def join(a: State, b: State) -> State:
        a, b = _kept(a), _kept(b)
        tied = vm.both(vm.negated(better(b, a)), b[1] < a[1])
        return choose(a, b, vm.either(better(a, b), tied))

    return Fold((dtype, "int32"), (lowest(dtype), _NOWHERE), step, join)


def first_place(state: State) -> "tirx.PrimExpr":
    """The position in a state of `first_largest`: the first one where all values are the lowest there is."""
    place = vm.keep(state[1])
    return vm.select(vm.equal(place, vm.like(place, _NOWHERE)), vm.like(place, 0), place)


def _kept(state: State) -> State:
    return tuple(vm.keep(part) for part in state)


def lowest(dtype: str) -> float:
    """The least value of a TVM dtype."""
    if dtype.startswith("float"):
        return -math.inf
    return 0 if dtype.startswith("u") else -(1 << (_width(dtype) - 1))


def highest(dtype: str) -> float:
    """The greatest value of a TVM dtype."""
    if dtype.startswith("float"):
        return math.inf
    return (1 << (_width(dtype) - (not dtype.startswith("u")))) - 1


def _width(dtype: str) -> int:
    return int(dtype.lstrip("uint"))


class Registers:
    """The running state of a fold in `ways` vectors, so that steps need not wait for each other.

    `position_step` is how far positions of neighbouring lanes are apart: 1 along a folded line, 0 across lines.
    """

    def __init__(self, fold: Fold, lanes: int, ways: int) -> None:
        self.fold, self.lanes, self.ways = fold, lanes, ways
        self._vectors = [self._allocate(lanes) for _ in range(ways)]
        self._single = self._allocate(1)

    def _allocate(self, lanes: int) -> "list[tirx.Buffer]":
        buffers = [T.alloc_buffer((lanes,), dtype) for dtype in self.fold.dtypes]
        for buffer, dtype, start in zip(buffers, self.fold.dtypes, self.fold.start, strict=True):
            T.buffer_store(buffer, vm.constant(start, dtype, lanes), [ramp(0, lanes)])
        return buffers

    def take(
        self,
        value: "tirx.PrimExpr",
        position: "tirx.PrimExpr",
        *,
        way: int = 0,
        step: int = 1,
        from_lane: object = None,
    ) -> None:
        """Take a value in; `position` is that of lane 0, and lanes below `from_lane` are left out."""
        lanes = vm.lanes_of(value)
        buffers = self._vectors[way] if lanes == self.lanes else self._single
        if from_lane is not None and self.fold.ignored is not None:
            chosen = T.ramp(tirx.const(0, "int32"), 1, lanes) >= vm.splat(vm.cast(from_lane, "int32"), lanes)
            value = vm.keep(vm.select(chosen, vm.keep(value), vm.like(value, self.fold.ignored)))
        state = tuple(buffer[ramp(0, lanes)] for buffer in buffers)
        where = vm.splat(vm.cast(position, "int32"), lanes)
        if step and lanes > 1:
            where = where + T.ramp(tirx.const(0, "int32"), step, lanes)
        for buffer, part in zip(buffers, self.fold.step(state, value, where), strict=True):
            T.buffer_store(buffer, part, [ramp(0, lanes)])

    def line(self, k: KernelBuilder, width: Dim, read: Read) -> None:
        """Take `width` elements in, of which `read(at, lanes)` gives consecutive ones."""
        lines(k, width, [(self, read)])

    def vector(self, way: int = 0) -> State:
        """The state of each lane of one vector."""
        return tuple(bind(buffer[ramp(0, self.lanes)]) for buffer in self._vectors[way])

    def result(self) -> State:
        """The state of everything taken in."""
        state = self.vector()
        for way in range(1, self.ways):
            state = _kept(self.fold.join(state, self.vector(way)))
        lanes = self.lanes
        while lanes > 1:
            parts = [halves(part) for part in state]
            state = _kept(self.fold.join(tuple(bind(p[0]) for p in parts), tuple(bind(p[1]) for p in parts)))
            lanes //= 2
        return _kept(self.fold.join(state, tuple(bind(buffer[0]) for buffer in self._single)))


def lines(k: KernelBuilder, width: Dim, group: "Sequence[tuple[Registers, Read]]") -> None:
    """Take lines of `width` elements in side by side, each into registers of its own; all have the same lanes and ways.

    `read(at, lanes)` gives consecutive elements of a line.
    """
    lanes, ways = group[0][0].lanes, group[0][0].ways
    size = bind(k.dim(width))
    if isinstance(width, int):
        _long_lines(size, width // lanes // ways, width // lanes, width % lanes > 0, group)
        return
    with T.If(size >= lanes):
        with T.Then():
            whole = bind(T.truncdiv(size, integer(lanes)))
            rounds = bind(T.truncdiv(whole, integer(ways)))
            _long_lines(size, rounds, whole, size > whole * lanes, group)
        with T.Else(), T.serial(size) as i:
            for registers, read in group:
                registers.take(read(bind(i + 0), 1), i)


def _long_lines(
    size: "tirx.PrimExpr",
    rounds: "tirx.PrimExpr | int",
    whole: "tirx.PrimExpr | int",
    rest: "tirx.PrimExpr | bool",
    group: "Sequence[tuple[Registers, Read]]",
) -> None:
    lanes, ways = group[0][0].lanes, group[0][0].ways
    if not (isinstance(rounds, int) and rounds == 0):
        with T.serial(rounds) as i:
            for way in range(ways):
                at = bind((i * ways + way) * lanes)
                for registers, read in group:
                    registers.take(read(at, lanes), at, way=way)
    left = whole - rounds * ways
    if not (isinstance(left, int) and left == 0):
        with T.serial(left) as i:
            at = bind((rounds * ways + i) * lanes)
            for registers, read in group:
                registers.take(read(at, lanes), at)
    if isinstance(rest, bool):
        if rest:
            _ends(size, whole, group)
        return
    with T.If(rest), T.Then():
        _ends(size, whole, group)


def _ends(size: "tirx.PrimExpr", whole: "tirx.PrimExpr | int", group: "Sequence[tuple[Registers, Read]]") -> None:
    """The last vector, which overlaps the one before it."""
    lanes = group[0][0].lanes
    at = bind(size - lanes)
    for registers, read in group:
        registers.take(read(at, lanes), at, from_lane=whole * lanes - at)


def line_lanes(width: Dim, lanes: int) -> int:
    """The lanes of vectors that fit into a line."""
    while isinstance(width, int) and lanes > width:
        lanes //= 2
    return lanes
