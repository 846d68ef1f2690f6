"""Linear layers of experts on GPUs: rows are put in the order of their experts, whose tiles are multiplied."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Final

from planish.codegen.call import Call
from planish.codegen.triton.around import fuses_after, refuse_around
from planish.codegen.triton.device import Device
from planish.codegen.triton.fragment import Fragments, Group
from planish.codegen.triton.gemm import Tile, slices_of, tiles_of
from planish.codegen.triton.halves import finish_of, fuses_slices, halves_of
from planish.codegen.triton.kernel import (
    Constant,
    Input,
    Kernel,
    Launch,
    Number,
    Output,
    Regime,
    Scratch,
    Variant,
    Work,
)
from planish.codegen.triton.kernels.grouped import grouped_gemm, order_rows
from planish.codegen.triton.tiles import blocks, power_of_two, product
from planish.codegen.view import View
from planish.compiler import ops
from planish.compiler.ir import Node, Op
from planish.compiler.types import Dim, DType, elements, evaluate_dim, floor_div, same_dim, simplify

_FLOATS = (DType.f32, DType.f16, DType.bf16)
_MOST_EXPERTS: Final = 1024
_DIRECT_ROWS: Final = 16  # that read the weights of their experts each for itself; those of one token differ
_ORDERED: Final = 1024  # rows that a program looks at together
_I32: Final = DType.i32.itemsize


@dataclass(frozen=True, slots=True)
class GroupedLinear:
    """x [..., K] times the weight of each row's expert of [E, N, K], plus elementwise nodes, in f32, f16 or bf16.

    Sums are f32. Only the experts that some row has are read.
    """

    name: ClassVar[str] = "grouped-linear"
    ops: ClassVar[tuple[Op, ...]] = (ops.grouped_linear,)

    def refuse(self, call: Call, device: Device) -> str | None:
        x, w, index = call.anchor.operands
        for value in (x, w, index):
            if value not in call.inputs:
                return f"{value.node.op.name} is not computed while operands are read"
        if x.dtype not in _FLOATS:
            return f"{x.dtype} operands; it takes f32, f16 and bf16"
        if x.dtype is DType.bf16 and not device.has_bf16:
            return f"{device.profile.name} has no bf16 matrix units"
        if len(x.shape) < 2 or not all(isinstance(dim, int) for dim in w.shape[:2]):
            return "it takes rows, and known numbers of experts and columns"
        if w.shape[0] > _MOST_EXPERTS:
            return f"{w.shape[0]} experts are over its {_MOST_EXPERTS}"
        if not same_dim(call.inputs[x].strides[-1], 1) or not same_dim(call.inputs[w].strides[-1], 1):
            return "a row of an operand does not lie in one piece"
        if not same_dim(call.inputs[w].offset, 0):
            return "the weight starts inside its buffer"
        return refuse_around(call)

    def build(self, call: Call, device: Device) -> Kernel:
        return _Experts.of(call, device).kernel()

    def fuses_after(self, anchor: Node, node: Node) -> bool:
        return fuses_after(anchor, node)

    def fuses_before(self, anchor: Node, node: Node) -> bool:
        return False

    def fuses_slices(self, anchor: Node, slices: Sequence[Node]) -> bool:
        return fuses_slices(anchor, slices)


@dataclass(frozen=True, slots=True)
class _Experts:
    """The sizes of a grouped product."""

    call: Call
    device: Device
    w: View
    experts: int
    rows: Dim
    columns: int
    depth: Dim

    @classmethod
    def of(cls, call: Call, device: Device) -> "_Experts":
        x, w, _ = call.anchor.operands
        halves, view = halves_of(call), call.inputs[w]
        experts, columns = w.shape[0], w.shape[1] if halves is None else halves.columns
        assert isinstance(experts, int)
        assert isinstance(columns, int)
        return cls(call, device, view, experts, elements(x.shape[:-1]), columns, x.shape[-1])

    def kernel(self) -> Kernel:
        # the places of the rows, then those at which experts begin
        scratch = simplify(self.rows * _I32 + self.experts * _I32)
        ordered = not isinstance(self.rows, int) or self.rows > _DIRECT_ROWS
        launches = (self._order(), self._product()) if ordered else (self._product(),)
        return Kernel(launches, scratch if ordered else 0)

    @property
    def _group(self) -> Group:
        return Group("row", len(self.call.anchor.operands[0].shape) - 1)

    def _scratch(self) -> dict[str, Scratch]:
        return {"order": Scratch(0, DType.i32), "starts": Scratch(simplify(self.rows * _I32), DType.i32)}

    def _index(self) -> dict[str, Constant]:
        index = self.call.anchor.operands[2]
        return {"INDEX": Fragments(self.call).read("read_index", index, (self._group,)), "EXPERTS": self.experts}

    def _order(self) -> Launch:
        size = 2 * DType.i64.itemsize

        def work(sizes: Mapping[str, int]) -> Work:
            rows = evaluate_dim(self.rows, sizes)
            share = 1 / self.experts
            return Work(0, DType.f32, size * rows, size * rows * share, _I32 * rows * share, 8.0 * rows)

        def variant(programs: int) -> Variant:
            return Variant({"BLOCK": _ORDERED}, (programs, 1, 1), work, num_warps=4)

        return Launch(
            order_rows,
            {**self._scratch(), "rows": Number(self.rows), "extras": Fragments(self.call).extras},
            self._index(),
            (Regime(_DIRECT_ROWS, (variant(0),)), Regime(None, (variant(self.experts),))),
            size=self.rows,
        )

    def _product(self) -> Launch:
        call, (x, w, _) = self.call, self.call.anchor.operands
        index = {v: Input(i) for i, v in enumerate(call.inputs)}
        return Launch(
            grouped_gemm,
            {
                "x": index[x],
                "w": index[w],
                **self._scratch(),
                "output": Output(),
                "rows": Number(self.rows),
                "columns": Number(self.columns),
                "depth": Number(self.depth),
                "w_stride": Number(self.w.strides[1]),
                "expert_stride": Number(self.w.strides[0], wide=True),
                "extras": Fragments(call).extras,
            },
            {
                **self._index(),
                "ROWS": Fragments(call).rows("rows_of_x", x, self._group),
                "FINISH": finish_of(call, (self._group, Group("column", 1))),
                "PADDED": power_of_two(self.experts),
                "GROUP_M": 8,
                "PRECISION": "ieee",
                **slices_of(halves_of(call)),
            },
            self._regimes(x.dtype),
            size=self.rows,
        )

    def _regimes(self, dtype: DType) -> tuple[Regime, ...]:
        """Tiles by the rows of an expert; those of few rows each for itself."""
        known = tiles_of(dtype, self.device)
        (_, few), rest = known[0], [(most, tiles) for most, tiles in known if most is None or most >= 16]
        direct = Regime(_DIRECT_ROWS, tuple(self._variant(tile, direct=True) for tile in few))
        ordered = (
            Regime(None if most is None else most * self.experts, tuple(self._variant(t, direct=False) for t in tiles))
            for most, tiles in rest
        )
        return (direct, *ordered)

    def _variant(self, tile: Tile, *, direct: bool) -> Variant:
        dtype = self.call.anchor.operands[0].dtype
        across = blocks(self.columns, tile.n)
        whole = isinstance(self.depth, int) and self.depth % tile.k == 0

        def work(sizes: Mapping[str, int]) -> Work:
            k, rows = evaluate_dim(self.depth, sizes), evaluate_dim(self.rows, sizes)
            tiles = evaluate_dim(self._tiles(tile, direct), sizes)
            read = (tile.m + tile.n) * k * dtype.itemsize
            experts = min(self.experts, rows)
            unique = (rows / evaluate_dim(across, sizes) + tile.n * experts) * k * dtype.itemsize / tiles
            return Work(2 * tile.m * tile.n * k, dtype, read, unique, tile.m * tile.n * dtype.itemsize)

        constants = {"BLOCK_M": tile.m, "BLOCK_N": tile.n, "BLOCK_K": tile.k, "WHOLE_K": whole, "SPLIT": tile.split}
        grid = (product(self._tiles(tile, direct), across), 1, 1)
        return Variant({**constants, "DIRECT": direct}, grid, work, num_warps=tile.warps, num_stages=tile.stages)

    def _tiles(self, tile: Tile, direct: bool) -> Dim:
        """The most tiles of rows that there can be: the last one of each expert is not full."""
        if direct:
            return self.rows
        last = min(self.experts, self.rows) if isinstance(self.rows, int) else self.experts
        return simplify(floor_div(self.rows, tile.m) + last)
