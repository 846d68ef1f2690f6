"""What an integer product of quantized operands computes: operands, groups, layouts, and why a call is none."""

from dataclasses import dataclass

import numpy

from planish.codegen.call import Call
from planish.codegen.halves import Halves, halves_of
from planish.codegen.tvm.gemm_tile import Tile
from planish.codegen.tvm.int8_dot import unsigned
from planish.codegen.tvm.int8_packing import CodePanels, group_panels
from planish.codegen.tvm.isa import Isa
from planish.codegen.tvm.kernel import Packing
from planish.codegen.tvm.packing import in_turns
from planish.compiler import ops
from planish.compiler.ir import Node, Value
from planish.compiler.ops.quantize import middle
from planish.compiler.types import Dim, DType, elements

_MOST_TERMS = 65536  # products of 255 x 127 whose sum fits 32 bits, with a margin
_BLOCK_BYTES = 384 * 1024  # of x: with one panel this fits the smallest L2 of the profiles (1 MiB)


@dataclass(frozen=True, slots=True)
class Int8Plan:
    """x = dequantize(xq [..., K], xs [..., gx]) times w = dequantize(q [N, K], ws [N, gw], zero?).

    Sums are exact over `group` elements, the smaller of both groups, of which `count` cover K.
    """

    call: Call
    isa: Isa

    @property
    def x(self) -> Node:
        """The node that gives x."""
        return self.call.anchor.operands[0].node

    @property
    def w(self) -> Node:
        """The node that gives the weight."""
        return self.call.anchor.operands[1].node

    @property
    def rounded(self) -> Value:
        """The numbers that are rounded to the codes of x."""
        return self.x.operands[0].node.operands[0]

    @property
    def rounds(self) -> bool:
        """Whether the kernel rounds them."""
        return self.x.operands[0] not in self.call.inputs

    @property
    def computes(self) -> bool:
        """Whether the kernel computes them as well."""
        return self.rounds and self.rounded not in self.call.inputs

    @property
    def zero(self) -> Value | None:
        """The zero points of the weight."""
        return self.w.operands[2] if len(self.w.operands) > 2 else None

    @property
    def rows(self) -> Dim:
        return elements(self.call.anchor.operands[0].shape[:-1])

    @property
    def halves(self) -> Halves | None:
        """The two slices of the product that the result is computed from."""
        return halves_of(self.call, self.tile.width // 2)

    @property
    def columns(self) -> int:
        """Columns that are multiplied."""
        return int(self.w.operands[0].shape[0]) if self.halves is None else self.halves.columns

    @property
    def depth(self) -> int:
        return int(self.w.operands[0].shape[1])

    @property
    def nibbles(self) -> bool:
        return _attribute(self.w, "bits") <= 4

    @property
    def unit(self) -> int:
        """Elements of K in 32 bits of packed weights."""
        return 8 if self.nibbles else 4

    @property
    def group(self) -> int:
        """Elements of K, padded to whole units, whose products are summed as integers."""
        smaller = min(group_of(self.x), group_of(self.w))
        return smaller if smaller < self.depth else -(-self.depth // self.unit) * self.unit

    @property
    def count(self) -> int:
        return -(-self.depth // self.group)

    @property
    def padded(self) -> int:
        """K in whole groups, as rows of x are copied."""
        return self.count * self.group

    @property
    def stored(self) -> int:
        """K in whole units, as weights are packed."""
        return -(-self.depth // self.unit) * self.unit

    @property
    def x_groups(self) -> int:
        return -(-self.depth // group_of(self.x))

    @property
    def w_groups(self) -> int:
        return -(-self.depth // group_of(self.w))

    @property
    def shift(self) -> int:
        """What packing adds to a code of the weight so that it is what the dot product wants."""
        signed = self.w.operands[0].dtype is DType.i8
        if self.nibbles:
            return 8 if signed else 0
        return (128 if signed else 0) - (0 if unsigned(self.isa) else 128)

    @property
    def offset(self) -> int:
        """The packed code that means zero; with zero points, what is added to those."""
        return self.shift + (0 if self.zero else middle(self.w.operands[0].dtype, _attribute(self.w, "bits")))

    @property
    def tile(self) -> Tile:
        """Registers of integer sums; with more of them, sums of f32 would go to memory after every group."""
        if self.isa.registers <= 16:
            return Tile(4, 2, self.isa.lanes)
        return Tile(8, 2, self.isa.lanes) if self.isa.lanes > 4 else Tile(6, 4, self.isa.lanes)

    @property
    def written(self) -> int:
        """Columns that a tile is written as."""
        return self.tile.width if self.halves is None else self.halves.turn

    @property
    def panels(self) -> int:
        return -(-self.columns // self.tile.width)

    def packings(self) -> dict[Value, Packing]:
        """The layouts of codes, scales and zero points."""
        codes, *groups = self.w.operands
        panels = CodePanels(self.tile.width, self.stored, self.nibbles, self.shift).packing()
        found = {codes: panels, **{value: group_panels(self.tile.width) for value in groups}}
        return {value: in_turns(packing, self.halves) for value, packing in found.items()}

    @property
    def known_rows(self) -> int | None:
        return self.rows if isinstance(self.rows, int) else None

    @property
    def block_tiles(self) -> int:
        """Tiles of rows whose codes stay in a core's L2."""
        tiles = max(4, min(20, _BLOCK_BYTES // (self.padded * self.tile.rows)))
        return tiles if self.known_rows is None else min(tiles, -(-self.known_rows // self.tile.rows))

    @property
    def block(self) -> int:
        return self.block_tiles * self.tile.rows

    @property
    def stride(self) -> int:
        """32-bit units between copied rows of x: a cache line more, so that rows do not share the sets of a cache."""
        return -(-self.padded // 64) * 16 + 16


def group_of(node: Node) -> int:
    """Elements that share a scale, at most a whole row."""
    return min(_attribute(node, "group"), int(node.operands[0].shape[-1]))


def refuse_nodes(anchor: Node) -> str | None:
    """Why the operands of a linear are not those of an integer product, whatever lies around it."""
    x, w = (value.node for value in anchor.operands[:2])
    if x.op is not ops.dequantize or w.op is not ops.dequantize:
        return "x and the weight are not both quantized"
    if x.attrs["codebook"] or w.attrs["codebook"] or len(x.operands) > 2 or x.operands[0].dtype is not DType.i8:
        return "codes with a codebook, and codes of x that are not symmetric, have no integer product"
    if x.attrs["dtype"] is DType.f64:
        return "it sums in f32, not f64"
    if any(value.node.op is not ops.weight for value in w.operands):
        return "the codes of the weight are computed"
    if not all(isinstance(dim, int) for dim in w.operands[0].shape):
        return "the weight has a dynamic size"
    return _refuse_groups(x, w)


def _refuse_groups(x: Node, w: Node) -> str | None:
    depth = int(w.operands[0].shape[1])
    smaller, larger = sorted((group_of(x), group_of(w)))
    if larger % smaller and larger != depth:
        return f"groups of {group_of(x)} elements of x do not fit groups of {group_of(w)} of the weight"
    if smaller % 8 and smaller != depth:
        return f"groups of {smaller} are not multiples of 8"
    if smaller > _MOST_TERMS:
        return f"sums over {smaller} products do not fit 32 bits; groups of at most {_MOST_TERMS} do"
    return None


def _attribute(node: Node, name: str) -> int:
    value = node.attrs[name]
    assert isinstance(value, int | numpy.integer)
    return int(value)
