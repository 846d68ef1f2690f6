"""The register tile of matrix products: its shape, its instructions and its loop over the depth."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from itertools import chain

from tvm import tirx
from tvm.script.ir_builder import tirx as T  # noqa: N812 - TVM's own name for its script namespace

from planish.codegen.tvm.bf16 import dot
from planish.codegen.tvm.isa import Isa
from planish.codegen.tvm.kernel import TVM_DTYPE, bind, ramp
from planish.compiler.types import DType


@dataclass(frozen=True, slots=True)
class Tile:
    """`rows` by `vectors` registers of `lanes` sums in `dtype`; `pairs` multiplies two bf16 values a lane and step.

    With `half` the last register of a row has half the lanes. Sums are made in `parts` at least where they are long
    enough.
    """

    rows: int
    vectors: int
    lanes: int
    pairs: bool = False
    dtype: DType = DType.f32
    half: bool = False
    parts: int = 1

    @property
    def sums(self) -> str:
        """TVM's name for the dtype of the sums."""
        return TVM_DTYPE[self.dtype]

    @property
    def width(self) -> int:
        """Columns of one tile."""
        return self.vectors * self.lanes - (self.lanes // 2 if self.half else 0)

    def lanes_of(self, vector: int) -> int:
        """How many sums the register `vector` of a row holds."""
        return min(self.lanes, self.width - vector * self.lanes)

    @property
    def unit(self) -> str:
        """TVM's name for what one step reads a lane."""
        return "int32" if self.pairs else self.sums


# speed against the best tile when no column is padding, by vectors; measured on Zen 4 and estimated for NEON
_WIDE = {1.0: 0.96, 2.0: 1.0, 3.0: 0.99, 4.0: 0.97}
_NARROW = {1.0: 0.5, 2.0: 0.8, 3.0: 0.95, 4.0: 1.0}
# half a vector takes half the time where 512 bits are worked on in two halves, and no more than a whole one elsewhere
_HALVES = {1.5: 0.95, 2.5: 0.95, 3.5: 0.92}


def choose_tile(isa: Isa, columns: int, pairs: bool = False, dtype: DType = DType.f32, *, even: bool = False) -> Tile:
    """The tile that wastes least of the machine on `columns`: few padded columns, all sums in registers.

    With `even` half of its columns are whole registers.
    """
    speed = _NARROW if isa.lanes == 4 else _WIDE if isa.lanes == 8 else {**_WIDE, **_HALVES}
    lanes = lanes_for(isa, dtype)

    def worth(vectors: float) -> float:
        width = int(vectors * lanes)
        return speed[vectors] * columns / (-(-columns // width) * width)

    fitting = (v for v in speed if isa.registers > 16 or v < 3)
    best = max((v for v in fitting if not even or v % 2 == 0), key=worth)
    if isa.halved and best == 1.5:  # three halves are faster than a whole and a half: 0.94 of the peak against 0.86
        return Tile(8, 3, lanes // 2, pairs, dtype)
    vectors, sums = math.ceil(best), 12 if isa.registers <= 16 else 24
    return Tile(min(sums // vectors, sums // 2), vectors, lanes, pairs, dtype, half=best < vectors)


def lanes_for(isa: Isa, dtype: DType) -> int:
    """Sums in a register for elements of `dtype`: f64 in f64, everything else in f32."""
    return isa.lanes // 2 if dtype is DType.f64 else isa.lanes


def body_rows(tile: Tile, rows: int | None) -> tuple[int, ...]:
    """The row counts that a kernel needs loops for, largest first; any count is a sum of them (`rows` None)."""
    if rows is not None:
        rest = rows % tile.rows
        return tuple(r for r in (tile.rows if rows >= tile.rows else 0, rest) if r)
    return (tile.rows, *(r for r in (8, 4, 3, 2, 1) if r < tile.rows))


Load = Callable[[int, "tirx.PrimExpr"], "tirx.PrimExpr"]
Fetch = Callable[["tirx.PrimExpr"], "tirx.PrimExpr"]

_CHAIN = 160  # steps; adding up the parts of longer sums takes at most 1 % of the time
_SHORTEST = 48  # steps of a part, where parts are asked for

_READ_SOON = (T.int32(0), T.int32(2), T.int32(1))  # of llvm.prefetch: for reading, into L2, data


class TileLoop:
    """Sums tiles into registers and leaves them in `out`, a buffer of [rows][width] sums."""

    def __init__(self, tile: Tile, out: "tirx.Buffer") -> None:
        self.tile = tile
        self.out = out

    def emit(self, rows: int, first: "tirx.PrimExpr", depth: int, load: Load, panel: Load, fetch: Fetch) -> None:
        """Sum `rows` rows over `depth` steps into the rows of `out` from `first`.

        `load(i, step)` is the unit of row i; `panel(v, step)` is vector v of the weights; `fetch(step)` is the address
        of a cache line that will be read later.
        """
        tile = self.tile
        # TVM keeps a local buffer off the heap, and LLVM its parts in registers, up to 1024 bytes: one a vector
        sums = [[T.alloc_buffer((tile.lanes_of(v),), tile.sums) for v in range(tile.vectors)] for _ in range(rows)]
        chains = _chains(depth, tile)
        size = -(-depth // chains)
        with T.serial(tirx.const(chains, "int64")) as i:
            start = bind(i * size)
            for total, lanes in _lanes(sums):
                T.buffer_store(total, T.broadcast(tirx.const(0.0, tile.sums), lanes), [ramp(0, lanes)])
            steps = T.int64(size) if depth % size == 0 else bind(tirx.min(depth - start, T.int64(size)))
            with T.serial(steps) as j:
                step = bind(start + j)
                T.evaluate(T.call_llvm_intrin("void", "llvm.prefetch", fetch(step), *_READ_SOON))
                self._step(sums, [bind(panel(v, step)) for v in range(tile.vectors)], lambda i: load(i, step))
            with T.If(start == 0):
                with T.Then():
                    self._leave(sums, first, add=False)
                with T.Else():
                    self._leave(sums, first, add=True)

    def _step(
        self, sums: "list[list[tirx.Buffer]]", weights: "list[tirx.PrimExpr]", load: "Callable[[int], tirx.PrimExpr]"
    ) -> None:
        """Add the products of one unit of each row with a row of weights to the registers."""
        for i, row in enumerate(sums):
            unit = load(i)
            factors = {lanes: bind(T.broadcast(unit, lanes)) for _, lanes in _lanes([row])}
            for (total, lanes), weight in zip(_lanes([row]), weights, strict=True):
                T.buffer_store(
                    total, self._multiply_add(factors[lanes], weight, total[ramp(0, lanes)]), [ramp(0, lanes)]
                )

    def _leave(self, sums: "list[list[tirx.Buffer]]", first: "tirx.PrimExpr", *, add: bool) -> None:
        """Store the registers in the rows of `out` from `first`, or `add` them to what is there."""
        for i, row in enumerate(sums):
            for v, (total, lanes) in enumerate(_lanes([row])):
                place = ramp((first + i) * self.tile.width + v * self.tile.lanes, lanes)
                value = total[ramp(0, lanes)]
                T.buffer_store(self.out, self.out[place] + value if add else value, [place])

    def _multiply_add(self, x: "tirx.PrimExpr", weight: "tirx.PrimExpr", total: "tirx.PrimExpr") -> "tirx.PrimExpr":
        lanes = int(total.ty.dtype.lanes)
        vector = f"{self.tile.sums}x{lanes}"
        if self.tile.pairs:
            return dot(total, x, weight)
        return T.call_llvm_pure_intrin(vector, "llvm.fma", x, weight, total)


def _lanes(sums: "list[list[tirx.Buffer]]") -> "list[tuple[tirx.Buffer, int]]":
    """The registers with their lanes."""
    return [(total, int(total.shape[0])) for total in chain(*sums)]


def _chains(depth: int, tile: Tile) -> int:
    """In how many parts to sum: rounding errors grow with the count of terms that are added one after another.

    Products of bf16 have larger errors of their own, and sums in f64 none that matter. Parts are equal if they can be.
    """
    if tile.pairs or tile.dtype is DType.f64:
        return 1
    fewest = max(-(-depth // _CHAIN), min(tile.parts, depth // _SHORTEST))
    return next((count for count in range(fewest, fewest * 3 // 2 + 1) if depth % count == 0), fewest)
