"""Codes of quantized weights laid out for integer products, and the scales and zero points of their groups."""

from dataclasses import dataclass

import numpy
from numpy.typing import NDArray

from planish.codegen.tvm.kernel import Packing
from planish.codegen.tvm.packing import widened

Array = NDArray[numpy.generic]


@dataclass(frozen=True, slots=True)
class CodePanels:
    """Codes [N, K] as panels of `width` of their N rows: [N / width][padded / unit][width] of 32 bits.

    With `nibbles` byte t of a unit holds code t in its low half and code t + 4 in its high half, so that a unit is 8
    codes of K; else it holds 4. `shift` is added to every code before. Zeros stand where N and K do not fill a panel of
    `depth` codes a row.
    """

    width: int
    depth: int
    nibbles: bool
    shift: int

    @property
    def unit(self) -> int:
        """Codes of one row in 32 bits."""
        return 8 if self.nibbles else 4

    def packing(self) -> Packing:
        kind = "nibbles" if self.nibbles else "bytes"
        layout = f"codes {self.width} x {self.depth} {kind} + {self.shift}"
        return Packing(layout, self._pack, self._packed, self.width)

    def _pack(self, codes: Array) -> Array:
        rows, depth = codes.shape
        moved = (codes.astype(numpy.int16) + self.shift).astype(numpy.uint8)
        padded = numpy.pad(moved, ((0, -rows % self.width), (0, self.depth - depth)))
        units: NDArray[numpy.uint8] = padded.reshape(padded.shape[0], -1, self.unit)
        if self.nibbles:
            units = units[..., :4] + units[..., 4:] * numpy.uint8(16)
        words = numpy.ascontiguousarray(units).view(numpy.uint32)[..., 0]
        return numpy.ascontiguousarray(words.reshape(-1, self.width, words.shape[1]).transpose(0, 2, 1)).reshape(-1)

    def _packed(self, shape: tuple[int, ...], _: numpy.dtype) -> tuple[int, numpy.dtype]:
        rows = -(-shape[0] // self.width) * self.width
        return rows * self.depth // self.unit, numpy.dtype(numpy.uint32)


def group_panels(width: int) -> Packing:
    """Values of groups [N, G] (scales of f32, f16 or bf16, zero points) as panels [N / width][G][width].

    bf16 bits become f32.
    """

    def pack(values: Array) -> Array:
        values = widened(values) if values.dtype == numpy.uint16 else values
        padded = numpy.pad(values, ((0, -values.shape[0] % width), (0, 0)))
        return numpy.ascontiguousarray(padded.reshape(-1, width, padded.shape[1]).transpose(0, 2, 1)).reshape(-1)

    def packed(shape: tuple[int, ...], dtype: numpy.dtype) -> tuple[int, numpy.dtype]:
        rows = -(-shape[0] // width) * width
        return rows * shape[1], numpy.dtype(numpy.float32) if dtype == numpy.uint16 else dtype

    return Packing(f"groups of {width} rows", pack, packed, width)
