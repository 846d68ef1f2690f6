"""Rows of a product's left operand that every task computes for itself: elementwise nodes and a norm over the row."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import cast

from tvm import tirx
from tvm.script.ir_builder import tirx as T  # noqa: N812 - TVM's own name for its script namespace

from planish.codegen.call import Call
from planish.codegen.tvm import around
from planish.codegen.tvm import vector_math as vm
from planish.codegen.tvm.expression import Expression
from planish.codegen.tvm.folds import Registers, line_lanes, total
from planish.codegen.tvm.gemm_rows import unravel
from planish.codegen.tvm.kernel import KernelBuilder, bind, ramp
from planish.codegen.tvm.tiles import each_chunk
from planish.compiler import ops
from planish.compiler.ir import Node, Value
from planish.compiler.types import DType, elements, same_shape

NORMS = (ops.rms_norm, ops.layer_norm)
_WAYS = 4  # registers of partial sums, which hide the latency of an addition


def computes(anchor: Node, node: Node) -> bool:
    """Whether `node` may be computed with the one row of x in every task of linear(x, w).

    One row costs a task less than a barrier and the way of its elements between two cores.
    """
    x = anchor.operands[0]
    if elements(x.shape[:-1]) != 1 or not isinstance(x.shape[-1], int) or x.dtype is not DType.f32:
        return False
    if node.op in (ops.full, ops.dim_value):
        return True
    if node.types[0].dtype is not DType.f32 or not same_shape(node.types[0].shape, x.shape):
        return False
    return node.op in NORMS or ("elementwise" in node.op.traits and around.fuses_before(node))


def refuse_norms(call: Call) -> str | None:
    """Why more than one norm stands before the anchor, or None."""
    norms = [node for node in call.prologue if node.op in NORMS]
    return f"{len(norms)} norms stand before {call.anchor.op.name}" if len(norms) > 1 else None


def norm_before(call: Call) -> Node | None:
    """The norm among the nodes before the anchor."""
    return next((node for node in call.prologue if node.op in NORMS), None)


@dataclass(frozen=True, slots=True)
class ComputedRow:
    """The rows of `x` [..., depth], computed from the inputs of the call; see `computes`."""

    k: KernelBuilder
    x: Value

    @property
    def _depth(self) -> int:
        return cast(int, self.x.shape[-1])

    def write(self, row: "tirx.PrimExpr", target: "tirx.Buffer", place: "tirx.PrimExpr") -> None:
        """Compute row `row` to the f32 buffer `target` from `place` on, with zeros up to the end of a vector."""
        lead, lanes = unravel(self.k, row, self.x.shape[:-1]), self.k.isa.lanes
        if self._depth % lanes:
            zeros = T.broadcast(tirx.const(0.0, "float32"), lanes)
            T.buffer_store(target, zeros, [ramp(place + self._depth // lanes * lanes, lanes)])
        norm = norm_before(self.k.call)
        known = {} if norm is None else {Value(norm): self.normed(norm, lead, target, place)}

        def store(at: "tirx.PrimExpr", count: int) -> None:
            value = Expression(self.k, known).at(self.x, (*lead, bind(at + 0)), count)
            T.buffer_store(target, value, [ramp(bind(place + at), count)])

        each_chunk(self._depth, lanes, store)

    def normed(
        self, norm: Node, lead: "tuple[tirx.PrimExpr, ...]", target: "tirx.Buffer", place: "tirx.PrimExpr"
    ) -> "Callable[[tuple[tirx.PrimExpr, ...], int], tirx.PrimExpr]":
        """Write what is normed to `target`, unless it lies in memory, and give what reads it there, normed."""
        source = norm.operands[0]
        lies = self.k.call.has_rows(source)

        def computed(at: "tirx.PrimExpr", count: int) -> "tirx.PrimExpr":
            value = vm.keep(Expression(self.k).at(source, (*lead, at), count))
            if not lies:
                T.buffer_store(target, value, [ramp(bind(place + at), count)])
            return value

        def stored(at: "tirx.PrimExpr", count: int) -> "tirx.PrimExpr":
            return computed(at, count) if lies else vm.keep(target[ramp(bind(place + at), count)])

        if norm.op is ops.rms_norm:
            centred, first = stored, computed
        else:
            mean = self._mean(computed)

            def centred(at: "tirx.PrimExpr", count: int) -> "tirx.PrimExpr":
                return vm.keep(stored(at, count) - vm.splat(mean, count))

            first = centred
        eps, one = (tirx.const(number, "float32") for number in (cast(float, norm.attrs["eps"]), 1.0))
        scale = vm.keep(one / vm.square_root(self._mean(lambda at, n: _square(first(at, n))) + eps))
        given = dict(zip((i for i, v in enumerate(norm.inputs) if v is not None), norm.operands, strict=True))

        def result(index: "tuple[tirx.PrimExpr, ...]", count: int) -> "tirx.PrimExpr":
            value = centred(index[-1], count) * vm.splat(scale, count)
            value = value * Expression(self.k).at(given[1], index[-1:], count) if 1 in given else value
            return value + Expression(self.k).at(given[2], index[-1:], count) if 2 in given else value

        return result

    def _mean(self, read: "Callable[[tirx.PrimExpr, int], tirx.PrimExpr]") -> "tirx.PrimExpr":
        lanes = line_lanes(self._depth, self.k.isa.lanes)
        ways = max(w for w in (1, 2, _WAYS) if w <= max(1, self._depth // lanes))
        registers = Registers(total("float32"), lanes, ways)
        registers.line(self.k, self._depth, read)
        return vm.keep(registers.result()[0] / tirx.const(float(self._depth), "float32"))


def _square(value: "tirx.PrimExpr") -> "tirx.PrimExpr":
    return value * value
