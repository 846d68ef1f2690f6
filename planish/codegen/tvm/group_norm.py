"""Group normalization, channels last: statistics over the positions and the channels of a group."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, cast

from tvm import tirx

from planish.codegen.call import Call
from planish.codegen.tvm import vector_math as vm
from planish.codegen.tvm.around import fuses_after, fuses_before, refuse_around
from planish.codegen.tvm.expression import Expression, store
from planish.codegen.tvm.folds import Registers, line_lanes, total
from planish.codegen.tvm.isa import Isa
from planish.codegen.tvm.kernel import Kernel, KernelBuilder, bind, kernel
from planish.codegen.tvm.loops import Index, integer, nest, product, units, vectors
from planish.compiler import ops
from planish.compiler.ir import Node, Op, Value
from planish.compiler.types import DType


@dataclass(frozen=True, slots=True)
class GroupNorm:
    """One task computes a group: its mean, the mean square of the differences, then its elements."""

    name: ClassVar[str] = "group_norm"
    ops: ClassVar[tuple[Op, ...]] = (ops.group_norm,)

    def refuse(self, call: Call, isa: Isa) -> str | None:
        x = call.anchor.operands[0]
        if x.dtype not in (DType.f32, DType.bf16, DType.f16):
            return f"group_norm of {x.dtype} has no kernel; cast to f32"
        if not isinstance(x.shape[-1], int):
            return f"the count of channels of {x.type} is not fixed"
        return refuse_around(call)

    def build(self, call: Call, isa: Isa) -> Kernel:
        groups = cast(int, call.anchor.attrs["groups"])
        with kernel(call, isa) as (k, done):
            units(k, (call.anchor.types[0].shape[0], groups), lambda index: _group(k, index, groups))
        return Kernel(done[0], 0)

    def fuses_after(self, anchor: Node, node: Node) -> bool:
        return fuses_after(anchor, node)

    def fuses_before(self, anchor: Node, node: Node) -> bool:
        return fuses_before(node)


def _group(k: KernelBuilder, unit: Index, groups: int) -> None:
    node = k.call.anchor
    shape = node.types[0].shape
    sample, group = unit
    width = cast(int, shape[-1]) // groups
    first = bind(group * width)
    spatial = shape[1:-1]

    def read(index: Index, at: "tirx.PrimExpr", lanes: int) -> "tirx.PrimExpr":
        return vm.keep(Expression(k).at(node.operands[0], (sample, *index, first + at), lanes))

    def mean_of(take: "Callable[[Index, tirx.PrimExpr, int], tirx.PrimExpr]") -> "tirx.PrimExpr":
        lanes = line_lanes(width, k.isa.lanes)
        registers = Registers(total("float32"), lanes, max(w for w in (1, 2, 4) if w <= width // lanes))
        nest(spatial, k, lambda index: registers.line(k, width, lambda at, n: take(index, at, n)))
        count = product(k, spatial) * integer(width)
        return vm.keep(registers.result()[0] / vm.cast(count, "float32"))

    mean = mean_of(read)

    def square(index: Index, at: "tirx.PrimExpr", lanes: int) -> "tirx.PrimExpr":
        difference = vm.keep(read(index, at, lanes) - vm.splat(mean, lanes))
        return difference * difference

    eps = tirx.const(cast(float, node.attrs["eps"]), "float32")
    scale = vm.keep(tirx.const(1.0, "float32") / vm.square_root(mean_of(square) + eps))

    def line(index: Index) -> None:
        def body(at: "tirx.PrimExpr", lanes: int) -> None:
            centred = read(index, at, lanes) - vm.splat(mean, lanes)
            _write(k, (sample, *index, bind(first + at)), centred * vm.splat(scale, lanes), lanes)

        vectors(k, integer(0), width, body, k.isa.lanes)

    nest(spatial, k, line)


def _write(k: KernelBuilder, index: Index, value: "tirx.PrimExpr", lanes: int) -> None:
    """Scale, shift and store elements of the normalized operand."""
    call = k.call
    inputs: tuple[Value | None, ...] = (*call.anchor.inputs, None, None)
    if inputs[1] is not None:
        value = value * Expression(k).at(inputs[1], index[-1:], lanes)
    if inputs[2] is not None:
        value = value + Expression(k).at(inputs[2], index[-1:], lanes)
    result = vm.keep(value)
    out = Expression(k, {call.anchor.values[0]: lambda *_: result}).at(call.output, index, lanes)
    store(k, call.view, index, out, lanes)
