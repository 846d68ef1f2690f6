"""The row that a product of integers rounds to codes itself: when it does, and how."""

from dataclasses import dataclass

from tvm import tirx
from tvm.script.ir_builder import tirx as T  # noqa: N812 - TVM's own name for its script namespace

from planish.codegen.tvm.computed_row import ComputedRow, computes
from planish.codegen.tvm.expression import Expression
from planish.codegen.tvm.folds import Read
from planish.codegen.tvm.gemm_rows import unravel
from planish.codegen.tvm.int8_plan import Int8Plan, group_of
from planish.codegen.tvm.kernel import KernelBuilder, bind, ramp
from planish.codegen.tvm.quantization import code_of, group_scale, inverse_of
from planish.codegen.tvm.tiles import each_chunk, index, quotient
from planish.codegen.tvm.vector_math import keep, splat
from planish.compiler import ops
from planish.compiler.ir import Node, Value
from planish.compiler.types import DType, elements

_BITS = 8


def rounds(anchor: Node, node: Node) -> bool:
    """Whether a product of integers computes `node` with the only row of x: what rounds it, or makes it.

    Every task rounds it for itself. Eight rows of 5632 take a task 9 us so, and 5 us in kernels of their own (Zen 4).
    """
    codes, scale = (value.node for value in anchor.operands[0].node.operands)
    return _fits(codes, scale) and (node in (codes, scale) or computes(anchor, node))


def _fits(codes: Node, scale: Node) -> bool:
    """Whether codes and scales are those of one f32 row in groups of whole 32-bit units."""
    if codes.op is not ops.quantize or scale.op is not ops.quantization_scale or codes.operands[1] != Value(scale):
        return False
    x = scale.operands[0]
    single = elements(x.shape[:-1]) == 1
    same = codes.operands[0] == x and codes.attrs["group"] == scale.attrs["group"]
    plain = x.dtype is DType.f32 and scale.types[0].dtype is DType.f32
    units = isinstance(x.shape[-1], int) and x.shape[-1] % 4 == 0 and group_of(scale) % 4 == 0
    return single and same and plain and units and codes.attrs["bits"] == scale.attrs["bits"] == _BITS


@dataclass(frozen=True, slots=True)
class Rounding:
    """Rounds rows into `units`, four codes in 32 bits, rows `plan.stride` apart, and `scales` [row][group] f32.

    A row that is computed in the kernel lies in `line` between.
    """

    k: KernelBuilder
    plan: Int8Plan
    units: "tirx.Buffer"
    scales: "tirx.Buffer"
    line: "tirx.Buffer | None"

    def write(self, row: "tirx.PrimExpr", i: "tirx.PrimExpr") -> None:
        """Row `row` of x as row `i` of the block."""
        plan = self.plan
        read, group = self._source(row), group_of(plan.x)
        whole, rest = divmod(plan.depth, group)
        with T.serial(index(whole)) as g:
            self._group(read, bind(g + 0), bind(i + 0), group)
        if rest:
            self._group(read, index(whole), i, rest)

    def _source(self, row: "tirx.PrimExpr") -> Read:
        x, line = self.plan.rounded, self.line
        lead = unravel(self.k, row, x.shape[:-1])
        if line is None:
            return lambda at, lanes: keep(Expression(self.k).at(x, (*lead, at), lanes))
        ComputedRow(self.k, x).write(row, line, index(0))
        return lambda at, lanes: keep(line[ramp(at, lanes)])

    def _group(self, read: Read, group: "tirx.PrimExpr", i: "tirx.PrimExpr", count: int) -> None:
        plan = self.plan
        start = bind(group * group_of(plan.x))
        scale = keep(group_scale(self.k, count, _BITS, lambda at, lanes: read(bind(start + at), lanes)))
        T.buffer_store(self.scales, scale, [i * plan.x_groups + group])
        inverse = inverse_of(scale)
        place = bind(i * plan.stride + quotient(start, 4))

        def write(at: "tirx.PrimExpr", lanes: int) -> None:
            codes = code_of(read(bind(start + at), lanes), splat(inverse, lanes), _BITS)
            units = T.reinterpret("int32" if lanes == 4 else f"int32x{lanes // 4}", codes)
            T.buffer_store(self.units, units, [ramp(bind(place + quotient(at, 4)), lanes // 4)])

        each_chunk(count, max(4, self.k.isa.lanes), write)
