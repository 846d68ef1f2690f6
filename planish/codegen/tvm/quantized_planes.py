"""Products of rows with a coded weight by dot products of bytes, without giving up the precision of f32.

A block of a row becomes whole numbers of 24 bits, the largest magnitude at the top, in three planes of signed bytes:
x = scale * (65536 * a + 256 * b + c). Products of codes and planes are exact, and what rounding x to these numbers
costs is at most half a unit of f32 in the last place of the block's largest element. Rows of 16-bit floats need two
planes. Per code and row this takes 6 (4) instructions of 64 products for 128 codes, where f32 takes 8 and a conversion
of every code.
"""

from dataclasses import dataclass
from typing import Protocol

from tvm import tirx
from tvm.script.ir_builder import tirx as T  # noqa: N812 - TVM's own name for its script namespace

from planish.codegen.tvm import vector_math as vm
from planish.codegen.tvm.computed_row import ComputedRow
from planish.codegen.tvm.experts import WHOLE, Part
from planish.codegen.tvm.folds import Registers, largest, line_lanes, total
from planish.codegen.tvm.gemm_finish import Finish
from planish.codegen.tvm.gemm_rows import unravel, widened
from planish.codegen.tvm.gemm_tile import Tile
from planish.codegen.tvm.int8_dot import dot_for
from planish.codegen.tvm.isa import Isa
from planish.codegen.tvm.kernel import KernelBuilder, bind, ramp
from planish.codegen.tvm.loops import integer
from planish.codegen.tvm.quantized_rows import Blocks, each_panel, put, rows_of_bodies, whole_lines, zeros
from planish.codegen.tvm.quantized_weight import CodedWeight, Levels
from planish.codegen.tvm.reading_order import in_order, ordered
from planish.codegen.tvm.vector_math import cast, fma, keep, like, select
from planish.codegen.view import View
from planish.compiler.ir import Value
from planish.compiler.types import DType

_TOPS = {3: 8_355_000, 2: 32_500}  # largest numbers, with room for rounding below the largest that the planes hold
_LEAST = 1e-30  # magnitudes below are taken as zero: their inverse would overflow
_LONGEST = 256  # elements of a block: 256 sums of a plane and those of the next are 2**31 - 32768 at most
_BLOCK_BYTES = 384 * 1024  # of planes: with a panel this fits the smallest L2 of the profiles (1 MiB)
_BLOCK = 128  # elements of a block where groups are longer


@dataclass(frozen=True, slots=True)
class PlaneRows:
    """Rows of x, seen at `view` [..., depth] or computed first, times a coded weight that is packed for dot products.

    Every task first writes the planes of a block of rows to its scratch memory.
    """

    weight: CodedWeight
    isa: Isa
    x: Value
    view: View | None
    known: int | None

    @property
    def planes(self) -> int:
        return 3 if self.x.dtype is DType.f32 else 2

    @property
    def bodies(self) -> tuple[int, ...]:
        return rows_of_bodies(4 if self.isa.registers > 16 else 1, self.known)

    @property
    def tile(self) -> Tile:
        return Tile(self.bodies[-1], self.weight.vectors, self.weight.lanes)

    @property
    def block(self) -> int:
        """Elements of a row that share a scale; blocks divide groups."""
        group = self.weight.group
        if group <= _LONGEST:
            return group
        divisors = (d for d in range(_LONGEST, 0, -8) if group % d == 0)
        return _BLOCK if self.weight.groups == 1 else next(divisors)

    @property
    def blocks(self) -> int:
        return -(-self.weight.depth // self.block)

    @property
    def stride(self) -> int:
        """Bytes from plane to plane: whole cache lines, one more so that planes do not share the sets of a cache."""
        return -(-self.weight.padded_depth // 64) * 64 + 64

    @property
    def _copied_rows(self) -> int:
        """Rows of a block: few enough for the caches, and no more than there are."""
        height = self.tile.rows
        rows = min(64, max(16, _BLOCK_BYTES // (self.planes * self.stride)), self.known or 64)
        return -(-rows // height) * height

    @property
    def _offsets(self) -> tuple[int, int, int, int, int]:
        """Byte offsets of the planes, the blocks' scales, their sums and a computed row after the tile, and the end."""
        tile = whole_lines(self.tile.rows * self.tile.width)
        planes = tile + self._copied_rows * self.planes * self.stride
        each = whole_lines(self._copied_rows * self.blocks)
        row = planes + 2 * each
        return tile, planes, planes + each, row, row + (whole_lines(self.weight.depth) if self.view is None else 0)

    @property
    def scratch_bytes(self) -> int:
        return self._offsets[-1]

    def emit(self, k: KernelBuilder, rows: "tirx.PrimExpr", levels: Levels, part: Part = WHOLE) -> None:
        """Compute this task's panels for all rows of a part of the product."""
        (at_planes, at_scales, at_sums, at_row, _), tile = self._offsets, self.tile
        size = self._copied_rows * self.planes * self.stride
        out = k.scratch_buffer(tile.rows * tile.width, DType.f32)
        made = _Made(
            k.scratch_buffer(size, DType.i8, at_planes),
            k.scratch_buffer(size // 4, DType.i32, at_planes),
            k.scratch_buffer(self._copied_rows * self.blocks, DType.f32, at_scales),
            k.scratch_buffer(self._copied_rows * self.blocks, DType.f32, at_sums),
        )
        with ordered():
            each_panel(
                k,
                Blocks(rows, self._copied_rows, self.bodies),
                Finish(k, tile, out, self.weight.columns, part=part, halves=self.weight.halves),
                _Split(k, self, made, self._source(k, at_row), part).emit,
                lambda panel, row: _Panel(self, levels, made, out, part.stored(panel), row).emit,
            )

    def _source(self, k: KernelBuilder, at_row: int) -> "_Source":
        if self.view is not None:
            return _Stored(k, self.view, k.buffers[self.x])
        row = k.scratch_buffer(whole_lines(self.weight.depth) // 4, DType.f32, at_row)
        return _Computed(ComputedRow(k, self.x), row)


class _Source(Protocol):
    """Where the elements of rows come from."""

    def start(self, row: "tirx.PrimExpr") -> "tirx.PrimExpr":
        """Make a row readable and give the place of its first element."""

    def read(self, place: "tirx.PrimExpr", lanes: int) -> "tirx.PrimExpr":
        """Elements from a place on, f32."""


@dataclass(frozen=True, slots=True)
class _Stored:
    """Rows read from memory."""

    k: KernelBuilder
    view: View
    buffer: "tirx.Buffer"

    def start(self, row: "tirx.PrimExpr") -> "tirx.PrimExpr":
        return bind(self.k.address(self.view, (*unravel(self.k, row, self.view.shape[:-1]), integer(0))))

    def read(self, place: "tirx.PrimExpr", lanes: int) -> "tirx.PrimExpr":
        return keep(widened(self.buffer[ramp(place, lanes)], self.view.dtype, lanes))


@dataclass(frozen=True, slots=True)
class _Computed:
    """One row at a time, computed to a buffer."""

    row: ComputedRow
    buffer: "tirx.Buffer"

    def start(self, row: "tirx.PrimExpr") -> "tirx.PrimExpr":
        self.row.write(row, self.buffer, integer(0))
        return integer(0)

    def read(self, place: "tirx.PrimExpr", lanes: int) -> "tirx.PrimExpr":
        return keep(self.buffer[ramp(place, lanes)])


@dataclass(frozen=True, slots=True)
class _Made:
    """Rows as planes [row][plane][stride], in bytes and in fours of them, with the scale and sum of each block."""

    planes: "tirx.Buffer"
    fours: "tirx.Buffer"
    scales: "tirx.Buffer"
    sums: "tirx.Buffer"


@dataclass(frozen=True, slots=True)
class _Split:
    """Writes rows as planes."""

    k: KernelBuilder
    work: PlaneRows
    made: _Made
    source: _Source
    part: Part

    def emit(self, first: "tirx.PrimExpr", count: "tirx.PrimExpr") -> None:
        """Write `count` rows from row `first` on."""
        work = self.work
        whole, rest = divmod(work.weight.depth, work.block)
        with T.serial(count) as r:
            start = self.source.start(self.part.row(bind(first + r)))
            with T.serial(integer(whole)) as b:
                self._block(start, bind(r + 0), bind(b + 0), work.block)
            if rest:
                self._block(start, bind(r + 0), integer(whole), rest)

    def _block(self, start: "tirx.PrimExpr", row: "tirx.PrimExpr", block: "tirx.PrimExpr", count: int) -> None:
        work = self.work
        first = bind(block * work.block)
        most = self._largest(bind(start + first), count)
        top = like(most, _TOPS[work.planes])
        inverse = keep(select(most < like(most, _LEAST), like(most, 0), top / most))
        registers = Registers(total("int32"), line_lanes(count, self.k.isa.lanes), 1)
        target = bind(row * (work.planes * work.stride) + first)
        registers.line(
            self.k, count, lambda at, n: self._digits(bind(start + first + at), bind(target + at), inverse, n)
        )
        place = bind(row * work.blocks + block)
        T.buffer_store(self.made.scales, most / top, [place])
        T.buffer_store(self.made.sums, cast(registers.result()[0], "float32"), [place])

    def _largest(self, start: "tirx.PrimExpr", count: int) -> "tirx.PrimExpr":
        """The largest magnitude, by its bits: not-a-number lies above all numbers."""

        def read(at: "tirx.PrimExpr", lanes: int) -> "tirx.PrimExpr":
            raw = vm.bits(self.source.read(bind(start + at), lanes), "int32")
            return tirx.bitwise_and(raw, like(raw, 0x7FFFFFFF))

        registers = Registers(largest("int32"), line_lanes(count, self.k.isa.lanes), 2)
        registers.line(self.k, count, read)
        return keep(vm.bits(registers.result()[0], "float32"))

    def _digits(
        self, place: "tirx.PrimExpr", target: "tirx.PrimExpr", inverse: "tirx.PrimExpr", lanes: int
    ) -> "tirx.PrimExpr":
        """Write the planes of elements, the least significant last, and give their numbers."""
        scaled = self.source.read(place, lanes) * vm.splat(inverse, lanes)
        number = rest = keep(cast(vm.intrinsic("llvm.roundeven", scaled), "int32"))
        for plane in reversed(range(self.work.planes)):
            T.buffer_store(self.made.planes, cast(rest, "int8"), [ramp(target + plane * self.work.stride, lanes)])
            rest = keep((rest + like(rest, 128)) >> like(rest, 8))
        return number


_Sums = dict[tuple[int, int, int], "tirx.Buffer"]


@dataclass(frozen=True, slots=True)
class _Panel:
    """One panel and the tile of rows from `row` on."""

    work: PlaneRows
    levels: Levels
    made: _Made
    out: "tirx.Buffer"
    panel: "tirx.PrimExpr"
    row: "tirx.PrimExpr"

    def emit(self, rows: int) -> None:
        """Sum `rows` rows into `out`."""
        work, weight, lanes = self.work, self.work.weight, self.work.weight.lanes
        places = [(r, v) for r in range(rows) for v in range(weight.vectors)]
        totals = {place: zeros(lanes) for place in places}
        start = bind(self.panel * weight.panel_elements)
        per_block = work.block // weight.step if work.blocks > 1 else weight.padded_depth // weight.step
        with T.serial(integer(work.blocks)) as b:
            first = bind(b * per_block)
            steps = bind(tirx.min(integer(per_block), weight.padded_depth // weight.step - first))
            sums = self._sums(rows, first, steps, start)
            group = bind(T.truncdiv(first, integer(weight.group // weight.step))) if weight.groups > 1 else integer(0)
            for v in range(weight.vectors):
                scale = self.levels.scale(self.panel, group, v)
                offset = self.levels.offset(self.panel, group, v, weight.code_offset)
                for r in range(rows):
                    place = bind((self.row + r) * work.blocks + b)
                    part = self._joined([sums[r, v, p] for p in range(work.planes)], offset, place)
                    factor = T.broadcast(self.made.scales[place], lanes) * scale
                    put(totals[r, v], fma(part, factor, totals[r, v][ramp(0, lanes)]))
        for (r, v), buffer in totals.items():
            T.buffer_store(self.out, buffer[ramp(0, lanes)], [ramp(r * weight.width + v * lanes, lanes)])

    def _sums(self, rows: int, first: "tirx.PrimExpr", steps: "tirx.PrimExpr", start: "tirx.PrimExpr") -> _Sums:
        """The products of a block's codes with each plane."""
        work, weight, dot = self.work, self.work.weight, dot_for(self.work.isa)
        keys = [(r, v, p) for r in range(rows) for v in range(weight.vectors) for p in range(work.planes)]
        sums = {key: zeros(weight.lanes, "int32") for key in keys}
        lines = [bind((self.row + r) * (work.planes * work.stride // 4) + first * 2) for r in range(rows)]
        at = bind(start + first * weight.step_elements)
        with T.serial(steps) as s:
            step = bind(at + s * weight.step_elements)
            self.levels.prefetch(step)
            codes = [self.levels.bytes(step, v) for v in range(weight.vectors)]
            for i in range(2):
                for r, line in enumerate(lines):
                    for p in range(work.planes):
                        four = self.made.fours[line + s * 2 + (p * work.stride // 4 + i)]
                        x = bind(T.broadcast(four, weight.lanes))
                        for v in range(weight.vectors):
                            buffer = sums[r, v, p]
                            put(buffer, dot(buffer[ramp(0, weight.lanes)], codes[v][i], x))
            in_order()
        return sums

    def _joined(self, planes: "list[tirx.Buffer]", offset: "tirx.PrimExpr", place: "tirx.PrimExpr") -> "tirx.PrimExpr":
        """The sum over all planes, less the offset times the sum of the block."""
        lanes = self.work.weight.lanes
        minus = bind(self.made.sums[place] * tirx.const(-1.0, "float32"))
        result = offset * T.broadcast(minus, lanes)
        *higher, second, last = (plane[ramp(0, lanes)] for plane in planes)
        low = keep(second * like(second, 256) + last)  # fits 32 bits, see _LONGEST
        result = keep(cast(low, "float32") + result)
        for plane in higher:
            value = keep(cast(plane, "float32"))
            result = keep(fma(value, like(value, 65536.0), result))
        return result
