"""Reductions over any axes: along a last axis that goes, or across lanes of one that stays."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, cast

from tvm import tirx

from planish.codegen.call import Call
from planish.codegen.tvm import vector_math as vm
from planish.codegen.tvm.around import fuses_after, fuses_before, refuse_around
from planish.codegen.tvm.elementwise import compute_dtype
from planish.codegen.tvm.expression import Expression, store
from planish.codegen.tvm.folds import (
    Fold,
    Registers,
    State,
    first_largest,
    first_place,
    largest,
    line_lanes,
    plain,
    product,
    smallest,
    total,
)
from planish.codegen.tvm.isa import Isa
from planish.codegen.tvm.kernel import Kernel, KernelBuilder, bind, kernel
from planish.codegen.tvm.loops import Index, block_count, integer, nest, span, units, wide_vectors
from planish.codegen.tvm.loops import product as product_of
from planish.compiler import ops
from planish.compiler.ir import Node, Op
from planish.compiler.types import Dim, DType, Shape

_WAYS = 4  # vectors across lanes that one pass over the reduced axes keeps in registers


@dataclass(frozen=True, slots=True)
class Reduce:
    """Sums, means, extremes and truth over any axes, and argmax along one.

    f16 and bf16 are summed in f32, integers in their own dtype. The kept elements are shared between tasks: a reduction
    to few elements runs on as few tasks. An axis of argmax holds fewer than 2^31 elements.
    """

    name: ClassVar[str] = "reduce"
    ops: ClassVar[tuple[Op, ...]] = (
        *(ops.sum_, ops.mean, ops.amax, ops.amin, ops.prod, ops.any_, ops.all_, ops.argmax),
    )

    def refuse(self, call: Call, isa: Isa) -> str | None:
        return refuse_around(call)

    def build(self, call: Call, isa: Isa) -> Kernel:
        with kernel(call, isa) as (k, done):
            reduction = _Reduction(k, call.anchor)
            if len(call.anchor.operands[0].shape) - 1 in reduction.axes:
                reduction.along()
            else:
                reduction.across()
        return Kernel(done[0], 0)

    def fuses_after(self, anchor: Node, node: Node) -> bool:
        return fuses_after(anchor, node)

    def fuses_before(self, anchor: Node, node: Node) -> bool:
        return fuses_before(node)


@dataclass(frozen=True, slots=True)
class _Reduction:
    k: KernelBuilder
    node: Node

    @property
    def axes(self) -> tuple[int, ...]:
        if self.node.op is ops.argmax:
            return (cast(int, self.node.attrs["axis"]),)
        return tuple(sorted(cast("tuple[int, ...]", self.node.attrs["axes"])))

    @property
    def shape(self) -> Shape:
        return self.node.operands[0].shape

    @property
    def kept(self) -> tuple[int, ...]:
        return tuple(a for a in range(len(self.shape)) if a not in self.axes)

    @property
    def fold(self) -> Fold:
        dtype = compute_dtype(self.node.operands[0].dtype)
        return _FOLDS[self.node.op]("int32" if dtype == "bool" or self.node.op in _TRUTH else dtype)

    def along(self) -> None:
        """One kept element at a time: lines of the last axis, for every position on the other reduced axes."""
        width = self.shape[-1]
        lanes = line_lanes(width, self.k.isa.lanes)

        def element(index: Index) -> None:
            registers = Registers(self.fold, lanes, _line_ways(width, lanes))

            def line(outer: Index) -> None:
                registers.line(self.k, width, lambda at, n: self._read((*outer, at), index, n))

            nest([self.shape[a] for a in self.axes[:-1]], self.k, line)
            self._write(index, registers.result(), 1)

        units(self.k, tuple(self.shape[a] for a in self.kept), element)

    def across(self) -> None:
        """Vectors along the last axis, which is kept."""
        width, lanes = self.shape[-1], self.k.isa.lanes
        step = lanes * _WAYS
        blocks = block_count(width, step)

        def block(index: Index) -> None:
            start, stop = span(self.k, width, blocks, step, index[-1])
            size = width if isinstance(blocks, int) and blocks == 1 else bind(stop - start)
            columns = lambda at, n, ways: self._columns((*index[:-1], at), n, ways)  # noqa: E731
            wide_vectors(self.k, start, size, columns, lanes, _WAYS)

        units(self.k, (*(self.shape[a] for a in self.kept[:-1]), blocks), block)

    def _columns(self, index: Index, lanes: int, ways: int) -> None:
        registers = Registers(self.fold, lanes, ways)

        def position(outer: Index) -> None:
            for way in range(ways):
                place = (*index[:-1], index[-1] + way * lanes)
                at = outer[-1] if len(outer) == 1 else integer(0)
                registers.take(self._read(outer, place, lanes), at, way=way, step=0)

        nest([self.shape[a] for a in self.axes], self.k, position)
        for way in range(ways):
            self._write((*index[:-1], bind(index[-1] + way * lanes)), registers.vector(way), lanes)

    def _read(self, reduced: Index, kept: Index, lanes: int) -> "tirx.PrimExpr":
        """The operand at an index on the reduced axes and one on the kept axes, as the fold takes it."""
        places = dict(zip((*self.axes, *self.kept), (*reduced, *kept), strict=True))
        x = self.node.operands[0]
        value = vm.keep(Expression(self.k).at(x, tuple(places[a] for a in range(len(self.shape))), lanes))
        if self.node.op in _TRUTH or x.dtype is DType.bool:
            return vm.keep(_as_number(value))
        return value

    def _write(self, kept: Index, state: State, lanes: int) -> None:
        """Store the elements of the output, with what is computed on the anchor's result."""
        call = self.k.call
        result = self._result(state)
        index = kept
        if self.node.attrs["keep"]:
            places = dict(zip(self.kept, kept, strict=True))
            index = tuple(places.get(a, integer(0)) for a in range(len(self.shape)))
        value = Expression(self.k, {self.node.values[0]: lambda _, n: result}).at(call.output, index, lanes)
        store(self.k, call.view, index, value, lanes)

    def _result(self, state: State) -> "tirx.PrimExpr":
        x = self.node.operands[0]
        if self.node.op is ops.argmax:
            return vm.keep(vm.cast(first_place(state), "int64"))
        if self.node.op in _TRUTH or x.dtype is DType.bool:
            return vm.differ(state[0], vm.like(state[0], 0))
        if self.node.op is ops.mean:
            count = vm.cast(product_of(self.k, tuple(self.shape[a] for a in self.axes)), vm.element_of(state[0]))
            return vm.keep(state[0] / vm.splat(count, vm.lanes_of(state[0])))
        return state[0]


def _line_ways(width: Dim, lanes: int) -> int:
    whole = width // lanes if isinstance(width, int) else 4
    return max(w for w in (1, 2, 4) if w <= max(1, whole))


def _as_number(value: "tirx.PrimExpr") -> "tirx.PrimExpr":
    """1 in int32 where a predicate holds or a number is not zero, else 0."""
    lanes = vm.lanes_of(value)
    truth = value
    if vm.element_of(value) != "bool":
        truth = vm.differ(value, vm.like(value, 0))
        truth = vm.either(truth, vm.is_nan(value)) if vm.is_float(value) else truth
    return vm.select(truth, vm.constant(1, "int32", lanes), vm.constant(0, "int32", lanes))


def _any(dtype: str) -> Fold:
    return plain(dtype, 0, tirx.bitwise_or, again=True)


def _all(dtype: str) -> Fold:
    return plain(dtype, 1, tirx.bitwise_and, again=True)


_TRUTH = (ops.any_, ops.all_)
_FOLDS: dict[Op, Callable[[str], Fold]] = {
    ops.sum_: total,
    ops.mean: total,
    ops.prod: product,
    ops.amax: largest,
    ops.amin: smallest,
    ops.any_: _any,
    ops.all_: _all,
    ops.argmax: first_largest,
}
