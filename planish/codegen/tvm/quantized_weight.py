"""Weights stored as codes: how kernels have them packed, and how they read levels from them."""

from dataclasses import dataclass

import numpy
import tvm
from numpy.typing import NDArray
from tvm import tirx
from tvm.script.ir_builder import tirx as T  # noqa: N812 - TVM's own name for its script namespace

from planish.codegen.tvm import vector_math as vm
from planish.codegen.tvm.gemm_rows import widened
from planish.codegen.tvm.isa import Isa
from planish.codegen.tvm.kernel import KernelBuilder, Packing, bind, ramp
from planish.codegen.tvm.levels import Codebook
from planish.codegen.tvm.packing import panels
from planish.codegen.tvm.vector_math import keep, like, splat
from planish.compiler.ir import Node, Value
from planish.compiler.ops.quantize import middle
from planish.compiler.types import DType

_STEP = 8  # codes of a column that are read at once: 4 bits each in a lane of 32
_SIGN = 8  # added to signed codes of 4 bits, which makes them unsigned
# A code in the top bits of the mantissa of 16.0 makes 16 + code: cheaper than a conversion.
_MAGIC, _MAGIC_BITS, _CODE_BITS, _CODE_SHIFT = 16, 0x41800000, 0x00780000, 19


@dataclass(frozen=True, slots=True)
class CodedWeight:
    """The weight [columns, depth] of a `dequantize` node, in panels of `vectors` registers of `lanes` columns.

    Codes of up to 4 bits lie as [panel][depth / 8][width] in lanes of 32 bits with 8 consecutive codes of a column,
    wider ones as [panel][depth][width] bytes; scales and zero points as [panel][group][width].
    """

    node: Node
    lanes: int
    vectors: int

    @classmethod
    def of(cls, node: Node, isa: Isa) -> "CodedWeight":
        """The weight in panels that suit the instruction set."""
        return cls(node, isa.lanes, 4 if isa.lanes == 4 else 2)

    @property
    def codes(self) -> Value:
        return self.node.operands[0]

    @property
    def scale(self) -> Value:
        return self.node.operands[1]

    @property
    def zero(self) -> Value | None:
        return self.node.operands[2] if len(self.node.operands) > 2 else None

    @property
    def columns(self) -> int:
        return _int(self.codes.shape[0])

    @property
    def depth(self) -> int:
        return _int(self.codes.shape[1])

    @property
    def width(self) -> int:
        """Columns of a panel."""
        return self.lanes * self.vectors

    @property
    def panels(self) -> int:
        return -(-self.columns // self.width)

    @property
    def group(self) -> int:
        return min(_int(self.node.attrs["group"]), self.depth)

    @property
    def groups(self) -> int:
        return -(-self.depth // self.group)

    @property
    def codebook(self) -> tuple[float, ...]:
        levels = self.node.attrs["codebook"]
        assert isinstance(levels, tuple)
        return levels

    @property
    def step(self) -> int:
        """Codes of a column that are read at once; groups begin with a step."""
        return _STEP if self.groups == 1 or self.group % _STEP == 0 else 1

    @property
    def padded_depth(self) -> int:
        """The depth in whole steps."""
        return -(-self.depth // self.step) * self.step

    @property
    def nibbles(self) -> bool:
        """Whether two codes lie in a byte."""
        return _int(self.node.attrs["bits"]) <= 4 and self.step == _STEP

    @property
    def offset(self) -> int:
        """What is subtracted from a level, with the zero point where there is one, before it is scaled."""
        if self.codebook:
            return 0
        centre = 0 if self.zero is not None else middle(self.codes.dtype, _int(self.node.attrs["bits"]))
        return centre + ((_MAGIC + self._sign) if self.nibbles else 0)

    @property
    def is_centred(self) -> bool:
        """Whether levels are scaled as they are."""
        return self.offset == 0 and self.zero is None

    @property
    def _sign(self) -> int:
        return _SIGN if self.codes.dtype is DType.i8 else 0

    def packings(self) -> dict[Value, Packing]:
        """The layouts of codes, scales and zero points."""
        plain = panels(self.columns, self.width, pairs=False, widen=False)
        parts = [self.scale] if self.zero is None else [self.scale, self.zero]
        return {self.codes: self._packing(), **dict.fromkeys(parts, plain)}

    def _packing(self) -> Packing:
        plain = panels(self.columns, self.width, pairs=False, widen=False)
        missing, sign, turn = self.padded_depth - self.depth, self._sign, 0 if self.codebook else 3
        kind = f"nibbles turned by {turn}" if self.nibbles else f"bytes by {self.step}"

        def pack(codes: NDArray[numpy.generic]) -> NDArray[numpy.generic]:
            codes = numpy.pad(codes, ((0, 0), (0, missing)))
            return plain.pack(_words(codes, sign, turn) if self.nibbles else codes)

        def packed(shape: tuple[int, ...], dtype: numpy.dtype) -> tuple[int, numpy.dtype]:
            rows = -(-shape[0] // self.width) * self.width
            if self.nibbles:
                return rows * self.padded_depth // _STEP, numpy.dtype(numpy.uint32)
            return rows * self.padded_depth, dtype

        return Packing(f"panels {self.width} of {kind}", pack, packed, self.width)


def _words(codes: NDArray[numpy.generic], sign: int, turn: int) -> NDArray[numpy.generic]:
    """Codes [N, K] of 4 bits as 32-bit words [N, K / 8], the first code lowest, turned left by `turn` bits."""
    unsigned = (codes.astype(numpy.uint8) + numpy.uint8(sign)) & numpy.uint8(15)
    pairs = numpy.ascontiguousarray(unsigned[:, ::2] | (unsigned[:, 1::2] << 4))
    words = pairs.view("<u4")
    return (words << turn) | (words >> (32 - turn)) if turn else words


def _int(value: object) -> int:
    assert isinstance(value, int)
    return value


class Levels:
    """Reads a coded weight in an open kernel. Levels less their group's offset times its scale are the weight."""

    def __init__(self, k: KernelBuilder, weight: CodedWeight) -> None:
        self.weight = weight
        panels_ = weight.panels * weight.width
        steps, kind = weight.padded_depth // weight.step, str(k.buffers[weight.codes].dtype)
        count = panels_ * (steps if weight.nibbles else weight.padded_depth)
        self._codes = _seen(k, weight.codes, "int32" if weight.nibbles else kind, count)
        self._scales = _seen(k, weight.scale, str(k.buffers[weight.scale].dtype), panels_ * weight.groups)
        if weight.zero is not None:
            self._zeros = _seen(k, weight.zero, "uint8", panels_ * weight.groups)
        self._book = Codebook(k.isa, weight.codebook) if weight.codebook else None

    @property
    def panel_elements(self) -> int:
        """Elements of the codes' buffer in one panel."""
        weight = self.weight
        return weight.width * weight.padded_depth // (_STEP if weight.nibbles else 1)

    @property
    def step_elements(self) -> int:
        """Elements of the codes' buffer in one step of a panel."""
        return self.weight.width * (1 if self.weight.nibbles else self.weight.step)

    def address(self, at: "tirx.PrimExpr") -> "tirx.PrimExpr":
        """The address of an element of the codes' buffer."""
        return T.address_of(self._codes[at])

    def read(self, at: "tirx.PrimExpr", vector: int) -> "list[tirx.PrimExpr]":
        """The levels of a step's codes, one after another along the depth, in register `vector` of the columns."""
        weight, lanes = self.weight, self.weight.lanes
        if weight.nibbles:
            word = keep(self._codes[ramp(at + vector * lanes, lanes)])
            return [self._nibble(word, i) for i in range(_STEP)]
        places = [at + i * weight.width + vector * lanes for i in range(weight.step)]
        codes = [vm.cast(self._codes[ramp(place, lanes)], "int32") for place in places]
        return [vm.cast(c, "float32") if self._book is None else self._book.at(keep(c)) for c in codes]

    def _nibble(self, word: "tirx.PrimExpr", i: int) -> "tirx.PrimExpr":
        if self._book is not None:
            return self._book.at(keep(word >> like(word, 4 * i)) if i else word)
        bits = tirx.bitwise_or(tirx.bitwise_and(_moved(word, i), like(word, _CODE_BITS)), like(word, _MAGIC_BITS))
        return vm.bits(bits, "float32")

    def scale(self, panel: "tirx.PrimExpr", group: "tirx.PrimExpr", vector: int) -> "tirx.PrimExpr":
        """The scales of a group, f32."""
        lanes = self.weight.lanes
        return keep(widened(self._scales[self._place(panel, group, vector)], self.weight.scale.dtype, lanes))

    def offset(self, panel: "tirx.PrimExpr", group: "tirx.PrimExpr", vector: int) -> "tirx.PrimExpr":
        """What a group's levels stand above zero, f32."""
        lanes = self.weight.lanes
        offset = splat(tirx.const(float(self.weight.offset), "float32"), lanes)
        if self.weight.zero is None:
            return offset
        zeros = vm.cast(self._zeros[self._place(panel, group, vector)], "int32")
        return keep(vm.cast(zeros, "float32") + offset)

    def _place(self, panel: "tirx.PrimExpr", group: "tirx.PrimExpr", vector: int) -> "tirx.PrimExpr":
        weight = self.weight
        return ramp(bind((panel * weight.groups + group) * weight.width + vector * weight.lanes), weight.lanes)


def _moved(word: "tirx.PrimExpr", i: int) -> "tirx.PrimExpr":
    """The word with its code `i` where the mantissa begins; words are turned so that code 4 lies there."""
    place = 4 * i + 3 - _CODE_SHIFT
    if place == 0:
        return word
    if 4 * i + 3 + 4 > 32:  # around the end of the word
        return T.call_llvm_pure_intrin(str(word.ty.dtype), "llvm.fshl", word, word, like(word, 32 - place))
    return word << like(word, -place) if place < 0 else word >> like(word, place)


def _seen(k: KernelBuilder, value: Value, dtype: str, count: int) -> "tirx.Buffer":
    """An input's memory as a flat buffer of another dtype and count."""
    pointer = tvm.ir.PointerType(tvm.ir.PrimType(dtype))
    data = T.bind(tvm.ir.Call("tirx.reinterpret", [k.buffers[value].data], ret_ty=pointer), pointer)
    return T.decl_buffer((k.dim(count),), dtype, data=data)
