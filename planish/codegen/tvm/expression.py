"""Elementwise nodes of a call as TIR: the value of any of them at a place, `lanes` elements at a time."""

from collections.abc import Callable, Mapping
from typing import cast

from tvm import tirx
from tvm.script.ir_builder import tirx as T  # noqa: N812 - TVM's own name for its script namespace

from planish.codegen.tvm import vector_math as vm
from planish.codegen.tvm.kernel import TVM_DTYPE, KernelBuilder, bind, ramp
from planish.codegen.view import View
from planish.compiler import ops
from planish.compiler.ir import Node, Op, Value
from planish.compiler.types import Dim, DType, Shape, same_dim

Index = tuple["tirx.PrimExpr", ...]
Known = Mapping[Value, Callable[[Index, int], "tirx.PrimExpr"]]


class Expression:
    """Values of a call's nodes, down to its inputs or to `known` values (such as accumulators)."""

    def __init__(self, k: KernelBuilder, known: Known | None = None) -> None:
        self.k, self.known = k, known or {}

    def at(self, value: Value, index: Index, lanes: int) -> "tirx.PrimExpr":
        """`lanes` elements of `value` along its last axis from `index`, one int64 an axis."""
        if value in self.known:
            return self.known[value](index, lanes)
        if value in self.k.buffers:
            return load(self.k, value, index, lanes)
        node = value.node
        if node.op is ops.full:
            return vm.constant(cast(float, node.attrs["value"]), COMPUTED[value.dtype], lanes)
        operands = [None if v is None else self._operand(v, value.shape, index, lanes) for v in node.inputs]
        return _kept(TABLE[node.op](node, *operands))

    def _operand(self, value: Value, shape: Shape, index: Index, lanes: int) -> "tirx.PrimExpr":
        """An operand at the place of a result of `shape`, repeated along its axes of size 1."""
        inner = index[len(shape) - len(value.shape) :]
        zero = tirx.const(0, "int64")
        place = tuple(
            zero if same_dim(d, 1) and not same_dim(s, 1) else i
            for d, s, i in zip(value.shape, shape[len(shape) - len(value.shape) :], inner, strict=True)
        )
        repeated = not value.shape or (same_dim(value.shape[-1], 1) and not same_dim(shape[-1], 1))
        return vm.splat(self.at(value, place, 1), lanes) if repeated else self.at(value, place, lanes)


def load(k: KernelBuilder, value: Value, index: Index, lanes: int) -> "tirx.PrimExpr":
    """Elements of an input of the call; bool as predicates, bf16 as f32."""
    view = k.call.inputs[value]
    place = bind(k.address(view, index))
    stride = view.strides[-1] if view.strides else 0
    if lanes == 1 or same_dim(stride, 1):
        loaded = k.buffers[value][ramp(place, lanes)]
    elif same_dim(stride, 0):
        loaded = T.broadcast(k.buffers[value][place], lanes)
    else:
        loaded = k.buffers[value][T.ramp(place, k.dim(stride), lanes)]
    if value.dtype is DType.bool:
        return vm.differ(loaded, vm.like(loaded, 0))
    if value.dtype is DType.bf16:
        return vm.bits(vm.cast(loaded, "uint32") << vm.constant(16, "uint32", lanes), "float32")
    return loaded


def store(k: KernelBuilder, view: View, index: Index, value: "tirx.PrimExpr", lanes: int) -> None:
    """Write elements of the call's output from `index` along the last axis, whose stride is 1 for several lanes."""
    if view.dtype is DType.bool:
        value = vm.cast(value, "uint8")
    elif view.dtype is DType.bf16:
        value = _bf16_bits(value)
    T.buffer_store(k.output, value, [ramp(k.address(view, index), lanes)])


def _bf16_bits(x: "tirx.PrimExpr") -> "tirx.PrimExpr":
    """f32 rounded to the nearest bf16, ties to even, as uint16."""
    raw = bind(vm.bits(x, "uint32"))
    even = (raw >> vm.like(raw, 16)) & vm.like(raw, 1)
    return vm.cast((raw + vm.like(raw, 0x7FFF) + even) >> vm.like(raw, 16), "uint16")


COMPUTED = {**TVM_DTYPE, DType.bf16: "float32", DType.bool: "bool"}


def _kept(x: "tirx.PrimExpr") -> "tirx.PrimExpr":
    return x if vm.element_of(x) == "bool" else vm.keep(x)


def _cast(node: Node, x: "tirx.PrimExpr") -> "tirx.PrimExpr":
    dtype = node.types[0].dtype
    return vm.differ(x, vm.like(x, 0)) if dtype is DType.bool else vm.cast(x, COMPUTED[dtype])


def _clamp(node: Node, x: "tirx.PrimExpr") -> "tirx.PrimExpr":
    low, high = cast("float | None", node.attrs["low"]), cast("float | None", node.attrs["high"])
    x = x if low is None else vm.maximum(x, vm.like(x, low))
    return x if high is None else vm.minimum(x, vm.like(x, high))


Handler = Callable[..., "tirx.PrimExpr"]
TABLE: dict[Op, Handler] = {
    ops.neg: lambda n, x: -x,
    ops.abs_: lambda n, x: vm.absolute(x),
    ops.exp: lambda n, x: vm.exp(x),
    ops.log: lambda n, x: vm.log(x),
    ops.sqrt: lambda n, x: vm.square_root(x),
    ops.rsqrt: lambda n, x: vm.like(x, 1) / vm.square_root(x),
    ops.reciprocal: lambda n, x: vm.like(x, 1) / x,
    ops.sin: lambda n, x: vm.sin(x),
    ops.cos: lambda n, x: vm.cos(x),
    ops.tanh: lambda n, x: vm.tanh(x),
    ops.sigmoid: lambda n, x: vm.sigmoid(x),
    ops.erf: lambda n, x: vm.erf(x),
    ops.relu: lambda n, x: vm.maximum(x, vm.like(x, 0)),
    ops.silu: lambda n, x: vm.silu(x),
    ops.gelu: lambda n, x: vm.gelu_tanh(x) if n.attrs["approximate"] == "tanh" else vm.gelu(x),
    ops.clamp: _clamp,
    ops.cast: _cast,
    ops.add: lambda n, x, y: x + y,
    ops.sub: lambda n, x, y: x - y,
    ops.mul: lambda n, x, y: x * y,
    ops.div: lambda n, x, y: x / y,
    ops.pow_: lambda n, x, y: vm.power(x, y),
    ops.maximum: lambda n, x, y: vm.maximum(x, y),
    ops.minimum: lambda n, x, y: vm.minimum(x, y),
    ops.eq: lambda n, x, y: vm.equal(x, y),
    ops.ne: lambda n, x, y: vm.differ(x, y),
    ops.lt: lambda n, x, y: x < y,
    ops.le: lambda n, x, y: x <= y,
    ops.gt: lambda n, x, y: x > y,
    ops.ge: lambda n, x, y: x >= y,
    ops.logical_and: lambda n, x, y: vm.both(x, y),
    ops.logical_or: lambda n, x, y: vm.either(x, y),
    ops.logical_not: lambda n, x: vm.negated(x),
    ops.where: lambda n, c, x, y: vm.select(c, x, y),
}
