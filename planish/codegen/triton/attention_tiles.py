"""Tiles of attention that are tried: rows, keys, warps and stages of a block."""

from planish.codegen.triton.attention_operands import Operands, Tile
from planish.codegen.triton.device import Device
from planish.codegen.triton.tiles import power_of_two
from planish.compiler.types import Dim, DType

_WIDE = 128  # head size over which fewer keys lie in registers
_FEW = 32  # rows of a tile, up to which it has as many as there are
_LEAST = 16  # rows and columns of a product on the matrix units
_SHORT = 64  # rows, up to which larger tiles are half empty

# by the largest head; the first of each compiles without spills, the choice among the others counts theirs. Where a
# warp multiplies for itself (mma.sync), Triton gives each warp rows of its own only in tiles of at least as many rows
# as heads are wide, else warps exchange their sums.
_HOPPER: tuple[tuple[int, tuple[Tile, ...]], ...] = (
    (64, ((128, 128, 8, 2), (128, 64, 4, 3), (64, 64, 4, 3))),
    (128, ((128, 128, 8, 2), (128, 64, 8, 3), (64, 128, 4, 2), (64, 64, 4, 2))),
    (256, ((128, 64, 8, 2), (64, 64, 4, 2), (64, 32, 4, 2))),
)
_AMPERE: tuple[tuple[int, tuple[Tile, ...]], ...] = (
    (64, ((128, 64, 4, 2), (128, 128, 8, 2), (128, 64, 8, 3))),
    (128, ((128, 64, 8, 2), (128, 32, 8, 3), (128, 128, 8, 1))),
    (256, ((64, 32, 4, 2), (128, 32, 8, 2))),
)
_AMD: tuple[tuple[int, tuple[Tile, ...]], ...] = (
    (64, ((128, 64, 4, 2), (128, 64, 4, 1), (64, 64, 4, 2))),
    (128, ((128, 64, 4, 1), (128, 32, 4, 2))),
    (256, ((128, 32, 8, 1), (64, 32, 4, 1))),
)


def tiles(given: Operands, rows: Dim, device: Device) -> tuple[Tile, ...]:
    """Tiles over floats, whose operands fit the shared memory of a block."""
    found = _few_rows(given, rows) if isinstance(rows, int) and rows <= _FEW else _many_rows(given, rows, device)
    return tuple(tile for tile in found if given.fits(tile, device)) or ((_LEAST, _LEAST, 4, 1),)


def tiles_of_codes(given: Operands, rows: Dim, device: Device) -> tuple[Tile, ...]:
    """Tiles over codes of 8 bits."""
    if device.backend != "hip":
        return tiles(given, rows, device)
    # Triton 3.6 fails on more than 16 codes of a block in each thread, which it transposes for gfx942
    down = _down(rows)
    return (
        ((down, 16, 8, 2), (down, 32, 8, 2)) if _wide(given) else ((down, 32, 8, 2), (down, 32, 4, 3), (down, 64, 8, 2))
    )


def packed_tiles(given: Operands, rows: Dim) -> tuple[Tile, ...]:
    """Tiles over two codes a byte, which every warp that multiplies them unpacks: many rows take fewer keys at once."""
    down, wide = _down(rows), _wide(given)
    if down == 64:
        return ((64, 16, 8, 2), (64, 32, 8, 2)) if wide else ((64, 32, 4, 2), (64, 64, 8, 2), (128, 32, 8, 2))
    return (
        ((down, 32, 4, 2), (down, 64, 8, 2), (down, 32, 8, 2))
        if wide
        else ((down, 64, 4, 2), (down, 128, 8, 2), (down, 32, 4, 3))
    )


def _few_rows(given: Operands, rows: Dim) -> tuple[Tile, ...]:
    down = _down(rows)
    if _wide(given):
        return ((down, 32, 4, 2), (down, 64, 8, 2), (down, 32, 8, 2))
    return ((down, 64, 4, 2), (down, 128, 8, 2), (down, 32, 4, 3))


def _many_rows(given: Operands, rows: Dim, device: Device) -> tuple[Tile, ...]:
    if given.q.dtype is DType.f32:
        return ((64, 64, 4, 2), (64, 32, 4, 3), (128, 64, 8, 2), (16, 64, 4, 2))
    if isinstance(rows, int) and rows <= _SHORT:
        return ((64, 64, 4, 2), (64, 32, 4, 2), (32, 64, 4, 2))
    table = _AMD if device.backend == "hip" else _HOPPER if device.has_wgmma else _AMPERE
    return next(found for deep, found in table if max(given.depth, given.width) <= deep)


def _down(rows: Dim) -> int:
    """Rows of a tile: all where they are few."""
    return max(_LEAST, min(64, power_of_two(rows))) if isinstance(rows, int) else 64


def _wide(given: Operands) -> bool:
    return max(given.depth, given.width) > _WIDE
