"""Square transposes in vector registers."""

from tvm import tirx

from planish.codegen.tvm import vector_math as vm
from planish.codegen.tvm.kernel import bind
from planish.compiler.types import DType


def tile_size(dtype: DType, lanes: int) -> int:
    """Rows and columns of a tile of at most a kilobyte, which registers hold."""
    size = lanes
    while size * size * dtype.itemsize > 1024:
        size //= 2
    return size


def transposed(rows: "list[tirx.PrimExpr]") -> "list[tirx.PrimExpr]":
    """The columns of a square matrix of as many rows as lanes, a power of two (J. O. Eklundh, 1972)."""
    size, step = len(rows), 1
    while step < size:
        swapped = list(rows)
        for i in range(size):
            if not i & step:
                swapped[i], swapped[i + step] = _exchanged(rows[i], rows[i + step], step, size)
        rows, step = swapped, 2 * step
    return rows


def _exchanged(a: "tirx.PrimExpr", b: "tirx.PrimExpr", step: int, size: int) -> "tuple[tirx.PrimExpr, tirx.PrimExpr]":
    """Both rows with the blocks of `step` lanes off the diagonal exchanged."""
    low = [size + lane - step if lane & step else lane for lane in range(size)]
    high = [size + lane if lane & step else lane + step for lane in range(size)]
    return bind(shuffled((a, b), low)), bind(shuffled((a, b), high))


def shuffled(vectors: "tuple[tirx.PrimExpr, ...]", lanes: list[int]) -> "tirx.PrimExpr":
    """Chosen lanes of the vectors laid one after another."""
    return tirx.Shuffle(list(vectors), [tirx.IntImm("int32", lane) for lane in lanes])


def halves(x: "tirx.PrimExpr") -> "tuple[tirx.PrimExpr, tirx.PrimExpr]":
    """The lower and the upper lanes."""
    half = vm.lanes_of(x) // 2
    return shuffled((x,), list(range(half))), shuffled((x,), list(range(half, 2 * half)))
