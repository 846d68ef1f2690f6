"""Quantization by itself: scales of groups, codes, and codes back to numbers."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

from tvm import tirx
from tvm.script.ir_builder import tirx as T  # noqa: N812 - TVM's own name for its script namespace

from planish.codegen.call import Call
from planish.codegen.tvm import vector_math as vm
from planish.codegen.tvm.around import fuses_after, fuses_before, refuse_around
from planish.codegen.tvm.elementwise import compute_dtype
from planish.codegen.tvm.expression import Expression, store
from planish.codegen.tvm.folds import Read, Registers, largest, line_lanes
from planish.codegen.tvm.isa import Isa
from planish.codegen.tvm.kernel import Kernel, KernelBuilder, bind, kernel
from planish.codegen.tvm.levels import MOST_LEVELS, Codebook
from planish.codegen.tvm.loops import Index, units, vectors
from planish.codegen.tvm.vector_math import cast, keep, like, select, splat
from planish.compiler import ops
from planish.compiler.ir import Node, Op, Value
from planish.compiler.ops.quantize import middle
from planish.compiler.types import Shape

# (index of the group, its first element, how many it has)
Group = Callable[[Index, "tirx.PrimExpr", int], None]
# (the first element along the last axis, lanes) to f32 numbers of one group
Numbers = Callable[["tirx.PrimExpr", int], "tirx.PrimExpr"]


@dataclass(frozen=True, slots=True)
class Quantization:
    """quantization_scale, quantize and dequantize, group by group; the last axis has a constant size."""

    name: ClassVar[str] = "quantization"
    ops: ClassVar[tuple[Op, ...]] = (ops.quantization_scale, ops.quantize, ops.dequantize)

    def refuse(self, call: Call, isa: Isa) -> str | None:
        if not isinstance(call.anchor.operands[0].shape[-1], int):
            return "groups lie along an axis of dynamic size"
        return refuse_codebook(call.anchor) or refuse_around(call)

    def build(self, call: Call, isa: Isa) -> Kernel:
        with kernel(call, isa) as (k, done):
            x = call.anchor.operands[0]
            groups(k, x.shape[:-1], call.anchor, _BODIES[call.anchor.op](k))
        return Kernel(done[0], 0)

    def fuses_after(self, anchor: Node, node: Node) -> bool:
        return fuses_after(anchor, node)

    def fuses_before(self, anchor: Node, node: Node) -> bool:
        return fuses_before(node)


def refuse_codebook(node: Node) -> str | None:
    """Why the levels of a node have no table in a kernel, or None."""
    levels = len(_codebook(node))
    return f"a codebook of {levels} levels is over {MOST_LEVELS}" if levels > MOST_LEVELS else None


def _codebook(node: Node) -> tuple[float, ...]:
    levels = node.attrs.get("codebook", ())
    assert isinstance(levels, tuple)
    return levels


def _number(node: Node, name: str) -> int:
    value = node.attrs[name]
    assert isinstance(value, int)
    return value


def groups(k: KernelBuilder, lead: Shape, node: Node, body: Group) -> None:
    """Call `body` for this task's share of the groups of `node`'s operand, at every index over `lead`."""
    group, width = _number(node, "group"), node.operands[0].shape[-1]
    assert isinstance(width, int)
    whole, rest = divmod(width, group)
    shape = (*lead, whole + (rest > 0))

    def unit(index: Index) -> None:
        start = bind(index[-1] * group)
        if not rest or not whole:
            body(index, start, rest or group)
            return
        with T.If(index[-1] < whole):
            with T.Then():
                body(index, start, group)
            with T.Else():
                body(index, start, rest)

    units(k, shape, unit)


def _magnitude(x: "tirx.PrimExpr") -> "tirx.PrimExpr":
    """Bits without the sign order like magnitudes do, and not-a-number lies above all."""
    raw = vm.bits(x, "int32")
    return tirx.bitwise_and(raw, like(raw, 0x7FFFFFFF))


def inverse_of(scale: "tirx.PrimExpr") -> "tirx.PrimExpr":
    """What numbers are multiplied by: the reciprocal of their scale, 0 for a scale of 0."""
    return keep(select(vm.equal(scale, like(scale, 0)), like(scale, 0), like(scale, 1) / scale))


def code_of(x: "tirx.PrimExpr", inverse: "tirx.PrimExpr", bits: int) -> "tirx.PrimExpr":
    """f32 as i8 codes, rounded to even."""
    top = _top(bits)
    number = vm.intrinsic("llvm.roundeven", x * inverse)
    number = vm.fast_maximum(keep(number), like(number, -top))
    number = select(keep(number) < like(number, top), keep(number), like(number, top))
    return cast(cast(number, "int32"), "int8")


def _top(bits: int) -> int:
    return (1 << (bits - 1)) - 1


def _finish(k: KernelBuilder, index: Index, value: "tirx.PrimExpr", lanes: int) -> None:
    """Store the anchor's result at an index after what the call computes on it."""
    (anchor,) = k.call.anchor.values
    value = Expression(k, {anchor: lambda _, __: value}).at(k.call.output, index, lanes)
    store(k, k.call.view, index, value, lanes)


def _floats(k: KernelBuilder, value: Value, index: Index, lanes: int) -> "tirx.PrimExpr":
    return cast(Expression(k).at(value, index, lanes), "float32")


def _scales(k: KernelBuilder) -> Group:
    anchor = k.call.anchor

    def body(index: Index, start: "tirx.PrimExpr", count: int) -> None:
        def read(at: "tirx.PrimExpr", lanes: int) -> "tirx.PrimExpr":
            return _floats(k, anchor.operands[0], (*index[:-1], bind(start + at)), lanes)

        _finish(k, index, group_scale(k, count, _number(anchor, "bits"), read), 1)

    return body


def group_scale(k: KernelBuilder, count: int, bits: int, read: Read) -> "tirx.PrimExpr":
    """The scale of `count` f32 numbers, of which `read` gives some."""
    registers = Registers(largest("int32"), line_lanes(count, k.isa.lanes), 2)
    registers.line(k, count, lambda at, lanes: _magnitude(read(at, lanes)))
    (most,) = registers.result()
    value = vm.bits(most, "float32")
    return value / like(value, _top(bits))


def _codes(k: KernelBuilder) -> Group:
    anchor = k.call.anchor
    x, scale = anchor.operands

    def body(index: Index, start: "tirx.PrimExpr", count: int) -> None:
        inverse = inverse_of(keep(_floats(k, scale, index, 1)))

        def write(at: "tirx.PrimExpr", lanes: int) -> None:
            place = (*index[:-1], at)
            codes = code_of(_floats(k, x, place, lanes), splat(inverse, lanes), _number(anchor, "bits"))
            _finish(k, place, codes, lanes)

        vectors(k, start, count, write, k.isa.lanes)

    return body


def _numbers(k: KernelBuilder) -> Group:
    return numbers(k, k.call.anchor, plain_numbers(k, k.call.anchor))


def numbers(k: KernelBuilder, node: Node, read: Callable[[Index], Numbers]) -> Group:
    """Stores the numbers of `node`, a dequantize, at an index where `read` of it gives those of a group."""
    dtype = compute_dtype(node.types[0].dtype)

    def body(index: Index, start: "tirx.PrimExpr", count: int) -> None:
        group = read(index)

        def write(at: "tirx.PrimExpr", lanes: int) -> None:
            _finish(k, (*index[:-1], at), cast(keep(group(at, lanes)), dtype), lanes)

        vectors(k, start, count, write, k.isa.lanes)

    return body


def plain_numbers(k: KernelBuilder, node: Node) -> Callable[[Index], Numbers]:
    """Reads the groups of `node`, a dequantize, whose codes lie as they are."""
    q, scale, *zeros = node.operands
    book = Codebook(k.isa, _codebook(node)) if _codebook(node) else None

    def read(group: Index) -> Numbers:
        size = keep(_floats(k, scale, group, 1))
        zero = tirx.const(middle(q.dtype, _number(node, "bits")), "float32")
        if zeros:
            zero = keep(_floats(k, zeros[0], group, 1))

        def at(place: "tirx.PrimExpr", lanes: int) -> "tirx.PrimExpr":
            codes = keep(cast(Expression(k).at(q, (*group[:-1], place), lanes), "int32"))
            levels = cast(codes, "float32") - splat(zero, lanes) if book is None else book.at(codes)
            return levels * splat(size, lanes)

        return at

    return read


_BODIES: dict[Op, Callable[[KernelBuilder], Group]] = {
    ops.quantization_scale: _scales,
    ops.quantize: _codes,
    ops.dequantize: _numbers,
}
