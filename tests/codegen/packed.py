"""What rows of 4-bit codes mean, written again in numpy."""

import numpy
from numpy.typing import NDArray
from torch import Tensor


def unpacked(packed: Tensor, width: int, group: int = 32) -> NDArray[numpy.float64]:
    """The numbers [..., width] of rows of bytes: code * scale + smallest."""
    rows = packed.reshape(-1, packed.shape[-1]).numpy()
    half = width // 2
    groups = (half + group - 1) // group
    found = numpy.zeros((len(rows), width))
    for row, numbers in zip(rows, found, strict=True):
        parameters = numpy.frombuffer(row[half:].tobytes(), numpy.float16).astype(float).reshape(2, groups, 2)
        for j in range(width):
            upper, place = divmod(j, half)
            scale, smallest = parameters[upper, place // group]
            numbers[j] = (int(row[place]) >> 4 * upper & 15) * scale + smallest
    return found.reshape(*packed.shape[:-1], width)
