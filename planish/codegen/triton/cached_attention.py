"""Attention over caches on GPUs: few queries split the keys among programs, many walk over them."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import ClassVar

from planish.codegen.call import Call
from planish.codegen.triton.around import fuses_after, fuses_before, refuse_around
from planish.codegen.triton.attention import Operands, Tile, operands_of, refuse_sink
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
from planish.codegen.triton.kernels.attention import flash_cached, merge_parts
from planish.codegen.triton.kernels.packed_cache import flash_packed
from planish.codegen.triton.packed_cache import Packed, addresses, pointer, reads_packed
from planish.codegen.triton.sources import Existing
from planish.codegen.triton.tiles import blocks, power_of_two
from planish.compiler import ops
from planish.compiler.ir import Node, Op
from planish.compiler.types import Dim, DType, evaluate_dim, simplify

_WIDE = 128  # head size over which fewer keys lie in registers
_FEW = 8  # queries, up to which the keys are split
_MOST_SPLITS = 64


@dataclass(frozen=True, slots=True)
class CachedAttention:
    """Attention with `past` over caches in any float dtype, in i8 with scales or in groups of 4 bits, computed in the
    dtype of q."""

    name: ClassVar[str] = "cached-attention"
    ops: ClassVar[tuple[Op, ...]] = (ops.attention,)

    def refuse(self, call: Call, device: Device) -> str | None:
        given = operands_of(call.anchor)
        if given.past is None:
            return "it attends over no cache"
        return refuse_sink(call.anchor) or given.refuse() or refuse_around(call)

    def build(self, call: Call, device: Device) -> Kernel:
        plan = _Plan.of(call, device)
        if plan.splits == 1:
            return Kernel((plan.walk(),))
        return Kernel((plan.walk(), plan.merge()), scratch_bytes=simplify(plan.mixed_bytes + plan.sum_bytes))

    def fuses_after(self, anchor: Node, node: Node) -> bool:
        return fuses_after(anchor, node)

    def fuses_before(self, anchor: Node, node: Node) -> bool:
        return operands_of(anchor).past is not None and fuses_before(node)


@dataclass(frozen=True, slots=True)
class _Plan:
    """What the launches of one call share. `rows` counts queries times the heads of a group, `pairs` batches times the
    heads of keys."""

    call: Call
    device: Device
    given: Operands
    rows: Dim
    pairs: Dim
    splits: int

    @classmethod
    def of(cls, call: Call, device: Device) -> "_Plan":
        given = operands_of(call.anchor)
        queries, heads = given.q.shape[2], given.heads // given.group
        few = isinstance(queries, int) and queries <= _FEW
        # two programs a multiprocessor keep the memory busy; a batch of one is the case that needs them
        splits = min(_MOST_SPLITS, power_of_two(-(-2 * device.multiprocessors // heads))) if few else 1
        return cls(call, device, given, simplify(queries * given.group), simplify(given.q.shape[0] * heads), splits)

    @property
    def mixed_bytes(self) -> Dim:
        """Of the parts' mixtures, a multiple of 16."""
        return simplify(self.pairs * self.splits * self.rows * 4 * (-(-self.given.width // 4) * 4))

    @property
    def sum_bytes(self) -> Dim:
        return simplify(self.pairs * self.splits * self.rows * 8)

    @property
    def packed(self) -> bool:
        """Whether the caches are bytes of two codes."""
        return reads_packed(self.call, self.given.k, self.given.v)

    @property
    def key_bytes(self) -> float:
        """Bytes of one key and its value in memory."""
        given = self.given
        if self.packed:
            return float(Packed.of(given.k).row_bytes + Packed.of(given.v).row_bytes)
        return float((given.depth + given.width) * self.number_bytes)

    @property
    def number_bytes(self) -> int:
        """Bytes of one number of caches that are not packed."""
        return min(view.dtype.itemsize for value, view in self.call.inputs.items() if len(value.shape) == 4)

    def walk(self) -> Launch:
        """The launch that reads the cache."""
        regimes = (Regime(None, self._variants()),)
        if self.packed:
            return Launch(flash_packed, self._of_bytes(), self._packed_constants(), regimes)
        arguments = {
            **self._shared(),
            "rows": Number(self.rows),
            "queries": Number(self.given.q.shape[2]),
            "slots": Number(self.given.k.shape[2]),
            "pairs": Number(self.pairs),
            "extras": Fragments(self.call).extras,
        }
        return Launch(flash_cached, arguments, self._constants(), regimes)

    def _of_bytes(self) -> dict[str, Argument | tuple[Argument, ...]]:
        call, k, v = self.call, self.given.k, self.given.v
        return {
            "k": pointer(call, k),
            "v": pointer(call, v),
            **self._shared(),
            "rows": Number(self.rows),
            "queries": Number(self.given.q.shape[2]),
            "slots": Number(k.shape[2]),
            **addresses(call, "k", k),
            **addresses(call, "v", v),
            "extras": Fragments(call).extras,
        }

    def _packed_constants(self) -> Mapping[str, Constant]:
        k, v = Packed.of(self.given.k), Packed.of(self.given.v)
        known = {**self._constants(), **k.constants("K"), **v.constants("V")}
        return {name: known[name] for name in known if name in flash_packed.arg_names}

    def merge(self) -> Launch:
        """The launch that puts the parts together."""
        arguments = {
            **self._shared(),
            "rows": Number(self.rows),
            "pairs": Number(self.pairs),
            "extras": Fragments(self.call).extras,
        }
        constants = self._constants()
        known = {name: constants[name] for name in constants if name in merge_parts.arg_names}
        grid = (blocks(self.rows, 16), self.pairs, 1)
        variant = Variant({"BLOCK_M": 16}, grid, self._merging, num_warps=4)
        return Launch(merge_parts, arguments, known, (Regime(None, (variant,)),))

    def _shared(self) -> dict[str, Argument | tuple[Argument, ...]]:
        return {
            "output": Output(),
            "mixed_parts": Scratch(0, DType.f32),
            "sum_parts": Scratch(self.mixed_bytes, DType.f32),
        }

    def _constants(self) -> Mapping[str, Constant]:
        fragments, given, anchor = Fragments(self.call), self.given, self.call.anchor
        window, scale = anchor.attrs["window"], anchor.attrs["scale"]
        assert isinstance(scale, float)
        assert window is None or isinstance(window, int)
        assert given.past is not None
        groups = tuple(Group(name, 1) for name in ("batch", "head", "row", "column"))
        return {
            "READ_Q": fragments.read("read_q", given.q, groups),
            "READ_K": fragments.read("read_k", given.k, groups),
            "READ_V": fragments.read("read_v", given.v, groups),
            "READ_PAST": fragments.read("read_past", given.past, groups[:1]),
            "FINISH": fragments.finish("finish", groups),
            "SCALE": scale,
            "WINDOW": window,
            "HEADS": given.heads // given.group,
            "GROUP": given.group,
            **given.widths(),
            "DTYPE": Existing("triton.language", TRITON_DTYPE[given.q.dtype]),
            "SPLITS": self.splits,
            "PRECISION": "ieee",
        }

    def _variants(self) -> tuple[Variant, ...]:
        return tuple(
            Variant(
                {"BLOCK_M": m, "BLOCK_N": n},
                (blocks(self.rows, m), self.pairs, self.splits),
                self._walking(m),
                num_warps=warps,
                num_stages=stages,
            )
            for m, n, warps, stages in self._tiles()
        )

    def _tiles(self) -> tuple[Tile, ...]:
        """Codes are unpacked by every warp that multiplies them, so that many queries take fewer keys at a time."""
        down = max(16, min(64, power_of_two(self.rows))) if isinstance(self.rows, int) else 64
        wide = max(self.given.depth, self.given.width) > _WIDE
        if self.device.backend == "hip" and not self.packed and self.number_bytes == 1:
            # Triton 3.6 fails on more than 16 codes of a block in each thread, which it transposes for gfx942
            few = ((down, 32, 8, 2), (down, 32, 4, 3), (down, 64, 8, 2))
            return ((down, 16, 8, 2), (down, 32, 8, 2)) if wide else few
        if down == 64 and self.packed:
            return ((64, 16, 8, 2), (64, 32, 8, 2)) if wide else ((64, 32, 4, 2), (64, 64, 8, 2), (128, 32, 8, 2))
        if wide:
            return ((down, 32, 4, 2), (down, 64, 8, 2), (down, 32, 8, 2))
        return ((down, 64, 4, 2), (down, 128, 8, 2), (down, 32, 4, 3))

    def _walking(self, down: int) -> Callable[[Mapping[str, int]], Work]:
        given = self.given

        def work(sizes: Mapping[str, int]) -> Work:
            keys = evaluate_dim(given.k.shape[2], sizes) / self.splits
            widths = given.depth + given.width
            read = keys * self.key_bytes
            sharing = max(1, -(-evaluate_dim(self.rows, sizes) // down))
            written = float(down * given.width * given.q.dtype.itemsize)
            return Work(2.0 * down * keys * widths, given.q.dtype, read, read / sharing, written)

        return work

    def _merging(self, sizes: Mapping[str, int]) -> Work:
        count = 16.0 * self.given.width
        return Work(2 * count * self.splits, DType.f32, 4 * count * self.splits, 4 * count * self.splits, 2 * count)
