"""The register tile of integer products: integer sums over a group, scaled into sums of f32."""

from dataclasses import dataclass

from tvm import tirx
from tvm.script.ir_builder import tirx as T  # noqa: N812 - TVM's own name for its script namespace

from planish.codegen.tvm.gemm_rows import widened
from planish.codegen.tvm.int8_dot import dot_for
from planish.codegen.tvm.int8_plan import Int8Plan, group_of
from planish.codegen.tvm.int8_rows import QuantizedRows
from planish.codegen.tvm.kernel import bind, ramp
from planish.codegen.tvm.tiles import index, quotient
from planish.compiler.types import DType

_INTO_L1, _INTO_L2 = ((T.int32(0), T.int32(level), T.int32(1)) for level in (3, 2))  # of llvm.prefetch: for reading
_AHEAD = ((512, _INTO_L1), (3072, _INTO_L2))  # units of weights that a tile of several rows fetches early
_FEW_ROWS = 2
_LINE = 16  # units in a cache line
_PAGE = 1024  # units in a page, where the processor's own fetching ends
_FIRST_LINES = 4  # of a page, by which it starts again


@dataclass(frozen=True, slots=True)
class Int8Tile:
    """Sums tiles of rows into `sums`, [rows][width] f32.

    `weights` are packed codes, `scales` and `zeros` the packed values of their groups (`zeros` only where the weight
    has zero points).
    """

    plan: Int8Plan
    rows: QuantizedRows
    weights: "tirx.Buffer"
    scales: "tirx.Buffer"
    zeros: "tirx.Buffer | None"
    sums: "tirx.Buffer"

    def emit(self, height: int, panel: "tirx.PrimExpr", row: "tirx.PrimExpr") -> None:
        """The product of `height` rows of the block from `row` with a panel."""
        plan, width = self.plan, self.plan.tile.width
        group_units = plan.group // plan.unit * width
        base = bind(panel * (plan.stored // plan.unit * width))
        first = bind(row * plan.stride)
        if plan.count > 1:
            for place in self._places(height):
                T.buffer_store(self.sums, T.broadcast(T.float32(0), plan.tile.lanes), [place])
        with T.serial(index(plan.count)) as group:
            totals = self._start(height, panel, row, group)
            weights, units = bind(base + group * group_units), bind(first + group * (plan.group // 4))
            if height <= _FEW_ROWS and plan.nibbles:
                self._fetch(bind(weights + _PAGE), _FIRST_LINES, _INTO_L2)
            with T.serial(self._steps(group)) as step:
                self._step(totals, bind(weights + step * width), bind(units + step * (plan.unit // 4)))
            self._scale(totals, panel, row, group)
        if self._last(True) or self._last(False):
            self._finish(height, panel, row)

    def _steps(self, group: "tirx.PrimExpr") -> "tirx.PrimExpr":
        """The steps of a group, of which the last ends with K."""
        plan = self.plan
        whole, last = plan.group // plan.unit, (plan.stored - (plan.count - 1) * plan.group) // plan.unit
        return index(whole) if whole == last else bind(tirx.Select(group == plan.count - 1, index(last), index(whole)))

    def _start(
        self, height: int, panel: "tirx.PrimExpr", row: "tirx.PrimExpr", group: "tirx.PrimExpr"
    ) -> "list[list[tirx.Buffer]]":
        """Sums that begin with what zero points take off."""
        plan, lanes = self.plan, self.plan.tile.lanes
        zeros = self._zeros(panel, group)
        totals = []
        for i in range(height):
            start: tirx.PrimExpr = T.int32(0)
            if plan.offset or plan.zero:
                start = self.rows.offsets[(row + i) * plan.count + group]
            wide = bind(T.broadcast(start, lanes))
            totals.append([T.alloc_buffer((lanes,), "int32") for _ in range(plan.tile.vectors)])
            for v, total in enumerate(totals[-1]):
                T.buffer_store(total, wide * zeros[v] if zeros else wide, [ramp(0, lanes)])
        return totals

    def _zeros(self, panel: "tirx.PrimExpr", group: "tirx.PrimExpr") -> "list[tirx.PrimExpr]":
        if self.zeros is None:
            return []
        lanes = self.plan.tile.lanes
        offset = T.broadcast(T.int32(self.plan.offset), lanes)
        places = [self._group_place(panel, group, v) for v in range(self.plan.tile.vectors)]
        return [bind(self.zeros[place].astype(f"int32x{lanes}") + offset) for place in places]

    def _group_place(self, panel: "tirx.PrimExpr", group: "tirx.PrimExpr", vector: int) -> "tirx.PrimExpr":
        """Where vector `vector` of a panel's values lies in the weight's group that holds `group`."""
        plan, tile = self.plan, self.plan.tile
        own = index(0) if plan.w_groups == 1 else _held(group, group_of(plan.w) // plan.group)
        return ramp(bind((panel * plan.w_groups + own) * tile.width + vector * tile.lanes), tile.lanes)

    def _step(self, totals: "list[list[tirx.Buffer]]", place: "tirx.PrimExpr", unit: "tirx.PrimExpr") -> None:
        plan, tile, dot = self.plan, self.plan.tile, dot_for(self.plan.isa)
        lanes = tile.lanes
        if len(totals) > (_FEW_ROWS if plan.nibbles else 2 * _FEW_ROWS):
            for ahead, how in _AHEAD:
                self._fetch(bind(place + ahead), tile.width // _LINE, how)
        packed = [bind(self.weights[ramp(place + v * lanes, lanes)]) for v in range(tile.vectors)]
        for half in range(plan.unit // 4):
            weights = [bind(_nibbles(p, half)) for p in packed] if plan.nibbles else packed
            for i, row in enumerate(totals):
                x = bind(T.broadcast(self.rows.units[unit + (i * plan.stride + half)], lanes))
                for total, weight in zip(row, weights, strict=True):
                    T.buffer_store(total, dot(total[ramp(0, lanes)], weight, x), [ramp(0, lanes)])

    def _fetch(self, place: "tirx.PrimExpr", lines: int, how: "tuple[tirx.PrimExpr, ...]") -> None:
        """Fetch so many lines of weights.

        Several rows keep a core from running ahead by itself; fewer wait for memory alone and are slower with it.
        """
        for line in range(lines):
            address = T.address_of(self.weights[bind(place + line * _LINE)])
            T.evaluate(T.call_llvm_intrin("void", "llvm.prefetch", address, *how))

    def _scale(
        self,
        totals: "list[list[tirx.Buffer]]",
        panel: "tirx.PrimExpr",
        row: "tirx.PrimExpr",
        group: "tirx.PrimExpr",
    ) -> None:
        """Add the sums of a group, times the scales that change from group to group."""
        plan, lanes = self.plan, self.plan.tile.lanes
        of_weight = None if self._last(False) else self._weight_scales(panel, group)
        for i, buffers in enumerate(totals):
            of_x = None if self._last(True) else self._x_scale(row + i, group)
            for v, total in enumerate(buffers):
                value = total[ramp(0, lanes)].astype(f"float32x{lanes}")
                factors = [f for f in (of_weight[v] if of_weight else None, of_x) if f is not None]
                self._add(i * plan.tile.width + v * lanes, value, factors)

    def _add(self, at: int, value: "tirx.PrimExpr", factors: "list[tirx.PrimExpr]") -> None:
        place = ramp(index(at), self.plan.tile.lanes)
        if self.plan.count == 1:
            T.buffer_store(self.sums, value, [place])
            return
        factor = factors[0] * factors[1] if len(factors) == 2 else factors[0]
        kind = f"float32x{self.plan.tile.lanes}"
        T.buffer_store(self.sums, T.call_llvm_pure_intrin(kind, "llvm.fma", value, factor, self.sums[place]), [place])

    def _last(self, of_x: bool) -> bool:
        """Whether the scales of x, or of the weight, are the same for all groups, so that they come last."""
        return (self.plan.x_groups if of_x else self.plan.w_groups) == 1

    def _finish(self, height: int, panel: "tirx.PrimExpr", row: "tirx.PrimExpr") -> None:
        tile = self.plan.tile
        of_weight = self._weight_scales(panel, index(0)) if self._last(False) else None
        for i in range(height):
            of_x = self._x_scale(row + i, index(0)) if self._last(True) else None
            for v in range(tile.vectors):
                place = ramp(index(i * tile.width + v * tile.lanes), tile.lanes)
                value = self.sums[place]
                value = value * of_weight[v] if of_weight else value
                T.buffer_store(self.sums, value if of_x is None else value * of_x, [place])

    def _weight_scales(self, panel: "tirx.PrimExpr", group: "tirx.PrimExpr") -> "list[tirx.PrimExpr]":
        lanes = self.plan.tile.lanes
        places = [self._group_place(panel, group, v) for v in range(self.plan.tile.vectors)]
        dtype = DType.f16 if str(self.scales.dtype) == "float16" else DType.f32
        return [bind(widened(self.scales[place], dtype, lanes)) for place in places]

    def _x_scale(self, row: "tirx.PrimExpr", group: "tirx.PrimExpr") -> "tirx.PrimExpr":
        plan = self.plan
        own = index(0) if plan.x_groups == 1 else _held(group, group_of(plan.x) // plan.group)
        return bind(T.broadcast(self.rows.scales[row * plan.x_groups + own], plan.tile.lanes))

    def _places(self, height: int) -> "list[tirx.PrimExpr]":
        tile = self.plan.tile
        return [ramp(index(i * tile.lanes), tile.lanes) for i in range(height * tile.vectors)]


def _held(group: "tirx.PrimExpr", ratio: int) -> "tirx.PrimExpr":
    return group if ratio == 1 else bind(quotient(group, ratio))


def _nibbles(units: "tirx.PrimExpr", half: int) -> "tirx.PrimExpr":
    """The low or the high four bits of every byte."""
    lanes = int(units.ty.dtype.lanes)
    moved = units >> T.broadcast(T.int32(4), lanes) if half else units
    return tirx.bitwise_and(moved, T.broadcast(T.int32(0x0F0F0F0F), lanes))
