"""Depthwise convolutions on CPUs: vectors of channels, several output positions at a time in registers."""

import math
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import ClassVar, TypeAlias

import numpy
import tvm
from numpy.typing import NDArray
from tvm import tirx
from tvm.script.ir_builder import tirx as T  # noqa: N812 - TVM's own name for its script namespace

from planish.codegen.call import Call
from planish.codegen.tvm.conv import Patches
from planish.codegen.tvm.expression import Expression, store
from planish.codegen.tvm.gemm_finish import finishes, refuse_finish
from planish.codegen.tvm.gemm_product import refuse_operands
from planish.codegen.tvm.gemm_rows import unravel, widened
from planish.codegen.tvm.isa import Isa
from planish.codegen.tvm.kernel import Kernel, KernelBuilder, Packing, bind, kernel, ramp
from planish.codegen.tvm.loops import product
from planish.codegen.tvm.packing import widened as widened_weight
from planish.compiler import ops
from planish.compiler.ir import Node, Op
from planish.compiler.types import DType, floor_div, simplify

_FEW = 4  # output positions in registers: enough sums to hide the latency of a multiply-add
_MANY = (7, 8, 6)  # the same for wide kernels, whose positions share more of what they read; the best on Zen 4 first
_GROUP = 8  # about as many vectors of channels are one unit of work


@dataclass(frozen=True, slots=True)
class Depthwise:
    """A convolution of every channel by itself over one to three axes, plus bias and elementwise nodes, in f32."""

    name: ClassVar[str] = "depthwise"
    ops: ClassVar[tuple[Op, ...]] = (ops.conv,)

    def refuse(self, call: Call, isa: Isa) -> str | None:
        x, w = call.anchor.operands[:2]
        if call.anchor.attrs["groups"] != w.shape[0] or w.shape[-1] != 1 or x.shape[-1] != w.shape[0]:
            return "it is not depthwise with one output channel a group"
        if x.dtype is DType.f64:
            return "it multiplies in f32, not f64"
        if x not in call.inputs:
            return "x is computed in the kernel"
        return refuse_operands(call, isa) or refuse_finish(call)

    def build(self, call: Call, isa: Isa) -> Kernel:
        w = call.anchor.operands[1]
        with kernel(call, isa) as (k, done):
            _Sweep.of(k).emit()
        layout = f"taps by channel{' widened' if w.dtype is not DType.f32 else ''}"
        return Kernel(done[0], 0, {w: Packing(layout, _pack, _packed)})

    def fuses_after(self, anchor: Node, node: Node) -> bool:
        return finishes(anchor, node)

    def fuses_before(self, anchor: Node, node: Node) -> bool:
        return False


def _pack(weight: NDArray[numpy.generic]) -> NDArray[numpy.generic]:
    """[C, ..., 1] as [taps, C] in f32."""
    return numpy.ascontiguousarray(widened_weight(weight).reshape(weight.shape[0], -1).T).reshape(-1)


def _packed(shape: tuple[int, ...], _: numpy.dtype) -> tuple[int, numpy.dtype]:
    return math.prod(shape), numpy.dtype(numpy.float32)


def _positions(patches: Patches) -> int:
    """How many output positions of a row are computed at once: of known widths the count that fits best."""
    width = patches.out[-2]
    if patches.kernel[-1] <= 3:
        return _FEW
    if not isinstance(width, int):
        return _MANY[0]
    return min(_MANY, key=lambda count: (-(-width // count) * count, _MANY.index(count)))


@dataclass(frozen=True, slots=True)
class _Sweep:
    """The loops over images, groups of channels, output rows and blocks of output positions."""

    k: KernelBuilder
    patches: Patches
    channels: int
    positions: int
    weights: "tirx.Buffer"

    @classmethod
    def of(cls, k: KernelBuilder) -> "_Sweep":
        w = k.call.anchor.operands[1]
        pointer = tvm.ir.PointerType(tvm.ir.PrimType("float32"))
        data = T.bind(tvm.ir.Call("tirx.reinterpret", [k.buffers[w].data], ret_ty=pointer), pointer)
        patches, channels = Patches.of(k.call), int(w.shape[0])
        taps = math.prod(patches.kernel)
        count = _positions(patches)
        return cls(k, patches, channels, count, T.decl_buffer((k.dim(taps * channels),), "float32", data=data))

    def emit(self) -> None:
        k, p = self.k, self.patches
        n, *lead, width = p.out[:-1]
        blocks = floor_div(simplify(width + self.positions - 1), self.positions)
        groups = max(1, round(self.channels // k.isa.lanes / _GROUP))
        first, last = k.share(bind(product(k, (n, *lead, blocks)) * groups))
        with T.serial(last - first) as u:
            image, group, *rows, block = unravel(k, bind(first + u), (n, groups, *lead, blocks))
            column = bind(block * self.positions)
            position = _Position(self, image, tuple(rows), column, bind(column * p.stride[-1] - p.padding[-1]))
            self._channels(position, group, groups)

    def _channels(self, position: "_Position", group: "tirx.PrimExpr", groups: int) -> None:
        lanes = self.k.isa.lanes
        vectors = self.channels // lanes
        first, last = (bind(T.truncdiv(g * vectors, tirx.const(groups, "int64"))) for g in (group, group + 1))
        count = bind(last - first)
        rows = position.reach()
        if vectors:
            with T.If(position.interior()):
                for branch, guarded in ((T.Then, False), (T.Else, True)):
                    with branch(), T.serial(count) as v:
                        position.emit(rows, bind((first + v) * lanes), lanes, guarded)
        if self.channels % lanes:
            with T.If(group == groups - 1), T.Then():
                for start, piece in _pieces(vectors * lanes, self.channels):
                    position.emit(rows, tirx.const(start, "int64"), piece, True)


def _pieces(start: int, end: int) -> list[tuple[int, int]]:
    """`start` to `end` as (place, length) with lengths that are powers of two, largest first."""
    pieces: list[tuple[int, int]] = []
    while start < end:
        length = 1 << ((end - start).bit_length() - 1)
        pieces.append((start, length))
        start += length
    return pieces


# The input index of an axis' first tap, and the first and last + 1 of its taps that lie inside the image.
_Reach: TypeAlias = "tuple[tirx.PrimExpr, tirx.PrimExpr, tirx.PrimExpr]"


@dataclass(frozen=True, slots=True)
class _Position:
    """A block of output positions from (*`rows`, `column`) of an image, whose first reads input column `left`."""

    sweep: _Sweep
    image: "tirx.PrimExpr"
    rows: "tuple[tirx.PrimExpr, ...]"
    column: "tirx.PrimExpr"
    left: "tirx.PrimExpr"

    def reach(self) -> "list[_Reach]":
        """What the taps reach of every axis but the columns."""
        return [self._reach(axis) for axis in range(len(self.rows))]

    def _reach(self, axis: int) -> "_Reach":
        p, k = self.sweep.patches, self.sweep.k
        step = p.dilation[axis]
        top = bind(self.rows[axis] * p.stride[axis] - p.padding[axis])
        zero = tirx.const(0, "int64")

        def taps(distance: "tirx.PrimExpr") -> "tirx.PrimExpr":
            steps = T.truncdiv(tirx.max(distance, zero) + (step - 1), tirx.const(step, "int64"))
            return bind(tirx.min(steps, tirx.const(p.kernel[axis], "int64")))

        return top, taps(-top), taps(k.dim(p.x.shape[1 + axis]) - top)

    def interior(self) -> "tirx.PrimExpr":
        """Whether every position of the block is there and reads inside the image."""
        p, k, positions = self.sweep.patches, self.sweep.k, self.sweep.positions
        reach = (positions - 1) * p.stride[-1] + (p.kernel[-1] - 1) * p.dilation[-1]
        there = self.column + positions <= k.dim(p.out[-2])
        return tirx.And(there, tirx.And(self.left >= 0, self.left + reach < k.dim(p.x.shape[-2])))

    def emit(
        self,
        rows: "list[_Reach]",
        channel: "tirx.PrimExpr",
        lanes: int,
        guarded: bool,
    ) -> None:
        """Compute `lanes` channels of the block; `guarded` looks at each position before it reads or writes."""
        p, sums = self.sweep.patches, [T.alloc_buffer((lanes,), "float32") for _ in range(self.sweep.positions)]
        place = ramp(tirx.const(0, "int64"), lanes)
        for total in sums:
            T.buffer_store(total, self._bias(channel, lanes), [place])

        def sweep(taps: "tuple[tirx.PrimExpr, ...]") -> None:
            if len(taps) == len(rows):
                at = [top + tap * p.dilation[i] for i, ((top, *_), tap) in enumerate(zip(rows, taps, strict=True))]
                self._taps(sums, place, at, _flat(taps, p.kernel), channel, lanes, guarded)
                return
            _, low, high = rows[len(taps)]
            with T.serial(high - low) as i:
                sweep((*taps, bind(low + i)))

        sweep(())
        for i, total in enumerate(sums):
            with self._there(i, guarded):
                self._finish(i, total[place], channel, lanes)

    def _taps(
        self,
        sums: "list[tirx.Buffer]",
        place: "tirx.PrimExpr",
        at: "list[tirx.PrimExpr]",
        tap: "tirx.PrimExpr",
        channel: "tirx.PrimExpr",
        lanes: int,
        guarded: bool,
    ) -> None:
        s = self.sweep
        p, source = s.patches, s.k.buffers[s.k.call.anchor.operands[0]]
        start = bind(s.k.address(p.x, (self.image, *at, self.left, channel)))
        weights = bind(tap * (p.kernel[-1] * s.channels) + channel)
        for j in range(p.kernel[-1]):
            weight = bind(s.weights[ramp(weights + j * s.channels, lanes)])
            for i, total in enumerate(sums):
                column = i * p.stride[-1] + j * p.dilation[-1]
                with self._inside(i, column, guarded):
                    x = widened(source[ramp(start + s.k.dim(p.x.strides[-2]) * column, lanes)], p.x.dtype, lanes)
                    T.buffer_store(total, _multiply_add(x, weight, total[place], lanes), [place])

    def _bias(self, channel: "tirx.PrimExpr", lanes: int) -> "tirx.PrimExpr":
        operands = self.sweep.k.call.anchor.operands
        if len(operands) > 2:
            return Expression(self.sweep.k).at(operands[2], (channel,), lanes)
        return T.broadcast(T.float32(0), lanes) if lanes > 1 else T.float32(0)

    def _there(self, i: int, guarded: bool) -> "AbstractContextManager[object]":
        return _when(self.column + i < self.sweep.k.dim(self.sweep.patches.out[-2])) if guarded else nullcontext()

    def _inside(self, i: int, column: int, guarded: bool) -> "AbstractContextManager[object]":
        if not guarded:
            return nullcontext()
        p, k = self.sweep.patches, self.sweep.k
        inside = tirx.And(self.left + column >= 0, self.left + column < k.dim(p.x.shape[-2]))
        return _when(tirx.And(self.column + i < k.dim(p.out[-2]), inside))

    def _finish(self, i: int, total: "tirx.PrimExpr", channel: "tirx.PrimExpr", lanes: int) -> None:
        k = self.sweep.k
        flat = len(k.call.output.shape) == 3
        index = (self.image, *(() if flat else self.rows), bind(self.column + i), channel)
        value = Expression(k, {k.call.anchor.values[0]: lambda *_: total}).at(k.call.output, index, lanes)
        store(k, k.call.view, index, value, lanes)


def _flat(taps: "tuple[tirx.PrimExpr, ...]", kernel: tuple[int, ...]) -> "tirx.PrimExpr":
    """The row of the kernel that the taps of its axes but the last name."""
    row = taps[0]
    for tap, size in zip(taps[1:], kernel[1:], strict=False):
        row = row * size + tap
    return row


@contextmanager
def _when(condition: "tirx.PrimExpr") -> Iterator[None]:
    with T.If(condition), T.Then():
        yield


def _multiply_add(x: "tirx.PrimExpr", weight: "tirx.PrimExpr", total: "tirx.PrimExpr", lanes: int) -> "tirx.PrimExpr":
    vector = "float32" if lanes == 1 else f"float32x{lanes}"
    return T.call_llvm_pure_intrin(vector, "llvm.fma", x, weight, total)
