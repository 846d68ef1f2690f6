"""Group normalization, channels last: statistics over the positions and the channels of a group."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, TypeAlias, cast

from tvm import tirx

from planish.codegen.call import Call
from planish.codegen.tvm import vector_math as vm
from planish.codegen.tvm.around import fuses_after, fuses_before, refuse_around
from planish.codegen.tvm.expression import Expression, store
from planish.codegen.tvm.folds import Registers, line_lanes, total
from planish.codegen.tvm.group_norm_narrow import build_narrow, narrow_lanes
from planish.codegen.tvm.isa import Isa
from planish.codegen.tvm.kernel import Kernel, KernelBuilder, bind, kernel
from planish.codegen.tvm.loops import Index, integer, nest, product, units, vectors
from planish.compiler import ops
from planish.compiler.ir import Node, Op, Value
from planish.compiler.types import DType, Shape, same_dim

_Take: TypeAlias = "Callable[[Index, tirx.PrimExpr, int], tirx.PrimExpr]"


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
        if x in call.inputs and not same_dim(call.inputs[x].strides[-1], 1) and not same_dim(x.shape[-1], 1):
            return "the channels are strided"
        return refuse_around(call)

    def build(self, call: Call, isa: Isa) -> Kernel:
        lanes = narrow_lanes(call, isa)
        if lanes is not None:
            return build_narrow(call, isa, lanes)
        shape = call.anchor.types[0].shape
        groups, eps = cast(int, call.anchor.attrs["groups"]), cast(float, call.anchor.attrs["eps"])
        width = cast(int, shape[-1]) // groups
        with kernel(call, isa) as (k, done):
            units(k, (shape[0], groups), lambda u: _Group(k, u[0], bind(u[1] * width), width).normalize(eps))
        return Kernel(done[0], 0)

    def fuses_after(self, anchor: Node, node: Node) -> bool:
        return fuses_after(anchor, node)

    def fuses_before(self, anchor: Node, node: Node) -> bool:
        return fuses_before(node)


@dataclass(frozen=True, slots=True)
class _Group:
    """One group of one sample: `width` channels from `first`."""

    k: KernelBuilder
    sample: "tirx.PrimExpr"
    first: "tirx.PrimExpr"
    width: int

    @property
    def spatial(self) -> Shape:
        return self.k.call.anchor.types[0].shape[1:-1]

    def read(self, index: Index, at: "tirx.PrimExpr", lanes: int) -> "tirx.PrimExpr":
        """Elements of the operand, from channel `at` of the group on."""
        place = (self.sample, *index, self.first + at)
        return vm.keep(Expression(self.k).at(self.k.call.anchor.operands[0], place, lanes))

    def mean(self, take: "_Take") -> "tirx.PrimExpr":
        """The mean of what `take` gives over the group."""
        lanes = line_lanes(self.width, self.k.isa.lanes)
        registers = Registers(total("float32"), lanes, max(w for w in (1, 2, 4) if w <= self.width // lanes))
        nest(self.spatial, self.k, lambda i: registers.line(self.k, self.width, lambda at, n: take(i, at, n)))
        count = product(self.k, self.spatial) * integer(self.width)
        return vm.keep(registers.result()[0] / vm.cast(count, "float32"))

    def normalize(self, eps: float) -> None:
        """Write the group's elements."""
        mean = self.mean(self.read)

        def centred(index: Index, at: "tirx.PrimExpr", lanes: int) -> "tirx.PrimExpr":
            return vm.keep(self.read(index, at, lanes) - vm.splat(mean, lanes))

        def square(index: Index, at: "tirx.PrimExpr", lanes: int) -> "tirx.PrimExpr":
            difference = centred(index, at, lanes)
            return difference * difference

        variance = self.mean(square)
        scale = vm.keep(tirx.const(1.0, "float32") / vm.square_root(variance + tirx.const(eps, "float32")))

        def write(index: Index, at: "tirx.PrimExpr", lanes: int) -> None:
            value = centred(index, at, lanes) * vm.splat(scale, lanes)
            _write(self.k, (self.sample, *index, bind(self.first + at)), value, lanes)

        def line(index: Index) -> None:
            vectors(self.k, integer(0), self.width, lambda at, n: write(index, at, n), self.k.isa.lanes)

        nest(self.spatial, self.k, line)


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
