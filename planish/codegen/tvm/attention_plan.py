"""What an attention kernel knows before it is built: operands, tile sizes and the layout of its scratch memory."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

from planish.codegen.call import Call
from planish.codegen.tvm.attention import over_cache
from planish.codegen.tvm.isa import Isa
from planish.codegen.view import View
from planish.compiler.ir import Value
from planish.compiler.ops.contract import mask_of, sink_of
from planish.compiler.types import Dim, DType, same_dim

FEW = 4


@dataclass(frozen=True, slots=True, eq=False)
class AttentionPlan:
    """Sizes of one kernel.

    A block is one of the queries that share a head of keys; `few` says whether blocks of at most `FEW` of them, which
    need neither panels nor copies, come never, sometimes or always. With `pairs` two elements of bf16 lie in an f32.

    Scratch regions are given by their first f32 element: `q` panels of two vectors of queries [block / 2L][D][2L],
    `k` [keys][D], `v` [keys][width], `p` panels of scores [block / 2L][depth][2L], `o` sums [block][width], and one
    f32 a query for its maximum, its sum and its latest rescaling.
    """

    call: Call
    isa: Isa
    block: int
    keys: int
    depth: int
    few: str
    pairs: bool
    regions: Mapping[str, int]
    scratch_bytes: int

    @classmethod
    def of(cls, call: Call, isa: Isa, queries: int, keys: int) -> "AttentionPlan":
        """Fit the wanted block of queries and keys to constant sizes."""
        q, k, v = (call.inputs[value] for value in _operands(call)[:3])
        panel, step = 2 * isa.lanes, key_rows(isa)
        count = _constant_product(q.shape[1], q.shape[2], k.shape[1])
        block = queries if count is None else min(queries, -(-count // panel) * panel)
        if isinstance(k.shape[2], int):
            keys = min(keys, k.shape[2])
        depth = -(-keys // step) * step
        head, width = _static(q.shape[3]), -(-_static(v.shape[3]) // isa.lanes) * isa.lanes
        sizes = {"q": block * head, "k": depth * head, "v": keys * width, "p": block * depth, "o": block * width}
        if direct_values(v, isa):
            sizes["v"] = 0
        few = "never" if over_cache(call.anchor) else _few(q, k, count, isa)
        pairs = few != "always" and _in_pairs(call, isa)
        if pairs:
            few, sizes["q"], sizes["k"] = "never", block * head // 2, depth * head // 2
            sizes["v"] = -(-keys // 2) * width
        if few == "always":
            sizes["q"] = sizes["k"] = 0
            sizes["v"] = 0 if dense_values(v, isa) else sizes["v"]
        sizes.update(dict.fromkeys(("maximum", "total", "rescale", "limit"), block))
        regions, place = {}, 0
        for name, size in sizes.items():
            regions[name] = place
            place += -(-size // 16) * 16
        return cls(call, isa, block, keys, depth, few, pairs, regions, place * 4)

    @property
    def q(self) -> Value:
        return _operands(self.call)[0]

    @property
    def k(self) -> Value:
        return _operands(self.call)[1]

    @property
    def v(self) -> Value:
        return _operands(self.call)[2]

    @property
    def mask(self) -> Value | None:
        return mask_of(self.call.anchor)

    @property
    def sink(self) -> Value | None:
        """Scores [H] that belong to no key."""
        found = sink_of(self.call.anchor)
        return None if found is None else self.call.stored(found)

    @property
    def mask_view(self) -> View | None:
        """The mask broadcast to [B, H, S, T]."""
        if self.mask is None:
            return None
        return self.call.inputs[self.mask].expand((*self.q.shape[:3], self.k.shape[2]))

    @property
    def head(self) -> int:
        """Elements of a query and of a key."""
        return _static(self.q.shape[3])

    @property
    def values(self) -> int:
        """Elements of a value."""
        return _static(self.v.shape[3])

    @property
    def width(self) -> int:
        """Elements of a value, padded to whole vectors."""
        return -(-self.values // self.isa.lanes) * self.isa.lanes

    @property
    def group(self) -> int:
        """Query heads that share a head of keys."""
        return _static(self.q.shape[1]) // _static(self.k.shape[1])

    @property
    def scale(self) -> float:
        return float(str(self.call.anchor.attrs["scale"]))

    @property
    def causal(self) -> bool:
        return bool(self.call.anchor.attrs["causal"])

    @property
    def window(self) -> int | None:
        window = self.call.anchor.attrs["window"]
        return int(str(window)) if window else None

    @property
    def unit(self) -> float:
        """What scores are multiplied by beside the scale."""
        return 1.0 if self.adds_mask else math.log2(math.e)

    @property
    def adds_mask(self) -> bool:
        """Whether a float mask is added to the scores, which are then in natural units, not in powers of two."""
        return self.mask is not None and self.mask.dtype is not DType.bool

    @property
    def copies_values(self) -> bool:
        return not direct_values(self.call.inputs[self.v], self.isa)


def key_rows(isa: Isa) -> int:
    """Keys of a register tile of scores, which is two vectors of queries wide."""
    return 8 if isa.registers >= 32 else 6


def value_rows(isa: Isa) -> int:
    """Queries of a register tile of sums; it divides a panel of two vectors."""
    return 8 if isa.registers >= 32 else 4


def direct_values(v: View, isa: Isa) -> bool:
    """Whether rows of values are read where they lie: f32, dense, in whole vectors."""
    return v.dtype is DType.f32 and dense_values(v, isa)


def dense_values(v: View, isa: Isa) -> bool:
    """Whether rows of values are whole vectors of consecutive elements."""
    return same_dim(v.strides[3], 1) and _static(v.shape[3]) % isa.lanes == 0


def _in_pairs(call: Call, isa: Isa) -> bool:
    """Whether dot products of bf16 serve."""
    views = [call.inputs[value] for value in _operands(call)[:3]]
    narrow = all(view.dtype is DType.bf16 and same_dim(view.strides[3], 1) for view in views)
    return narrow and isa.bf16_dot and not over_cache(call.anchor) and _static(views[0].shape[3]) % 2 == 0


def _few(q: View, k: View, count: int | None, isa: Isa) -> str:
    dense = same_dim(q.strides[3], 1) and same_dim(k.strides[3], 1) and _static(q.shape[3]) % isa.lanes == 0
    if not dense or (count is not None and count > FEW):
        return "never"
    return "sometimes" if count is None else "always"


def _operands(call: Call) -> tuple[Value, ...]:
    return tuple(call.stored(value) for value in call.anchor.operands)


def _constant_product(heads: Dim, queries: Dim, key_heads: Dim) -> int | None:
    return _static(heads) // _static(key_heads) * queries if isinstance(queries, int) else None


def _static(dim: Dim) -> int:
    assert isinstance(dim, int), f"{dim} is not constant"
    return dim
