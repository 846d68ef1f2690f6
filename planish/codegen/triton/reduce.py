"""Reductions on GPUs over neighbouring axes, with what is computed before and after them."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from planish.codegen.call import Call
from planish.codegen.triton.around import fuses_after, fuses_before, refuse_around
from planish.codegen.triton.device import Device
from planish.codegen.triton.elementwise import compute_dtype
from planish.codegen.triton.fragment import Fragments, Group
from planish.codegen.triton.kernel import Constant, Kernel, Launch, Number, Output, Regime, Variant, Work
from planish.codegen.triton.kernels import math as kernel_math
from planish.codegen.triton.kernels import reduce
from planish.codegen.triton.sources import Existing
from planish.codegen.triton.tiles import blocks, power_of_two
from planish.compiler import ops
from planish.compiler.ir import Node, Op
from planish.compiler.types import Dim, DType, Shape, elements, evaluate_dim, simplify

_BLOCK = 2048
_LEAST = {DType.i64: -(2**63), DType.i32: -(2**31), DType.i16: -(2**15), DType.i8: -(2**7), DType.u8: 0}
_MOST = {DType.i64: 2**63 - 1, DType.i32: 2**31 - 1, DType.i16: 2**15 - 1, DType.i8: 2**7 - 1, DType.u8: 255}


@dataclass(frozen=True, slots=True)
class Reduce:
    """sum, mean, amax, amin, prod, any, all and argmax over axes that follow each other; f16 and bf16 in f32."""

    name: ClassVar[str] = "reduce"
    ops: ClassVar[tuple[Op, ...]] = (
        *(ops.sum_, ops.mean, ops.amax, ops.amin, ops.prod, ops.any_, ops.all_, ops.argmax),
    )

    def refuse(self, call: Call, device: Device) -> str | None:
        axes = _axes(call.anchor)
        if axes != tuple(range(axes[0], axes[-1] + 1)):
            return f"axes {list(axes)} do not follow each other"
        return refuse_around(call)

    def build(self, call: Call, device: Device) -> Kernel:
        anchor = call.anchor
        shape, axes = anchor.operands[0].shape, _axes(anchor)
        before, middle, behind = shape[: axes[0]], shape[axes[0] : axes[-1] + 1], shape[axes[-1] + 1 :]
        kept = simplify(elements(before) * elements(behind))
        launch = Launch(
            reduce.argmax_middle if anchor.op is ops.argmax else reduce.reduce_middle,
            {
                "output": Output(),
                "kept": Number(kept),
                "inner": Number(elements(behind)),
                "middle": Number(elements(middle)),
                "extras": Fragments(call).extras,
            },
            _constants(call, (before, middle, behind)),
            (Regime(None, _variants(call, kept, elements(middle))),),
        )
        return Kernel((launch,))

    def fuses_after(self, anchor: Node, node: Node) -> bool:
        return fuses_after(anchor, node)

    def fuses_before(self, anchor: Node, node: Node) -> bool:
        return fuses_before(node)


def _axes(anchor: Node) -> tuple[int, ...]:
    found = anchor.attrs["axis"] if anchor.op is ops.argmax else anchor.attrs["axes"]
    return (found,) if isinstance(found, int) else tuple(sorted(a for a in found if isinstance(a, int)))  # type: ignore[union-attr]


def _constants(call: Call, shapes: tuple[Shape, Shape, Shape]) -> Mapping[str, Constant]:
    fragments, anchor = Fragments(call), call.anchor
    before, middle, behind = map(len, shapes)
    walked = (Group("before", before), Group("along", middle), Group("behind", behind))
    left = Group("behind", behind + (middle if anchor.attrs["keep"] else 0))
    dtype = _computed(anchor)
    found: dict[str, Constant] = {
        "READ": fragments.read("read", anchor.operands[0], walked),
        "FINISH": fragments.finish("finish", (Group("before", before), left)),
        "IDENTITY": _identity(anchor, dtype),
        "DTYPE": Existing("triton.language", compute_dtype(dtype)),
    }
    if anchor.op is not ops.argmax:
        truth = anchor.op in (ops.any_, ops.all_)
        kind = "truth" if truth else "mean" if anchor.op is ops.mean else "plain"
        combine = _COMBINE[anchor.op]
        found |= {"COMBINE": combine, "HOW": combine.name, "KIND": kind}
    return found


def _computed(anchor: Node) -> DType:
    """The dtype that the reduction runs in."""
    if anchor.op in (ops.any_, ops.all_):
        return DType.i32
    dtype = anchor.operands[0].dtype
    if dtype.is_float:
        return DType.f64 if dtype is DType.f64 else DType.f32
    return DType.i32 if dtype is DType.bool else DType.i64


def _identity(anchor: Node, dtype: DType) -> int | float:
    """What changes no result."""
    if anchor.op in (ops.amax, ops.argmax):
        return -math.inf if dtype.is_float else _LEAST[dtype]
    if anchor.op is ops.amin:
        return math.inf if dtype.is_float else _MOST[dtype]
    return 1 if anchor.op in (ops.prod, ops.all_) else 0


def _combination(name: str, module: str = reduce.__name__) -> Existing:
    return Existing(module, name)


_COMBINE = {
    ops.sum_: _combination("plus"),
    ops.mean: _combination("plus"),
    ops.prod: _combination("times"),
    ops.amax: _combination("maximum", kernel_math.__name__),
    ops.amin: _combination("minimum", kernel_math.__name__),
    ops.any_: _combination("maximum", kernel_math.__name__),
    ops.all_: _combination("minimum", kernel_math.__name__),
}


def _variants(call: Call, kept: Dim, middle: Dim) -> tuple[Variant, ...]:
    """Tiles of one block's elements, from many results of short sums to one of a long one."""
    widest = _BLOCK if not isinstance(middle, int) else min(_BLOCK, power_of_two(middle))
    widths = sorted({min(widest, width) for width in (16, 64, 256, _BLOCK)})
    return tuple(_variant(call, kept, middle, width) for width in widths)


def _variant(call: Call, kept: Dim, middle: Dim, width: int) -> Variant:
    down = max(1, _BLOCK // width) if width > 1 else 256
    read = sum(view.dtype.itemsize for view in call.inputs.values())

    def work(sizes: Mapping[str, int]) -> Work:
        count = float(down * evaluate_dim(middle, sizes))
        return Work(count, DType.f32, count * read, count * read, float(down * call.view.dtype.itemsize))

    return Variant({"BLOCK_KEPT": down, "BLOCK_MIDDLE": width}, (blocks(kept, down), 1, 1), work, num_warps=4)
