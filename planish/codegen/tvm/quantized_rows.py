"""Products of few rows with a coded weight: codes are read once, at the speed of memory."""

from collections.abc import Callable
from dataclasses import dataclass

from tvm import tirx
from tvm.script.ir_builder import tirx as T  # noqa: N812 - TVM's own name for its script namespace

from planish.codegen.tvm import vector_math as vm
from planish.codegen.tvm.computed_row import ComputedRow
from planish.codegen.tvm.experts import WHOLE, Part
from planish.codegen.tvm.folds import Registers, line_lanes, total
from planish.codegen.tvm.gemm_finish import Finish
from planish.codegen.tvm.gemm_rows import Run, copied_stride, row_fill
from planish.codegen.tvm.gemm_tile import Tile
from planish.codegen.tvm.isa import Isa
from planish.codegen.tvm.kernel import KernelBuilder, bind, ramp
from planish.codegen.tvm.loops import integer
from planish.codegen.tvm.quantized_weight import CodedWeight, Levels
from planish.codegen.tvm.vector_math import keep
from planish.codegen.view import View
from planish.compiler.ir import Value
from planish.compiler.types import DType

MOST_ROWS = 16  # that this reads codes again for; more are worth unpacking the weight
_LINE = 64


def rows_of_bodies(most: int, rows: int | None) -> tuple[int, ...]:
    """The row counts that a kernel needs loops for, smallest first; tiles with other counts take the next one."""
    if rows is not None:
        tiles = -(-rows // most)
        return (-(-rows // tiles),)
    return tuple(r for r in (1, 2, 4, 8) if r <= most)


@dataclass(frozen=True, slots=True)
class FewRows:
    """Up to `most` rows of x, seen at `view` [..., depth] or computed first, times a coded weight.

    Every task first copies the rows to its scratch memory as f32, with the sum of each group, by which an offset of
    all codes of the group is taken off the product at once.
    """

    weight: CodedWeight
    isa: Isa
    x: Value
    view: View | None
    most: int
    known: int | None

    @property
    def bodies(self) -> tuple[int, ...]:
        return rows_of_bodies(8 if self.isa.registers > 16 and self.isa.lanes > 4 else 4, self.known)

    @property
    def tile(self) -> Tile:
        return Tile(self.bodies[-1], self.weight.vectors, self.weight.lanes)

    @property
    def stride(self) -> int:
        """Elements between copied rows."""
        return copied_stride(self.weight.padded_depth, self.isa.lanes)

    @property
    def _copied_rows(self) -> int:
        return -(-self.most // self.tile.rows) * self.tile.rows

    @property
    def _offsets(self) -> tuple[int, int, int]:
        """Byte offsets of the copied rows and the groups' sums after the tile, and the end."""
        tile = whole_lines(self.tile.rows * self.tile.width)
        rows = tile + whole_lines(self._copied_rows * self.stride)
        return tile, rows, rows + whole_lines(self._copied_rows * self.weight.groups)

    @property
    def scratch_bytes(self) -> int:
        return self._offsets[-1]

    def emit(self, k: KernelBuilder, rows: "tirx.PrimExpr", levels: Levels, part: Part = WHOLE) -> None:
        """Compute this task's panels for all rows of a part of the product."""
        (at_rows, at_sums, _), tile = self._offsets, self.tile
        copied = k.scratch_buffer(self._copied_rows * self.stride, DType.f32, at_rows)
        sums = k.scratch_buffer(self._copied_rows * self.weight.groups, DType.f32, at_sums)
        out = k.scratch_buffer(tile.rows * tile.width, DType.f32)
        each_panel(
            k,
            Blocks(rows, self._copied_rows, self.bodies),
            Finish(k, tile, out, self.weight.columns, part=part, halves=self.weight.halves),
            lambda first, count: self._prepare(k, (first, count), copied, sums, part),
            lambda panel, row: _Panel(self, levels, copied, sums, out, part.stored(panel), row).emit,
        )

    def _prepare(
        self,
        k: KernelBuilder,
        rows: "tuple[tirx.PrimExpr, tirx.PrimExpr]",
        copied: "tirx.Buffer",
        sums: "tirx.Buffer",
        part: Part,
    ) -> None:
        """Copy as many rows as the second of `rows` says from the first on."""
        weight, (first, count) = self.weight, rows
        fill = self._fill(k, copied)
        whole, rest = divmod(weight.depth, weight.group)
        with T.serial(count) as r:
            place = bind(r * self.stride)
            fill(part.row(bind(first + r)), place)
            if weight.is_centred:
                return
            with T.serial(integer(whole)) as g:
                _store_sum(k, copied, bind(place + g * weight.group), weight.group, sums, r * weight.groups + g)
            if rest:
                start = bind(place + whole * weight.group)
                _store_sum(k, copied, start, rest, sums, r * weight.groups + whole)

    def _fill(self, k: KernelBuilder, copied: "tirx.Buffer") -> "Callable[[tirx.PrimExpr, tirx.PrimExpr], None]":
        """What writes a row to a place of the copies."""
        if self.view is None:
            computed = ComputedRow(k, self.x)
            return lambda row, place: computed.write(row, copied, place)
        run = Run(k.buffers[self.x], copied, self.view.dtype, self.isa.lanes, False)
        return row_fill(k, self.view, run, self.weight.depth)


@dataclass(frozen=True, slots=True)
class Blocks:
    """`rows` rows in blocks of `block`, which are copied together, and the rows of the `bodies` that compute a tile."""

    rows: "tirx.PrimExpr"
    block: int
    bodies: tuple[int, ...]


Prepare = Callable[["tirx.PrimExpr", "tirx.PrimExpr"], None]
Body = Callable[["tirx.PrimExpr", "tirx.PrimExpr"], Callable[[int], None]]


def each_panel(k: KernelBuilder, blocks: Blocks, finish: Finish, prepare: Prepare, body: Body) -> None:
    """Compute and finish this task's panels of every block of rows.

    `prepare(row, count)` copies a block. `body(panel, row)` gives what computes a tile from row `row` of the block on
    for a number of rows; what that computes beyond the last row is left alone.
    """
    panels = -(-finish.columns // finish.tile.width)
    count = T.truncdiv(blocks.rows + (blocks.block - 1), integer(blocks.block))
    first, last = k.share(bind(count * panels))
    start = bind(T.truncdiv(first, integer(panels)))
    with T.serial(T.truncdiv(last + (panels - 1), integer(panels)) - start) as b:
        block = bind(start + b)
        base = bind(block * blocks.block)
        rows = bind(tirx.min(blocks.rows - base, integer(blocks.block)))
        low = bind(tirx.max(first - block * panels, integer(0)))
        high = bind(tirx.min(last - block * panels, integer(panels)))
        prepare(base, rows)
        with T.serial(high - low) as p:
            _tiles(blocks, (base, rows), bind(low + p), finish, body)


def _tiles(
    blocks: Blocks, block: "tuple[tirx.PrimExpr, tirx.PrimExpr]", panel: "tirx.PrimExpr", finish: Finish, body: Body
) -> None:
    """One panel of a block that has a first row and a count."""
    base, rows = block
    height = blocks.bodies[-1]
    with T.serial(T.truncdiv(rows + (height - 1), integer(height))) as t:
        row = bind(t * height)
        count = bind(tirx.min(rows - row, integer(height)))
        _smallest(blocks.bodies, count, body(panel, row))
        finish(bind(base + row), count, bind(panel * finish.tile.width))


def _smallest(bodies: tuple[int, ...], count: "tirx.PrimExpr", emit: Callable[[int], None]) -> None:
    body, *larger = bodies
    if not larger:
        emit(body)
        return
    with T.If(count <= body):
        with T.Then():
            T.evaluate(0)
            emit(body)
        with T.Else():
            T.evaluate(0)
            _smallest(tuple(larger), count, emit)


@dataclass(frozen=True, slots=True)
class _Panel:
    """One panel and the tile of rows from `row` on."""

    work: FewRows
    levels: Levels
    copied: "tirx.Buffer"
    sums: "tirx.Buffer"
    out: "tirx.Buffer"
    panel: "tirx.PrimExpr"
    row: "tirx.PrimExpr"

    def emit(self, rows: int) -> None:
        """Sum `rows` rows into `out`."""
        weight, lanes = self.work.weight, self.work.weight.lanes
        places = [(r, v) for r in range(rows) for v in range(weight.vectors)]
        totals = {place: zeros(lanes) for place in places}
        whole, rest = divmod(weight.depth, weight.group)
        start = bind(self.panel * weight.panel_elements)
        with T.serial(integer(weight.groups)) as g:
            steps = integer(weight.group // weight.step)
            if weight.groups == 1 or not whole:
                steps = integer(weight.padded_depth // weight.step)
            elif rest:
                steps = bind(tirx.Select(g < whole, steps, integer(-(-rest // weight.step))))
            parts = self._group(rows, bind(g + 0), steps, start)
            for v in range(weight.vectors):
                scale = self.levels.scale(self.panel, g, v)
                for r in range(rows):
                    put(totals[r, v], vm.fma(_sum(parts[r, v], lanes), scale, totals[r, v][ramp(0, lanes)]))
        for (r, v), buffer in totals.items():
            T.buffer_store(self.out, buffer[ramp(0, lanes)], [ramp(r * weight.width + v * lanes, lanes)])

    def _group(
        self, rows: int, group: "tirx.PrimExpr", steps: "tirx.PrimExpr", start: "tirx.PrimExpr"
    ) -> "dict[tuple[int, int], list[tirx.Buffer]]":
        """The products of a group's levels, less their offset, in partial sums."""
        weight, lanes = self.work.weight, self.work.weight.lanes
        ways = max(1, min(weight.step, 8 // (rows * weight.vectors)))
        parts = {(r, v): [zeros(lanes) for _ in range(ways)] for r in range(rows) for v in range(weight.vectors)}
        if not weight.is_centred:
            for v in range(weight.vectors):
                offset = self.levels.offset(self.panel, group, v)
                for r in range(rows):
                    total_ = self.sums[bind((self.row + r) * weight.groups + group)]
                    put(parts[r, v][0], offset * T.broadcast(total_ * tirx.const(-1.0, "float32"), lanes))
        first = bind(start + group * (weight.group // weight.step * weight.step_elements))
        lines = [bind((self.row + r) * self.work.stride + group * weight.group) for r in range(rows)]
        with T.serial(steps) as s:
            self._step(bind(first + s * weight.step_elements), [bind(line + s * weight.step) for line in lines], parts)
        return parts

    def _step(
        self,
        at: "tirx.PrimExpr",
        lines: "list[tirx.PrimExpr]",
        parts: "dict[tuple[int, int], list[tirx.Buffer]]",
    ) -> None:
        weight, lanes = self.work.weight, self.work.weight.lanes
        self.levels.prefetch(at)
        for v in range(weight.vectors):
            for i, level in enumerate(self.levels.read(at, v)):
                level = keep(level)
                for r, line in enumerate(lines):
                    part = parts[r, v][i % len(parts[r, v])]
                    x = T.broadcast(self.copied[line + i], lanes)
                    put(part, vm.fma(x, level, part[ramp(0, lanes)]))


def zeros(lanes: int, dtype: str = "float32") -> "tirx.Buffer":
    """A vector of zeros, in a register."""
    buffer = T.alloc_buffer((lanes,), dtype)
    put(buffer, T.broadcast(tirx.const(0, dtype), lanes))
    return buffer


def put(buffer: "tirx.Buffer", value: "tirx.PrimExpr") -> None:
    """Write a vector's value."""
    T.buffer_store(buffer, value, [ramp(0, vm.lanes_of(value))])


def _sum(buffers: "list[tirx.Buffer]", lanes: int) -> "tirx.PrimExpr":
    values = [buffer[ramp(0, lanes)] for buffer in buffers]
    while len(values) > 1:
        values = [values[i] + values[i + 1] for i in range(0, len(values) - 1, 2)] + values[len(values) & ~1 :]
    return keep(values[0])


def _store_sum(
    k: KernelBuilder,
    rows: "tirx.Buffer",
    start: "tirx.PrimExpr",
    count: int,
    sums: "tirx.Buffer",
    place: "tirx.PrimExpr",
) -> None:
    """Store the sum of `count` elements of the copied rows."""
    registers = Registers(total("float32"), line_lanes(count, k.isa.lanes), 2)
    registers.line(k, count, lambda at, lanes: bind(rows[ramp(bind(start + at), lanes)]))
    T.buffer_store(sums, registers.result()[0], [place])


def whole_lines(elements: int) -> int:
    """Bytes of f32 elements in whole cache lines."""
    return -(-elements * 4 // _LINE) * _LINE
