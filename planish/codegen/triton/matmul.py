"""Products of two activations on GPUs: batched, over any views, with everything elementwise after them."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from planish.codegen.call import Call
from planish.codegen.triton.around import fuses_after, refuse_around
from planish.codegen.triton.device import Device
from planish.codegen.triton.elementwise import TRITON_DTYPE
from planish.codegen.triton.fragment import Fragments, Group
from planish.codegen.triton.gemm import TILES, Tile
from planish.codegen.triton.kernel import Constant, Kernel, Launch, Number, Output, Regime, Variant, Work
from planish.codegen.triton.kernels.matmul import matmul
from planish.codegen.triton.sources import Existing, Generated
from planish.codegen.triton.tiles import blocks
from planish.compiler import ops
from planish.compiler.ir import Node, Op, Value
from planish.compiler.types import Dim, DType, Shape, elements, evaluate_dim, same_dim, same_shape

_FLOATS = (DType.f32, DType.f16, DType.bf16)


@dataclass(frozen=True, slots=True)
class Matmul:
    """x [..., M, K] times y [..., K, N], plus elementwise nodes, in f32, f16 or bf16; sums are f32.

    Serves `linear` too, whose operands need not lie in rows.
    """

    name: ClassVar[str] = "matmul"
    ops: ClassVar[tuple[Op, ...]] = (ops.matmul, ops.linear)

    def refuse(self, call: Call, device: Device) -> str | None:
        x, y = call.anchor.operands[:2]
        for value in (x, y):
            if value not in call.inputs:
                return f"{value.node.op.name} is not computed while operands are read"
        if x.dtype not in _FLOATS:
            return f"{x.dtype} operands; it takes f32, f16 and bf16"
        if x.dtype is DType.bf16 and not device.has_bf16:
            return f"{device.profile.name} has no bf16 matrix units"
        if len(x.shape) < 2:
            return "a vector has no rows"
        return refuse_around(call)

    def build(self, call: Call, device: Device) -> Kernel:
        return Kernel((_Product.of(call).launch(),))

    def fuses_after(self, anchor: Node, node: Node) -> bool:
        return fuses_after(anchor, node)

    def fuses_before(self, anchor: Node, node: Node) -> bool:
        return False


@dataclass(frozen=True, slots=True)
class _Product:
    """The sizes of a product. `batch` is empty for a linear, whose rows are all leading axes."""

    call: Call
    batch: Shape
    rows: Dim
    columns: Dim
    depth: Dim

    @classmethod
    def of(cls, call: Call) -> "_Product":
        result, depth = call.anchor.types[0].shape, call.anchor.operands[0].shape[-1]
        if call.anchor.op is ops.linear:
            return cls(call, (), elements(result[:-1]), result[-1], depth)
        return cls(call, result[:-2], result[-2], result[-1], depth)

    @property
    def linear(self) -> bool:
        return self.call.anchor.op is ops.linear

    def launch(self) -> Launch:
        sizes = {"batches": elements(self.batch), "rows": self.rows, "columns": self.columns, "depth": self.depth}
        regimes = tuple(Regime(most, tuple(map(self._variant, tiles))) for most, tiles in TILES)
        return Launch(
            matmul,
            {
                "output": Output(),
                **{name: Number(size) for name, size in sizes.items()},
                "extras": Fragments(self.call).extras,
            },
            self._constants(),
            regimes,
            size=self.rows,
        )

    def _constants(self) -> Mapping[str, Constant]:
        anchor, fragments = self.call.anchor, Fragments(self.call)
        column = Group("column", 1)
        row = Group("row", len(anchor.types[0].shape) - 1 if self.linear else 1)
        bias = next(iter(anchor.inputs[2:]), None) if self.linear else None
        return {
            "READ_X": self._read("read_x", anchor.operands[0], (row, Group("k", 1))),
            "READ_Y": self._read(
                "read_y", anchor.operands[1], (column, Group("k", 1)) if self.linear else (Group("k", 1), column)
            ),
            "FINISH": fragments.finish("finish", (*self._batches, row, column), bias=bias),
            "BATCHED": bool(self.batch),
            "LINEAR": self.linear,
            "OUTER": same_dim(self.depth, 1),
            "DTYPE": Existing("triton.language", TRITON_DTYPE[anchor.operands[0].dtype]),
            "GROUP_M": 8,
            "PRECISION": "ieee",
        }

    @property
    def _batches(self) -> tuple[Group, ...]:
        return (Group("batch", len(self.batch)),) if self.batch else ()

    def _read(self, name: str, value: Value, groups: tuple[Group, ...]) -> Generated:
        """Reads an operand, which is repeated for axes of the batch that it lacks."""
        if not self.linear and not same_shape(value.shape[:-2], self.batch):
            value = ops.expand(value, shape=(*self.batch, *value.shape[-2:]))
        return Fragments(self.call).read(name, value, (*self._batches, *groups))

    def _variant(self, tile: Tile) -> Variant:
        dtype = self.call.anchor.operands[0].dtype
        down, across = blocks(self.rows, tile.m), blocks(self.columns, tile.n)

        def work(sizes: Mapping[str, int]) -> Work:
            k = evaluate_dim(self.depth, sizes)
            read = (tile.m + tile.n) * k * dtype.itemsize
            unique = (tile.m / evaluate_dim(across, sizes) + tile.n / evaluate_dim(down, sizes)) * k * dtype.itemsize
            return Work(2 * tile.m * tile.n * k, dtype, read, unique, tile.m * tile.n * dtype.itemsize)

        constants = {"BLOCK_M": tile.m, "BLOCK_N": tile.n, "BLOCK_K": tile.k}
        grid = (elements((*self.batch, down, across)), 1, 1)
        return Variant(constants, grid, work, num_warps=tile.warps, num_stages=tile.stages)
