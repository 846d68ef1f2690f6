"""Parts of a product: the rows that share an expert, sorted by every task for itself."""

from collections.abc import Callable
from dataclasses import dataclass

from tvm import tirx
from tvm.script.ir_builder import tirx as T  # noqa: N812 - TVM's own name for its script namespace

from planish.codegen.tvm.kernel import KernelBuilder, bind
from planish.codegen.tvm.loops import integer, unravel
from planish.compiler.ir import Value
from planish.compiler.types import Dim, DType, elements

Fill = Callable[["tirx.PrimExpr", "tirx.PrimExpr"], None]


@dataclass(frozen=True, slots=True)
class Part:
    """Rows of a product and the panels of the weight that they are multiplied with.

    Row i of the part is row `row(i)` of the operand and of the result; its panel p is stored as panel `panel + p`.
    """

    row: "Callable[[tirx.PrimExpr], tirx.PrimExpr]"
    panel: "tirx.PrimExpr | None" = None

    def stored(self, panel: "tirx.PrimExpr") -> "tirx.PrimExpr":
        """Where a panel of the part lies among all panels."""
        return panel if self.panel is None else bind(self.panel + panel)

    def filled(self, fill: Fill) -> Fill:
        """What copies row i of the part, given what copies a row of the operand."""
        return lambda row, place: fill(self.row(row), place)


WHOLE = Part(lambda row: row)


@dataclass(frozen=True, slots=True)
class Routing:
    """The experts [0, `experts`) that `index` chooses for its rows; sorting begins `place` bytes into the scratch."""

    index: Value
    experts: int
    place: int

    @property
    def rows(self) -> Dim:
        return elements(self.index.shape)

    @property
    def _order_place(self) -> int:
        return self.place + -(-(self.experts + 1) * 8 // 64) * 64

    @property
    def scratch_bytes(self) -> Dim:
        """Bytes of scratch memory with what lies in front."""
        return self._order_place + self.rows * DType.i32.itemsize

    def each(self, k: KernelBuilder, panels: int, body: "Callable[[Part, tirx.PrimExpr], None]") -> None:
        """Call `body(part, rows)` for every expert that rows choose; an expert has `panels` panels."""
        starts = k.scratch_buffer(self.experts + 1, DType.i64, self.place)
        order = k.scratch_buffer(self.rows, DType.i32, self._order_place)
        self._sort(k, starts, order)
        with T.serial(integer(self.experts)) as expert:
            first = bind(starts[expert])
            count = bind(starts[expert + 1] - first)
            with T.If(count > 0), T.Then():
                T.evaluate(0)
                body(Part(lambda i: bind(order[first + i].astype("int64")), bind(expert * panels)), count)

    def _sort(self, k: KernelBuilder, starts: "tirx.Buffer", order: "tirx.Buffer") -> None:
        """Rows in the order of their experts, and where those of each expert start."""
        rows = bind(k.dim(self.rows))
        with T.serial(integer(self.experts + 1)) as e:
            T.buffer_store(starts, integer(0), [e])
        with T.serial(rows) as r:
            expert = self._expert(k, bind(r + 0))
            T.buffer_store(starts, starts[expert] + 1, [expert])
        with T.serial(integer(self.experts)) as e:
            T.buffer_store(starts, starts[e] + starts[e + 1], [e + 1])
        with T.serial(rows) as r:
            row = bind(rows - 1 - r)
            expert = self._expert(k, row)
            place = bind(starts[expert] - 1)
            T.buffer_store(starts, place, [expert])
            T.buffer_store(order, row.astype("int32"), [place])

    def _expert(self, k: KernelBuilder, row: "tirx.PrimExpr") -> "tirx.PrimExpr":
        view = k.call.inputs[self.index]
        found = k.buffers[self.index][bind(k.address(view, unravel(k, row, view.shape)))].astype("int64")
        return bind(tirx.min(tirx.max(found, integer(0)), integer(self.experts - 1)))
