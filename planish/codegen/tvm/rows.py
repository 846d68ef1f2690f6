"""Softmax and normalizations over the last axis, one row at a time in the first level of cache."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import ClassVar, TypeAlias, cast

import sympy
from tvm import tirx
from tvm.script.ir_builder import tirx as T  # noqa: N812 - TVM's own name for its script namespace

from planish.codegen.call import Call
from planish.codegen.tvm import vector_math as vm
from planish.codegen.tvm.around import fuses_after, fuses_before, refuse_around
from planish.codegen.tvm.elementwise import to_memory
from planish.codegen.tvm.expression import Expression, Known, store
from planish.codegen.tvm.folds import Fold, Read, Registers, State, line_lanes, lines, moments, peak, total
from planish.codegen.tvm.isa import Isa
from planish.codegen.tvm.kernel import Kernel, KernelBuilder, bind, kernel, ramp
from planish.codegen.tvm.loops import Group, Index, Stages, pipeline, vectors
from planish.codegen.tvm.row_exponential import exponential, origin
from planish.codegen.tvm.streaming import Stream, streaming
from planish.compiler import ops
from planish.compiler.ir import Node, Op, Value
from planish.compiler.types import Dim, DType, floor_div, same_dim, simplify

_Read: TypeAlias = "Callable[[int, tirx.PrimExpr, int], tirx.PrimExpr]"
_Scalars: TypeAlias = "Sequence[tirx.PrimExpr]"
_States: TypeAlias = tuple[State, ...]
_Write: TypeAlias = Callable[["tirx.PrimExpr", int], None]

_KEPT = 4  # rows of scratch memory for each row of a group: of this group and another, elements and exponentials
_NUMBERS = 3  # of a row that live from its first step to its last
_SAMPLED = 12  # elements of a row of which one is looked at for a value near the mean
_TOGETHER = 2  # rows that are computed side by side: they share what all rows read, and hide each other's folds
_MOST_WIDTH = 1024  # of rows side by side, so that they and their results stay in the first level of cache


@dataclass(frozen=True, slots=True)
class Rows:
    """Statistics of a row first, then its elements; both passes of a variance run over the row in cache.

    Rows are written while the next ones are already read, so that no result is waited for. Short rows go two by two,
    except where the output is written past the caches: memory likes one row after another. A row that has to be
    computed or gathered is kept by the first pass, in the output or in scratch memory. f16 and bf16 are computed in
    f32; softmax gives 0, or a number below 2^-125, where the result is below 2^-125 of the largest.
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
        together = _together(call)
        scratch = simplify(_KEPT * together * row_bytes)
        with kernel(call, isa, scratch) as (k, done), streaming(k, call.view) as stream:
            if stream is None:
                _emit(k, together, row_bytes, None)
            else:
                with T.If(stream.condition):
                    with T.Then():
                        _emit(k, 1, row_bytes, stream)
                    with T.Else():
                        _emit(k, together, row_bytes, None)
        return Kernel(done[0], scratch)

    def fuses_after(self, anchor: Node, node: Node) -> bool:
        return fuses_after(anchor, node)

    def fuses_before(self, anchor: Node, node: Node) -> bool:
        return fuses_before(node)


def _emit(k: KernelBuilder, together: int, row_bytes: Dim, stream: Stream | None) -> None:
    """All rows, `together` at a time."""
    numbers = tuple(T.alloc_buffer((_TOGETHER,), "float32") for _ in range(_NUMBERS))
    begin, result = _METHODS[k.call.anchor.op]

    def rows(group: Group) -> _Rows:
        return _Rows(k, group, row_bytes, stream, numbers)

    def follow(coming: Group, going: Group) -> None:
        begin(rows(coming), rows(going).writer(result))

    stages = Stages(lambda group: begin(rows(group), None), follow, lambda group: rows(group).write(result))
    pipeline(k, k.call.anchor.types[0].shape[:-1], together, stages)


def _together(call: Call) -> int:
    width = call.anchor.operands[0].shape[-1]
    most = _MOST_WIDTH if _lies_in_memory(call) or call.anchor.op in _TWICE else _MOST_WIDTH // 2
    return _TOGETHER if isinstance(width, int) and width <= most else 1


def _lies_in_memory(call: Call) -> bool:
    """Whether the anchor's operand can be read again and again where it lies."""
    return call.has_rows(call.anchor.operands[0])


@dataclass(frozen=True, slots=True)
class _Rows:
    """A group of rows of the anchor's operand; what is read of them is asked by number.

    `numbers` are variables of every row that live from its first step to its last.
    """

    k: KernelBuilder
    group: Group
    row_bytes: Dim
    stream: Stream | None
    numbers: "tuple[tirx.Buffer, ...]"

    @property
    def leads(self) -> tuple[Index, ...]:
        return self.group.leads

    @property
    def width(self) -> Dim:
        return self.k.call.anchor.operands[0].shape[-1]

    def recall(self, slot: int) -> _Scalars:
        """What an earlier step has put into a slot."""
        return tuple(bind(self.numbers[slot][row]) for row in range(len(self.leads)))

    def remember(self, slot: int, values: _Scalars) -> None:
        """Keep a number of every row for a later step."""
        for row, value in enumerate(values):
            T.buffer_store(self.numbers[slot], value, [row])

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

    def fold(self, fold: Fold, read: _Read, ways: int = 4, *, besides: _Write | None = None) -> _States:
        """The fold of what `read` gives of each whole row; `besides` is done for each vector of the rows."""
        return self.part(self.width, fold, read, ways, besides=besides)

    def part(self, width: Dim, fold: Fold, read: _Read, ways: int = 4, *, besides: _Write | None = None) -> _States:
        """The fold of the first `width` elements of each row."""
        (states,) = self.folds(width, ((fold, read),), ways, besides)
        return states

    def folds(
        self, width: Dim, folds: Sequence[tuple[Fold, _Read]], ways: int, besides: _Write | None
    ) -> tuple[_States, ...]:
        """What `part` gives, of several folds in one pass; `besides` comes before what the first fold reads last."""
        lanes, rows = line_lanes(width, self.k.isa.lanes), range(len(self.leads))
        ways = ways if not isinstance(width, int) else max(w for w in (1, 2, ways) if w <= max(1, width // lanes))
        group = [(Registers(fold, lanes, ways), partial(read, row)) for fold, read in folds for row in rows]
        if besides is not None:
            registers, last = group[rows[-1]]
            group[rows[-1]] = registers, partial(_both, last, besides)
        lines(self.k, width, group)
        states = [registers.result() for registers, _ in group]
        return tuple(tuple(states[i : i + len(rows)]) for i in range(0, len(states), len(rows)))

    @property
    def after(self) -> "_Rows":
        """The rows of the next group."""
        return replace(self, group=self.group.after())

    def operand_of_anchor(self, row: int, at: "tirx.PrimExpr", lanes: int) -> "tirx.PrimExpr":
        """Elements of the anchor's operand, computed or read where they lie."""
        return self.operand(self.k.call.anchor.operands[0], row, at, lanes)

    def first(self, row: int, at: "tirx.PrimExpr", lanes: int) -> "tirx.PrimExpr":
        """Elements of the anchor's operand, for the first pass over whole rows."""
        value = self.operand_of_anchor(row, at, lanes)
        if _lies_in_memory(self.k.call):
            return value
        if not self._keeps_in_output:
            return self.keep(self._kept(row), at, value)
        value = vm.keep(value)
        T.buffer_store(self.k.output, value, [self._place(row, at, lanes)])
        return value

    def again(self, row: int, at: "tirx.PrimExpr", lanes: int) -> "tirx.PrimExpr":
        """Elements of the anchor's operand, for later passes."""
        if _lies_in_memory(self.k.call):
            return self.operand_of_anchor(row, at, lanes)
        if self._keeps_in_output:
            return vm.keep(self.k.output[self._place(row, at, lanes)])
        return self.kept(self._kept(row), at, lanes)

    @property
    def _keeps_in_output(self) -> bool:
        """Whether a row that was computed waits where its results will lie: the cache has those lines ready then."""
        view, whole = self.k.call.view, isinstance(self.width, int) and self.width % self.lanes == 0
        return self.stream is None and whole and view.dtype is DType.f32 and same_dim(view.strides[-1], 1)

    def _place(self, row: int, at: "tirx.PrimExpr", lanes: int) -> "tirx.PrimExpr":
        """Where the result of an element lies."""
        return ramp(bind(self.k.address(self.k.call.view, (*self.leads[row], at))), lanes)

    def _kept(self, row: int) -> "tirx.PrimExpr":
        """The slot of a row that the group before, whose rows are still needed, does not use."""
        return self.group.turn * len(self.leads) + row

    def keep(self, slot: "tirx.PrimExpr | int", at: "tirx.PrimExpr", value: "tirx.PrimExpr") -> "tirx.PrimExpr":
        """Put f32 values into a row of scratch memory, and give them back."""
        buffer, start = self._scratch(slot)
        T.buffer_store(buffer, value, [ramp(bind(start + at), vm.lanes_of(value))])
        return value

    def kept(self, slot: "tirx.PrimExpr | int", at: "tirx.PrimExpr", lanes: int) -> "tirx.PrimExpr":
        """What was put there."""
        buffer, start = self._scratch(slot)
        return vm.keep(buffer[ramp(bind(start + at), lanes)])

    def _scratch(self, slot: "tirx.PrimExpr | int") -> "tuple[tirx.Buffer, tirx.PrimExpr]":
        step = self.k.dim(simplify(floor_div(self.row_bytes, 4)))
        rows = self.k.scratch_buffer(simplify(_KEPT * len(self.leads) * floor_div(self.row_bytes, 4)), DType.f32)
        return rows, bind(step * slot)

    def write(self, result: "Callable[[_Rows], _Read]") -> None:
        """Store the call's output, where the anchor's value at each place is `result(self)(row, at, lanes)`."""
        vectors(self.k, tirx.const(0, "int64"), self.width, self.writer(result), self.k.isa.lanes)

    def writer(self, result: "Callable[[_Rows], _Read]") -> _Write:
        """What `write` does, a vector of each row at a time."""
        read = result(self)

        def write(at: "tirx.PrimExpr", lanes: int) -> None:
            for row in range(len(self.leads)):
                self._write(row, read, at, lanes)

        return write

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


def _both(read: Read, besides: _Write, at: "tirx.PrimExpr", lanes: int) -> "tirx.PrimExpr":
    value = vm.keep(read(at, lanes))
    besides(at, lanes)
    return value


def _begin_softmax(rows: _Rows, besides: _Write | None) -> None:
    """The exponentials of rows whose largest elements are known, and the largest elements of the rows after them."""
    ahead, isa = rows.after, rows.k.isa
    tops = rows.recall(2) if besides is not None else [top for (top,) in rows.fold(peak(), rows.first)]
    origins = [vm.keep(origin(top, isa)) for top in tops]

    def power(row: int, at: "tirx.PrimExpr", lanes: int) -> "tirx.PrimExpr":
        shifted = vm.keep(rows.again(row, at, lanes) - vm.splat(origins[row], lanes))
        return rows.keep(_slot(rows, row), at, exponential(shifted, isa))

    folds = ((total("float32"), power), (peak(), ahead.first))
    sums, peaks = rows.folds(rows.width, folds, 2, besides)
    rows.remember(1, [tirx.const(1.0, "float32") / s for (s,) in sums])
    rows.remember(2, [top for (top,) in peaks])


def _softmax(rows: _Rows) -> _Read:
    scales = rows.recall(1)
    return lambda row, at, n: rows.kept(_slot(rows, row), at, n) * vm.splat(scales[row], n)


def _slot(rows: _Rows, row: int) -> "tirx.PrimExpr":
    """Where in scratch memory the exponentials are."""
    return bind((rows.group.turn + 2) * len(rows.leads) + row)


def _begin_log_softmax(rows: _Rows, besides: _Write | None) -> None:
    tops = [top for (top,) in rows.fold(peak(), rows.first)]
    rows.remember(0, tops)

    def power(row: int, at: "tirx.PrimExpr", lanes: int) -> "tirx.PrimExpr":
        return vm.exp_nonpositive(vm.keep(rows.again(row, at, lanes) - vm.splat(tops[row], lanes)))

    rows.remember(1, [vm.log(s) for (s,) in rows.fold(total("float32"), power, 2, besides=besides)])


def _log_softmax(rows: _Rows) -> _Read:
    tops, logarithms = rows.recall(0), rows.recall(1)

    def result(row: int, at: "tirx.PrimExpr", lanes: int) -> "tirx.PrimExpr":
        shifted = vm.keep(rows.again(row, at, lanes) - vm.splat(tops[row], lanes))
        return shifted - vm.splat(logarithms[row], lanes)

    return result


def _begin_layer_norm(rows: _Rows, besides: _Write | None) -> None:
    """One pass over the deviations from the mean of a part of the row.

    The mean of one element in n is off by at most sqrt(n) standard deviations of the row, so that the square of that,
    which is taken off again, costs no more than a factor of n in precision, and mostly nothing.
    """
    sample = _sample(rows.width)
    sums = rows.part(sample, total("float32"), rows.operand_of_anchor)
    near = [vm.keep(s / vm.cast(rows.k.dim(sample), "float32")) for (s,) in sums]

    def deviation(row: int, at: "tirx.PrimExpr", lanes: int) -> "tirx.PrimExpr":
        return vm.keep(rows.first(row, at, lanes) - vm.splat(near[row], lanes))

    each = vm.keep(tirx.const(1.0, "float32") / rows.count)
    means, scales = [], []
    for start, (s, squares) in zip(
        near, rows.fold(moments("float32"), deviation, ways=2, besides=besides), strict=True
    ):
        shift = vm.keep(s * each)
        variance = vm.keep((squares - s * shift) * each)
        means.append(start + shift)
        scales.append(_scale(rows, vm.keep(vm.fast_maximum(variance, vm.like(variance, 0)))))
    rows.remember(0, means)
    rows.remember(1, scales)


def _sample(width: Dim) -> Dim:
    """How many elements tell where about the mean lies: at least one in `_SAMPLED`, and whole vectors."""
    size = 16 * (floor_div(width - 1, 16 * _SAMPLED) + 1)
    return simplify(sympy.Min(width, size))


def _layer_norm(rows: _Rows) -> _Read:
    means, scales = rows.recall(0), rows.recall(1)
    centred: _Read = lambda row, at, n: vm.keep(rows.again(row, at, n) - vm.splat(means[row], n))  # noqa: E731
    return _scaled(rows, centred, scales)


def _begin_rms_norm(rows: _Rows, besides: _Write | None) -> None:
    def square(row: int, at: "tirx.PrimExpr", lanes: int) -> "tirx.PrimExpr":
        value = vm.keep(rows.first(row, at, lanes))
        return value * value

    sums = rows.fold(total("float32"), square, besides=besides)
    rows.remember(0, [_scale(rows, s / rows.count) for (s,) in sums])


def _rms_norm(rows: _Rows) -> _Read:
    return _scaled(rows, rows.again, rows.recall(0))


def _scale(rows: _Rows, variance: "tirx.PrimExpr") -> "tirx.PrimExpr":
    eps = tirx.const(cast(float, rows.k.call.anchor.attrs["eps"]), "float32")
    return tirx.const(1.0, "float32") / vm.square_root(variance + eps)


def _scaled(rows: _Rows, read: _Read, scales: _Scalars) -> _Read:
    """Each row scaled, then scaled and shifted by the operands that are given."""
    node = rows.k.call.anchor
    given = dict(zip((i for i, v in enumerate(node.inputs) if v is not None), node.operands, strict=True))

    def result(row: int, at: "tirx.PrimExpr", lanes: int) -> "tirx.PrimExpr":
        value = read(row, at, lanes) * vm.splat(scales[row], lanes)
        value = value * rows.operand(given[1], row, at, lanes) if 1 in given else value
        return value + rows.operand(given[2], row, at, lanes) if 2 in given else value

    return result


_TWICE = (ops.softmax, ops.log_softmax)
_METHODS: dict[Op, "tuple[Callable[[_Rows, _Write | None], None], Callable[[_Rows], _Read]]"] = {
    ops.softmax: (_begin_softmax, _softmax),
    ops.log_softmax: (_begin_log_softmax, _log_softmax),
    ops.layer_norm: (_begin_layer_norm, _layer_norm),
    ops.rms_norm: (_begin_rms_norm, _rms_norm),
}
