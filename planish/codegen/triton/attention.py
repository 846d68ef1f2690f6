"""Attention on GPUs: blocks of queries walk over the keys that they see."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import ClassVar, TypeAlias

from planish.codegen.call import Call
from planish.codegen.triton.around import fuses_after, refuse_around
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
from planish.codegen.triton.kernels.attention import flash
from planish.codegen.triton.tiles import blocks, power_of_two
from planish.compiler import ops
from planish.compiler.ir import Node, Op, Value
from planish.compiler.ops.contract import sink_of
from planish.compiler.types import Dim, DType, elements, evaluate_dim, same_dim

MOST_DEPTH = 256
_FLOATS = (DType.f32, DType.f16, DType.bf16)
# queries, keys, warps and stages of a block
Tile: TypeAlias = tuple[int, int, int, int]
TILES: tuple[Tile, ...] = ((64, 64, 4, 2), (128, 64, 8, 2), (128, 128, 8, 2), (64, 32, 4, 3), (16, 64, 4, 2))


@dataclass(frozen=True, slots=True)
class Attention:
    """softmax(q k^T * scale + mask) v with groups of queries, causal bands and windows; heads of up to 256."""

    name: ClassVar[str] = "attention"
    ops: ClassVar[tuple[Op, ...]] = (ops.attention,)

    def refuse(self, call: Call, device: Device) -> str | None:
        given = operands_of(call.anchor)
        if given.past is not None:
            return "it attends over a cache"
        return refuse_sink(call.anchor) or given.refuse() or given.refuse_rows(call) or refuse_around(call)

    def build(self, call: Call, device: Device) -> Kernel:
        arguments = {**operands_of(call.anchor).arguments(call), "extras": Fragments(call).extras}
        return Kernel((Launch(flash, arguments, _constants(call), (Regime(None, _variants(call, device)),)),))

    def fuses_after(self, anchor: Node, node: Node) -> bool:
        return fuses_after(anchor, node)

    def fuses_before(self, anchor: Node, node: Node) -> bool:
        return False


@dataclass(frozen=True, slots=True)
class Operands:
    """The operands of an attention, of which the heads and their widths are known numbers."""

    q: Value
    k: Value
    v: Value
    mask: Value | None
    past: Value | None

    @property
    def heads(self) -> int:
        return _known(self.q.shape[1])

    @property
    def group(self) -> int:
        """Heads of q that share one of k and v."""
        return self.heads // _known(self.k.shape[1])

    @property
    def depth(self) -> int:
        return _known(self.q.shape[3])

    @property
    def width(self) -> int:
        return _known(self.v.shape[3])

    def refuse(self) -> str | None:
        """Why no block of a kernel holds the heads, or None."""
        if not isinstance(self.q.shape[3], int) or not isinstance(self.v.shape[3], int):
            return f"its head sizes are {self.q.shape[3]} and {self.v.shape[3]}, which are no numbers"
        if max(self.depth, self.width) > MOST_DEPTH:
            return f"head size {max(self.depth, self.width)} is over its {MOST_DEPTH}"
        if self.q.dtype not in _FLOATS:
            return f"{self.q.dtype} operands; it takes f32, f16 and bf16"
        return None

    def refuse_rows(self, call: Call) -> str | None:
        """Why the rows of q, k and v cannot be read by their addresses, or None."""
        for name, value in zip("qkv", (self.q, self.k, self.v), strict=True):
            view = call.inputs.get(value)
            if view is None or not same_dim(view.strides[3], 1):
                return f"rows of {name} are computed or strided"
        return None

    def arguments(self, call: Call) -> "dict[str, Argument | tuple[Argument, ...]]":
        """What kernels take of q, k and v that lie in memory: addresses, counts and strides."""
        index = {value: Input(i) for i, value in enumerate(call.inputs)}
        found: dict[str, Argument | tuple[Argument, ...]] = {
            "q": index[self.q],
            "k": index[self.k],
            "v": index[self.v],
            "output": Output(),
            "heads": Number(self.heads),
            "group": Number(self.group),
            "queries": Number(self.q.shape[2]),
            "keys": Number(self.k.shape[2]),
        }
        for name, value in zip("qkv", (self.q, self.k, self.v), strict=True):
            for word, stride in zip(("batch", "head", "row"), call.inputs[value].strides, strict=False):
                found[f"{name}_{word}"] = Number(stride, wide=True)
            found[f"{name}_from"] = Number(call.inputs[value].offset, wide=True)
        return found

    def widths(self) -> dict[str, Constant]:
        """The widths of heads, and the powers of two that hold them."""
        return {
            "DEPTH": self.depth,
            "WIDTH": self.width,
            "BLOCK_DEPTH": max(16, power_of_two(self.depth)),
            "BLOCK_WIDTH": max(16, power_of_two(self.width)),
        }

    def variant(self, tile: Tile, work: Callable[[Mapping[str, int]], Work]) -> Variant:
        """A kernel whose programs are tiles of queries, as `tile_and_pair` counts them."""
        down, across, warps, stages = tile
        grid = (elements((blocks(self.q.shape[2], down), self.q.shape[0], self.q.shape[1])), 1, 1)
        return Variant({"BLOCK_M": down, "BLOCK_N": across}, grid, work, num_warps=warps, num_stages=stages)

    def fits(self, tile: Tile, device: Device) -> bool:
        """Whether the operands of a tile fit the shared memory of a block."""
        down, across, _, stages = tile
        depth, width, size = power_of_two(self.depth), power_of_two(self.width), self.q.dtype.itemsize
        return (down * depth + stages * across * (depth + width)) * size <= device.shared_memory_bytes


def _known(dim: Dim) -> int:
    assert isinstance(dim, int)
    return dim


def refuse_sink(anchor: Node) -> str | None:
    """Why an attention with a sink is none for these kernels, or None."""
    return None if sink_of(anchor) is None else "a sink beside the scores of the keys has no kernel on GPUs"


def operands_of(anchor: Node) -> Operands:
    """The operands by name; only of an attention whose sizes are known may the heads be asked."""
    q, k, v = anchor.operands[:3]
    return Operands(q, k, v, *(*anchor.inputs[3:], None, None)[:2])


def _constants(call: Call) -> Mapping[str, Constant]:
    fragments, anchor = Fragments(call), call.anchor
    given, window, scale = operands_of(anchor), anchor.attrs["window"], anchor.attrs["scale"]
    assert isinstance(scale, float)
    assert window is None or isinstance(window, int)
    mask = given.mask
    scored = tuple(Group(name, 1) for name in ("batch", "head", "row", "key"))
    return {
        "MASK": None if mask is None else fragments.read("mask", mask, scored),
        "ADDED": mask is not None and mask.dtype is not DType.bool,
        "FINISH": fragments.finish("finish", (*scored[:3], Group("across", 1))),
        "SCALE": scale,
        "CAUSAL": bool(anchor.attrs["causal"]),
        "WINDOW": window,
        **given.widths(),
        "PRECISION": "ieee",
    }


def _variants(call: Call, device: Device) -> tuple[Variant, ...]:
    """Tiles whose operands fit the shared memory of a block."""
    given = operands_of(call.anchor)
    tiles = tuple(tile for tile in TILES if given.fits(tile, device)) or ((16, 16, 4, 1),)
    return tuple(given.variant(tile, _work(call, tile[0])) for tile in tiles)


def _work(call: Call, down: int) -> Callable[[Mapping[str, int]], Work]:
    given, window = operands_of(call.anchor), call.anchor.attrs["window"]
    size, widths = given.q.dtype.itemsize, given.depth + given.width

    def work(sizes: Mapping[str, int]) -> Work:
        queries, keys = evaluate_dim(given.q.shape[2], sizes), float(evaluate_dim(given.k.shape[2], sizes))
        if call.anchor.attrs["causal"]:
            keys = min(keys, window) if isinstance(window, int) else keys - 0.5 * min(keys, queries)
        asked, cached = down * given.depth * size, keys * widths * size
        sharing = given.group * -(-queries // down)
        written = float(down * given.width * size)
        return Work(2.0 * down * keys * widths, given.q.dtype, asked + cached, asked + cached / sharing, written)

    return work
