"""The kernel of a product with a single row on the left: every element of the right operand is read once, in place."""

from tvm import tirx
from tvm.script.ir_builder import tirx as T  # noqa: N812 - TVM's own name for its script namespace

from planish.codegen.tvm.expression import Expression, store
from planish.codegen.tvm.gemm_rows import unravel
from planish.codegen.tvm.kernel import TVM_DTYPE, Kernel, KernelBuilder, bind, kernel, ramp
from planish.codegen.tvm.matmul_plan import ProductPlan
from planish.codegen.tvm.tiles import ceil_div, index, lane_sums, load, quotient, remainder, tile
from planish.codegen.tvm.vector_math import fma, splat
from planish.codegen.view import View
from planish.compiler.types import elements, same_dim

_VECTORS = 8  # of columns that are summed at once: enough to hide the latency of a multiply-add


def reads_in_place(plan: ProductPlan) -> bool:
    """Whether the left operand is one row and the right one lies in lines that vectors can follow."""
    along = same_dim(plan.right.strides[-1], 1)
    down = same_dim(plan.right.strides[-2], 1) and same_dim(plan.left.strides[-1], 1)
    return same_dim(plan.left.shape[-2], 1) and (along or down)


def build_vector(plan: ProductPlan) -> Kernel:
    """The kernel of a plan that `reads_in_place`."""
    with kernel(plan.call, plan.isa) as (k, done):
        _Vector(k, plan).emit()
    return Kernel(done[0], 0)


class _Vector:
    """The open kernel and what one unit has bound: its batch, first column, count of columns, and both operands."""

    def __init__(self, k: KernelBuilder, plan: ProductPlan) -> None:
        self.k, self.plan, self.lanes = k, plan, plan.lanes
        self.along = same_dim(plan.right.strides[-1], 1)
        columns = plan.right.shape[-1]
        fitting = max(1, columns // plan.lanes) if isinstance(columns, int) else _VECTORS
        self.vectors = min(_VECTORS, fitting) if self.along else 1
        self.dtype = TVM_DTYPE[plan.dtype]

    def emit(self) -> None:
        plan, width = self.plan, self.vectors * self.lanes
        columns = self.k.dim(plan.right.shape[-1])
        blocks = bind(ceil_div(columns, width))
        first, stop = self.k.share(self.k.dim(elements(plan.batch)) * blocks)
        self.sums = T.alloc_buffer((width,), self.dtype)
        with T.serial(bind(stop - first)) as i:
            unit = bind(first + i)
            self.column = bind(remainder(unit, blocks) * width)
            self.columns = bind(tirx.min(index(width), columns - self.column))
            self.batch = unravel(self.k, bind(quotient(unit, blocks)), plan.batch) if plan.batch else ()
            self.left = bind(self.k.address(plan.left, (*self.batch, 0, 0)))
            (self._across if self.along else self._down)()
            self._finish()

    def _across(self) -> None:
        """Columns side by side: rows of the right operand times one element of the left each."""
        with T.If(tirx.EQ(self.columns, index(self.vectors * self.lanes))):
            with T.Then():
                self._multiples(index(0), self.vectors, self.lanes)
            with T.Else():
                whole = bind(quotient(self.columns, self.lanes))
                with T.serial(whole) as v:
                    self._multiples(bind(v * self.lanes), 1, self.lanes)
                with T.serial(bind(self.columns - whole * self.lanes)) as rest:
                    self._multiples(bind(whole * self.lanes + rest), 1, 1)

    def _multiples(self, column: "tirx.PrimExpr", vectors: int, lanes: int) -> None:
        plan, k = self.plan, self.k
        right = bind(k.address(plan.right, (*self.batch, 0, self.column + column)))
        step = k.dim(plan.right.strides[-2])
        tile(
            (1, vectors, lanes),
            k.dim(plan.left.shape[-1]),
            lambda d, _: self._read(0, self.left + d * k.dim(plan.left.strides[-1]), 1),
            lambda d, j: self._read(1, right + d * step + j * lanes, lanes),
            lambda _, __: splat(tirx.const(0.0, self.dtype), lanes),
            lambda _, j, value: T.buffer_store(self.sums, value, [ramp(column + j * lanes, lanes)]),
            dtype=self.dtype,
        )

    def _down(self) -> None:
        """Columns that lie along the depth: as many dot products as a vector has lanes; absent ones repeat the last."""
        plan, k, lanes = self.plan, self.k, self.lanes
        last = self.columns - 1
        places = [
            bind(k.address(plan.right, (*self.batch, 0, self.column + tirx.min(index(j), last)))) for j in range(lanes)
        ]
        totals = [T.alloc_buffer((lanes,), self.dtype) for _ in places]
        all_lanes = ramp(tirx.const(0, "int32"), lanes)
        for total in totals:
            T.buffer_store(total, splat(tirx.const(0.0, self.dtype), lanes), [all_lanes])
        depth = k.dim(plan.left.shape[-1])
        whole = bind(quotient(depth, lanes))
        with T.serial(whole) as v:
            x = bind(self._read(0, self.left + v * lanes, lanes))
            for place, total in zip(places, totals, strict=True):
                T.buffer_store(total, fma(x, self._read(1, place + v * lanes, lanes), total[all_lanes]), [all_lanes])
        T.buffer_store(self.sums, lane_sums([bind(total[all_lanes]) for total in totals]), [all_lanes])
        with T.serial(bind(depth - whole * lanes)) as rest:
            d = bind(whole * lanes + rest)
            x = bind(self._read(0, self.left + d, 1))
            for j, place in enumerate(places):
                T.buffer_store(self.sums, fma(x, self._read(1, place + d, 1), self.sums[j]), [j])

    def _read(self, operand: int, place: "tirx.PrimExpr", lanes: int) -> "tirx.PrimExpr":
        """Consecutive elements of an operand, as they are summed."""
        value = self.plan.operands[operand]
        view = self.k.call.inputs[value]
        dense = View(view.shape[:1], (1,), 0, view.dtype)
        return load(self.k, self.k.buffers[value], dense, place, lanes)

    def _finish(self) -> None:
        """Evaluate the nodes after the product and write; results of a transposed product lie one below the other."""
        lanes = 1 if self.plan.swapped else self.lanes
        whole = bind(quotient(self.columns, lanes))
        with T.serial(whole) as v:
            self._write(bind(v * lanes), lanes)
        if lanes > 1:
            with T.serial(bind(self.columns - whole * lanes)) as rest:
                self._write(bind(whole * lanes + rest), 1)

    def _write(self, j: "tirx.PrimExpr", lanes: int) -> None:
        plan, call = self.plan, self.k.call
        (anchor,) = call.anchor.values
        column = bind(self.column + j)
        place = (*self.batch, column, index(0)) if plan.swapped else (*self.batch, index(0), column)
        place = place[len(place) - len(anchor.shape) :]

        def total(_: "tuple[tirx.PrimExpr, ...]", __: int) -> "tirx.PrimExpr":
            sums = self.sums[ramp(j, lanes)]
            return sums if plan.bias is None else sums + Expression(self.k).at(plan.bias, place[-1:], lanes)

        store(self.k, call.view, place, Expression(self.k, {anchor: total}).at(call.output, place, lanes), lanes)
