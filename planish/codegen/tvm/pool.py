"""Pooling, channels last: vectors of channels over the windows of each output position."""

from dataclasses import dataclass
from typing import ClassVar, cast

from tvm import tirx

from planish.codegen.call import Call
from planish.codegen.tvm import vector_math as vm
from planish.codegen.tvm.around import fuses_after, fuses_before, refuse_around
from planish.codegen.tvm.elementwise import compute_dtype
from planish.codegen.tvm.expression import Expression, store
from planish.codegen.tvm.folds import Registers, largest, total
from planish.codegen.tvm.isa import Isa
from planish.codegen.tvm.kernel import Kernel, KernelBuilder, bind, kernel
from planish.codegen.tvm.loops import Index, integer, nest, units, wide_vectors
from planish.compiler import ops
from planish.compiler.ir import Node, Op

_WAYS = 4


@dataclass(frozen=True, slots=True)
class Pool:
    """Maximum and mean of windows; x [N, *spatial, C]. Elements of the padding are never read."""

    name: ClassVar[str] = "pool"
    ops: ClassVar[tuple[Op, ...]] = (ops.max_pool, ops.avg_pool)

    def refuse(self, call: Call, isa: Isa) -> str | None:
        return refuse_around(call)

    def build(self, call: Call, isa: Isa) -> Kernel:
        shape = call.anchor.types[0].shape
        with kernel(call, isa) as (k, done):

            def position(index: Index) -> None:
                window = _window(k, index[1:])
                wide_vectors(
                    k,
                    integer(0),
                    shape[-1],
                    lambda at, lanes, ways: _channels(k, index, window, (at, lanes, ways)),
                    isa.lanes,
                    _WAYS,
                )

            units(k, shape[:-1], position)
        return Kernel(done[0], 0)

    def fuses_after(self, anchor: Node, node: Node) -> bool:
        return fuses_after(anchor, node)

    def fuses_before(self, anchor: Node, node: Node) -> bool:
        return fuses_before(node)


def _window(k: KernelBuilder, position: Index) -> "list[tuple[tirx.PrimExpr, tirx.PrimExpr]]":
    """For each spatial axis the first element inside the operand and how many the window holds there."""
    node = k.call.anchor
    sides = (cast("tuple[int, ...]", node.attrs[name]) for name in ("kernel", "stride", "padding"))
    window = []
    for i, size, kernel_size, stride, padding in zip(position, node.operands[0].shape[1:-1], *sides, strict=True):
        start = bind(i * stride - padding)
        first = bind(tirx.max(start, integer(0)))
        window.append((first, bind(tirx.min(start + kernel_size, k.dim(size)) - first)))
    return window


def _channels(
    k: KernelBuilder,
    position: Index,
    window: "list[tuple[tirx.PrimExpr, tirx.PrimExpr]]",
    place: "tuple[tirx.PrimExpr, int, int]",
) -> None:
    """The channels from `at` of one output position, in `ways` vectors."""
    call = k.call
    (at, lanes, ways), node = place, call.anchor
    dtype = compute_dtype(node.types[0].dtype)
    registers = Registers(largest(dtype) if node.op is ops.max_pool else total(dtype), lanes, ways)

    def take(inside: Index) -> None:
        spatial = tuple(bind(first + i) for (first, _), i in zip(window, inside, strict=True))
        for way in range(ways):
            index = (position[0], *spatial, at + way * lanes)
            value = vm.keep(Expression(k).at(node.operands[0], index, lanes))
            registers.take(value, integer(0), way=way, step=0)

    nest([count for _, count in window], k, take)
    for way in range(ways):
        result = registers.vector(way)[0]
        if node.op is ops.avg_pool:
            result = vm.keep(result / vm.splat(vm.cast(_divisor(node, window), dtype), lanes))
        index = (*position, bind(at + way * lanes))
        value = Expression(k, {node.values[0]: lambda *_, r=result: r}).at(call.output, index, lanes)
        store(k, call.view, index, value, lanes)


def _divisor(node: Node, window: "list[tuple[tirx.PrimExpr, tirx.PrimExpr]]") -> "tirx.PrimExpr":
    """How many elements a mean is over."""
    count = integer(1)
    for size, (_, inside) in zip(cast("tuple[int, ...]", node.attrs["kernel"]), window, strict=True):
        count = count * (integer(size) if node.attrs["count_padding"] else inside)
    return count
