"""Softmax and normalizations over the last axis, one row at a time in the first level of cache."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import ClassVar, TypeAlias, cast

from tvm import tirx
from tvm.script.ir_builder import tirx as T  # noqa: N812 - TVM's own name for its script namespace

from planish.codegen.call import Call
from planish.codegen.tvm import vector_math as vm
from planish.codegen.tvm.around import fuses_after, fuses_before, refuse_around
from planish.codegen.tvm.elementwise import to_memory
from planish.codegen.tvm.expression import Expression, Known, store
from planish.codegen.tvm.folds import Fold, Registers, line_lanes, lines, peak, total
from planish.codegen.tvm.isa import Isa
from planish.codegen.tvm.kernel import Kernel, KernelBuilder, bind, kernel, ramp
from planish.codegen.tvm.loops import Index, groups, vectors
from planish.codegen.tvm.streaming import Stream, streaming
from planish.codegen.view import View
from planish.compiler import ops
from planish.compiler.ir import Node, Op, Value
from planish.compiler.types import Dim, DType, floor_div, same_dim, same_shape, simplify

_Read: TypeAlias = "Callable[[int, tirx.PrimExpr, int], tirx.PrimExpr]"
_Scalars: TypeAlias = "tuple[tirx.PrimExpr, ...]"

_TOGETHER = 2  # rows that are computed side by side: they share what all rows read, and hide each other's folds
_READ_AT_ONCE = (T.int32(0), T.int32(3), T.int32(1))  # of llvm.prefetch: for reading, into L1, data
_MOST_WIDTH = 1024  # of rows side by side, so that they and their results stay in the first level of cache


@dataclass(frozen=True, slots=True)
class Rows:
    """Statistics of a row first, then its elements; both passes of a variance run over the row in cache.

    Short rows go two by two, except where the output is written past the caches: memory likes one row after another. A
    row that has to be computed or gathered is kept in scratch memory by the first pass. f16 and bf16 are computed in
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
        scratch = simplify(2 * _together(width) * row_bytes)
        lead = call.anchor.types[0].shape[:-1]
        with kernel(call, isa, scratch) as (k, done), streaming(k, call.view) as stream:

            def some(leads: tuple[Index, ...]) -> None:
                _ROWS[call.anchor.op](_Group(k, leads, width, row_bytes, stream if len(leads) == 1 else None))

            groups(k, lead, _together(width), some, alone=stream.condition if stream is not None else None)
        return Kernel(done[0], scratch)

    def fuses_after(self, anchor: Node, node: Node) -> bool:
        return fuses_after(anchor, node)

    def fuses_before(self, anchor: Node, node: Node) -> bool:
        return fuses_before(node)


def _together(width: Dim) -> int:
    return _TOGETHER if isinstance(width, int) and width <= _MOST_WIDTH else 1


@dataclass(frozen=True, slots=True)
class _Group:
    """Rows of the anchor's operand, at `leads` on all axes but the last; what is read of them is asked by number."""

    k: KernelBuilder
    leads: tuple[Index, ...]
    width: Dim
    row_bytes: Dim
    stream: Stream | None

    @property
    def lanes(self) -> int:
        return line_lanes(self.width, self.k.isa.lanes)

    @property
    def count(self) -> "tirx.PrimExpr":
        return vm.cast(self.k.dim(self.width), "float32")

    def operand(self, value: Value, row: int, at: "tirx.PrimExpr", lanes: int) -> "tirx.PrimExpr":
        """Elements of an operand that has the rows' axes, or the last of them alone."""
        index = (*self.leads[row], at)
        return vm.keep(Expression(self.k).at(value, index[len(index) - len(value.shape) :], lanes))

    def each(self, result: "Callable[[int], tirx.PrimExpr]") -> _Scalars:
        """A scalar of every row, as a variable."""
        return tuple(vm.keep(result(row)) for row in range(len(self.leads)))

    def fold(self, fold: Fold, read: _Read, ways: int = 4) -> _Scalars:
        """The fold of what `read` gives of each whole row."""
        ways = ways if not isinstance(self.width, int) else _ways(self, ways)
        group = [(Registers(fold, self.lanes, ways), partial(read, row)) for row in range(len(self.leads))]
        lines(self.k, self.width, group)
        return tuple(registers.result()[0] for registers, _ in group)

    def fold_ahead(self, fold: Fold, read: _Read, ways: int = 4) -> _Scalars:
        """The fold in a later pass, which has the next rows fetched into the first level of cache meanwhile."""

        def ahead(row: int, at: "tirx.PrimExpr", lanes: int) -> "tirx.PrimExpr":
            for view, buffer in self._whole:
                step = len(self.leads) * self.k.dim(view.strides[-2])
                place = bind(self.k.address(view, (*self.leads[row], at)) + step)
                pointer = T.address_of(buffer[place])
                T.evaluate(T.call_llvm_intrin("void", "llvm.prefetch", pointer, *_READ_AT_ONCE))
            return read(row, at, lanes)

        return self.fold(fold, ahead, ways)

    @property
    def _whole(self) -> "list[tuple[View, tirx.Buffer]]":
        """The inputs of the call that are read row by row."""
        shape = self.k.call.anchor.operands[0].shape
        inputs = [(v, view) for v, view in self.k.call.inputs.items() if len(shape) > 1 and same_shape(v.shape, shape)]
        return [(view, self.k.buffers[v]) for v, view in inputs if same_dim(view.strides[-1], 1)]

    def first(self) -> "tuple[_Read, _Read]":
        """`(read, again)`: `read` is for the first pass over whole rows, `again` for later ones."""
        k, x = self.k, self.k.call.anchor.operands[0]

        def direct(row: int, at: "tirx.PrimExpr", lanes: int) -> "tirx.PrimExpr":
            return self.operand(x, row, at, lanes)

        view = k.call.inputs.get(x)
        if view is not None and view.dtype is DType.f32 and same_dim(view.strides[-1], 1):
            return direct, direct
        keep, again = self.kept(0)
        return lambda row, at, lanes: keep(row, at, direct(row, at, lanes)), again

    def kept(self, slot: int) -> "tuple[Callable[[int, tirx.PrimExpr, tirx.PrimExpr], tirx.PrimExpr], _Read]":
        """Rows of scratch: `(keep, read)`, of which `keep(row, at, value)` stores f32 values and gives them back."""
        first = slot * len(self.leads)
        rows = [
            self.k.scratch_buffer(self.width, DType.f32, self.row_bytes * (first + row))
            for row in range(len(self.leads))
        ]

        def keep(row: int, at: "tirx.PrimExpr", value: "tirx.PrimExpr") -> "tirx.PrimExpr":
            T.buffer_store(rows[row], value, [ramp(at, vm.lanes_of(value))])
            return value

        return keep, lambda row, at, lanes: rows[row][ramp(at, lanes)]

    def write(self, result: _Read) -> None:
        """Store the call's output, where the anchor's value at each place is `result(row, at, lanes)`."""

        def body(at: "tirx.PrimExpr", lanes: int) -> None:
            for row in range(len(self.leads)):
                self._write(row, result, at, lanes)

        vectors(self.k, tirx.const(0, "int64"), self.width, body, self.k.isa.lanes)

    def _write(self, row: int, result: _Read, at: "tirx.PrimExpr", lanes: int) -> None:
        k, call = self.k, self.k.call
        known: Mapping[Value, Known] = {call.anchor.values[0]: lambda index, n: result(row, index[-1], n)}
        index = (*self.leads[row], at)
        value = Expression(k, known).at(call.output, index, lanes)
        if self.stream is None:
            store(k, call.view, index, value, lanes)
            return
        value = vm.keep(to_memory(value, call.view.dtype))
        place = bind(k.address(call.view, index))
        self.stream.choose(lambda: T.buffer_store(k.output, value, [ramp(place, lanes)]), place, value)


def _ways(row: _Group, ways: int) -> int:
    whole = cast(int, row.width) // row.lanes
    return max(w for w in (1, 2, ways) if w <= max(1, whole))


def _softmax(rows: _Group) -> None:
    shifted = _shifted(rows)
    keep, again = rows.kept(1)
    denominators = rows.fold_ahead(
        total("float32"),
        lambda row, at, lanes: keep(row, at, vm.exp_nonpositive(vm.keep(shifted(row, at, lanes)))),
        ways=2,
    )
    scales = rows.each(lambda row: tirx.const(1.0, "float32") / denominators[row])
    rows.write(lambda row, at, lanes: again(row, at, lanes) * vm.splat(scales[row], lanes))


def _log_softmax(rows: _Group) -> None:
    shifted = _shifted(rows)
    denominators = rows.fold_ahead(
        total("float32"), lambda row, at, lanes: vm.exp_nonpositive(vm.keep(shifted(row, at, lanes))), ways=2
    )
    shifts = rows.each(lambda row: vm.log(denominators[row]))
    rows.write(lambda row, at, lanes: shifted(row, at, lanes) - vm.splat(shifts[row], lanes))


def _shifted(rows: _Group) -> _Read:
    """The elements less the largest one."""
    first, again = rows.first()
    tops = rows.fold(peak(), first)
    return lambda row, at, lanes: again(row, at, lanes) - vm.splat(tops[row], lanes)


def _layer_norm(rows: _Group) -> None:
    first, again = rows.first()
    sums = rows.fold(total("float32"), first)
    means = rows.each(lambda row: sums[row] / rows.count)

    def centred(row: int, at: "tirx.PrimExpr", lanes: int) -> "tirx.PrimExpr":
        return vm.keep(again(row, at, lanes) - vm.splat(means[row], lanes))

    _scaled(rows, centred, centred, rows.fold_ahead)


def _rms_norm(rows: _Group) -> None:
    first, again = rows.first()
    _scaled(rows, again, first, rows.fold)


def _scaled(rows: _Group, read: _Read, first: _Read, fold: Callable[[Fold, _Read], _Scalars]) -> None:
    """Divide by the root of the mean square, then scale and shift by the operands that are given.

    `fold` takes the squares of what `first` reads; `read` is for the pass after it.
    """
    node = rows.k.call.anchor
    given = dict(zip((i for i, v in enumerate(node.inputs) if v is not None), node.operands, strict=True))

    def square(row: int, at: "tirx.PrimExpr", lanes: int) -> "tirx.PrimExpr":
        value = vm.keep(first(row, at, lanes))
        return value * value

    squares = fold(total("float32"), square)
    eps = tirx.const(cast(float, node.attrs["eps"]), "float32")
    one = tirx.const(1.0, "float32")
    scales = rows.each(lambda row: one / vm.square_root(squares[row] / rows.count + eps))

    def result(row: int, at: "tirx.PrimExpr", lanes: int) -> "tirx.PrimExpr":
        value = read(row, at, lanes) * vm.splat(scales[row], lanes)
        value = value * rows.operand(given[1], row, at, lanes) if 1 in given else value
        return value + rows.operand(given[2], row, at, lanes) if 2 in given else value

    rows.write(result)


_ROWS: dict[Op, Callable[[_Group], None]] = {
    ops.softmax: _softmax,
    ops.log_softmax: _log_softmax,
    ops.layer_norm: _layer_norm,
    ops.rms_norm: _rms_norm,
}
