"""The launches of an attention: programs walk over keys; where there are few queries, each over a part of them."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

import sympy

from planish.codegen.call import Call
from planish.codegen.triton.attention_operands import Operands, Tile, slopes
from planish.codegen.triton.device import Device
from planish.codegen.triton.elementwise import TRITON_DTYPE
from planish.codegen.triton.fragment import Fragments, Group
from planish.codegen.triton.kernel import (
    Argument,
    Constant,
    Kernel,
    Launch,
    Number,
    Output,
    Regime,
    Scratch,
    Variant,
    Work,
)
from planish.codegen.triton.kernels.attention import merge_parts
from planish.codegen.triton.sources import Existing
from planish.codegen.triton.tiles import blocks, power_of_two, product
from planish.compiler.ir import Node
from planish.compiler.types import Dim, DType, evaluate_dim, same_dim, simplify

if TYPE_CHECKING:
    from triton import JITFunction

Arguments: TypeAlias = Mapping[str, Argument | tuple[Argument, ...]]
_FEW = 8  # queries, up to which the keys are parted
_FEW_KEYS = 256  # of no cache, up to which they are not
_MOST_PARTS = 64
_ELEMENTS_OF_A_WARP = 2048  # of a merge
_PROGRAMS = 2  # for each multiprocessor, which keep the memory busy
# as integer instructions, of which a multiprocessor issues half as many in a cycle as of those on floats: eight for
# each score (in the assembly of sm_90), among them an exponential, and one for each number that is shrunk
_OF_A_SCORE = 4.0
_OF_A_MIXTURE = 0.5
_UNIT_ROWS = 64  # of an operand that one wgmma multiplies, by four warps; mma.sync and MFMA take 16 rows by one warp
_WARP_ROWS = 16
_GROUPS = tuple(Group(name, 1) for name in ("batch", "head", "row", "column"))


@dataclass(frozen=True, slots=True)
class Walk:
    """What the launches of one call share. `rows` counts queries times the heads of a group, `pairs` batches times the
    heads of keys; the keys are walked over in `parts`, each of `key_bytes` with its value."""

    call: Call
    device: Device
    given: Operands
    rows: Dim
    pairs: Dim
    parts: Dim
    key_bytes: float

    @classmethod
    def of(cls, call: Call, device: Device, key_bytes: float) -> "Walk":
        given = Operands.of(call.anchor)
        pairs = simplify(given.q.shape[0] * given.key_heads)
        rows = simplify(given.q.shape[2] * given.group)
        return cls(call, device, given, rows, pairs, _parts(given, pairs, device), key_bytes)

    @property
    def parted(self) -> bool:
        return not same_dim(self.parts, 1)

    @property
    def most_parts(self) -> int:
        """The parts for a batch of one."""
        return evaluate_dim(self.parts, dict.fromkeys(map(str, sympy.sympify(self.parts).free_symbols), 1))

    def kernel(
        self,
        function: "JITFunction",
        tiles: Sequence[Tile],
        arguments: Arguments | None = None,
        constants: Mapping[str, Constant] | None = None,
    ) -> Kernel:
        """The launches: `function` in tiles of so many shapes, and where the keys are parted the one that merges."""
        given, known = {**self._arguments(), **(arguments or {})}, {**self._constants(), **(constants or {})}
        variants = tuple(self._variant(tile) for tile in tiles)
        walking = _launch(function, given, known, variants)
        if not self.parted:
            return Kernel((walking,))
        merging = _launch(merge_parts, given, known, (self._merging(),))
        return Kernel((walking, merging), scratch_bytes=simplify(self._mixed_bytes + self._lines * 8))

    @property
    def _lines(self) -> Dim:
        """Rows of all parts."""
        return product(self.pairs, self.parts, self.rows)

    @property
    def _mixed_bytes(self) -> Dim:
        """Of the parts' mixtures, a multiple of 16."""
        return simplify(self._lines * 4 * (-(-self.given.width // 4) * 4))

    def _arguments(self) -> Arguments:
        queries, slots = self.given.q.shape[2], self.given.k.shape[2]
        return {
            "output": Output(),
            "mixed_parts": Scratch(0, DType.f32),
            "sum_parts": Scratch(self._mixed_bytes if self.parted else 0, DType.f32),
            "rows": Number(self.rows),
            "queries": Number(queries),
            "slots": Number(slots),
            "past": Number(0 if self.given.past is not None else simplify(slots - queries)),
            "pairs": Number(self.pairs),
            "section": Number(self.given.section(self.key_bytes, self.device)),
            "parts": Number(self.parts),
            "extras": Fragments(self.call).extras,
        }

    def _constants(self) -> dict[str, Constant]:
        fragments, given, anchor = Fragments(self.call), self.given, self.call.anchor
        window, added = anchor.attrs["window"], given.mask is not None and given.mask.dtype is not DType.bool
        assert window is None or isinstance(window, int)
        return {
            "READ_PAST": None if given.past is None else fragments.read("read_past", given.past, _GROUPS[:1]),
            "READ_Q": fragments.read("read_q", given.q, _GROUPS),
            "MASK": None if given.mask is None else fragments.read("mask", given.mask, _GROUPS),
            "ADDED": added,
            "FINISH": fragments.finish("finish", _GROUPS),
            **slopes(anchor, added),
            "CAUSAL": bool(anchor.attrs["causal"]),
            "WINDOW": window,
            "HEADS": given.key_heads,
            "GROUP": given.group,
            **given.widths(),
            "DTYPE": Existing("triton.language", TRITON_DTYPE[given.q.dtype]),
            "BLOCK_PARTS": power_of_two(self.most_parts),
            "PARTED": int(self.parted),
            "PRECISION": "ieee",
        }

    def keys_read(self) -> Mapping[str, Constant]:
        """What reads keys and values that are no bytes of codes."""
        fragments = Fragments(self.call)
        return {
            "READ_K": fragments.read("read_k", self.given.k, _GROUPS),
            "READ_V": fragments.read("read_v", self.given.v, _GROUPS),
        }

    def _variant(self, tile: Tile) -> Variant:
        down, across, warps, stages = tile
        grid = (product(blocks(self.rows, down), self.pairs), self.parts, 1)
        constants = {"BLOCK_M": down, "BLOCK_N": across}
        return Variant(constants, grid, self._walking(tile), num_warps=warps, num_stages=stages)

    def _walking(self, tile: Tile) -> Callable[[Mapping[str, int]], Work]:
        given, (down, across, _, _) = self.given, tile
        size, widths = given.q.dtype.itemsize, given.block_depth + given.block_width

        def work(sizes: Mapping[str, int]) -> Work:
            parts = evaluate_dim(self.parts, sizes)
            keys = _visited(self.call.anchor, tile, sizes, given.group) / parts
            asked, read = float(down * given.depth * size), keys * self.key_bytes
            # tiles that share keys read them from main memory once
            shared = evaluate_dim(given.k.shape[2], sizes) / parts * self.key_bytes
            tiles = evaluate_dim(blocks(self.rows, down), sizes)
            written = float(down * given.width * (4 if self.parted else size))
            scores = down * keys
            beside = _OF_A_SCORE * scores + _OF_A_MIXTURE * down * given.block_width * keys / across
            return Work(
                flops=2.0 * scores * widths,
                dtype=given.q.dtype,
                read_bytes=asked + read,
                unique_read_bytes=asked + min(read, shared / tiles),
                write_bytes=written,
                instructions=beside,
                operand_bytes=size * keys * self._operands(tile),
            )

        return work

    def _operands(self, tile: Tile) -> float:
        """Numbers that matrix units read of shared memory for each key of a tile."""
        given, (down, across, warps, _) = self.given, tile
        widths = given.block_depth + given.block_width
        if given.q.dtype is DType.f32:
            return 0.0  # which they do not multiply
        if self.device.has_wgmma and down >= _UNIT_ROWS and warps % 4 == 0:
            return down / _UNIT_ROWS * widths + down * given.block_depth / across  # queries lie there too
        return float(min(warps, -(-down // _WARP_ROWS)) * widths)

    def _merging(self) -> Variant:
        block = power_of_two(self.most_parts) * self.given.block_width
        warps = max(1, min(8, block // _ELEMENTS_OF_A_WARP))

        def work(sizes: Mapping[str, int]) -> Work:
            read = 4.0 * evaluate_dim(self.parts, sizes) * (self.given.width + 2)
            written = float(self.given.width * self.given.q.dtype.itemsize)
            return Work(read / 2, DType.f32, read, read, written)

        return Variant({}, (product(self.pairs, self.rows), 1, 1), work, num_warps=warps)


def _parts(given: Operands, pairs: Dim, device: Device) -> Dim:
    """How many parts of the keys give every multiprocessor its programs."""
    queries, keys = given.q.shape[2], given.k.shape[2]
    short = given.past is None and isinstance(keys, int) and keys <= _FEW_KEYS
    if not isinstance(queries, int) or queries > _FEW or short:
        return 1
    wanted = min(_PROGRAMS * device.multiprocessors, _MOST_PARTS * given.key_heads)
    return simplify(1 + sympy.floor(sympy.Integer(wanted - 1) / pairs))


def _visited(anchor: Node, tile: Tile, sizes: Mapping[str, int], group: int) -> float:
    """Keys that a tile walks over, on average, in whole blocks."""
    given, (down, across, _, _) = Operands.of(anchor), tile
    queries, keys = (evaluate_dim(value.shape[2], sizes) for value in (given.q, given.k))
    if not anchor.attrs["causal"]:
        return float(-(-keys // across) * across)
    asked, window = min(queries, -(-down // group)), anchor.attrs["window"]
    seen = max(0.0, keys - 0.5 * (queries - asked))
    seen = min(seen, window - 1.0 + asked) if isinstance(window, int) else seen
    return float(seen + across / 2)


def _launch(
    function: "JITFunction",
    arguments: Arguments,
    constants: Mapping[str, Constant],
    variants: tuple[Variant, ...],
) -> Launch:
    """The launch of a function with those of the arguments and constants that it takes."""
    names = function.arg_names
    taken = {name: arguments[name] for name in names if name in arguments}
    return Launch(function, taken, {n: constants[n] for n in names if n in constants}, (Regime(None, variants),))
