"""Weights stored as codes: how kernels have them packed, and how they read levels from them."""

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy
from numpy.typing import NDArray
from tvm import tirx
from tvm.script.ir_builder import tirx as T  # noqa: N812 - TVM's own name for its script namespace

from planish.codegen.call import Call
from planish.codegen.halves import Halves, halves_of
from planish.codegen.tvm import vector_math as vm
from planish.codegen.tvm.gemm_rows import widened
from planish.codegen.tvm.int8_packing import CodePanels
from planish.codegen.tvm.isa import Isa
from planish.codegen.tvm.kernel import KernelBuilder, Packing, bind, ramp
from planish.codegen.tvm.levels import Codebook
from planish.codegen.tvm.loops import integer
from planish.codegen.tvm.packing import by_expert, in_turns, panels
from planish.codegen.tvm.vector_math import keep, like, splat
from planish.compiler.ir import Node, Value
from planish.compiler.ops.quantize import middle
from planish.compiler.types import DType

_STEP = 8  # codes of a column that are read at once: 4 bits each in a lane of 32
# A code in the top bits of the mantissa of 16.0 makes 16 + code: cheaper than a conversion.
_MAGIC, _MAGIC_BITS, _CODE_BITS, _CODE_SHIFT = 16, 0x41800000, 0x00780000, 19
_TURN = 3  # bits that words are turned left, so that one of their codes lies there
_READ_SOON = (T.int32(0), T.int32(3), T.int32(1))  # of llvm.prefetch: for reading, into L1, data
_AHEAD_BYTES = 8192  # best of 2 to 32 KiB on a Zen 4, into L1 and L2, with one thread and with two
_LINE = 64


@dataclass(frozen=True, slots=True)
class CodedWeight:
    """The weight [columns, depth] of a `dequantize` node, or one such matrix an expert.

    It lies in panels of `vectors` registers of `lanes` columns.

    Codes of up to 4 bits lie as [panel][depth / 8][width] in lanes of 32 bits with 8 consecutive codes of a column,
    wider ones as [panel][depth][width] bytes; scales and zero points as [panel][group][width]. With `dot` they lie as
    dot products of bytes read them, see CodePanels, and are unsigned. With `halves` the columns are those of two
    slices, in turns.
    """

    node: Node
    lanes: int
    vectors: int
    dot: bool
    halves: Halves | None = None

    @classmethod
    def of(cls, node: Node, isa: Isa, call: Call | None = None) -> "CodedWeight":
        """The weight in panels that suit the instruction set, and slices of the product that a call computes from."""
        vectors = 4 if isa.lanes == 4 else 2
        halves = None if call is None else halves_of(call, isa.lanes * vectors // 2)
        plain = cls(node, isa.lanes, vectors, False, halves)
        dot = isa.int8_dot and isa.triple.startswith("x86_64") and not plain.codebook and plain.step == _STEP
        return replace(plain, dot=dot)

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
    def experts(self) -> int:
        """Matrices, whose panels lie one after another."""
        return _int(self.codes.shape[0]) if self.codes.type.rank == 3 else 1

    @property
    def columns(self) -> int:
        """Columns that are multiplied."""
        return _int(self.codes.shape[-2]) if self.halves is None else self.halves.columns

    @property
    def depth(self) -> int:
        return _int(self.codes.shape[-1])

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
    def code_offset(self) -> int:
        """What is subtracted from a packed code, with the zero point where there is one, before it is scaled."""
        if self.codebook:
            return 0
        return self._sign + (0 if self.zero is not None else middle(self.codes.dtype, _int(self.node.attrs["bits"])))

    @property
    def offset(self) -> int:
        """The same for the level of a code."""
        return self.code_offset + (_MAGIC if self.nibbles and not self.codebook else 0)

    @property
    def is_centred(self) -> bool:
        """Whether levels are scaled as they are."""
        return self.offset == 0 and self.zero is None

    @property
    def _sign(self) -> int:
        """What is added to signed codes, which makes them unsigned."""
        if self.codes.dtype is not DType.i8 or not (self.nibbles or self.dot):
            return 0
        return 8 if self.nibbles else 128

    @property
    def code_dtype(self) -> str:
        """TVM's name for the elements that codes are read in."""
        return "int32" if self.nibbles or self.dot else "int8" if self.codes.dtype is DType.i8 else "uint8"

    @property
    def step_elements(self) -> int:
        """Elements of a panel's codes in a step."""
        if self.nibbles:
            return self.width
        return 2 * self.width if self.dot else self.step * self.width

    @property
    def panel_elements(self) -> int:
        """Elements of a panel's codes."""
        return self.padded_depth // self.step * self.step_elements

    def packings(self) -> dict[Value, Packing]:
        """The layouts of codes, scales and zero points."""
        plain = panels(self.columns, self.width, pairs=False, widen=False)
        parts = [self.scale] if self.zero is None else [self.scale, self.zero]
        found = {self.codes: self._packing(), **dict.fromkeys(parts, plain)}
        found = {value: in_turns(each, self.halves) for value, each in found.items()}
        return {value: by_expert(each) if value.type.rank == 3 else each for value, each in found.items()}

    def _packing(self) -> Packing:
        if self.dot:
            return CodePanels(self.width, self.padded_depth, self.nibbles, self._sign).packing()
        plain = panels(self.columns, self.width, pairs=False, widen=False)
        missing, sign, turn = self.padded_depth - self.depth, self._sign, 0 if self.codebook else _TURN
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
        groups = weight.experts * weight.panels * weight.width * weight.groups
        self._codes = k.seen(weight.codes, weight.code_dtype, weight.experts * weight.panels * weight.panel_elements)
        self._scales = k.seen(weight.scale, str(k.buffers[weight.scale].dtype), groups)
        if weight.zero is not None:
            self._zeros = k.seen(weight.zero, "uint8", groups)
        self._book = Codebook(k.isa, weight.codebook) if weight.codebook else None

    def read(self, at: "tirx.PrimExpr", vector: int) -> "list[tirx.PrimExpr]":
        """The levels of a step's codes, one after another along the depth, in register `vector` of the columns."""
        weight, lanes = self.weight, self.weight.lanes
        if weight.nibbles:
            word = keep(self._codes[ramp(at + vector * lanes, lanes)])
            return [self._nibble(word, i) for i in range(_STEP)]
        if weight.dot:
            words = self.bytes(at, vector)
            return [_byte(words[i // 4], i % 4) for i in range(_STEP)]
        places = [at + i * weight.width + vector * lanes for i in range(weight.step)]
        codes = [vm.cast(self._codes[ramp(place, lanes)], "int32") for place in places]
        return [vm.cast(c, "float32") if self._book is None else self._book.at(keep(c)) for c in codes]

    def bytes(self, at: "tirx.PrimExpr", vector: int) -> "list[tirx.PrimExpr]":
        """The codes of a step for dot products: lanes of 4 bytes, the first 4 codes of a column, then the others."""
        lanes, place = self.weight.lanes, at + vector * self.weight.lanes
        if not self.weight.nibbles:
            return [keep(self._codes[ramp(place + i * self.weight.width, lanes)]) for i in range(2)]
        word = keep(self._codes[ramp(place, lanes)])
        return [keep(tirx.bitwise_and(part, like(word, 0x0F0F0F0F))) for part in (word, word >> like(word, 4))]

    def elements(self, group: "tuple[tirx.PrimExpr, ...]") -> "Callable[[tirx.PrimExpr, int], tirx.PrimExpr]":
        """Reads elements of one row and group, given as (row, group), by their place along the depth: f32 numbers."""
        weight, row = self.weight, group[0]
        panel, column = bind(T.truncdiv(row, integer(weight.width))), bind(T.truncmod(row, integer(weight.width)))
        at = bind((panel * weight.groups + group[1]) * weight.width + column)
        scale = keep(widened(self._scales[at], weight.scale.dtype, 1))
        zero = tirx.const(float(weight.code_offset), "float32")
        if weight.zero is not None:
            zero = keep(vm.cast(vm.cast(self._zeros[at], "int32"), "float32") + zero)
        start = bind(panel * weight.panel_elements + column)

        def read(depth: "tirx.PrimExpr", lanes: int) -> "tirx.PrimExpr":
            code = keep(self._code(start, depth, lanes))
            levels = vm.cast(code, "float32") - splat(zero, lanes) if self._book is None else self._book.at(code)
            return levels * splat(scale, lanes)

        return read

    def _code(self, start: "tirx.PrimExpr", depth: "tirx.PrimExpr", lanes: int) -> "tirx.PrimExpr":
        """Codes from `depth` on of the row whose first one lies at `start`, int32, one by one."""
        weight, places = self.weight, ramp(depth, lanes)
        together = _STEP if weight.nibbles else 4 if weight.dot else 1
        unit = places >> like(places, together.bit_length() - 1)
        word = keep(self._codes[keep(splat(start, lanes) + unit * like(unit, weight.width))])
        if together == 1:
            return vm.cast(word, "int32")
        within = keep(vm.cast(tirx.bitwise_and(places, like(places, together - 1)), "uint32"))
        bits = within * like(within, 32 // together)
        if weight.nibbles and weight.dot:
            low = tirx.bitwise_and(within, like(within, 3))
            bits = low * like(low, 8) + (within >> like(within, 2)) * like(within, 4)
        word = vm.cast(word, "uint32")
        if weight.nibbles and not weight.dot and not weight.codebook:
            word = keep((word >> like(word, _TURN)) | (word << like(word, 32 - _TURN)))
        return vm.cast(tirx.bitwise_and(word >> keep(bits), like(word, 15 if weight.nibbles else 255)), "int32")

    def prefetch(self, at: "tirx.PrimExpr") -> None:
        """Fetch a step far behind the one at `at`; wider codes are read fast enough without (Zen 4)."""
        if not self.weight.nibbles:
            return
        for line in range(-(-self.weight.width * 4 // _LINE)):
            place = at + (_AHEAD_BYTES + line * _LINE) // 4
            T.evaluate(T.call_llvm_intrin("void", "llvm.prefetch", T.address_of(self._codes[place]), *_READ_SOON))

    def _nibble(self, word: "tirx.PrimExpr", i: int) -> "tirx.PrimExpr":
        if self._book is not None:
            return self._book.at(keep(word >> like(word, 4 * i)) if i else word)
        moved = _moved(word, 8 * (i % 4) + 4 * (i // 4) if self.weight.dot else 4 * i + _TURN)
        bits = tirx.bitwise_or(tirx.bitwise_and(moved, like(word, _CODE_BITS)), like(word, _MAGIC_BITS))
        return vm.bits(bits, "float32")

    def scale(self, panel: "tirx.PrimExpr", group: "tirx.PrimExpr", vector: int) -> "tirx.PrimExpr":
        """The scales of a group, f32."""
        lanes = self.weight.lanes
        return keep(widened(self._scales[self._place(panel, group, vector)], self.weight.scale.dtype, lanes))

    def offset(
        self, panel: "tirx.PrimExpr", group: "tirx.PrimExpr", vector: int, fixed: int | None = None
    ) -> "tirx.PrimExpr":
        """What a group's levels, or what has the `fixed` part of an offset, stand above zero, f32."""
        lanes = self.weight.lanes
        offset = splat(tirx.const(float(self.weight.offset if fixed is None else fixed), "float32"), lanes)
        if self.weight.zero is None:
            return offset
        zeros = vm.cast(self._zeros[self._place(panel, group, vector)], "int32")
        return keep(vm.cast(zeros, "float32") + offset)

    def _place(self, panel: "tirx.PrimExpr", group: "tirx.PrimExpr", vector: int) -> "tirx.PrimExpr":
        weight = self.weight
        return ramp(bind((panel * weight.groups + group) * weight.width + vector * weight.lanes), weight.lanes)


def _moved(word: "tirx.PrimExpr", position: int) -> "tirx.PrimExpr":
    """The word with the code at bit `position` where the mantissa begins."""
    right = position - _CODE_SHIFT
    if right == 0:
        return word
    if position + 4 > 32:  # around the end of the word
        return T.call_llvm_pure_intrin(str(word.ty.dtype), "llvm.fshl", word, word, like(word, 32 - right))
    return word << like(word, -right) if right < 0 else word >> like(word, right)


def _byte(word: "tirx.PrimExpr", i: int) -> "tirx.PrimExpr":
    """Byte `i` of each lane, unsigned, as f32."""
    return vm.cast(tirx.bitwise_and(word >> like(word, 8 * i) if i else word, like(word, 255)), "float32")
