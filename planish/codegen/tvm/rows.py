"""Softmax and normalizations over the last axis, one row at a time in the first level of cache."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import ClassVar, TypeAlias, cast

from tvm import tirx
from tvm.script.ir_builder import tirx as T  # noqa: N812 - TVM's own name for its script namespace

from planish.codegen.call import Call
from planish.codegen.tvm import vector_math as vm
from planish.codegen.tvm.around import fuses_after, fuses_before, refuse_around
from planish.codegen.tvm.expression import Expression, store
from planish.codegen.tvm.folds import Fold, Registers, line_lanes, peak, total
from planish.codegen.tvm.isa import Isa
from planish.codegen.tvm.kernel import Kernel, KernelBuilder, kernel, ramp
from planish.codegen.tvm.loops import Index, units, vectors
from planish.compiler import ops
from planish.compiler.ir import Node, Op, Value
from planish.compiler.types import Dim, DType, floor_div, same_dim, simplify

_Read: TypeAlias = "Callable[[tirx.PrimExpr, int], tirx.PrimExpr]"


@dataclass(frozen=True, slots=True)
class Rows:
    """Statistics of a row first, then its elements; both passes of a variance run over the row in cache.

    A row that has to be computed or gathered is kept in scratch memory by the first pass. f16 and bf16 are computed in
    f32; softmax gives 0 where the result is below 2^-126 of the largest.
    """

    name: ClassVar[str] = "rows"
    ops: ClassVar[tuple[Op, ...]] = (ops.softmax, ops.log_softmax, ops.layer_norm, ops.rms_norm)

    def refuse(self, call: Call, isa: Isa) -> str | None:
        anchor = call.anchor
        x = anchor.operands[0]
        if anchor.attrs.get("axis", len(x.shape) - 1) != len(x.shape) - 1:
            return f"{anchor.op.name} along axis {anchor.attrs['axis']} of {x.type} is not along the last axis"
        if x.dtype not in (DType.f32, DType.bf16, DType.f16):
            return f"{anchor.op.name} of {x.dtype} has no kernel; cast to f32"
        return refuse_around(call)

    def build(self, call: Call, isa: Isa) -> Kernel:
        width = call.anchor.operands[0].shape[-1]
        row_bytes = simplify(64 * (floor_div(width, 16) + 1))
        scratch = simplify(2 * row_bytes)
        with kernel(call, isa, scratch) as (k, done):

            def one(lead: Index) -> None:
                _ROWS[call.anchor.op](_Row(k, lead, width, row_bytes))

            units(k, call.anchor.types[0].shape[:-1], one)
        return Kernel(done[0], scratch)

    def fuses_after(self, anchor: Node, node: Node) -> bool:
        return fuses_after(anchor, node)

    def fuses_before(self, anchor: Node, node: Node) -> bool:
        return fuses_before(node)


@dataclass(frozen=True, slots=True)
class _Row:
    """One row of the anchor's operand, at `lead` on all axes but the last."""

    k: KernelBuilder
    lead: Index
    width: Dim
    row_bytes: Dim

    @property
    def lanes(self) -> int:
        return line_lanes(self.width, self.k.isa.lanes)

    @property
    def count(self) -> "tirx.PrimExpr":
        return vm.cast(self.k.dim(self.width), "float32")

    def operand(self, value: Value, at: "tirx.PrimExpr", lanes: int) -> "tirx.PrimExpr":
        """Elements of an operand that has this row's axes, or the last of them alone."""
        index = (*self.lead, at)
        return vm.keep(Expression(self.k).at(value, index[len(index) - len(value.shape) :], lanes))

    def fold(self, fold: Fold, read: _Read, ways: int = 4) -> "tirx.PrimExpr":
        """The fold of what `read` gives of the whole row."""
        registers = Registers(fold, self.lanes, ways if not isinstance(self.width, int) else _ways(self, ways))
        registers.line(self.k, self.width, read)
        return registers.result()[0]

    def first(self) -> "tuple[_Read, _Read]":
        """`(read, again)`: `read` is for the first pass over the whole row, `again` for later ones."""
        k, x = self.k, self.k.call.anchor.operands[0]

        def direct(at: "tirx.PrimExpr", lanes: int) -> "tirx.PrimExpr":
            return self.operand(x, at, lanes)

        view = k.call.inputs.get(x)
        if view is not None and view.dtype is DType.f32 and same_dim(view.strides[-1], 1):
            return direct, direct
        keep, again = self.kept(0)
        return lambda at, lanes: keep(at, direct(at, lanes)), again

    def kept(self, slot: int) -> "tuple[Callable[[tirx.PrimExpr, tirx.PrimExpr], tirx.PrimExpr], _Read]":
        """A row of scratch: `(keep, read)`, of which `keep(at, value)` stores f32 values and gives them back."""
        row = self.k.scratch_buffer(self.width, DType.f32, self.row_bytes * slot)

        def keep(at: "tirx.PrimExpr", value: "tirx.PrimExpr") -> "tirx.PrimExpr":
            T.buffer_store(row, value, [ramp(at, vm.lanes_of(value))])
            return value

        return keep, lambda at, lanes: row[ramp(at, lanes)]

    def write(self, result: _Read) -> None:
        """Store the call's output, where the anchor's value at each place is `result(at, lanes)`."""
        k, call = self.k, self.k.call
        known: Mapping[Value, object] = {call.anchor.values[0]: lambda index, lanes: result(index[-1], lanes)}

        def body(at: "tirx.PrimExpr", lanes: int) -> None:
            index = (*self.lead, at)
            value = Expression(k, known).at(call.output, index, lanes)  # type: ignore[arg-type]
            store(k, call.view, index, value, lanes)

        vectors(k, tirx.const(0, "int64"), self.width, body, k.isa.lanes)


def _ways(row: _Row, ways: int) -> int:
    whole = cast(int, row.width) // row.lanes
    return max(w for w in (1, 2, ways) if w <= max(1, whole))


def _softmax(row: _Row) -> None:
    shifted = _shifted(row)
    keep, again = row.kept(1)
    denominator = row.fold(
        total("float32"), lambda at, lanes: keep(at, vm.exp_nonpositive(vm.keep(shifted(at, lanes)))), ways=2
    )
    scale = vm.keep(tirx.const(1.0, "float32") / denominator)
    row.write(lambda at, lanes: again(at, lanes) * vm.splat(scale, lanes))


def _log_softmax(row: _Row) -> None:
    shifted = _shifted(row)
    denominator = row.fold(total("float32"), lambda at, lanes: vm.exp_nonpositive(vm.keep(shifted(at, lanes))), ways=2)
    shift = vm.keep(vm.log(denominator))
    row.write(lambda at, lanes: shifted(at, lanes) - vm.splat(shift, lanes))


def _shifted(row: _Row) -> _Read:
    """The elements less the largest one."""
    first, again = row.first()
    top = row.fold(peak(), first)
    return lambda at, lanes: again(at, lanes) - vm.splat(top, lanes)


def _layer_norm(row: _Row) -> None:
    first, again = row.first()
    mean = vm.keep(row.fold(total("float32"), first) / row.count)

    def centred(at: "tirx.PrimExpr", lanes: int) -> "tirx.PrimExpr":
        return vm.keep(again(at, lanes) - vm.splat(mean, lanes))

    _scaled(row, centred, centred)


def _rms_norm(row: _Row) -> None:
    first, again = row.first()
    _scaled(row, again, first)


def _scaled(row: _Row, read: _Read, first: _Read) -> None:
    """Divide by the root of the mean square, then scale and shift by the operands that are given."""
    node = row.k.call.anchor
    given = dict(zip((i for i, v in enumerate(node.inputs) if v is not None), node.operands, strict=True))

    def square(at: "tirx.PrimExpr", lanes: int) -> "tirx.PrimExpr":
        value = vm.keep(first(at, lanes))
        return value * value

    squares = row.fold(total("float32"), square)
    eps = tirx.const(cast(float, node.attrs["eps"]), "float32")
    scale = vm.keep(tirx.const(1.0, "float32") / vm.square_root(squares / row.count + eps))

    def result(at: "tirx.PrimExpr", lanes: int) -> "tirx.PrimExpr":
        value = read(at, lanes) * vm.splat(scale, lanes)
        value = value * row.operand(given[1], at, lanes) if 1 in given else value
        return value + row.operand(given[2], at, lanes) if 2 in given else value

    row.write(result)


_ROWS: dict[Op, Callable[[_Row], None]] = {
    ops.softmax: _softmax,
    ops.log_softmax: _log_softmax,
    ops.layer_norm: _layer_norm,
    ops.rms_norm: _rms_norm,
}
