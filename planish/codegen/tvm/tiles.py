"""Pieces that batched products share: f32 reads and writes of any view, square transposes and register tiles."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from tvm import tirx
from tvm.script.ir_builder import tirx as T  # noqa: N812 - TVM's own name for its script namespace

from planish.codegen.tvm.kernel import KernelBuilder, bind, ramp
from planish.codegen.tvm.vector_math import bits, cast, fma, keep, lanes_of, like, splat
from planish.codegen.view import View
from planish.compiler.types import DType, same_dim

CHAIN = 128


def index(value: "int | tirx.PrimExpr") -> "tirx.PrimExpr":
    """An int64 expression."""
    return tirx.const(value, "int64") if isinstance(value, int) else value


def ceil_div(value: "tirx.PrimExpr", step: int) -> "tirx.PrimExpr":
    """`value / step` rounded up, for value >= 0."""
    return quotient(value + (step - 1), step)


def quotient(value: "tirx.PrimExpr", divisor: "int | tirx.PrimExpr") -> "tirx.PrimExpr":
    """`value // divisor` for value >= 0 and divisor > 0; TVM spends a branch on the signs of its `//`."""
    return tirx.truncdiv(value, index(divisor))


def remainder(value: "tirx.PrimExpr", divisor: "int | tirx.PrimExpr") -> "tirx.PrimExpr":
    """`value % divisor` for value >= 0 and divisor > 0."""
    return tirx.truncmod(value, index(divisor))


def steps(value: "tirx.PrimExpr", places: "tirx.PrimExpr | int", stride: "tirx.PrimExpr | int") -> "tirx.PrimExpr":
    """value + places * stride, where a stride of 0 adds nothing."""
    return value if isinstance(stride, int) and stride == 0 else value + places * stride


@contextmanager
def chains(count: "tirx.PrimExpr") -> "Iterator[tuple[tirx.PrimExpr, tirx.PrimExpr, tirx.PrimExpr]]":
    """A loop over runs of at most `CHAIN` of `count` terms: the run's number, its first term and its length.

    The rounding error of a sum grows with the count of terms that are added one after another. Sums of runs that are
    then added up have a smaller one.
    """
    with T.serial(bind(ceil_div(count, CHAIN))) as run:
        first = bind(run * CHAIN)
        yield run, first, bind(tirx.min(count - first, index(CHAIN)))


def each_chunk(length: int, lanes: int, body: Callable[["tirx.PrimExpr", int], None]) -> None:
    """Call `body(start, width)` so that it covers `length` in whole vectors, then in halves of them down to one."""
    if length >= lanes:
        with T.serial(index(length // lanes)) as i:
            body(i * lanes, lanes)
    done = length // lanes * lanes
    while done < length:
        lanes //= 2
        if done + lanes <= length:
            body(index(done), lanes)
            done += lanes


def load(k: KernelBuilder, buffer: "tirx.Buffer", view: View, place: "tirx.PrimExpr", lanes: int) -> "tirx.PrimExpr":
    """`lanes` elements of a float or i8 view along its last axis from the flat index `place`, as f32; f64 stays."""
    stride = view.strides[-1]
    dense = lanes == 1 or same_dim(stride, 1)
    value = buffer[ramp(place, lanes) if dense else T.ramp(place, k.dim(stride), lanes)]
    if view.dtype is DType.bf16:
        wide = cast(value, "uint32")
        return bits(wide << like(wide, 16), "float32")
    return cast(value, "float32") if view.dtype in (DType.f16, DType.i8) else value


def store(buffer: "tirx.Buffer", dtype: DType, place: "tirx.PrimExpr", value: "tirx.PrimExpr", lanes: int) -> None:
    """Write f32 lanes to consecutive elements of an f32, bf16 or f16 buffer, rounding to nearest even."""
    if dtype is DType.bf16:
        raw = bind(bits(value, "uint32"))
        odd = tirx.bitwise_and(raw >> like(raw, 16), like(raw, 1))
        value = cast((raw + odd + like(raw, 0x7FFF)) >> like(raw, 16), "uint16")
    elif dtype is DType.f16:
        value = cast(value, "float16")
    T.buffer_store(buffer, value, [ramp(place, lanes)])


def transposed(rows: Sequence["tirx.PrimExpr"], step: int = 1) -> list["tirx.PrimExpr"]:
    """As many vectors as they have lanes, with lane j of row i moved to lane i of row j; lanes are a power of two.

    Fewer rows, also a power of two, are transposed in every run of as many lanes. Squares of `step` rows and lanes keep
    their order.
    """
    rows = list(rows)
    while step < len(rows):
        for i in range(len(rows)):
            if not i & step:
                rows[i], rows[i + step] = _exchanged(rows[i], rows[i + step], step)
        step *= 2
    return rows


def lane_sums(rows: Sequence["tirx.PrimExpr"]) -> "tirx.PrimExpr":
    """One vector whose lane i is the sum over the lanes of row i; as many rows as lanes, a power of two."""
    kept, step = dict(enumerate(rows)), 1
    while step < len(rows):
        for i in [i for i in kept if not i & step]:
            kept[i] = lane_sum(kept[i], kept.pop(i + step), step, len(rows))
        step *= 2
    return kept[0]


def lane_sum(a: "tirx.PrimExpr", b: "tirx.PrimExpr", step: int, lanes: int) -> "tirx.PrimExpr":
    """What `lane_sums` makes of two partial results of `step` rows each: what stays in a lane and what comes to it."""
    stays = [j if not j & step else lanes + j for j in range(lanes)]
    comes = [j + step if not j & step else lanes + j - step for j in range(lanes)]
    return keep(keep(tirx.Shuffle([a, b], stays)) + keep(tirx.Shuffle([a, b], comes)))


def _exchanged(a: "tirx.PrimExpr", b: "tirx.PrimExpr", step: int) -> "tuple[tirx.PrimExpr, tirx.PrimExpr]":
    """Two rows `step` apart after the blocks of `step` lanes off the diagonal have changed places."""
    lanes = lanes_of(a)
    low = [j if not j & step else lanes + j - step for j in range(lanes)]
    high = [j + step if not j & step else lanes + j for j in range(lanes)]
    return keep(tirx.Shuffle([a, b], low)), keep(tirx.Shuffle([a, b], high))


def tile(
    shape: tuple[int, int, int],
    depth: "tirx.PrimExpr",
    left: Callable[["tirx.PrimExpr", int], "tirx.PrimExpr"],
    right: Callable[["tirx.PrimExpr", int], "tirx.PrimExpr"],
    start: Callable[[int, int], "tirx.PrimExpr"],
    finish: Callable[[int, int, "tirx.PrimExpr"], None],
    *,
    dtype: str = "float32",
    multiply_add: "Callable[[tirx.PrimExpr, tirx.PrimExpr, tirx.PrimExpr], tirx.PrimExpr]" = fma,
) -> None:
    """Sum `left(d, i) * right(d, j)` over d < depth into rows x vectors registers of `lanes` elements each.

    `shape` is (rows, vectors, lanes); `left` gives scalars, `right` and `start` vectors; `finish` takes the sums.
    `multiply_add(x, y, sums)` adds a product to them.
    """
    rows, vectors, lanes = shape
    sums = [T.alloc_buffer((vectors * lanes,), dtype) for _ in range(rows)]
    places = [(i, j, ramp(tirx.const(j * lanes, "int32"), lanes)) for i in range(rows) for j in range(vectors)]
    for i, j, place in places:
        T.buffer_store(sums[i], start(i, j), [place])
    with T.serial(depth) as d:
        columns = [bind(right(d, j)) for j in range(vectors)]
        for i in range(rows):
            factor = bind(splat(left(d, i), lanes))
            for j, column in enumerate(columns):
                place = places[i * vectors + j][2]
                T.buffer_store(sums[i], multiply_add(factor, column, sums[i][place]), [place])
    for i, j, place in places:
        finish(i, j, sums[i][place])
