"""Memory in whole pages: arrays that share one block."""

import numpy as np
import pytest

from planish.runtime.blocks import zeros


@pytest.mark.parametrize("rows", [1, 5, 40_000])
def test_arrays_of_a_block_are_zero_aligned_and_apart(rows: int) -> None:
    types = [((rows, 3), np.float16), ((rows,), np.int8), ((2, rows, 7), np.float32)]
    arrays = zeros(types)
    assert [(array.shape, array.dtype) for array in arrays] == [(shape, np.dtype(kind)) for shape, kind in types]
    assert all(array.ctypes.data % 64 == 0 and array.flags.writeable and not array.any() for array in arrays)
    for i, array in enumerate(arrays):
        array[...] = i + 1
    assert [np.unique(array).tolist() for array in arrays] == [[1], [2], [3]]
