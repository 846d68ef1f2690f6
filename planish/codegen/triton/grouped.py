"""Linear layers of experts on GPUs: rows are put in the order of their experts, whose tiles are multiplied."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Final, TypeVar

from planish.codegen.call import Call
from planish.codegen.halves import fuses_slices
from planish.codegen.triton.around import fuses_after, refuse_around
from planish.codegen.triton.device import Device
from planish.codegen.triton.fragment import Fragments, Group
from planish.codegen.triton.gemm import Tile, slices_of, tiles_of
from planish.codegen.triton.halves import finish_of, halves_of
from planish.codegen.triton.kernel import (
    Argument,
    Constant,
    Input,
    Kernel,
    Launch,
    Number,
    Output,
    Packing,
    Regime,
    Scratch,
    Variant,
    Work,
)
from planish.codegen.triton.kernels.grouped import grouped_gemm, order_rows
from planish.codegen.triton.tiles import blocks, power_of_two, product
from planish.compiler import ops
from planish.compiler.ir import Node, Op, Value
from planish.compiler.types import Dim, DType, elements, evaluate_dim, floor_div, same_dim, simplify

_FLOATS = (DType.f32, DType.f16, DType.bf16)
_MOST_EXPERTS: Final = 1024
DIRECT_ROWS: Final = 16  # that read the weights of their experts each for itself; those of one token differ
_LEAST_ROWS: Final = 16  # of tiles of one expert
_ORDERED: Final = 1024  # rows that a program looks at together
_I32: Final = DType.i32.itemsize
AnyTile = TypeVar("AnyTile")


@dataclass(frozen=True, slots=True)
class GroupedLinear:
    """x [..., K] times the weight of each row's expert of [E, N, K], plus elementwise nodes, in f32, f16 or bf16.

    Sums are f32. Only the experts that some row has are read.
    """

    name: ClassVar[str] = "grouped-linear"
    ops: ClassVar[tuple[Op, ...]] = (ops.grouped_linear,)

    def refuse(self, call: Call, device: Device) -> str | None:
        w = call.anchor.operands[1]
        if w not in call.inputs:
            return f"{w.node.op.name} is not computed while operands are read"
        if not all(isinstance(dim, int) for dim in w.shape[:2]):
            return "it takes known numbers of experts and columns"
        if not same_dim(call.inputs[w].strides[-1], 1) or not same_dim(call.inputs[w].offset, 0):
            return "a row of the weight does not lie in one piece, or the weight starts inside its buffer"
        return refuse_rows(call, device) or refuse_around(call)

    def build(self, call: Call, device: Device) -> Kernel:
        halves = halves_of(call)
        columns = call.anchor.operands[1].shape[1] if halves is None else halves.columns
        assert isinstance(columns, int)
        experts = Experts.of(call, columns)
        return experts.kernel(_product(experts, device))

    def fuses_after(self, anchor: Node, node: Node) -> bool:
        return fuses_after(anchor, node)

    def fuses_before(self, anchor: Node, node: Node) -> bool:
        return False

    def fuses_slices(self, anchor: Node, slices: Sequence[Node]) -> bool:
        return fuses_slices(anchor, slices)


def refuse_rows(call: Call, device: Device) -> str | None:
    """Why a grouped product cannot find its rows and their experts, or None."""
    x, w, index = call.anchor.operands
    for value in (x, index):
        if value not in call.inputs:
            return f"{value.node.op.name} is not computed while operands are read"
    if x.dtype not in _FLOATS:
        return f"{x.dtype} operands; it takes f32, f16 and bf16"
    if x.dtype is DType.bf16 and not device.has_bf16:
        return f"{device.profile.name} has no bf16 matrix units"
    if len(x.shape) < 2:
        return "a vector has no rows"
    if w.shape[0] > _MOST_EXPERTS:
        return f"{w.shape[0]} experts are over its {_MOST_EXPERTS}"
    return None if same_dim(call.inputs[x].strides[-1], 1) else "a row of an operand does not lie in one piece"


@dataclass(frozen=True, slots=True)
class Experts:
    """The rows and experts of a grouped product, and the columns that its kernel walks."""

    call: Call
    count: int
    rows: Dim
    columns: int

    @classmethod
    def of(cls, call: Call, columns: int) -> "Experts":
        x, w, _ = call.anchor.operands
        assert isinstance(w.shape[0], int)
        return cls(call, w.shape[0], elements(x.shape[:-1]), columns)

    def kernel(self, multiply: Launch, packings: Mapping[Value, Packing] | None = None) -> Kernel:
        """The product behind what puts rows in order, unless there are only few."""
        if isinstance(self.rows, int) and self.rows <= DIRECT_ROWS:
            return Kernel((multiply,), packings=packings or {})
        scratch = simplify(self._starts_bytes + self.rows * _I32)
        return Kernel((self._order(), multiply), scratch, packings or {})

    @property
    def group(self) -> Group:
        return Group("row", len(self.call.anchor.operands[0].shape) - 1)

    @property
    def _starts_bytes(self) -> int:
        """Of a place for each expert, a multiple of 16."""
        return -(-self.count // 4) * 4 * _I32

    def arguments(self) -> dict[str, Argument | tuple[Argument, ...]]:
        """What kernels of the product take beside the operands: places of rows, sizes, and what fragments read."""
        return {
            **self._scratch(),
            "output": Output(),
            "rows": Number(self.rows),
            "columns": Number(self.columns),
            "depth": Number(self.call.anchor.operands[0].shape[-1]),
            "extras": Fragments(self.call).extras,
        }

    def constants(self) -> dict[str, Constant]:
        """How kernels of the product find rows and store results."""
        return {
            **self._index(),
            "ROWS": Fragments(self.call).rows("rows_of_x", self.call.anchor.operands[0], self.group),
            "FINISH": finish_of(self.call, (self.group, Group("column", 1))),
            "PADDED": power_of_two(self.count),
        }

    def tiles(self, height: int, *, direct: bool) -> Dim:
        """The most tiles of rows that there can be: the last one of each expert is not full."""
        if direct:
            return self.rows
        last = min(self.count, self.rows) if isinstance(self.rows, int) else self.count
        return simplify(floor_div(self.rows, height) + last)

    def _scratch(self) -> dict[str, Argument]:
        # the places at which experts begin, then those of the rows: their number is no multiple of anything
        return {"order": Scratch(self._starts_bytes, DType.i32), "starts": Scratch(0, DType.i32)}

    def _index(self) -> dict[str, Constant]:
        index = self.call.anchor.operands[2]
        return {"INDEX": Fragments(self.call).read("read_index", index, (self.group,)), "EXPERTS": self.count}

    def _order(self) -> Launch:
        def work(sizes: Mapping[str, int]) -> Work:
            rows, share = evaluate_dim(self.rows, sizes), 1 / self.count
            read = 2 * DType.i64.itemsize * rows
            return Work(0, DType.f32, read, read * share, _I32 * rows * share, 8.0 * rows)

        def variant(programs: int) -> Variant:
            return Variant({"BLOCK": _ORDERED}, (programs, 1, 1), work, num_warps=4)

        return Launch(
            order_rows,
            {**self._scratch(), "rows": Number(self.rows), "extras": Fragments(self.call).extras},
            self._index(),
            (Regime(DIRECT_ROWS, (variant(0),)), Regime(None, (variant(self.count),))),
            size=self.rows,
        )


def regimes_of(
    experts: Experts,
    known: Sequence[tuple[int | None, tuple[AnyTile, ...]]],
    variant: Callable[[AnyTile, bool], Variant],
) -> tuple[Regime, ...]:
    """Regimes of tiles that are known by the rows of one expert; few rows each are a tile for itself."""
    direct = Regime(DIRECT_ROWS, tuple(variant(tile, True) for tile in known[0][1]))
    rest = [(most, tiles) for most, tiles in known if most is None or most >= _LEAST_ROWS]
    return (
        direct,
        *(
            Regime(None if most is None else most * experts.count, tuple(variant(tile, False) for tile in tiles))
            for most, tiles in rest
        ),
    )


def _product(experts: Experts, device: Device) -> Launch:
    call, (x, w, _) = experts.call, experts.call.anchor.operands
    index, strides = {v: Input(i) for i, v in enumerate(call.inputs)}, call.inputs[w].strides
    return Launch(
        grouped_gemm,
        {
            "x": index[x],
            "w": index[w],
            **experts.arguments(),
            "w_stride": Number(strides[1]),
            "expert_stride": Number(strides[0], wide=True),
        },
        {**experts.constants(), "GROUP_M": 8, "PRECISION": "ieee", **slices_of(halves_of(call))},
        regimes_of(experts, tiles_of(x.dtype, device), lambda tile, direct: _variant(experts, tile, direct)),
        size=experts.rows,
    )


def _variant(experts: Experts, tile: Tile, direct: bool) -> Variant:
    x = experts.call.anchor.operands[0]
    depth, dtype, across = x.shape[-1], x.dtype, blocks(experts.columns, tile.n)
    whole = isinstance(depth, int) and depth % tile.k == 0
    tiles = experts.tiles(tile.m, direct=direct)

    def work(sizes: Mapping[str, int]) -> Work:
        k, rows = evaluate_dim(depth, sizes), evaluate_dim(experts.rows, sizes)
        read = (tile.m + tile.n) * k * dtype.itemsize
        unique = rows / evaluate_dim(across, sizes) + tile.n * min(experts.count, rows)
        share = unique * k * dtype.itemsize / evaluate_dim(tiles, sizes)
        return Work(2 * tile.m * tile.n * k, dtype, read, share, tile.m * tile.n * dtype.itemsize)

    constants = {"BLOCK_M": tile.m, "BLOCK_N": tile.n, "BLOCK_K": tile.k, "WHOLE_K": whole, "SPLIT": tile.split}
    grid = (product(tiles, across), 1, 1)
    return Variant({**constants, "DIRECT": direct}, grid, work, num_warps=tile.warps, num_stages=tile.stages)
