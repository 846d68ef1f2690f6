"""Linear layers over quantized activations and weights on GPUs: products of 8-bit integers, and of f8."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy
from numpy.typing import NDArray

from planish.codegen.call import Call
from planish.codegen.halves import fuses_slices
from planish.codegen.triton.around import fuses_after, refuse_around
from planish.codegen.triton.device import Device
from planish.codegen.triton.fragment import Fragments, Group
from planish.codegen.triton.halves import finish_of, halves_of
from planish.codegen.triton.kernel import (
    Argument,
    Constant,
    Input,
    Kernel,
    Launch,
    Number,
    Output,
    Packing,
    Regime,
    Variant,
    Work,
)
from planish.codegen.triton.kernels.int8 import int8_gemm
from planish.codegen.triton.packed_weight import PackedWeight, by_group
from planish.codegen.triton.sources import Existing
from planish.codegen.triton.tiles import blocks
from planish.codegen.view import View
from planish.compiler import ops
from planish.compiler.ir import Node, Op, Value
from planish.compiler.ops.quantize import middle
from planish.compiler.types import Dim, DType, elements, evaluate_dim, same_dim

_LEAST_GROUP = 32  # elements of the depth that one instruction sums
_PADDING = 64


@dataclass(frozen=True, slots=True)
class _Tile:
    """Rows, columns and depth of a tile, parts of the depth that are summed apart, warps and stages."""

    m: int
    n: int
    k: int
    split: int
    warps: int
    stages: int


_REGIMES: tuple[tuple[int | None, tuple[_Tile, ...]], ...] = (
    (16, (_Tile(8, 16, 128, 4, 4, 4), _Tile(16, 32, 128, 4, 4, 3))),
    (64, (_Tile(32, 32, 128, 4, 4, 3), _Tile(64, 64, 128, 1, 4, 4))),
    (None, (_Tile(128, 128, 128, 1, 8, 3), _Tile(64, 128, 128, 1, 4, 3))),
)
_WIDE_F8 = _Tile(256, 128, 64, 1, 8, 4)  # for wgmma, which takes both operands from shared memory


@dataclass(frozen=True, slots=True)
class Int8Linear:
    """dequantize(xq, xs) times dequantize(q, ws, zero?), plus bias and elementwise nodes, summed as integers by group.

    Codes of x are i8, those of the weight up to 8 bits; up to 4 bits they lie two a byte.
    """

    name: ClassVar[str] = "int8-linear"
    ops: ClassVar[tuple[Op, ...]] = (ops.linear,)

    def refuse(self, call: Call, device: Device) -> str | None:
        return _refuse_nodes(call, DType.i8) or _refuse_call(call)

    def build(self, call: Call, device: Device) -> Kernel:
        product = _Product.of(call, device)
        return Kernel((product.launch(),), packings=product.packings())

    def fuses_after(self, anchor: Node, node: Node) -> bool:
        return fuses_after(anchor, node)

    def fuses_before(self, anchor: Node, node: Node) -> bool:
        both = [value.node for value in anchor.operands[:2]]
        return node in both and all(n.op is ops.dequantize for n in both)

    def fuses_slices(self, anchor: Node, slices: Sequence[Node]) -> bool:
        return fuses_slices(anchor, slices)


@dataclass(frozen=True, slots=True)
class F8Linear(Int8Linear):
    """dequantize(xq, xs) times dequantize(q, ws) of f8 codes, plus bias and elementwise nodes, summed in f32.

    Within the matrix units of compute capability 9.0 sums keep fewer bits than f32 (arXiv 2412.19437, section 3.3.2),
    as they do in the forward pass of NVIDIA's Transformer Engine. AMD's units multiply e4m3fnuz, in which the same bits
    mean half of the number.
    """

    name: ClassVar[str] = "f8-linear"

    def refuse(self, call: Call, device: Device) -> str | None:
        if not device.has_f8:
            return f"{device.profile.name} has no f8 matrix units"
        return _refuse_nodes(call, DType.f8) or _refuse_call(call)


def _refuse_call(call: Call) -> str | None:
    return _refuse_views(call) or _refuse_groups(call) or refuse_around(call)


def _refuse_nodes(call: Call, codes: DType) -> str | None:
    x, w = (value.node for value in call.anchor.operands[:2])
    for role, node in (("rows", x), ("weight", w)):
        if node.op is not ops.dequantize or node not in call.nodes:
            return f"the {role} are not dequantized in the kernel"
        if node.attrs["codebook"]:
            return f"the {role} have a codebook"
    if len(x.operands) > 2 or x.operands[0].dtype is not codes or x.operands[1].dtype is not DType.f32:
        return f"the rows are no {codes} codes with f32 scales and no zero points"
    if (w.operands[0].dtype is DType.f8) != (codes is DType.f8):
        return f"codes of {w.operands[0].dtype} are not multiplied with codes of {codes}"
    if any(value.node.op is not ops.weight for value in w.operands):
        return "the weight is computed"
    if len(w.operands) > 2 and _int(w.attrs["bits"]) > 4:
        return "8-bit codes less their zero points need 9 bits"
    return None


def _refuse_views(call: Call) -> str | None:
    x, w = (value.node for value in call.anchor.operands[:2])
    if any(value not in call.inputs for value in (*x.operands, *w.operands)):
        return "codes or scales are computed by the call itself"
    if not all(call.inputs[value].is_contiguous for value in (x.operands[1], *w.operands)):
        return "scales or the weight do not lie in one piece"
    lines = _lines(call)
    if lines is None or not same_dim(lines.strides[-1], 1) or not same_dim(lines.offset, 0):
        return "its rows do not lie at one stride from the start of a buffer"
    return None if isinstance(w.types[0].shape[1], int) else f"the weight {w.types[0]} has no known size"


def _refuse_groups(call: Call) -> str | None:
    x, w = (value.node for value in call.anchor.operands[:2])
    depth = _int(w.types[0].shape[1])
    for group in {min(_int(node.attrs["group"]), depth) for node in (x, w)}:
        if group != depth and (group % _LEAST_GROUP or group & (group - 1)):
            return f"groups of {group} are no power of two from {_LEAST_GROUP} on"
    return None


def _lines(call: Call) -> View | None:
    """The codes of x as [rows, depth]."""
    view = call.inputs[call.anchor.operands[0].node.operands[0]]
    return view.collapse(len(view.shape) - 1)


@dataclass(frozen=True, slots=True)
class _Product:
    """What the launch of a call is made of."""

    call: Call
    weight: PackedWeight
    lines: View

    @classmethod
    def of(cls, call: Call, device: Device) -> "_Product":
        lines = _lines(call)
        assert lines is not None
        w = call.anchor.operands[1].node
        codes = DType.f8 if w.operands[0].dtype is DType.f8 else DType.i8
        return cls(call, PackedWeight(w, codes, device, halves_of(call)), lines)

    @property
    def f8(self) -> str | None:
        """Triton's name of the f8 that the matrix units multiply, or None for integers."""
        if self.weight.dtype is not DType.f8:
            return None
        return "float8e4nv" if self.weight.device.backend == "cuda" else "float8e4b8"

    @property
    def nibbles(self) -> bool:
        return self.weight.codes == 4

    @property
    def x_group(self) -> int:
        return min(_int(self.call.anchor.operands[0].node.attrs["group"]), self.weight.depth)

    @property
    def scaled(self) -> bool:
        return min(self.x_group, self.weight.group) < self.weight.depth

    @property
    def rows(self) -> Dim:
        return self.lines.shape[0]

    @property
    def shift(self) -> int:
        """What packing adds to codes: nibbles are unsigned, bytes signed."""
        signed = self.weight.node.operands[0].dtype is not DType.u8
        return (8 if signed else 0) if self.nibbles else (0 if signed else -128)

    def packings(self) -> dict[Value, Packing]:
        nibbles, shift, packing = self.nibbles, self.shift, self.weight.packing
        codes, *groups = self.weight.node.operands
        kind = "nibbles" if nibbles else "bytes"
        found = {value: packing("groups of columns", by_group) for value in groups}
        if self.f8 is not None:
            return {codes: packing("rows of f8", pack_f8, _rows), **found}
        rows = packing(f"rows of {kind} plus {shift}", lambda array: pack_rows(array, nibbles, shift), _rows)
        return {codes: rows, **found}

    def launch(self) -> Launch:
        wide = (_WIDE_F8,) if self.f8 is not None and self.weight.device.arch == 90 else ()
        regimes = tuple(
            Regime(most, tuple(map(self._variant, (*tiles, *wide) if most is None else tiles)))
            for most, tiles in _REGIMES
        )
        return Launch(int8_gemm, self._arguments(), self._constants(), regimes, size=self.rows)

    def _arguments(self) -> dict[str, Argument | tuple[Argument, ...]]:
        weight, index = self.weight, {v: Input(i) for i, v in enumerate(self.call.inputs)}
        codes, x_scale = self.call.anchor.operands[0].node.operands
        return {
            "x": index[codes],
            "x_scale": index[x_scale],
            "codes": index[weight.node.operands[0]],
            "w_scale": index[weight.scale],
            **({} if weight.zero is None else {"zero": index[weight.zero]}),
            "output": Output(),
            "rows": Number(self.rows),
            "columns": Number(weight.columns),
            "depth": Number(weight.depth),
            "x_stride": Number(self.lines.strides[0]),
            "extras": Fragments(self.call).extras,
        }

    def _constants(self) -> dict[str, Constant]:
        weight = self.weight
        groups = (Group("row", len(self.call.anchor.types[0].shape) - 1), Group("column", 1))
        centre = 0 if weight.zero is not None else middle(weight.node.operands[0].dtype, weight.bits)
        return {
            **({"zero": None} if weight.zero is None else {}),
            "FINISH": finish_of(self.call, groups),
            "HALF": 0 if weight.halves is None else weight.halves.width,
            "F8": None if self.f8 is None else Existing("triton.language", self.f8),
            "GAIN": 4.0 if self.f8 == "float8e4b8" else 1.0,
            "NIBBLES": self.nibbles,
            "OFFSET": centre + self.shift,
            "X_GROUP": self.x_group,
            "W_GROUP": weight.group,
            "SCALED": self.scaled,
            "GROUP_M": 8,
        }

    def _variant(self, wanted: _Tile) -> Variant:
        weight, rows = self.weight, self.rows
        least = 8 if weight.device.backend == "cuda" else 16
        deep = min(wanted.k, self.x_group, weight.group) if self.scaled else wanted.k
        tile = replace(wanted, m=max(least, wanted.m), k=deep)

        def work(sizes: Mapping[str, int]) -> Work:
            across, down = -(-weight.columns // tile.n), evaluate_dim(blocks(rows, tile.m), sizes)
            of_x, of_w = tile.m * weight.depth, tile.n * weight.depth * weight.byte_count
            flops = 2.0 * tile.m * tile.n * weight.depth
            written = tile.m * tile.n * self.call.view.dtype.itemsize
            return Work(flops, weight.dtype, of_x + of_w, of_x / across + of_w / down, written)

        constants = {"BLOCK_M": tile.m, "BLOCK_N": tile.n, "BLOCK_K": tile.k, "SPLIT": tile.split}
        grid = (elements((blocks(rows, tile.m), blocks(weight.columns, tile.n))), 1, 1)
        return Variant(constants, grid, work, num_warps=tile.warps, num_stages=tile.stages)


def _rows(array: NDArray[numpy.generic]) -> NDArray[numpy.generic]:
    return array


def pack_rows(array: NDArray[numpy.generic], nibbles: bool, shift: int) -> NDArray[numpy.generic]:
    """Codes [columns, depth] in rows of whole 64s; of nibbles the low half of a byte is one of the first 16 of 32."""
    codes = numpy.pad(array.astype(numpy.int16) + shift, ((0, 0), (0, -array.shape[1] % _PADDING)))
    if not nibbles:
        return codes.astype(numpy.int8).view(numpy.asarray(array).dtype)
    halves = (codes & 15).astype(numpy.uint8).reshape(codes.shape[0], -1, 2, 16)
    return (halves[:, :, 0] | halves[:, :, 1] << 4).view(numpy.asarray(array).dtype)


def pack_f8(array: NDArray[numpy.generic]) -> NDArray[numpy.generic]:
    """Codes [columns, depth], as bytes, in rows of whole 64s; zeros lose their sign, which e4m3fnuz has not."""
    codes = numpy.pad(array.view(numpy.uint8), ((0, 0), (0, -array.shape[1] % _PADDING)))
    return numpy.where(codes == 0x80, 0, codes).astype(numpy.uint8)


def _int(value: object) -> int:
    assert isinstance(value, int)
    return value
