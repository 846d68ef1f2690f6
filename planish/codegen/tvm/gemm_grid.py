"""Matrix products over panels of packed weights: which tiles a task computes, and in which order."""

from collections.abc import Callable
from dataclasses import dataclass

from tvm import tirx
from tvm.script.ir_builder import tirx as T  # noqa: N812 - TVM's own name for its script namespace

from planish.codegen.tvm.gemm_rows import Rows
from planish.codegen.tvm.gemm_tile import Tile, TileLoop, body_rows
from planish.codegen.tvm.kernel import KernelBuilder, bind, ramp

# (first row, count of rows, first column): what is done with a finished tile
Finish = Callable[["tirx.PrimExpr", "tirx.PrimExpr", "tirx.PrimExpr"], None]
Unpack = Callable[["tirx.PrimExpr"], None]

_BLOCK_BYTES = 384 * 1024  # of the left operand: with one panel this fits the smallest L2 of the profiles (1 MiB)


@dataclass(frozen=True, slots=True)
class Grid:
    """A product of `rows` x `depth` units with panels of `columns`; `known_rows` where the count is a constant.

    Rows come in blocks of `block` rows, whose left operand stays in a core's L2. Work is counted in tiles, ordered by
    block, panel and tile; a task takes consecutive ones, so that tasks differ by one tile at most.
    """

    rows: "tirx.PrimExpr"
    known_rows: int | None
    columns: int
    depth: int
    tile: Tile

    @property
    def panels(self) -> int:
        return -(-self.columns // self.tile.width)

    @property
    def block_tiles(self) -> int:
        """Tiles of one column of a block."""
        tiles = max(10, min(20, _BLOCK_BYTES // (4 * self.depth * self.tile.rows)))
        return tiles if self.known_rows is None else min(tiles, -(-self.known_rows // self.tile.rows))

    @property
    def block(self) -> int:
        """Rows of a block."""
        return self.block_tiles * self.tile.rows


def emit(
    k: KernelBuilder,
    grid: Grid,
    left: Rows,
    weights: "tirx.Buffer",
    origin: "tirx.PrimExpr | int",
    out: "tirx.Buffer",
    finish: Finish,
    unpack: Unpack | None = None,
) -> None:
    """Compute this task's tiles of the product with the panels from element `origin` of `weights`.

    With `unpack`, `weights` holds one panel, which `unpack(panel)` writes before its tiles are computed.
    """
    loop = TileLoop(grid.tile, out)
    row_tiles = bind(T.truncdiv(grid.rows + (grid.tile.rows - 1), tirx.const(grid.tile.rows, "int64")))
    first, last = k.share(row_tiles * grid.panels)
    size = grid.block_tiles * grid.panels
    start = bind(T.truncdiv(first, tirx.const(size, "int64")))
    with T.serial(T.truncdiv(last + (size - 1), tirx.const(size, "int64")) - start) as b:
        block = bind(start + b)
        tiles = bind(tirx.min(tirx.const(grid.block_tiles, "int64"), row_tiles - block * grid.block_tiles))
        low = bind(tirx.max(first - block * size, tirx.const(0, "int64")))
        high = bind(tirx.min(last - block * size, tiles * grid.panels))
        task = _Task(grid, left, weights, origin, finish, unpack, loop, bind(block * grid.block), tiles, low, high)
        task.emit()


@dataclass(frozen=True, slots=True)
class _Task:
    """Tiles `low` to `high - 1` of a block that starts at row `block` and is `tiles` tiles high."""

    grid: Grid
    left: Rows
    weights: "tirx.Buffer"
    origin: "tirx.PrimExpr | int"
    finish: Finish
    unpack: Unpack | None
    loop: TileLoop
    block: "tirx.PrimExpr"
    tiles: "tirx.PrimExpr"
    low: "tirx.PrimExpr"
    high: "tirx.PrimExpr"

    def emit(self) -> None:
        panel_low = bind(T.truncdiv(self.low, self.tiles))
        panel_high = bind(T.truncdiv(self.high + self.tiles - 1, self.tiles))
        self._prepare(panel_low, panel_high)
        with T.serial(panel_high - panel_low) as p:
            panel = bind(panel_low + p)
            if self.unpack is not None:
                self.unpack(panel)
            tile_low = bind(tirx.max(self.low - panel * self.tiles, tirx.const(0, "int64")))
            tile_high = bind(tirx.min(self.high - panel * self.tiles, self.tiles))
            with T.serial(tile_high - tile_low) as t:
                self._tile(panel, bind(self.block + (tile_low + t) * self.grid.tile.rows))

    def _prepare(self, panel_low: "tirx.PrimExpr", panel_high: "tirx.PrimExpr") -> None:
        """Rows of a single panel's tiles, or of the whole block where several panels read them."""
        height = self.grid.tile.rows
        one = bind(panel_high - panel_low == 1)
        tile_low = tirx.Select(one, self.low - panel_low * self.tiles, tirx.const(0, "int64"))
        tile_high = tirx.Select(one, self.high - panel_low * self.tiles, self.tiles)
        last = tirx.min(self.grid.rows, self.block + tile_high * height)
        self.left.prepare(self.block, bind(self.block + tile_low * height), bind(last))

    def _tile(self, panel: "tirx.PrimExpr", row: "tirx.PrimExpr") -> None:
        grid = self.grid
        count = bind(tirx.min(tirx.const(grid.tile.rows, "int64"), grid.rows - row))
        stored = panel if self.unpack is None else tirx.const(0, "int64")
        weights = bind(stored * (grid.depth * grid.tile.width) + self.origin)
        bodies = body_rows(grid.tile, grid.known_rows)
        if len(bodies) == 1:
            self._body(bodies[0], row, tirx.const(0, "int64"), weights)
        else:
            with T.If(count == bodies[0]):
                with T.Then():
                    self._body(bodies[0], row, tirx.const(0, "int64"), weights)
                with T.Else():
                    self._rest(bodies[1:], row, count, weights)
        self.finish(row, count, bind(panel * grid.tile.width))

    def _rest(
        self, bodies: tuple[int, ...], row: "tirx.PrimExpr", count: "tirx.PrimExpr", weights: "tirx.PrimExpr"
    ) -> None:
        """Fewer rows than a tile: one body where their count is a constant, else a sum of bodies."""
        if self.grid.known_rows is not None:
            self._body(bodies[0], row, tirx.const(0, "int64"), weights)
            return
        for body in bodies:
            rest = T.truncmod(count, tirx.const(body * 2 if body >= 4 else 4, "int64"))
            with T.If(rest >= body if body >= 4 else rest == body), T.Then():
                self._body(body, row, bind(count - rest), weights)

    def _body(self, rows: int, row: "tirx.PrimExpr", done: "tirx.PrimExpr", weights: "tirx.PrimExpr") -> None:
        tile = self.grid.tile
        base = bind(self.left.base(self.block, row + done))
        ahead = self._ahead(rows, row, weights)
        self.loop.emit(
            rows,
            done,
            self.grid.depth,
            lambda i, step: self.left.load(base, i, step),
            lambda v, step: self.weights[ramp(weights + step * tile.width + v * tile.lanes, tile.lanes_of(v))],
            lambda step: T.address_of(self.weights[ahead + step * tile.lanes]),
        )

    def _ahead(self, rows: int, row: "tirx.PrimExpr", weights: "tirx.PrimExpr") -> "tirx.PrimExpr":
        """Where the lines start that a tile fetches early: half of the next panel each for the first and later tiles.

        A single tile of few rows waits for memory anyway and fetches nothing new.
        """
        panel, half = self.grid.depth * self.grid.tile.width, self.grid.depth * self.grid.tile.lanes
        first = panel if rows == self.grid.tile.rows else 0
        return bind(weights + tirx.Select(row == self.block, T.int64(first), T.int64(panel + half)))
