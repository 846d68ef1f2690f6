"""Caches of 4 bits on GPUs: how their rows are laid out for kernels, and the update that packs new tokens."""

from collections.abc import Mapping
from dataclasses import dataclass

from planish.codegen.attributes import integer_of
from planish.codegen.call import Call
from planish.codegen.triton.fragment import Fragments, Group
from planish.codegen.triton.kernel import Argument, Constant, Input, Launch, Number, Output, Regime, Variant, Work
from planish.codegen.triton.kernels.packed_cache import update_packed
from planish.codegen.triton.tiles import blocks, power_of_two
from planish.compiler import ops
from planish.compiler.ir import Value
from planish.compiler.ops.cache import groups_of_half, packed_bytes
from planish.compiler.types import Dim, DType, same_dim, simplify

_ELEMENTS = 2048  # of a block
_LEAST = 16  # of the depth of a product on the matrix units
_WORD = 4  # bytes of the two numbers of a group, which are read at once


@dataclass(frozen=True, slots=True)
class Packed:
    """Rows of `width` numbers as `pack_groups` writes them, in blocks of [groups of a half, numbers of a group]."""

    width: int
    group: int

    @classmethod
    def of(cls, value: Value) -> "Packed":
        """The rows that an `unpack_groups` node reads."""
        return cls(integer_of(value.node, "width"), integer_of(value.node, "group"))

    @property
    def half(self) -> int:
        return self.width // 2

    @property
    def size(self) -> int:
        """Numbers of a group."""
        return min(self.group, self.half)

    @property
    def groups(self) -> int:
        """Groups of a half."""
        return groups_of_half(self.width, self.group)

    @property
    def row_bytes(self) -> int:
        return packed_bytes(self.width, self.group)

    @property
    def block(self) -> tuple[int, int]:
        """Groups and numbers of a group, as powers of two that make at least one depth of the matrix units."""
        groups = power_of_two(self.groups)
        return groups, max(power_of_two(self.size), _LEAST // groups)

    @property
    def in_order(self) -> bool:
        """Whether a number of a block has its index in the row as index in the block."""
        return self.groups == 1 or self.block[1] == self.size

    def constants(self, name: str) -> Mapping[str, Constant]:
        """What kernels are told of the rows, by names that begin with `name`."""
        groups, size = self.block
        return {
            f"{name}_HALF": self.half,
            f"{name}_GROUPS": self.groups,
            f"{name}_SIZE": self.size,
            f"{name}_BLOCK_GROUPS": groups,
            f"{name}_BLOCK_SIZE": size,
        }


def reads_packed(call: Call, *caches: Value) -> bool:
    """Whether the caches are unpacked from bytes that lie in memory, rows in whole words."""
    return all(cache.node.op is ops.unpack_groups and _in_words(call, cache) for cache in caches)


def _in_words(call: Call, cache: Value) -> bool:
    view = call.inputs.get(cache.node.operands[0])
    if view is None or not Packed.of(cache).in_order or not same_dim(view.strides[3], 1):
        return False
    return all(same_dim(simplify(dim % _WORD), 0) for dim in (*view.strides[:3], view.offset))


def addresses(call: Call, name: str, cache: Value) -> dict[str, Argument | tuple[Argument, ...]]:
    """The strides of the bytes of a cache, and the element from which they lie."""
    view = call.inputs[cache.node.operands[0]]
    strides = zip(("batch", "head", "row"), view.strides, strict=False)
    found = {f"{name}_{word}": Number(stride, wide=True) for word, stride in strides}
    return {**found, f"{name}_from": Number(view.offset, wide=True)}


def pointer(call: Call, cache: Value) -> Input:
    """The address of the bytes of a cache."""
    return Input(list(call.inputs).index(cache.node.operands[0]))


def packed_update(call: Call) -> Launch:
    """New tokens packed and written into a cache of bytes."""
    cache, new, *_ = call.anchor.operands
    x, heads = new.node.operands[0], cache.shape[1]
    width = x.shape[-1]
    assert isinstance(width, int)
    assert isinstance(heads, int)
    rows = Packed(width, integer_of(new.node, "group"))
    pairs, (groups, size) = simplify(new.shape[0] * heads), rows.block
    return Launch(
        update_packed,
        {
            "output": Output(),
            "tokens": Number(new.shape[2]),
            "pairs": Number(pairs),
            "slots": Number(cache.shape[2]),
            "half": Number(rows.half),
            "groups": Number(rows.groups),
            "extras": Fragments(call).extras,
        },
        {**_functions(call), "HEADS": heads, "SIZE": rows.size, "BLOCK_GROUPS": groups, "BLOCK_SIZE": size},
        tuple(
            Regime(most, (_variant(rows, (blocks(new.shape[2], tokens), pairs, 1), tokens, x.dtype.itemsize),))
            for most, tokens in ((1, 1), (None, max(1, _ELEMENTS // (groups * size))))
        ),
        size=new.shape[2],
    )


def _functions(call: Call) -> Mapping[str, Constant]:
    """What reads the new tokens, the tokens before and their count, and what writes bytes of the cache."""
    _, new, past, count = call.anchor.operands
    fragments, axes = Fragments(call), tuple(Group(name, 1) for name in ("batch", "head", "row", "across"))
    return {
        "READ_NEW": fragments.read("read_new", new.node.operands[0], axes),
        "READ_PAST": fragments.read("read_past", past, axes[:1]),
        "READ_COUNT": fragments.read("read_count", count, axes[:1]),
        "FINISH": fragments.finish("finish", axes),
    }


def _variant(rows: Packed, grid: tuple[Dim, Dim, Dim], tokens: int, itemsize: int) -> Variant:
    read, written = float(tokens * rows.width * itemsize), float(tokens * rows.row_bytes)

    def work(_: Mapping[str, int]) -> Work:
        return Work(8.0 * tokens * rows.width, DType.f32, read, read, written)

    return Variant({"BLOCK_TOKENS": tokens}, grid, work, num_warps=4)
