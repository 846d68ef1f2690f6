"""Convolutions on CPUs: patches are copied row by row to scratch memory and multiplied like a linear layer's rows."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from tvm import tirx
from tvm.script.ir_builder import tirx as T  # noqa: N812 - TVM's own name for its script namespace

from planish.codegen.call import Call
from planish.codegen.tvm.gemm_finish import finishes, refuse_finish
from planish.codegen.tvm.gemm_product import Fill, Product, product_of_rows, refuse_operands, rounds
from planish.codegen.tvm.gemm_rows import Run, unravel
from planish.codegen.tvm.isa import Isa
from planish.codegen.tvm.kernel import Kernel, KernelBuilder, bind
from planish.codegen.view import View
from planish.compiler import ops
from planish.compiler.ir import Node, Op
from planish.compiler.ops.contract import conv_padding
from planish.compiler.types import DType, Shape, elements, same_dim


@dataclass(frozen=True, slots=True)
class Conv:
    """A convolution over one to three axes, channels last, plus bias and elementwise nodes; any float dtype.

    A cast of x from f32 to bf16 happens while patches are copied, where there is a dot product of bf16.
    """

    name: ClassVar[str] = "conv"
    ops: ClassVar[tuple[Op, ...]] = (ops.conv,)

    def refuse(self, call: Call, isa: Isa) -> str | None:
        return refuse_operands(call, isa) or _refuse_odd(call) or refuse_finish(call)

    def build(self, call: Call, isa: Isa) -> Kernel:
        patches = Patches.of(call)
        if patches.pointwise:
            return product_of_rows(call, isa, patches.sampled)
        pairs = call.anchor.operands[0].dtype is DType.bf16 and isa.bf16_dot and patches.run % 2 == 0
        product = Product(call, isa, elements(patches.out[:-1]), patches.groups, pairs)
        return product.copied(patches.fill)

    def fuses_after(self, anchor: Node, node: Node) -> bool:
        return finishes(anchor, node)

    def fuses_before(self, anchor: Node, node: Node) -> bool:
        return rounds(anchor, node)


def _refuse_odd(call: Call) -> str | None:
    """Why rounding to bf16 while patches are copied is not possible, or None."""
    if call.anchor.operands[0] in call.inputs or Patches.of(call).run % 2 == 0:
        return None
    return f"patches of {Patches.of(call).run} numbers in a row are no pairs"


@dataclass(frozen=True, slots=True)
class Patches:
    """What a convolution reads for each output position: x [N, *spatial, C] and its geometry by spatial axis.

    A convolution over one axis is one over two with a single row.
    """

    x: View
    out: Shape
    kernel: tuple[int, ...]
    channels: int
    stride: tuple[int, ...]
    padding: tuple[int, ...]
    after: tuple[int, ...]
    dilation: tuple[int, ...]
    groups: int

    @classmethod
    def of(cls, call: Call) -> "Patches":
        x, w = call.anchor.operands[:2]
        view, out, kernel = call.inputs[call.stored(x)], call.anchor.types[0].shape, w.shape[1:-1]
        flat = len(view.shape) == 3
        if flat:
            view = View(
                (view.shape[0], 1, *view.shape[1:]), (view.strides[0], 0, *view.strides[1:]), view.offset, view.dtype
            )

        def sides(values: object, missing: int) -> tuple[int, ...]:
            assert isinstance(values, tuple)
            return (missing, int(values[0])) if flat else tuple(int(v) for v in values)

        attrs = call.anchor.attrs
        shape = (out[0], 1, *out[1:]) if flat else out
        padding, after = (sides(side, 0) for side in conv_padding(attrs))
        stride, dilation, groups = sides(attrs["stride"], 1), sides(attrs["dilation"], 1), attrs["groups"]
        assert isinstance(groups, int)
        return cls(view, shape, sides(kernel, 1), int(w.shape[-1]), stride, padding, after, dilation, groups)

    @property
    def pointwise(self) -> bool:
        return math.prod(self.kernel) == 1 and not any(self.padded) and self.groups == 1

    @property
    def padded(self) -> tuple[bool, ...]:
        """Whether patches may reach out of the image, by axis."""
        return tuple(before + after > 0 for before, after in zip(self.padding, self.after, strict=True))

    @property
    def sampled(self) -> View:
        """The input positions that a pointwise convolution reads."""
        view = self.x
        for axis, (step, size) in enumerate(zip(self.stride, self.out[1:-1], strict=True), start=1):
            view = view.slice(axis, 0, step, size)
        return view

    @property
    def merged(self) -> bool:
        """Whether a kernel row reads consecutive elements."""
        return self.groups == 1 and self.dilation[-1] == 1 and same_dim(self.x.strides[-2], self.channels)

    @property
    def run(self) -> int:
        """Elements that are read from consecutive places."""
        return self.channels * (self.kernel[-1] if self.merged else 1)

    def fill(self, k: KernelBuilder, run: Run, group: "tirx.PrimExpr") -> Fill:
        """What copies the patch of one output position."""
        return lambda row, place: _Patch(self, k, run, group, unravel(k, row, self.out[:-1])).copy(place)


@dataclass(frozen=True, slots=True)
class _Patch:
    """The patch of the output position `index` (n, *spatial)."""

    patches: Patches
    k: KernelBuilder
    run: Run
    group: "tirx.PrimExpr"
    index: "tuple[tirx.PrimExpr, ...]"

    def copy(self, place: "tirx.PrimExpr") -> None:
        """Write the patch from unit `place` on."""
        p, (n, *position) = self.patches, self.index
        corner = [bind(at * step - before) for at, step, before in zip(position, p.stride, p.padding, strict=True)]
        self._sweep((n,), corner, place, tirx.const(True, "bool"))

    def _sweep(
        self,
        index: "tuple[tirx.PrimExpr, ...]",
        corner: "Sequence[tirx.PrimExpr]",
        place: "tirx.PrimExpr",
        inside: "tirx.PrimExpr",
    ) -> None:
        """Copy what the kernel covers of the axes after `index`, which is `inside` the image or not."""
        p, axis = self.patches, len(index) - 1
        innermost = axis == len(p.kernel) - 1
        if innermost and p.merged:
            self._copy_row((*index, corner[axis]), inside, place)
            return
        units = math.prod(p.kernel[axis + 1 :]) * p.channels // (2 if self.run.pairs else 1)
        with T.serial(tirx.const(p.kernel[axis], "int64")) as i:
            at = bind(corner[axis] + i * p.dilation[axis])
            here, there = bind(place + i * units), tirx.And(inside, self._inside(at, axis))
            if innermost:
                self._copy((*index, at), there, here, 0, p.channels)
            else:
                self._sweep((*index, at), corner, here, there)

    def _inside(self, at: "tirx.PrimExpr", axis: int) -> "tirx.PrimExpr":
        if not self.patches.padded[axis]:
            return tirx.const(True, "bool")
        return tirx.And(at >= 0, at < self.k.dim(self.patches.x.shape[1 + axis]))

    def _copy_row(self, index: "tuple[tirx.PrimExpr, ...]", inside: "tirx.PrimExpr", place: "tirx.PrimExpr") -> None:
        p = self.patches
        if not p.padded[-1]:
            self._copy(index, inside, place, 0, p.run)
            return
        columns = tirx.const(p.kernel[-1], "int64")
        low = bind(tirx.max(-index[-1], tirx.const(0, "int64")) * p.channels)
        high = bind(tirx.min(self.k.dim(p.x.shape[-2]) - index[-1], columns) * p.channels)
        self._copy(index, inside, place, low, high)

    def _copy(
        self,
        index: "tuple[tirx.PrimExpr, ...]",
        inside: "tirx.PrimExpr",
        place: "tirx.PrimExpr",
        low: "tirx.PrimExpr | int",
        high: "tirx.PrimExpr | int",
    ) -> None:
        """Copy a run of which elements `low` to `high - 1` are there; none are where it is not `inside`."""
        p = self.patches
        start = bind(self.k.address(p.x, (*index, self.group * p.channels)))
        if not any(p.padded):
            self.run.copy(start, place, p.run)
            return
        last = bind(tirx.Select(inside, self.k.dim(high) if isinstance(high, int) else high, tirx.const(0, "int64")))
        whole = last == p.run if isinstance(low, int) else tirx.And(low == 0, last == p.run)
        with T.If(whole):
            with T.Then():
                self.run.copy(start, place, p.run)
            with T.Else():
                self.run.copy(start, place, p.run, low, last)
