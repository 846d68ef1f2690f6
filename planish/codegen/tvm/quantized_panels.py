"""Products of many rows with a coded weight: a panel is unpacked to scratch memory, then multiplied as others are."""

from dataclasses import dataclass

from tvm import tirx
from tvm.script.ir_builder import tirx as T  # noqa: N812 - TVM's own name for its script namespace

from planish.codegen.tvm import vector_math as vm
from planish.codegen.tvm.bf16 import rounded
from planish.codegen.tvm.experts import WHOLE, Part
from planish.codegen.tvm.gemm_finish import Finish
from planish.codegen.tvm.gemm_grid import Grid, emit
from planish.codegen.tvm.gemm_product import row_stride
from planish.codegen.tvm.gemm_rows import Copied, Direct, Rows, Run, copied_stride, row_fill
from planish.codegen.tvm.gemm_tile import Tile
from planish.codegen.tvm.isa import Isa
from planish.codegen.tvm.kernel import KernelBuilder, bind, ramp
from planish.codegen.tvm.loops import integer
from planish.codegen.tvm.quantized_weight import CodedWeight, Levels
from planish.codegen.tvm.vector_math import keep, like
from planish.codegen.view import View
from planish.compiler.ir import Value
from planish.compiler.types import DType


@dataclass(frozen=True, slots=True)
class ManyRows:
    """Rows of x, seen at `view` [..., depth], times a coded weight, as f32 or in pairs of bf16.

    Every block of rows unpacks each panel once more, for which a block has rows enough.
    """

    weight: CodedWeight
    isa: Isa
    x: Value
    view: View
    known: int | None
    gathered: bool = False  # whether the rows of a part do not lie one after another

    @property
    def pairs(self) -> bool:
        """Whether the dot product of bf16 serves."""
        bf16 = self.view.dtype is DType.bf16 and self.weight.node.types[0].dtype is DType.bf16
        return bf16 and self.isa.bf16_dot and self.weight.step % 2 == 0

    @property
    def tile(self) -> Tile:
        sums = 12 if self.isa.registers <= 16 else 24
        return Tile(sums // self.weight.vectors, self.weight.vectors, self.weight.lanes, self.pairs)

    @property
    def _units(self) -> int:
        return -(-self.weight.depth // 2) if self.pairs else self.weight.depth

    @property
    def _grid(self) -> Grid:
        return Grid(integer(0), self.known, self.weight.columns, self._units, self.tile)

    @property
    def _direct(self) -> int | None:
        """The distance of rows that are read in place."""
        if self.gathered:
            return None
        even = self.weight.depth % 2 == 0
        return row_stride(self.view) if self.view.dtype is DType.f32 or (self.pairs and even) else None

    @property
    def _panel_units(self) -> int:
        return self.weight.padded_depth // (2 if self.pairs else 1)

    @property
    def _offsets(self) -> tuple[int, int, int]:
        """Byte offsets of the unpacked panel and the copied rows after the tile, and the end."""
        tile = self.tile.rows * self.tile.width * 4
        panel = tile + self._panel_units * self.tile.width * 4
        rows = 0 if self._direct is not None else self._grid.block * copied_stride(self._units, self.isa.lanes) * 4
        return tile, panel, panel + rows

    @property
    def scratch_bytes(self) -> int:
        return self._offsets[-1]

    def emit(self, k: KernelBuilder, rows: "tirx.PrimExpr", levels: Levels, part: Part = WHOLE) -> None:
        """Compute this task's tiles of a part of the product."""
        tile, (at_panel, at_rows, _) = self.tile, self._offsets
        dtype = DType.i32 if self.pairs else DType.f32
        panel = k.scratch_buffer(self._panel_units * tile.width, dtype, at_panel)
        out = k.scratch_buffer(tile.rows * tile.width, DType.f32)
        grid = Grid(rows, self.known, self.weight.columns, self._units, tile)
        left = self._rows(k, at_rows, dtype, part)
        finish = Finish(k, tile, out, self.weight.columns, part=part, halves=self.weight.halves)
        emit(k, grid, left, panel, 0, out, finish, unpack=lambda p: self._unpack(levels, panel, part.stored(p)))

    def _rows(self, k: KernelBuilder, at: int, dtype: DType, part: Part) -> Rows:
        if (stride := self._direct) is not None:
            return Direct(k.buffers[self.x], k.dim(self.view.offset), stride, self.pairs)
        stride = copied_stride(self._units, self.isa.lanes)
        target = k.scratch_buffer(self._grid.block * stride, dtype, at)
        run = Run(k.buffers[self.x], target, self.view.dtype, self.isa.lanes, self.pairs)
        return Copied(target, stride, part.filled(row_fill(k, self.view, run, self.weight.depth)))

    def _unpack(self, levels: Levels, target: "tirx.Buffer", panel: "tirx.PrimExpr") -> None:
        """Write the numbers of a panel as [units][width]."""
        weight = self.weight
        per_group, steps = weight.group // weight.step, weight.padded_depth // weight.step
        start = bind(panel * weight.panel_elements)
        with T.serial(integer(weight.groups)) as g:
            scales = [levels.scale(panel, g, v) for v in range(weight.vectors)]
            offsets = [levels.offset(panel, g, v) for v in range(weight.vectors)]
            first = bind(g * per_group)
            count = integer(steps) if weight.groups == 1 else bind(tirx.min(integer(per_group), steps - first))
            with T.serial(count) as s:
                step = bind(first + s)
                for v in range(weight.vectors):
                    found = levels.read(bind(start + step * weight.step_elements), v)
                    self._store(target, step, v, [self._number(level, offsets[v], scales[v]) for level in found])

    def _number(self, level: "tirx.PrimExpr", offset: "tirx.PrimExpr", scale: "tirx.PrimExpr") -> "tirx.PrimExpr":
        return keep((level if self.weight.is_centred else keep(level) - offset) * scale)

    def _store(self, target: "tirx.Buffer", step: "tirx.PrimExpr", v: int, numbers: "list[tirx.PrimExpr]") -> None:
        lanes, width = self.weight.lanes, self.tile.width
        if self.pairs:
            halves = [vm.cast(keep(rounded(number, lanes)), "int32") for number in numbers]
            numbers = [low | (high << like(high, 16)) for low, high in zip(halves[::2], halves[1::2], strict=True)]
        first = bind(step * (len(numbers) * width) + v * lanes)
        for i, number in enumerate(numbers):
            T.buffer_store(target, number, [ramp(first + i * width, lanes)])
