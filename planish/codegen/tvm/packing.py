"""Weights laid out for kernels: panels of columns in the order in which a matrix product reads them."""

import math

import numpy
from numpy.typing import NDArray

from planish.codegen.halves import Halves
from planish.codegen.tvm.kernel import Packing

Array = NDArray[numpy.generic]


def panels(rows: int, width: int, *, pairs: bool, widen: bool) -> Packing:
    """A weight [N, ...] as panels of `width` of its N rows: [N / width][K][width], zeros where N does not divide.

    K is everything but the first axis. `rows` splits N into groups that each start a panel of their own (N for none).
    bf16 bits and f16 become f32 with `widen`, or two values of K in one 32-bit unit with `pairs` (K padded to even).
    """
    kind = "pairs" if pairs else "widened" if widen else "plain"

    def pack(weight: Array) -> Array:
        matrix = weight.reshape(weight.shape[0], -1)
        if widen:
            matrix = widened(matrix)
        if pairs:
            matrix = numpy.pad(matrix, ((0, 0), (0, matrix.shape[1] % 2))).view(numpy.uint32)
        groups = [_panels(matrix[i : i + rows], width) for i in range(0, matrix.shape[0], rows)]
        return groups[0] if len(groups) == 1 else numpy.concatenate(groups)

    def packed(shape: tuple[int, ...], dtype: numpy.dtype) -> tuple[int, numpy.dtype]:
        depth = math.prod(shape[1:])
        whole, rest = divmod(shape[0], rows)
        padded = width * (whole * -(-rows // width) + -(-rest // width))
        if pairs:
            return padded * -(-depth // 2), numpy.dtype(numpy.uint32)
        return padded * depth, numpy.dtype(numpy.float32) if widen else dtype

    return Packing(f"panels {width} of {rows} {kind}", pack, packed, rows if rows % width else width)


def by_expert(matrix: Packing) -> Packing:
    """A weight [E, N, ...] as its E matrices [N, ...], each packed by itself, one after another."""

    def pack(weight: Array) -> Array:
        return numpy.concatenate([matrix.pack(each) for each in weight])

    def packed(shape: tuple[int, ...], dtype: numpy.dtype) -> tuple[int, numpy.dtype]:
        count, kept = matrix.packed(shape[1:], dtype)
        return shape[0] * count, kept

    return Packing(f"{matrix.layout} by expert", pack, packed, 1)


def in_turns(packing: Packing, halves: Halves | None) -> Packing:
    """The packing of a weight whose columns are walked as those of two slices, if they are."""
    if halves is None:
        return packing

    def packed(shape: tuple[int, ...], dtype: numpy.dtype) -> tuple[int, numpy.dtype]:
        return packing.packed((halves.columns, *shape[1:]), dtype)

    return Packing(packing.layout + halves.text, lambda array: packing.pack(halves.in_turns(array)), packed)


def widened(weight: Array) -> Array:
    """bf16 bits in uint16, or f16, as f32."""
    if weight.dtype == numpy.uint16:
        return (weight.astype(numpy.uint32) << 16).view(numpy.float32)
    return weight.astype(numpy.float32)


def _panels(matrix: Array, width: int) -> Array:
    rows, depth = matrix.shape
    if rows % width:
        matrix = numpy.pad(matrix, ((0, -rows % width), (0, 0)))
    return numpy.ascontiguousarray(matrix.reshape(-1, width, depth).transpose(0, 2, 1)).reshape(-1)
