"""Weights stored as codes: in what order kernels have them packed, and the functions that unpack them."""

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TypeAlias

import numpy
from numpy.typing import NDArray

from planish.codegen.halves import Halves
from planish.codegen.triton.device import Device
from planish.codegen.triton.kernel import Packing
from planish.codegen.triton.unpacking import Unpacking
from planish.compiler.ir import Node, Value
from planish.compiler.ops.quantize import middle
from planish.compiler.types import DType

Pack: TypeAlias = Callable[[NDArray[numpy.generic]], NDArray[numpy.generic]]
TILE = 16  # columns that one instruction of the matrix units takes
_LEVELS = 16  # of the largest codebook
_PACKED_AT_ONCE = 1 << 24  # codes, by one thread


@dataclass(frozen=True, slots=True)
class PackedWeight:
    """The weight [columns, depth] of a `dequantize` node, or [experts, columns, depth], for products in `dtype`.

    Words of 16 bits hold `codes` codes: four of up to 4 bits, else two. They lie as [columns / 16][depth / unit][8][4]
    [2][2][2]: column within 8, pair of the depth, half of the unit, upper or lower 8 columns, place in the pair. So
    each thread of a warp reads 16 bytes that unpack, in pairs, to the registers of `mma.m16n8k16` that it must hold.
    With `halves` the columns are those of two slices, in turns. Experts lie one after another, in whole tiles.
    """

    node: Node
    dtype: DType
    device: Device
    halves: Halves | None = None

    @property
    def columns(self) -> int:
        return _int(self.node.operands[0].shape[-2]) if self.halves is None else self.halves.columns

    @property
    def depth(self) -> int:
        return _int(self.node.operands[0].shape[-1])

    @property
    def bits(self) -> int:
        return _int(self.node.attrs["bits"])

    @property
    def scale(self) -> Value:
        return self.node.operands[1]

    @property
    def zero(self) -> Value | None:
        return self.node.operands[2] if len(self.node.operands) > 2 else None

    @property
    def codes(self) -> int:
        """Codes of a word."""
        return 4 if self.bits <= 4 else 2

    @property
    def unit(self) -> int:
        """Elements of the depth in 256 words."""
        return 16 * self.codes

    @property
    def group(self) -> int:
        return min(_int(self.node.attrs["group"]), self.depth)

    @property
    def is_scaled_by_rows(self) -> bool:
        return self.group == self.depth

    @property
    def codebook(self) -> tuple[float, ...]:
        levels = self.node.attrs["codebook"]
        assert isinstance(levels, tuple)
        return tuple(float(level) for level in levels if isinstance(level, int | float))

    @property
    def unpacking(self) -> Unpacking:
        """How words become numbers."""
        assembly = self.device.backend == "cuda" and self.dtype in (DType.f16, DType.bf16)
        f8 = self.node.operands[0].dtype is DType.f8
        return Unpacking(
            self.codes, self.dtype, self.codebook, not self.is_scaled_by_rows, assembly, f8, f8 and self.device.has_f8
        )

    @property
    def offset(self) -> float:
        """What a code of level 0 is unpacked as, less the zero point where there is one."""
        if self.unpacking.levels:
            return 0.0
        centre = 0 if self.zero is not None else middle(self.node.operands[0].dtype, self.bits)
        return float(self._sign + centre + self.unpacking.magic)

    @property
    def byte_count(self) -> float:
        """Bytes of the code and the scale of one element."""
        return 2 / self.codes + self.scale.dtype.itemsize / self.group

    @property
    def _sign(self) -> int:
        """What packing adds to signed codes, which makes them unsigned."""
        return 1 << (16 // self.codes - 1) if self.node.operands[0].dtype is DType.i8 else 0

    def refuse(self) -> str | None:
        """Why the codes cannot be packed, or None."""
        if len(self.codebook) > _LEVELS:
            return f"its codebook has {len(self.codebook)} levels; it takes {_LEVELS}"
        if not self.is_scaled_by_rows and self.group % self.unit and 2 * self.group != self.unit:
            return f"groups of {self.group} are neither {self.unit // 2} nor a multiple of {self.unit} columns"
        return None

    def packings(self) -> dict[Value, Packing]:
        """The layouts of codes, scales and zero points."""
        codes, sign = self.codes, self._sign
        plus = f" plus {sign}" if sign else ""
        found = {
            self.node.operands[0]: self.packing(
                f"words of {codes} codes{plus}", lambda a: pack_codes(a, codes, sign), _in_tiles
            ),
            self.scale: self.packing("groups of columns", by_group),
        }
        if self.zero is not None:
            # what is loaded in 8 bits makes Triton choose another order of operands, which is not that of the codes
            found[self.zero] = self.packing("groups of columns in words", _in_words)
        return found

    def packing(self, layout: str, pack: Pack, order: Pack | None = None) -> Packing:
        """A packing of rows of the weight, or of what goes with them, in the order of the columns."""
        if (halves := self.halves) is None:
            return Packing(layout, pack, order)
        turns = halves.in_turns

        def turned(then: Pack) -> Pack:
            return lambda array: then(turns(array))

        return Packing(layout + halves.text, turned(pack), None if order is None else turned(order))


def pack_codes(array: NDArray[numpy.generic], codes: int, sign: int) -> NDArray[numpy.generic]:
    """Codes [columns, depth], i8 or u8, or those of experts, in the order of `PackedWeight`, as bytes."""
    array = _in_tiles(array)
    rows = TILE * max(1, _PACKED_AT_ONCE // (TILE * max(1, array.shape[1])))
    parts = [array[start : start + rows] for start in range(0, max(1, len(array)), rows)]
    with ThreadPoolExecutor(min(len(parts), os.cpu_count() or 1)) as pool:  # numpy leaves the interpreter free
        return numpy.concatenate(list(pool.map(lambda part: _packed_codes(part, codes, sign), parts)))


def _packed_codes(array: NDArray[numpy.generic], codes: int, sign: int) -> NDArray[numpy.uint8]:
    bits = 16 // codes
    unsigned = (array.astype(numpy.uint8) + numpy.uint8(sign)) & numpy.uint8((1 << bits) - 1)
    wide = numpy.pad(unsigned, ((0, 0), (0, -array.shape[1] % (16 * codes))))
    parts = wide.reshape(wide.shape[0] // TILE, 2, 8, -1, 2, codes, 4, 2)
    ordered = parts.transpose(0, 3, 2, 6, 4, 1, 7, 5)
    words = numpy.zeros(ordered.shape[:-1], numpy.uint16)
    for i in range(codes):
        words |= ordered[..., i].astype(numpy.uint16) << numpy.uint16(bits * i)
    return words.view(numpy.uint8).reshape(-1)


def by_group(array: NDArray[numpy.generic]) -> NDArray[numpy.generic]:
    """Parameters [columns, groups], or those of experts, as [groups, columns], in whole tiles of columns."""
    return numpy.ascontiguousarray(_in_tiles(array).T)


def _in_tiles(array: NDArray[numpy.generic]) -> NDArray[numpy.generic]:
    """The columns of one matrix after another, each filled up to whole tiles."""
    matrices = array.reshape(-1, *array.shape[-2:])
    wide = numpy.pad(matrices, ((0, 0), (0, -matrices.shape[1] % TILE), (0, 0)))
    return wide.reshape(-1, array.shape[-1])


def _in_words(array: NDArray[numpy.generic]) -> NDArray[numpy.generic]:
    return by_group(array.astype(numpy.uint16)).view(numpy.uint8)


def _int(value: object) -> int:
    assert isinstance(value, int)
    return value
