"""The left operand of matrix products: rows read where they lie, or copied to scratch memory first."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from tvm import tirx
from tvm.script.ir_builder import tirx as T  # noqa: N812 - TVM's own name for its script namespace

from planish.codegen.tvm.bf16 import rounded
from planish.codegen.tvm.kernel import KernelBuilder, bind, ramp
from planish.codegen.view import View
from planish.compiler.types import DType, Shape


class Rows(Protocol):
    """Rows of units (f32 values or bf16 pairs): `prepare` makes rows readable, `load` gives a unit of one."""

    def prepare(self, block: "tirx.PrimExpr", first: "tirx.PrimExpr", last: "tirx.PrimExpr") -> None:
        """Make rows `first` to `last - 1` readable, all of the block that starts at row `block`."""

    def base(self, block: "tirx.PrimExpr", row: "tirx.PrimExpr") -> "tirx.PrimExpr":
        """Where `row` starts."""

    def load(self, base: "tirx.PrimExpr", i: int, step: "tirx.PrimExpr") -> "tirx.PrimExpr":
        """Unit `step` of the row that is `i` after the one at `base`."""


@dataclass(frozen=True, slots=True)
class Direct:
    """Rows at one stride in memory, read in place."""

    buffer: "tirx.Buffer"
    offset: "tirx.PrimExpr"
    stride: int
    pairs: bool

    def prepare(self, block: "tirx.PrimExpr", first: "tirx.PrimExpr", last: "tirx.PrimExpr") -> None:
        pass

    def base(self, block: "tirx.PrimExpr", row: "tirx.PrimExpr") -> "tirx.PrimExpr":
        return self.offset + row * self.stride

    def load(self, base: "tirx.PrimExpr", i: int, step: "tirx.PrimExpr") -> "tirx.PrimExpr":
        if self.pairs:
            return T.reinterpret("int32", self.buffer[ramp(base + i * self.stride + step * 2, 2)])
        return self.buffer[base + i * self.stride + step]


@dataclass(frozen=True, slots=True)
class Copied:
    """Rows that `fill(row, place)` writes into `buffer` from element `place` on, `stride` elements each."""

    buffer: "tirx.Buffer"
    stride: int
    fill: "Callable[[tirx.PrimExpr, tirx.PrimExpr], None]"

    def prepare(self, block: "tirx.PrimExpr", first: "tirx.PrimExpr", last: "tirx.PrimExpr") -> None:
        with T.serial(last - first) as i:
            row = bind(first + i)
            self.fill(row, bind((row - block) * self.stride))

    def base(self, block: "tirx.PrimExpr", row: "tirx.PrimExpr") -> "tirx.PrimExpr":
        return (row - block) * self.stride

    def load(self, base: "tirx.PrimExpr", i: int, step: "tirx.PrimExpr") -> "tirx.PrimExpr":
        return self.buffer[base + i * self.stride + step]


def copied_stride(units: int, lanes: int) -> int:
    """Elements between copied rows: whole vectors, one more so that rows do not share the sets of a cache."""
    return (units + lanes - 1) // lanes * lanes + lanes


@dataclass(frozen=True, slots=True)
class Run:
    """Copies consecutive elements of `source` as units: f32 and f64 as they are, others widened.

    With `pairs` two of bf16 are a unit, to which f32 is rounded.
    """

    source: "tirx.Buffer"
    target: "tirx.Buffer"
    dtype: DType
    lanes: int
    pairs: bool

    @property
    def elements(self) -> int:
        """Source elements of one vector."""
        return self.lanes * (2 if self.pairs else 1)

    def copy(
        self,
        start: "tirx.PrimExpr",
        place: "tirx.PrimExpr",
        count: int,
        low: "tirx.PrimExpr | int" = 0,
        high: "tirx.PrimExpr | int | None" = None,
    ) -> None:
        """Write `count` elements from `start` to unit `place`, zeros outside of `low` to `high - 1`.

        Nothing outside of those is read; up to a vector after the last element is written.
        """
        whole = count // self.elements if high is None else 0
        with T.serial(tirx.const(whole, "int64")) as v:
            self._store(place + v * self.lanes, self.source[ramp(start + v * self.elements, self.elements)])
        with T.serial(tirx.const(-(-count // self.elements) - whole, "int64")) as v:
            skipped = bind((v + whole) * self.elements)
            self._store(
                place + (v + whole) * self.lanes, self._masked(start, skipped, low, count if high is None else high)
            )

    def _masked(
        self, start: "tirx.PrimExpr", skipped: "tirx.PrimExpr", low: "tirx.PrimExpr | int", high: "tirx.PrimExpr | int"
    ) -> "tirx.PrimExpr":
        def bound(limit: "tirx.PrimExpr | int") -> "tirx.PrimExpr":
            limit = tirx.const(limit, "int64") if isinstance(limit, int) else limit
            return T.broadcast((limit - skipped).astype("int32"), self.elements)

        lane = T.ramp(T.int32(0), T.int32(1), self.elements)
        mask = lane < bound(high)
        if not (isinstance(low, int) and low == 0):
            mask = tirx.And(mask, lane >= bound(low))
        zero = T.broadcast(tirx.const(0, str(self.source.dtype)), self.elements)
        # A select around TVM's masked_load makes LLVM read all lanes, and those outside may be no memory of ours.
        name, place = f"{self.source.dtype}x{self.elements}", T.address_of(self.source[start + skipped])
        return T.call_llvm_intrin(name, "llvm.masked.load", place, mask, zero)

    def _store(self, place: "tirx.PrimExpr", value: "tirx.PrimExpr") -> None:
        T.buffer_store(self.target, self._units(value), [ramp(place, self.lanes)])

    def _units(self, value: "tirx.PrimExpr") -> "tirx.PrimExpr":
        if not self.pairs:
            return widened(value, self.dtype, self.lanes)
        if self.dtype is DType.f32:
            value, every = bind(value), list(range(self.elements))
            halves = [tirx.Shuffle([value], part) for part in (every[: self.lanes], every[self.lanes :])]
            value = tirx.Shuffle([bind(rounded(half, self.lanes)) for half in halves], every)
        return T.reinterpret(f"int32x{self.lanes}", value)


def widened(value: "tirx.PrimExpr", dtype: DType, lanes: int) -> "tirx.PrimExpr":
    """Elements as they lie in memory (bf16 as uint16 bits) as f32; f64 as it is."""
    if dtype in (DType.f32, DType.f64):
        return value
    suffix = "" if lanes == 1 else f"x{lanes}"
    if dtype is DType.f16:
        return value.astype(f"float32{suffix}")
    shift = T.uint32(16) if lanes == 1 else T.broadcast(T.uint32(16), lanes)
    return T.reinterpret(f"float32{suffix}", value.astype(f"uint32{suffix}") << shift)


def unravel(k: KernelBuilder, row: "tirx.PrimExpr", shape: Shape) -> "tuple[tirx.PrimExpr, ...]":
    """The index over `shape` of the row-major position `row`."""
    index: list[tirx.PrimExpr] = []
    for dim in reversed(shape[1:]):
        size = k.dim(dim)
        index.append(bind(T.truncmod(row, size)))
        row = bind(T.truncdiv(row, size))
    return (*((row,) if shape else ()), *reversed(index))


def row_fill(k: KernelBuilder, view: View, run: Run, depth: int) -> "Callable[[tirx.PrimExpr, tirx.PrimExpr], None]":
    """What copies one row of `view`, whose last axis holds `depth` consecutive elements."""

    def fill(row: "tirx.PrimExpr", place: "tirx.PrimExpr") -> None:
        index = unravel(k, row, view.shape[:-1])
        run.copy(bind(k.address(view, (*index, tirx.const(0, "int64")))), place, depth)

    return fill
