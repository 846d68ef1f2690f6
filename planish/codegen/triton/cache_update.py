"""New tokens written into caches of keys or values on a GPU, in place."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import ClassVar

from planish.codegen.call import Call
from planish.codegen.triton.around import fuses_before
from planish.codegen.triton.device import Device
from planish.codegen.triton.fragment import Fragments, Group
from planish.codegen.triton.kernel import (
    Argument,
    Constant,
    Kernel,
    Launch,
    Number,
    Output,
    Regime,
    Variant,
    Work,
)
from planish.codegen.triton.kernels.cache_update import update
from planish.codegen.triton.packed_cache import packed_update
from planish.codegen.triton.tiles import blocks, power_of_two
from planish.compiler import ops
from planish.compiler.ir import Node, Op
from planish.compiler.types import Dim, DType, elements, same_shape, simplify

_ELEMENTS = 2048  # of a block
_FUNCTIONS = ("READ_NEW", "READ_PAST", "READ_COUNT", "FINISH")


@dataclass(frozen=True, slots=True)
class CacheUpdate:
    """Writes the slots of the new tokens and nothing else: the output's memory holds the cache already.

    What makes the tokens, such as rotary positions, a cast or codes of 4 bits, is computed on the way. The caches of
    keys and of values are written by one kernel, unless they are packed.
    """

    name: ClassVar[str] = "cache-update"
    ops: ClassVar[tuple[Op, ...]] = (ops.cache_update,)

    def refuse(self, call: Call, device: Device) -> str | None:
        return next((why for part in call.parts if (why := _refuse(part)) is not None), None)

    def build(self, call: Call, device: Device) -> Kernel:
        cache, new, *_ = call.anchor.operands
        if _packs(call.anchor) and new not in call.inputs:
            return Kernel((packed_update(call),))
        parts = tuple(call.parts)
        tokens, pairs = new.shape[2], simplify(new.shape[0] * _known(cache.shape[1]))
        width = power_of_two(max(map(_width, parts)))
        own, other = (_arguments(call, part, i) for i, part in enumerate((parts[0], parts[-1])))
        arguments: Mapping[str, Argument | tuple[Argument, ...]] = {
            **own,
            **({f"other_{name}": a for name, a in other.items()} if len(parts) > 1 else {}),
            "tokens": Number(tokens),
            "pairs": Number(pairs),
            "slots": Number(cache.shape[2]),
        }
        none = {name: None for name in update.arg_names if name.lower().startswith("other_") and name not in arguments}
        functions = [dict(zip(_FUNCTIONS, _functions(part), strict=True)) for part in parts]
        others = {f"OTHER_{name}": f for each in functions[1:] for name, f in each.items()}
        down = max(1, _ELEMENTS // width)
        regimes = (
            Regime(most, (_variant(call, (blocks(tokens, m), pairs, len(parts)), m, width),))
            for most, m in ((1, 1), (None, down))
        )
        constants = {**none, **functions[0], **others, "HEADS": _known(cache.shape[1])}
        return Kernel((Launch(update, arguments, constants, tuple(regimes), size=tokens),))

    def fuses_after(self, anchor: Node, node: Node) -> bool:
        return False

    def fuses_before(self, anchor: Node, node: Node) -> bool:
        return _fuses_before(anchor, node)

    def fuses_beside(self, anchor: Node, other: Node) -> bool:
        """Caches of as many heads and slots, for the same tokens."""
        apart = other.op is not ops.cache_update or _packs(anchor) or _packs(other)
        if apart or anchor.operands[2:] != other.operands[2:]:
            return False
        return all(same_shape(a.shape[:3], b.shape[:3]) for a, b in zip(anchor.operands, other.operands, strict=True))


def _packs(anchor: Node) -> bool:
    return anchor.operands[1].node.op is ops.pack_groups


def _fuses_before(anchor: Node, node: Node) -> bool:
    return fuses_before(node) or (_packs(anchor) and node is anchor.operands[1].node)


def _refuse(part: Call) -> str | None:
    if part.epilogue:
        return "a cache is updated in place, so nothing is computed on the result"
    if part.anchor.operands[0] not in part.inputs:
        return "a cache is updated in place, so it must lie in memory"
    if not all(isinstance(d, int) for d in part.anchor.operands[0].shape[3:]):
        return "the width of its tokens is no number"
    others = [node.op.name for node in part.prologue if not _fuses_before(part.anchor, node)]
    return f"{others[0]} is not computed element by element" if others else None


def _width(part: Call) -> int:
    return _known(elements(part.anchor.operands[0].shape[3:]))


def _arguments(call: Call, part: Call, index: int) -> Mapping[str, Argument | tuple[Argument, ...]]:
    """What a part is passed of its own, as arguments of the whole call."""
    return {"output": Output(index), "width": Number(_width(part)), "extras": Fragments(part).extras_within(call)}


def _functions(part: Call) -> Iterator[Constant]:
    """The functions that read the new tokens, the tokens before and their count, and that write the cache."""
    cache, new, past, count = part.anchor.operands
    fragments = Fragments(part)
    groups = (*(Group(name, 1) for name in ("batch", "head", "row")), Group("across", len(cache.shape) - 3))
    yield fragments.read("read_new", new, groups)
    yield fragments.read("read_past", past, groups[:1])
    yield fragments.read("read_count", count, groups[:1])
    yield fragments.finish("finish", groups)


def _variant(call: Call, grid: tuple[Dim, Dim, Dim], tokens: int, width: int) -> Variant:
    moved = float(tokens * width * call.view.dtype.itemsize)

    def work(_: Mapping[str, int]) -> Work:
        return Work(float(tokens * width), DType.f32, moved, moved, moved)

    return Variant({"BLOCK_TOKENS": tokens, "BLOCK_WIDTH": width}, grid, work, num_warps=4)


def _known(dim: Dim) -> int:
    assert isinstance(dim, int)
    return dim
