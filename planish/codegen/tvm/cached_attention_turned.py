"""Attention over a cache for one token and more than a few queries a head: narrow keys as lanes of vectors (AVX-512).

A tile of keys is transposed as it is stored, so that a vector holds one element of 16 keys and is widened as it is
read; queries are scalars. Scores go to scratch as [keys][W] all the same.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence

from tvm import tirx
from tvm.script.ir_builder import tirx as T  # noqa: N812 - TVM's own name for its script namespace

from planish.codegen.tvm.attention_plan import AttentionPlan
from planish.codegen.tvm.cached_attention_one import OneToken, along_head
from planish.codegen.tvm.kernel import KernelBuilder, bind, ramp
from planish.codegen.tvm.tiles import index, load, tile, transposed
from planish.codegen.tvm.vector_math import bits, keep, lanes_of, splat
from planish.compiler.types import DType

_BLOCK_BITS = 128  # within which most shuffles of x86 move elements


def serves_turned(plan: AttentionPlan) -> bool:
    """Whether keys are transposed, where a kernel for one token serves."""
    wide = plan.isa.lanes == 16 and plan.isa.triple.startswith("x86")
    return wide and plan.k.dtype in (DType.f16, DType.bf16) and not along_head(plan)


class Turned(OneToken, ABC):
    """A piece over keys that are transposed tile by tile."""

    def _tile(self, slot: "tirx.PrimExpr", target: "tirx.PrimExpr") -> None:
        """Scores of a tile of keys. The next block is asked for bit by bit, or its lines keep those of this one out."""
        self._turn(slot)
        self._put_turned(self._turned_scores(slot), target)

    @abstractmethod
    def _turn(self, slot: "tirx.PrimExpr") -> None:
        """Transpose the tile of keys from `slot` on to scratch."""

    @abstractmethod
    def _turned_scores(self, slot: "tirx.PrimExpr") -> "list[tirx.PrimExpr]":
        """A vector of the scores of the tile's keys for each query."""

    def _put_turned(self, scores: "list[tirx.PrimExpr]", target: "tirx.PrimExpr") -> None:
        """Scores by query to [keys][width]; lanes without a query repeat the last one."""
        width, last = self.width, len(scores) - 1
        for key, row in enumerate(transposed([scores[min(m, last)] for m in range(width)])):
            for part in range(self.lanes // width):
                own = row if width == self.lanes else tirx.Shuffle([row], [part * width + m for m in range(width)])
                T.buffer_store(self.memory, own, [ramp(target + (part * width + key) * width, width)])


class OneTokenTurned(Turned):
    """Keys of 16 bits: `turned` is the scratch memory as their dtype."""

    def __init__(self, k: KernelBuilder, plan: AttentionPlan) -> None:
        super().__init__(k, plan)
        self.turned = k.scratch_buffer(index(plan.scratch_bytes // 2) * k.tasks.astype("int64"), plan.k.dtype)

    def _turn(self, slot: "tirx.PrimExpr") -> None:
        """As [head][keys]."""
        lanes, keys = self.lanes, self.k.buffers[self.plan.k]
        places = [bind(self._key(self.plan.k, slot + i)) for i in range(lanes)]
        out = bind((self.own + self.plan.regions["k"]) * 2)
        with T.serial(index(self.plan.head // lanes)) as part:
            rows = [keep(bits(keys[ramp(place + part * lanes, lanes)], "uint16")) for place in places]
            for i, row in enumerate(turned(rows)):
                row = row if self.plan.k.dtype is DType.bf16 else bits(row, "float16")
                T.buffer_store(self.turned, row, [ramp(out + (part * lanes + i) * lanes, lanes)])

    def _turned_scores(self, slot: "tirx.PrimExpr") -> "list[tirx.PrimExpr]":
        plan, lanes = self.plan, self.lanes
        scores: list[tirx.PrimExpr] = []
        start, view = bind((self.own + plan.regions["k"]) * 2), plan.call.inputs[plan.k]
        there = bind(self._key(plan.k, slot) + self.ahead[plan.k])

        def key(d: "tirx.PrimExpr", _: int) -> "tirx.PrimExpr":
            self._fetch(plan.k, there + d * self.rows_of_tile)
            return load(self.k, self.turned, view, start + d * lanes, lanes)

        tile(
            (plan.group, 1, lanes),
            index(plan.head),
            lambda d, m: self.memory[self.q + (d * self.width + m)],
            key,
            lambda *_: splat(tirx.const(0.0, "float32"), lanes),
            lambda m, _, value: scores.append(keep(value)),
        )
        return scores


def turned(rows: "Sequence[tirx.PrimExpr]") -> "list[tirx.PrimExpr]":
    """`transposed` of vectors of integers, in shuffles that mostly stay within 128 bits, which take less time.

    With fewer rows than lanes, the upper bits of the lanes stay as they are.
    """
    rows = list(rows)
    block, step = _BLOCK_BITS // int(rows[0].ty.dtype.bits), 1
    while step < block:
        for i in range(len(rows)):
            if not i & step:
                rows[i], rows[i + step] = _woven(rows[i], rows[i + step], step, block)
        step *= 2
    rows = [rows[i - i % block + _reversed(i % block, block)] for i in range(len(rows))]
    return transposed(rows, block)


def _woven(a: "tirx.PrimExpr", b: "tirx.PrimExpr", unit: int, block: int) -> "tuple[tirx.PrimExpr, tirx.PrimExpr]":
    """In every block: units of both vectors in turns, of the lower half of the block and of the upper one."""
    lanes = lanes_of(a)
    halves = []
    for half in (0, block // 2):
        starts = [o + half + u for o in range(0, lanes, block) for u in range(0, block // 2, unit)]
        halves.append([side + start + j for start in starts for side in (0, lanes) for j in range(unit)])
    return keep(tirx.Shuffle([a, b], halves[0])), keep(tirx.Shuffle([a, b], halves[1]))


def _reversed(value: int, count: int) -> int:
    """The bits of a number below a power of two in reverse."""
    return int(f"{value:0{count.bit_length() - 1}b}"[::-1], 2)
