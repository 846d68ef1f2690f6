"""Elementwise ops, movements and look-ups on GPUs: one kernel for a whole region."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import ClassVar

from planish.codegen.call import Call
from planish.codegen.triton.device import Device
from planish.codegen.triton.elementwise import TABLE, refuse_elementwise
from planish.codegen.triton.fragment import EVALUATED, Fragments, Group
from planish.codegen.triton.kernel import Kernel, Launch, Number, Output, Regime, Variant, Work
from planish.codegen.triton.kernels.map import map_flat, map_tiles
from planish.codegen.triton.tiles import blocks, power_of_two
from planish.compiler.ir import Node, Op
from planish.compiler.types import Dim, DType, elements, same_shape

_ELEMENTS = (512, 1024, 2048, 4096)  # of a block; with 4 warps that is 4 to 32 a thread


@dataclass(frozen=True, slots=True)
class Map:
    """Anything that expressions compute, element by element of the result."""

    name: ClassVar[str] = "map"
    ops: ClassVar[tuple[Op, ...]] = EVALUATED

    def refuse(self, call: Call, device: Device) -> str | None:
        for node in call.nodes:
            if node.op not in EVALUATED:
                return f"{node.op.name} is not computed element by element"
            if (why := refuse_elementwise(node)) is not None:
                return why
        return None

    def build(self, call: Call, device: Device) -> Kernel:
        return Kernel((_flat(call) if _is_flat(call) else _tiles(call),))

    def fuses_after(self, anchor: Node, node: Node) -> bool:
        return False

    def fuses_before(self, anchor: Node, node: Node) -> bool:
        return node.op in EVALUATED and refuse_elementwise(node) is None


def _is_flat(call: Call) -> bool:
    """Whether every operand lies element for element as the output does, or is a single element."""
    views = [call.view, *call.inputs.values()]
    same = all(v.is_contiguous and (same_shape(v.shape, call.view.shape) or not v.shape) for v in views)
    return not call.view.shape or (same and all(n.op in TABLE or not n.types[0].shape for n in call.nodes))


def _flat(call: Call) -> Launch:
    count = elements(call.view.shape)
    fragments = Fragments(call)
    group = Group("at", len(call.view.shape))
    variants = tuple(
        Variant({"BLOCK": block}, (blocks(count, block), 1, 1), _work(call, block), num_warps=4) for block in _ELEMENTS
    )
    return Launch(
        map_flat,
        {"output": Output(), "count": Number(count, wide=True), "extras": fragments.extras},
        {"STORE": fragments.store("store", (group,))},
        (Regime(None, variants),),
    )


def _tiles(call: Call) -> Launch:
    shape = call.view.shape
    rows, columns = elements(shape[:-1]), shape[-1]
    fragments = Fragments(call)
    groups = (Group("row", len(shape) - 1), Group("column", 1))
    variants = tuple(_tile(call, rows, columns, block) for block in _ELEMENTS[:3])
    return Launch(
        map_tiles,
        {
            "output": Output(),
            "rows": Number(rows, wide=True),
            "columns": Number(columns, wide=True),
            "extras": fragments.extras,
        },
        {"STORE": fragments.store("store", groups)},
        (Regime(None, variants),),
    )


def _tile(call: Call, rows: Dim, columns: Dim, block: int) -> Variant:
    across = min(block, power_of_two(columns)) if isinstance(columns, int) else min(block, 128)
    down = block // across
    return Variant(
        {"BLOCK_ROWS": down, "BLOCK_COLUMNS": across},
        (blocks(rows, down) * blocks(columns, across), 1, 1),
        _work(call, block),
    )


def _work(call: Call, block: int) -> Callable[[Mapping[str, int]], Work]:
    read = block * sum(view.dtype.itemsize for view in call.inputs.values())
    work = Work(len(call.nodes) * block, DType.f32, read, read, block * call.view.dtype.itemsize)
    return lambda _: work
