"""Packed weights: the announced size, and parts that join to the whole."""

import numpy
import pytest

from planish.codegen.tvm.packing import panels

GENERATOR = numpy.random.default_rng(0)


def weight(shape: tuple[int, ...], dtype: str) -> numpy.ndarray:
    return GENERATOR.integers(0, 1 << 15, shape).astype(dtype)


@pytest.mark.parametrize("shape", [(48, 5), (33, 8), (7, 3, 3, 2), (64, 1)])
@pytest.mark.parametrize(
    ("dtype", "pairs", "widen"), [("float32", False, False), ("uint16", True, False), ("uint16", False, True)]
)
@pytest.mark.parametrize("rows", [64, 16, 11])
def test_the_announced_size_is_that_of_the_packed_weight(
    shape: tuple[int, ...], dtype: str, pairs: bool, widen: bool, rows: int
) -> None:
    packing, array = panels(rows, 16, pairs=pairs, widen=widen), weight(shape, dtype)
    packed = packing.pack(array)
    assert packing.packed(array.shape, array.dtype) == (packed.size, packed.dtype)


@pytest.mark.parametrize("rows", [96, 32, 20])
def test_parts_packed_by_themselves_join_to_the_whole(rows: int) -> None:
    packing, array = panels(rows, 16, pairs=False, widen=False), weight((90, 6), "float32")
    parts = [packing.pack(array[i : i + packing.rows]) for i in range(0, len(array), packing.rows)]
    assert len(parts) > 1 or rows == 96
    numpy.testing.assert_array_equal(numpy.concatenate(parts), packing.pack(array))


def test_a_panel_holds_its_rows_side_by_side_for_each_k() -> None:
    array = weight((20, 3), "float32")
    packed = panels(20, 16, pairs=False, widen=False).pack(array).reshape(2, 3, 16)
    for n in range(32):
        expected = array[n] if n < 20 else numpy.zeros(3)
        numpy.testing.assert_array_equal(packed[n // 16, :, n % 16], expected)
