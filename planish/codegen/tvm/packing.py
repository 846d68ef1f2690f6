"""Weights laid out for kernels: panels of columns in the order in which a matrix product reads them."""

import numpy
from numpy.typing import NDArray

from planish.codegen.tvm.kernel import Packing


def panels(rows: int, width: int, *, pairs: bool, widen: bool) -> Packing:
    """A weight [N, ...] as panels of `width` of its N rows: [N / width][K][width], zeros where N does not divide.

    K is everything but the first axis. `rows` splits N into groups that each start a panel of their own (N for none).
    bf16 bits become f32 with `widen`, or two values of K in one 32-bit unit with `pairs` (K padded to even).
    """
    kind = "pairs" if pairs else "widened" if widen else "plain"

    def pack(weight: NDArray[numpy.generic]) -> NDArray[numpy.generic]:
        matrix = weight.reshape(weight.shape[0], -1)
        if widen:
            matrix = (matrix.astype(numpy.uint32) << 16).view(numpy.float32)
        if pairs:
            matrix = numpy.pad(matrix, ((0, 0), (0, matrix.shape[1] % 2))).view(numpy.uint32)
        groups = [_panels(matrix[i : i + rows], width) for i in range(0, matrix.shape[0], rows)]
        return numpy.concatenate(groups)

    return Packing(f"panels {width} of {rows} {kind}", pack)


def _panels(matrix: NDArray[numpy.generic], width: int) -> NDArray[numpy.generic]:
    rows, depth = matrix.shape
    padded = numpy.pad(matrix, ((0, -rows % width), (0, 0)))
    return numpy.ascontiguousarray(padded.reshape(-1, width, depth).transpose(0, 2, 1)).reshape(-1)
