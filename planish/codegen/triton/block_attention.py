"""Attention over an index of kept blocks of keys on GPUs."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import ClassVar

from planish.codegen.attributes import integer_of
from planish.codegen.call import Call
from planish.codegen.triton.around import fuses_after, refuse_around
from planish.codegen.triton.attention_operands import Operands, Tile, slopes
from planish.codegen.triton.device import Device
from planish.codegen.triton.fragment import Fragments, Group
from planish.codegen.triton.kernel import (
    Argument,
    Constant,
    Input,
    Kernel,
    Launch,
    Number,
    Output,
    Regime,
    Variant,
    Work,
)
from planish.codegen.triton.kernels.block_attention import flash_blocks
from planish.codegen.triton.tiles import blocks, product
from planish.compiler import ops
from planish.compiler.ir import Node, Op
from planish.compiler.types import evaluate_dim

_TILES: tuple[Tile, ...] = ((64, 64, 4, 2), (128, 64, 8, 2), (128, 128, 8, 2), (64, 32, 4, 3), (16, 64, 4, 2))
_LEAST = 16  # rows and columns of a product on the matrix units


@dataclass(frozen=True, slots=True)
class BlockAttention:
    """Blocks of queries walk over the blocks of keys that an index keeps; both of multiples of 16 tokens."""

    name: ClassVar[str] = "block-attention"
    ops: ClassVar[tuple[Op, ...]] = (ops.block_attention,)

    def refuse(self, call: Call, device: Device) -> str | None:
        given = _operands(call.anchor)
        for word in ("query", "key"):
            size = integer_of(call.anchor, f"{word}_block")
            if size % _LEAST:
                return f"{word} blocks of {size} tokens are no multiple of {_LEAST}"
        return given.refuse() or given.refuse_rows(call) or refuse_around(call)

    def build(self, call: Call, device: Device) -> Kernel:
        given = _operands(call.anchor)
        variants = tuple(_variant(call, given, tile) for tile in _tiles(call, device))
        return Kernel(
            (Launch(flash_blocks, _arguments(call, given, device), _constants(call), (Regime(None, variants),)),)
        )

    def fuses_after(self, anchor: Node, node: Node) -> bool:
        return fuses_after(anchor, node)

    def fuses_before(self, anchor: Node, node: Node) -> bool:
        return False


def _operands(anchor: Node) -> Operands:
    q, k, v = anchor.operands[:3]
    return Operands(q, k, v)


def _arguments(call: Call, given: Operands, device: Device) -> "dict[str, Argument | tuple[Argument, ...]]":
    """Addresses, counts and strides, in the order of the kernel's signature."""
    index = {value: Input(i) for i, value in enumerate(call.inputs)}
    operands = dict(zip("qkv", (given.q, given.k, given.v), strict=True))
    found: dict[str, Argument | tuple[Argument, ...]] = {name: index[value] for name, value in operands.items()}
    found |= {"output": Output(), "heads": Number(given.heads), "group": Number(given.group)}
    found |= {"queries": Number(given.q.shape[2]), "keys": Number(given.k.shape[2])}
    for name, value in operands.items():
        for word, stride in zip(("batch", "head", "row"), call.inputs[value].strides, strict=False):
            found[f"{name}_{word}"] = Number(stride, wide=True)
        found[f"{name}_from"] = Number(call.inputs[value].offset, wide=True)
    key_bytes = float((given.depth + given.width) * given.k.dtype.itemsize)
    return {
        **found,
        "kept": Number(call.anchor.operands[3].shape[3]),
        "pairs": Number(product(given.q.shape[0], given.heads)),
        "section": Number(product(given.section(key_bytes, device), given.group)),
        "extras": Fragments(call).extras,
    }


def _variant(call: Call, given: Operands, tile: Tile) -> Variant:
    down, across, warps, stages = tile
    grid = (product(blocks(given.q.shape[2], down), given.q.shape[0], given.heads), 1, 1)
    return Variant({"BLOCK_M": down, "BLOCK_N": across}, grid, _work(call, down), num_warps=warps, num_stages=stages)


def _constants(call: Call) -> Mapping[str, Constant]:
    fragments, anchor = Fragments(call), call.anchor
    lead = (Group("batch", 1), Group("head", 1), Group("row", 1))
    return {
        "READ_BLOCKS": fragments.read("read_blocks", anchor.operands[3], (*lead, Group("entry", 1))),
        "FINISH": fragments.finish("finish", (*lead, Group("across", 1))),
        **slopes(anchor),
        "CAUSAL": bool(anchor.attrs["causal"]),
        "QUERY_BLOCK": integer_of(anchor, "query_block"),
        "KEY_BLOCK": integer_of(anchor, "key_block"),
        **_operands(anchor).widths(),
        "PRECISION": "ieee",
    }


def _tiles(call: Call, device: Device) -> tuple[Tile, ...]:
    """Tiles that divide the blocks of the index, the largest that do in place of those that do not."""
    given = _operands(call.anchor)
    most = tuple(_power_of_two_in(integer_of(call.anchor, f"{word}_block")) for word in ("query", "key"))
    cut = dict.fromkeys((min(m, most[0]), min(n, most[1]), warps, stages) for m, n, warps, stages in _TILES)
    warped = {(m, n, 4 if m * n < 64 * 64 else w, s) for m, n, w, s in cut}
    return tuple(t for t in sorted(warped) if given.fits(t, device)) or ((_LEAST, _LEAST, 4, 1),)


def _power_of_two_in(size: int) -> int:
    """The largest power of two that divides the size."""
    return size & -size


def _work(call: Call, down: int) -> Callable[[Mapping[str, int]], Work]:
    given, index = _operands(call.anchor), call.anchor.operands[3]
    size, widths, block = given.q.dtype.itemsize, given.depth + given.width, integer_of(call.anchor, "key_block")

    def work(sizes: Mapping[str, int]) -> Work:
        keys = evaluate_dim(given.k.shape[2], sizes)
        seen = min(keys, block * evaluate_dim(index.shape[3], sizes))
        asked, cached = float(down * given.depth * size), float(seen * widths * size)
        # every key is read by some block of queries, once when all caches hit
        sharing = max(1.0, seen / keys * given.group * -(-evaluate_dim(given.q.shape[2], sizes) // down))
        written = float(down * given.width * size)
        return Work(2.0 * down * seen * widths, given.q.dtype, asked + cached, asked + cached / sharing, written)

    return work
