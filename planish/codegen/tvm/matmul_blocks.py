"""The kernel of a product of two activations: blocks of the result from copied rows and panels."""

from tvm import tirx
from tvm.script.ir_builder import tirx as T  # noqa: N812 - TVM's own name for its script namespace

from planish.codegen.tvm.expression import Expression, store
from planish.codegen.tvm.gemm_rows import unravel
from planish.codegen.tvm.kernel import TVM_DTYPE, Kernel, KernelBuilder, bind, kernel, ramp
from planish.codegen.tvm.matmul_plan import ProductPlan
from planish.codegen.tvm.tiles import ceil_div, index, load, quotient, remainder, steps, tile, transposed
from planish.codegen.tvm.vector_math import splat
from planish.codegen.view import View
from planish.compiler.types import elements, same_dim


def build_product(plan: ProductPlan) -> Kernel:
    """The kernel of a plan."""
    with kernel(plan.call, plan.isa, plan.scratch_bytes) as (k, done):
        _Product(k, plan).emit()
    return Kernel(done[0], plan.scratch_bytes)


class _Product:
    """The open kernel and what one unit has bound: its batch, first row and column, and its counts of both."""

    def __init__(self, k: KernelBuilder, plan: ProductPlan) -> None:
        self.k, self.plan, self.lanes = k, plan, plan.lanes
        self.memory = k.scratch_buffer(plan.scratch_bytes // plan.dtype.itemsize, plan.dtype)

    def emit(self) -> None:
        plan = self.plan
        rows, columns = self.k.dim(plan.left.shape[-2]), self.k.dim(plan.right.shape[-1])
        down, across = bind(ceil_div(rows, plan.m)), bind(ceil_div(columns, plan.n))
        first, stop = self.k.share(self.k.dim(elements(plan.batch)) * down * across)
        with T.serial(bind(stop - first)) as i:
            unit = bind(first + i)
            block = bind(quotient(unit, down))
            self.row = bind(remainder(unit, down) * plan.m)
            self.column = bind(remainder(block, across) * plan.n)
            self.batch = unravel(self.k, bind(quotient(block, across)), plan.batch) if plan.batch else ()
            self.rows = bind(tirx.min(index(plan.m), rows - self.row))
            self.columns = bind(tirx.min(index(plan.n), columns - self.column))
            self._unit()

    def _unit(self) -> None:
        plan = self.plan
        depth = self.k.dim(plan.left.shape[-1])
        self.panels = bind(ceil_div(self.columns, 2 * self.lanes))
        if not plan.accumulates:
            self._step(index(0), depth)
        else:
            with T.serial(index(plan.m * plan.n // self.lanes)) as i:
                self._put(plan.sums_place + i * self.lanes, self._zero())
            pieces = bind(ceil_div(depth, plan.k))
            with T.serial(pieces) as piece:
                start = bind(quotient(depth * piece, pieces))
                self._step(start, bind(quotient(depth * (piece + 1), pieces) - start))
        self._finish()

    def _step(self, start: "tirx.PrimExpr", depth: "tirx.PrimExpr") -> None:
        """Add the products over `depth` elements of K from `start`."""
        self._copy_left(start, depth)
        self._copy_right(start, depth)
        heights = self._heights()
        with T.serial(self.panels) as panel:
            done = index(0)
            for height in heights:
                count = bind(quotient(self.rows - done, height))
                with T.serial(count) as i:
                    self._tile(bind(done + i * height), panel, depth, height)
                done = bind(done + count * height)

    def _heights(self) -> tuple[int, ...]:
        """Rows of the register tiles, from the largest, that together make up any count of rows."""
        heights = (8, 4, 1) if self.plan.isa.registers >= 32 else (6, 3, 1)
        rows = self.plan.left.shape[-2]
        if not isinstance(rows, int):
            return heights
        counts = {min(self.plan.m, rows), rows % self.plan.m}
        return tuple(h for i, h in enumerate(heights) if any(_left(c, heights[:i]) // h for c in counts))

    def _tile(self, row: "tirx.PrimExpr", panel: "tirx.PrimExpr", depth: "tirx.PrimExpr", height: int) -> None:
        plan, lanes = self.plan, self.lanes
        left = bind(row * plan.pitch)
        right = bind(plan.right_place + panel * (plan.k * 2 * lanes))
        sums = bind(plan.sums_place + row * plan.n + panel * (2 * lanes))

        def place(i: int, j: int) -> "tirx.PrimExpr":
            return sums + (i * plan.n + j * lanes)

        tile(
            (height, 2, lanes),
            depth,
            lambda d, i: self.memory[left + i * plan.pitch + d],
            lambda d, j: self._get(right + d * (2 * lanes) + j * lanes),
            lambda i, j: self._get(place(i, j)) if plan.accumulates else self._zero(),
            lambda i, j, value: self._put(place(i, j), value),
            dtype=TVM_DTYPE[plan.dtype],
        )

    def _copy_left(self, start: "tirx.PrimExpr", depth: "tirx.PrimExpr") -> None:
        """The rows of the block, without gaps."""
        view, buffer = self.plan.left, self.k.buffers[self.plan.operands[0]]
        stride = self.k.dim(view.strides[-1])
        lanes = self.lanes if same_dim(view.strides[-1], 1) else 1
        with T.serial(self.rows) as i:
            source = bind(self.k.address(view, (*self.batch, self.row + i, start)))
            target = bind(i * self.plan.pitch)
            whole = bind(quotient(depth, lanes))
            with T.serial(whole) as v:
                self._move(buffer, view, steps(source, v * lanes, stride), target + v * lanes, lanes)
            if lanes > 1:
                with T.serial(bind(depth - whole * lanes)) as rest:
                    d = bind(whole * lanes + rest)
                    self._move(buffer, view, source + d, target + d, 1)

    def _move(
        self, buffer: "tirx.Buffer", view: View, source: "tirx.PrimExpr", target: "tirx.PrimExpr", lanes: int
    ) -> None:
        T.buffer_store(self.memory, load(self.k, buffer, view, source, lanes), [ramp(target, lanes)])

    def _copy_right(self, start: "tirx.PrimExpr", depth: "tirx.PrimExpr") -> None:
        """The panels of the block: whole vectors of columns, the last columns one by one."""
        view, lanes = self.plan.right, self.lanes
        vectors = bind(quotient(self.columns, lanes))
        with T.serial(vectors) as v:
            target = bind(self._panel(v))
            if same_dim(view.strides[-1], 1):
                self._copy_columns(v, target, start, depth)
            else:
                self._turn_columns(v, target, start, depth)
        with T.serial(bind(self.columns - vectors * lanes)) as rest:
            self._copy_column(bind(vectors * lanes + rest), self._panel(vectors) + rest, start, depth)

    def _panel(self, vector: "tirx.PrimExpr") -> "tirx.PrimExpr":
        """Where a vector of columns begins."""
        panel = quotient(vector, 2) * (self.plan.k * 2 * self.lanes)
        return self.plan.right_place + panel + remainder(vector, 2) * self.lanes

    def _copy_columns(
        self, v: "tirx.PrimExpr", target: "tirx.PrimExpr", start: "tirx.PrimExpr", depth: "tirx.PrimExpr"
    ) -> None:
        view, buffer = self.plan.right, self.k.buffers[self.plan.operands[1]]
        source = bind(self.k.address(view, (*self.batch, start, self.column + v * self.lanes)))
        with T.serial(depth) as d:
            place = steps(source, d, self.k.dim(view.strides[-2]))
            self._move(buffer, view, place, target + d * (2 * self.lanes), self.lanes)

    def _turn_columns(
        self, v: "tirx.PrimExpr", target: "tirx.PrimExpr", start: "tirx.PrimExpr", depth: "tirx.PrimExpr"
    ) -> None:
        """Columns that each lie along K: squares are transposed, what is left over goes one by one."""
        view, buffer, lanes = self.plan.right, self.k.buffers[self.plan.operands[1]], self.lanes
        column = bind(self.column + v * lanes)
        places = [bind(self.k.address(view, (*self.batch, start, column + j))) for j in range(lanes)]
        along = exchanged(view)
        done = index(0)
        if same_dim(view.strides[-2], 1):
            squares = bind(quotient(depth, lanes))
            with T.serial(squares) as s:
                rows = [bind(load(self.k, buffer, along, place + s * lanes, lanes)) for place in places]
                for d, row in enumerate(transposed(rows)):
                    self._put(target + (s * lanes + d) * (2 * lanes), row)
            done = bind(squares * lanes)
        with T.serial(bind(depth - done)) as rest:
            d = bind(done + rest)
            for j, place in enumerate(places):
                source = steps(place, d, self.k.dim(view.strides[-2]))
                self._move(buffer, view, source, target + d * (2 * lanes) + j, 1)

    def _copy_column(
        self, column: "tirx.PrimExpr", target: "tirx.PrimExpr", start: "tirx.PrimExpr", depth: "tirx.PrimExpr"
    ) -> None:
        view, buffer = self.plan.right, self.k.buffers[self.plan.operands[1]]
        source = bind(self.k.address(view, (*self.batch, start, self.column + column)))
        first = bind(target)
        with T.serial(depth) as d:
            place = steps(source, d, self.k.dim(view.strides[-2]))
            self._move(buffer, view, place, first + d * (2 * self.lanes), 1)

    def _finish(self) -> None:
        """Evaluate the nodes after the product on its block and write the output."""
        lanes = 1 if self.plan.swapped else self.lanes
        whole = bind(quotient(self.columns, lanes))
        with T.serial(self.rows) as i:
            with T.serial(whole) as v:
                self._write(i, bind(v * lanes), lanes)
            if lanes > 1:
                with T.serial(bind(self.columns - whole * lanes)) as rest:
                    self._write(i, bind(whole * lanes + rest), 1)

    def _write(self, i: "tirx.PrimExpr", j: "tirx.PrimExpr", lanes: int) -> None:
        plan, call = self.plan, self.k.call
        (anchor,) = call.anchor.values
        row, column = bind(self.row + i), bind(self.column + j)
        place = (*self.batch, column, row) if plan.swapped else (*self.batch, row, column)
        place = place[len(place) - len(anchor.shape) :]

        def total(_: "tuple[tirx.PrimExpr, ...]", __: int) -> "tirx.PrimExpr":
            sums = self.memory[ramp(plan.sums_place + i * plan.n + j, lanes)]
            return sums if plan.bias is None else sums + Expression(self.k).at(plan.bias, place[-1:], lanes)

        store(self.k, call.view, place, Expression(self.k, {anchor: total}).at(call.output, place, lanes), lanes)

    def _zero(self) -> "tirx.PrimExpr":
        return splat(tirx.const(0.0, TVM_DTYPE[self.plan.dtype]), self.lanes)

    def _get(self, place: "tirx.PrimExpr") -> "tirx.PrimExpr":
        return self.memory[ramp(place, self.lanes)]

    def _put(self, place: "tirx.PrimExpr", value: "tirx.PrimExpr") -> None:
        T.buffer_store(self.memory, value, [ramp(place, self.lanes)])


def exchanged(view: View) -> View:
    """The view with its two matrix axes exchanged, so that vectors run along its other one."""
    axes = range(len(view.shape))
    return view.transpose((*axes[:-2], axes[-1], axes[-2]))


def _left(count: int, heights: tuple[int, ...]) -> int:
    """Rows that tiles of these heights leave over."""
    for height in heights:
        count %= height
    return count
