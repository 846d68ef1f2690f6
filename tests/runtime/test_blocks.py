"""Memory in whole pages: arrays that share one block."""

import numpy as np
import pytest

from planish.runtime.blocks import zeros


@pytest.mark.parametrize(("rows", "together"), [(1, 1 << 20), (5, 1 << 20), (40_000, 64 << 20), (5, 64)])
def test_arrays_of_zeros_are_writable_and_apart(rows: int, together: int) -> None:
    types = [((rows, 3), np.float16), ((rows,), np.int8), ((2, rows, 7), np.float32)]
    arrays = zeros(types, together)
    assert [(array.shape, array.dtype) for array in arrays] == [(shape, np.dtype(kind)) for shape, kind in types]
    assert all(array.flags.writeable and not array.any() for array in arrays)
    assert together == 64 or all(array.ctypes.data % 64 == 0 for array in arrays)
    for i, array in enumerate(arrays):
        array[...] = i + 1
    assert [np.unique(array).tolist() for array in arrays] == [[1], [2], [3]]
