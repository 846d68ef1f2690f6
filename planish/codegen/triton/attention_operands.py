"""The operands of an attention: which of them kernels take, and what kernels are told of them."""

from collections.abc import Mapping
from dataclasses import dataclass
from math import e, log2
from typing import TypeAlias

import sympy

from planish.codegen.call import Call
from planish.codegen.triton.device import Device
from planish.codegen.triton.kernel import Constant
from planish.codegen.triton.tiles import power_of_two
from planish.compiler.ir import Node, Value
from planish.compiler.ops.contract import sink_of
from planish.compiler.types import Dim, DType, same_dim

MOST_DEPTH = 256
_FLOATS = (DType.f32, DType.f16, DType.bf16)
# rows, keys, warps and stages of a block
Tile: TypeAlias = tuple[int, int, int, int]


@dataclass(frozen=True, slots=True)
class Operands:
    """The operands of an attention, of which the heads and their widths are known numbers."""

    q: Value
    k: Value
    v: Value
    mask: Value | None = None
    past: Value | None = None

    @classmethod
    def of(cls, anchor: Node) -> "Operands":
        """The operands by name; only where the heads are known numbers may they be asked."""
        q, k, v = anchor.operands[:3]
        return cls(q, k, v, *(*anchor.inputs[3:], None, None)[:2])

    @property
    def heads(self) -> int:
        return _known(self.q.shape[1])

    @property
    def key_heads(self) -> int:
        return _known(self.k.shape[1])

    @property
    def group(self) -> int:
        """Heads of q that share one of k and v."""
        return self.heads // self.key_heads

    @property
    def depth(self) -> int:
        return _known(self.q.shape[3])

    @property
    def width(self) -> int:
        return _known(self.v.shape[3])

    @property
    def block_depth(self) -> int:
        """The depth of a head as a block holds it."""
        return max(16, power_of_two(self.depth))

    @property
    def block_width(self) -> int:
        return max(16, power_of_two(self.width))

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

    def widths(self) -> dict[str, Constant]:
        """The widths of heads, and the powers of two that hold them."""
        return {
            "DEPTH": self.depth,
            "WIDTH": self.width,
            "BLOCK_DEPTH": self.block_depth,
            "BLOCK_WIDTH": self.block_width,
        }

    def fits(self, tile: Tile, device: Device) -> bool:
        """Whether the operands of a tile fit the shared memory of a block."""
        down, across, _, stages = tile
        size = self.q.dtype.itemsize
        held = down * self.block_depth + stages * across * (self.block_depth + self.block_width)
        return held * size <= device.shared_memory_bytes

    def section(self, key_bytes: float, device: Device) -> Dim:
        """Of how many heads of keys at least half of the L2 holds what is read, at `key_bytes` a key."""
        level = device.profile.level("L2")
        keys = 1 if level is None else int(level.bytes / 2 / key_bytes)
        slots = self.k.shape[2]
        return max(1, keys // slots) if isinstance(slots, int) else sympy.Max(1, sympy.floor(keys / slots))


def refuse_sink(anchor: Node) -> str | None:
    """Why an attention with a sink is none for these kernels, or None."""
    return None if sink_of(anchor) is None else "a sink beside the scores of the keys has no kernel on GPUs"


def slopes(anchor: Node, added: bool = False) -> Mapping[str, Constant]:
    """What scores are multiplied by, before a mask is added and after; the latter is free and must be positive."""
    scale = anchor.attrs["scale"]
    assert isinstance(scale, float)
    factor = scale * log2(e)
    return {"SCALE": factor, "SLOPE": 1.0} if added or factor <= 0 else {"SCALE": 1.0, "SLOPE": factor}


def _known(dim: Dim) -> int:
    assert isinstance(dim, int)
    return dim
