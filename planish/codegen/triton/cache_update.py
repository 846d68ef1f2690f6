"""New tokens written into a cache of keys or values on a GPU, in place."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from planish.codegen.call import Call
from planish.codegen.triton.around import fuses_before
from planish.codegen.triton.device import Device
from planish.codegen.triton.fragment import Fragments, Group
from planish.codegen.triton.kernel import Kernel, Launch, Number, Output, Regime, Variant, Work
from planish.codegen.triton.kernels.cache_update import update
from planish.codegen.triton.tiles import blocks, power_of_two
from planish.compiler import ops
from planish.compiler.ir import Node, Op
from planish.compiler.types import Dim, DType, elements, simplify

_ELEMENTS = 2048  # of a block


@dataclass(frozen=True, slots=True)
class CacheUpdate:
    """Writes the slots of the new tokens and nothing else: the output's memory holds the cache already.

    What makes the tokens, such as rotary positions or a cast, is computed on the way.
    """

    name: ClassVar[str] = "cache-update"
    ops: ClassVar[tuple[Op, ...]] = (ops.cache_update,)

    def refuse(self, call: Call, device: Device) -> str | None:
        if call.epilogue:
            return "a cache is updated in place, so nothing is computed on the result"
        if call.anchor.operands[0] not in call.inputs:
            return "a cache is updated in place, so it must lie in memory"
        if not all(isinstance(d, int) for d in call.anchor.operands[0].shape[3:]):
            return "the width of its tokens is no number"
        others = [node.op.name for node in call.prologue if not fuses_before(node)]
        return f"{others[0]} is not computed element by element" if others else None

    def build(self, call: Call, device: Device) -> Kernel:
        cache, new, past, count = call.anchor.operands
        fragments, heads, rest = Fragments(call), cache.shape[1], elements(cache.shape[3:])
        assert isinstance(heads, int)
        assert isinstance(rest, int)
        groups = (*(Group(name, 1) for name in ("batch", "head", "row")), Group("across", len(cache.shape) - 3))
        pairs = simplify(new.shape[0] * heads)
        width = power_of_two(rest)
        down = max(1, _ELEMENTS // width)
        launch = Launch(
            update,
            {
                "output": Output(),
                "tokens": Number(new.shape[2]),
                "pairs": Number(pairs),
                "slots": Number(cache.shape[2]),
                "width": Number(rest),
                "extras": fragments.extras,
            },
            {
                "READ_NEW": fragments.read("read_new", new, groups),
                "READ_PAST": fragments.read("read_past", past, groups[:1]),
                "READ_COUNT": fragments.read("read_count", count, groups[:1]),
                "FINISH": fragments.finish("finish", groups),
                "HEADS": heads,
            },
            tuple(
                Regime(most, (_variant(call, (blocks(new.shape[2], tokens), pairs, 1), tokens, width),))
                for most, tokens in ((1, 1), (None, down))
            ),
            size=new.shape[2],
        )
        return Kernel((launch,))

    def fuses_after(self, anchor: Node, node: Node) -> bool:
        return False

    def fuses_before(self, anchor: Node, node: Node) -> bool:
        return fuses_before(node)


def _variant(call: Call, grid: tuple[Dim, Dim, Dim], tokens: int, width: int) -> Variant:
    moved = float(tokens * width * call.view.dtype.itemsize)

    def work(_: Mapping[str, int]) -> Work:
        return Work(float(tokens * width), DType.f32, moved, moved, moved)

    return Variant({"BLOCK_TOKENS": tokens, "BLOCK_WIDTH": width}, grid, work, num_warps=4)
