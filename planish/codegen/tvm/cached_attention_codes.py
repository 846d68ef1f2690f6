"""Attention over a cache of i8 codes for one token, in products of pairs of 16-bit integers (AVX-512 VNNI).

Queries are rounded to 16 bits by their largest element, and weights times the scales of their values to 16 bits by the
largest scale of the block: both are far finer than the codes. Two neighbours of a key make a pair of its scores; the
values of two neighbouring keys make a pair of the results.
"""

import operator
from collections.abc import Callable
from typing import TypeAlias

from tvm import tirx
from tvm.script.ir_builder import tirx as T  # noqa: N812 - TVM's own name for its script namespace

from planish.codegen.tvm.attention_plan import AttentionPlan
from planish.codegen.tvm.cached_attention_blocks import scale_of
from planish.codegen.tvm.cached_attention_pieces import GRANULE, even, lanes_of_group
from planish.codegen.tvm.cached_attention_turned import Turned, turned
from planish.codegen.tvm.int8_dot import dot_for
from planish.codegen.tvm.kernel import KernelBuilder, bind, ramp
from planish.codegen.tvm.tiles import ceil_div, index, quotient, tile
from planish.codegen.tvm.vector_math import absolute, bits, cast, equal, fast_maximum, fma, keep, like, select, splat
from planish.compiler.ir import Value
from planish.compiler.types import DType, same_dim

Join: TypeAlias = "Callable[[tirx.PrimExpr, tirx.PrimExpr], tirx.PrimExpr]"

_MOST = 32639.0  # two signed digits of 8 bits, 127 * 256 + 127
_OFFSET, _OFFSETS = 128, -0x7F7F7F80  # what makes codes unsigned, and four of it
_QUERIES = 12  # at most at a time: two registers of sums each
_ROUNDS = 12582912.0  # 1.5 * 2^23: the low 16 bits of a sum with it are the rounded number in two's complement
_LARGEST_HEAD = 512  # whose products of 16 and 8 bits add up in 32


def serves_codes(plan: AttentionPlan) -> bool:
    """Whether codes are multiplied as integers, where a kernel for one token serves."""
    pairs = plan.isa.int8_dot and plan.isa.lanes == 16 and plan.isa.triple.startswith("x86")
    halves = plan.head % (2 * plan.isa.lanes) == 0 and plan.width % (2 * plan.isa.lanes) == 0
    return pairs and halves and plan.head <= _LARGEST_HEAD and plan.k.dtype is DType.i8 and plan.v.dtype is DType.i8


class OneTokenOfCodes(Turned):
    """A piece over codes: `ints` is the scratch memory as i32, each a pair of 16 bits, `shorts` as i16."""

    @classmethod
    def sizes(cls, plan: AttentionPlan) -> dict[str, int]:
        width = lanes_of_group(plan)
        return {
            **Turned.sizes(plan),
            "codes": plan.head // 2 * width,
            "steps": plan.isa.lanes + 1,
            "biases": plan.isa.lanes,
            "scales": GRANULE,
            "pairs": GRANULE // 2 * width,
        }

    def __init__(self, k: KernelBuilder, plan: AttentionPlan) -> None:
        super().__init__(k, plan)
        size = index(plan.scratch_bytes) * k.tasks.astype("int64")
        self.ints, self.shorts = k.scratch_buffer(size // 4, DType.i32), k.scratch_buffer(size // 2, DType.i16)

    def _queries_along(self, places: "list[tirx.PrimExpr]") -> None:
        """Queries as codes [group][head]."""
        for m, place in enumerate(places):
            for i, codes in enumerate(self._query_codes(m, place)):
                T.buffer_store(self.shorts, codes, [ramp(self._codes_of(m) + i * self.lanes, self.lanes)])

    def _queries_across(self, places: "list[tirx.PrimExpr]") -> None:
        """Queries as two digits of 8 bits, the lower first, [group][2][head], and what they make of unsigned keys."""
        lanes = self.lanes
        for m, place in enumerate(places[: self.plan.group]):
            total = keep(splat(tirx.const(0, "int32"), lanes))
            for i, codes in enumerate(self._query_codes(m, place)):
                codes = keep(codes)
                low = keep(cast(codes, "int8"))
                high = keep(cast((codes - cast(low, "int16")) >> like(codes, 8), "int8"))
                for digit, bytes_ in enumerate((low, high)):
                    units = T.reinterpret(f"int32x{lanes // 4}", bytes_)
                    T.buffer_store(self.ints, units, [ramp(self._digits_of(m, digit) + i * (lanes // 4), lanes // 4)])
                total = keep(total + cast(codes, "int32"))
            bias = tirx.Shuffle([keep(self._across_lanes(total, operator.add) * like(total, -_OFFSET))], [0])
            T.buffer_store(self.ints, bias, [self.own + self.plan.regions["biases"] + m])

    def _digits_of(self, m: int, digit: int) -> "tirx.PrimExpr":
        return self.q + (2 * m + digit) * (self.plan.head // 4)

    def _codes_of(self, m: int) -> "tirx.PrimExpr":
        return (self.own + self.plan.regions["codes"]) * 2 + m * self.plan.head

    def _query_codes(self, m: int, place: "tirx.PrimExpr") -> "list[tirx.PrimExpr]":
        """Vectors of the codes of a query in 16 bits; its step goes to scratch."""
        lanes = self.lanes
        parts = [keep(self._query(place, index(d), lanes)) for d in range(0, self.plan.head, lanes)]
        top, undefined = keep(like(parts[0], 0.0)), keep(like(parts[0], 0.0))
        for x in parts:
            top, undefined = keep(fast_maximum(absolute(x), top)), keep(fma(x, like(x, 0.0), undefined))
        top = self._across_lanes(top, fast_maximum)
        factor = keep(self._inverse(top))
        total = self._across_lanes(undefined, operator.add) + top * like(top, 1 / _MOST)
        T.buffer_store(self.memory, tirx.Shuffle([keep(total)], [0]), [self.own + self.plan.regions["steps"] + m])
        codes = [keep(fast_maximum(keep(x * factor), like(x, -_MOST))) for x in parts]
        return [keep(cast(_rounded(x), "int16")) for x in codes]

    def _across_lanes(self, x: "tirx.PrimExpr", join: "Join") -> "tirx.PrimExpr":
        """All lanes joined, in each of them."""
        step = 1
        while step < self.lanes:
            x = keep(join(keep(tirx.Shuffle([x], [j ^ step for j in range(self.lanes)])), x))
            step *= 2
        return x

    def _inverse(self, top: "tirx.PrimExpr") -> "tirx.PrimExpr":
        """What scales numbers up to `top` to 16 bits; 0 where all are 0."""
        return select(equal(top, like(top, 0.0)), like(top, 0.0), like(top, _MOST) / top)

    def _look_ahead(self, first: "tirx.PrimExpr", count: "tirx.PrimExpr", slot: "tirx.PrimExpr") -> None:
        """Ask for the scales of the next block as well, and for those of the values of this one."""
        super()._look_ahead(first, count, slot)
        per_line = 16
        with T.serial(index(GRANULE // per_line)) as i:
            for value in (self.plan.k, self.plan.v):
                scale = scale_of(self.plan, value)
                ahead = quotient(self.ahead[value], self.plan.head)
                self._fetch(scale, self._key(scale, slot) + ahead + i * per_line)

    def _hold_queries(self) -> None:
        lanes = 2 * self.lanes
        rows = [self._codes_of(m) for m in range(self.plan.group)]
        parts = range(0, self.plan.head, lanes)
        self.held = [[bind(self.shorts[ramp(row + d, lanes)]) for d in parts] for row in rows]

    def _products(self, place: "tirx.PrimExpr") -> "list[tirx.PrimExpr]":
        lanes = self.lanes
        codes = self.k.buffers[self.plan.k]
        parts = range(0, self.plan.head, 2 * lanes)
        key = [keep(cast(codes[ramp(place + d, 2 * lanes)], "int16")) for d in parts]
        totals = []
        for query in self.held:
            total = keep(splat(tirx.const(0, "int32"), lanes))
            for x, y in zip(query, key, strict=True):
                total = keep(_add_pairs(x, y, total))
            totals.append(self._folded(total))
        return totals

    def _scaled(self, sums: "list[tirx.PrimExpr]", slot: "tirx.PrimExpr") -> "list[tirx.PrimExpr]":
        scales = keep(self._scales(self.plan.k, slot, self.dot_lanes))
        steps = [self.memory[self.own + (self.plan.regions["steps"] + m)] for m in range(self.plan.group)]
        pairs = zip(sums, steps, strict=True)
        return [keep(cast(x, "float32") * keep(scales * splat(step, self.dot_lanes))) for x, step in pairs]

    def _turn(self, slot: "tirx.PrimExpr") -> None:
        """As [head / 4][keys][4], with what makes codes unsigned added."""
        half, keys = self.rows_of_tile // 2, self.k.buffers[self.plan.k]
        places = [bind(self._key(self.plan.k, slot + i)) for i in range(self.rows_of_tile)]
        out, codes = self.own + self.plan.regions["k"], 4 * half
        with T.serial(index(self.plan.head // codes)) as part:
            rows = [keep(T.reinterpret(f"int32x{half}", keys[ramp(p + part * codes, codes)])) for p in places]
            both = [keep(tirx.Shuffle([rows[i], rows[i + half]], list(range(2 * half)))) for i in range(half)]
            for i, units in enumerate(turned(both)):
                unsigned = tirx.bitwise_xor(units, like(units, _OFFSETS))
                T.buffer_store(self.ints, unsigned, [ramp(out + (part * half + i) * self.lanes, self.lanes)])

    def _turned_scores(self, slot: "tirx.PrimExpr") -> "list[tirx.PrimExpr]":
        scales = keep(self._scales(self.plan.k, slot, self.lanes))
        there = bind(self._key(self.plan.k, slot) + self.ahead[self.plan.k])
        count = even(self.plan.group, _QUERIES)
        parts = [range(m, min(m + count, self.plan.group)) for m in range(0, self.plan.group, count)]
        scores: list[tirx.PrimExpr] = []
        for queries in parts:
            for m, total in zip(queries, self._integer_scores(queries, there), strict=True):
                step = self.memory[self.own + (self.plan.regions["steps"] + m)]
                scores.append(keep(cast(total, "float32") * keep(scales * splat(step, self.lanes))))
        return scores

    def _integer_scores(self, queries: range, there: "tirx.PrimExpr") -> "list[tirx.PrimExpr]":
        """Products of some queries with the keys of a tile."""
        lanes, units = self.lanes, self.plan.head // 4
        sums: list[tirx.PrimExpr] = []
        dot = dot_for(self.plan.isa)
        start, first = self.own + self.plan.regions["k"], self._digits_of(queries.start, 0)

        def key(d: "tirx.PrimExpr", _: int) -> "tirx.PrimExpr":
            if queries.start == 0:
                self._fetch(self.plan.k, there + d * (4 * self.rows_of_tile))
            return self.ints[ramp(start + d * lanes, lanes)]

        def bias(i: int, _: int) -> "tirx.PrimExpr":
            place = self.own + (self.plan.regions["biases"] + queries.start + i // 2)
            return splat(self.ints[place] if i % 2 == 0 else tirx.const(0, "int32"), lanes)

        tile(
            (2 * len(queries), 1, lanes),
            index(units),
            lambda d, i: self.ints[first + i * units + d],
            key,
            bias,
            lambda i, _, value: sums.append(keep(bits(value, "uint32"))),
            dtype="int32",
            multiply_add=lambda query, key, total: dot(total, key, query),
        )
        pairs = zip(sums[::2], sums[1::2], strict=True)
        return [keep(bits(low + (high << like(high, 8)), "int32")) for low, high in pairs]

    def _scales(self, value: Value, slot: "tirx.PrimExpr", lanes: int) -> "tirx.PrimExpr":
        """The scales of consecutive keys or values."""
        scale = scale_of(self.plan, value)
        view = self.plan.call.inputs[scale]
        if same_dim(view.strides[2], 1) and view.dtype is DType.f32:
            return self.k.buffers[scale][ramp(self._key(scale, slot), lanes)]
        return tirx.Shuffle([self._scale(value, slot + i) for i in range(lanes)], list(range(lanes)))

    def _scale_weights(self, slot: "tirx.PrimExpr", count: "tirx.PrimExpr") -> None:
        """Weights times scales as pairs of 16 bits, of neighbouring keys; missing keys weigh nothing."""
        plan, lanes, scales = self.plan, self.lanes, self.own + self.plan.regions["scales"]
        top = self._block_scales(slot, count, scales)
        factor = keep(self._inverse(top))
        T.buffer_store(self.memory, tirx.Shuffle([keep(top * like(top, 1 / _MOST))], [0]), [self._step_of_weights()])
        groups = bind(ceil_div(count, 2 * self.apart))
        self.pairs = bind(groups * self.apart)
        with T.serial(bind(2 * self.pairs - count)) as i:
            row = splat(tirx.const(0.0, "float32"), self.width)
            T.buffer_store(self.memory, row, [ramp(self.p + (count + i) * self.width, self.width)])
        with T.serial(groups) as i:
            halves = [self._rounded_weights(2 * i + half, scales, factor) for half in range(2)]
            low, high = (keep(tirx.Shuffle(halves, order)) for order in _neighbours(lanes, self.width))
            both = tirx.bitwise_or(tirx.bitwise_and(low, like(low, 0xFFFF)), high << like(high, 16))
            T.buffer_store(self.ints, both, [ramp(self.own + plan.regions["pairs"] + i * lanes, lanes)])

    def _rounded_weights(self, i: "tirx.PrimExpr", scales: "tirx.PrimExpr", factor: "tirx.PrimExpr") -> "tirx.PrimExpr":
        """Vector i of the weights times their scales, as integers."""
        keys = keep(self.memory[ramp(scales + i * self.apart, self.apart)])
        spread = keep(tirx.Shuffle([keys] * self.width, [j // self.width for j in range(self.lanes)]))
        return keep(_rounded(keep(keep(self.get(self.p + i * self.lanes) * spread) * factor)))

    def _step_of_weights(self) -> "tirx.PrimExpr":
        """Where the value of one step of the block's weights is kept, behind the steps of the queries."""
        return self.own + (self.plan.regions["steps"] + self.lanes)

    def _block_scales(self, slot: "tirx.PrimExpr", count: "tirx.PrimExpr", scales: "tirx.PrimExpr") -> "tirx.PrimExpr":
        """Copy the scales of the block's values, with zeros after them; gives the largest."""
        lanes = self.lanes
        with T.serial(count) as t:
            T.buffer_store(self.memory, self._scale(self.plan.v, slot + t), [scales + t])
        with T.serial(bind(index(GRANULE) - count)) as t:
            T.buffer_store(self.memory, tirx.const(0.0, "float32"), [scales + count + t])
        top = keep(absolute(self.get(scales)))
        for i in range(lanes, GRANULE, lanes):
            top = keep(fast_maximum(keep(absolute(self.get(scales + i))), top))
        return self._across_lanes(top, fast_maximum)

    def _add_values(self, slot: "tirx.PrimExpr", count: "tirx.PrimExpr") -> None:
        total = self.plan.width // self.lanes
        rows = even(self.plan.group, 8)
        vectors = 2 * even(total // 2, max(1, 12 // rows))
        tiles = [(m, column) for m in range(0, self.plan.group, rows) for column in range(0, total, vectors)]
        for i, (m, column) in enumerate(tiles):
            size = (min(rows, self.plan.group - m), min(vectors, total - column))
            self._codes_tile(slot, (m, column * self.lanes), size, (i, len(tiles)))

    def _codes_tile(
        self, slot: "tirx.PrimExpr", at: tuple[int, int], size: tuple[int, int], turn: tuple[int, int]
    ) -> None:
        plan, lanes, (m, column) = self.plan, self.lanes, at
        o, rescale = bind(self.region("o") + (m * plan.width + column)), bind(self.region("rescale") + m)
        unit = bind(self.memory[self._step_of_weights()])
        pairs = bind(self.own + plan.regions["pairs"] + m)
        held: list[tirx.PrimExpr] = []

        def value(t: "tirx.PrimExpr", j: int) -> "tirx.PrimExpr":
            if j % 2 == 0:
                held[:] = self._value_pairs(slot, t, column + j * lanes, turn if j == 0 else None)
            return held[j % 2]

        def finish(i: int, j: int, sums: "tirx.PrimExpr") -> None:
            held[j % 2 :] = [keep(cast(sums, "float32"))]
            if j % 2 == 0:
                return
            for half, order in enumerate(_natural(lanes)):
                place = bind(o + (i * plan.width + (j - 1 + half) * lanes))
                old = keep(self.get(place) * splat(self.memory[rescale + i], lanes))
                self.put(place, fma(keep(tirx.Shuffle(held, order)), splat(unit, lanes), old))

        tile(
            (*size, lanes),
            self.pairs,
            lambda t, i: self.ints[pairs + t * self.width + i],
            value,
            lambda *_: splat(tirx.const(0, "int32"), lanes),
            finish,
            dtype="int32",
            multiply_add=_add_pairs,
        )

    def _value_pairs(
        self, slot: "tirx.PrimExpr", t: "tirx.PrimExpr", column: int, turn: tuple[int, int] | None
    ) -> "list[tirx.PrimExpr]":
        """Two vectors of pairs: elements of the values of two keys, in the order of `_natural`."""
        lanes, codes = self.lanes, self.k.buffers[self.plan.v]
        rows = []
        for one in (2 * t, 2 * t + 1):
            place = bind(self._key(self.plan.v, tirx.min(slot + one, self.slots - 1)) + column)
            if turn is not None:
                self._fetch_row(self.plan.v, place, *turn)
            rows.append(keep(cast(codes[ramp(place, 2 * lanes)], "int16")))
        orders = _interleaved(2 * lanes)
        return [keep(T.reinterpret(f"int32x{lanes}", keep(tirx.Shuffle(rows, order)))) for order in orders]


def _interleaved(lanes: int) -> tuple[list[int], list[int]]:
    """Pairs of lanes of two vectors, within each eight: of the first four, and of the last four."""
    return tuple(  # type: ignore[return-value]
        [8 * (j // 8) + part + j % 8 // 2 + (j % 2) * lanes for j in range(lanes)] for part in (0, 4)
    )


def _neighbours(lanes: int, width: int) -> tuple[list[int], list[int]]:
    """Of two vectors of keys x `width`, the lanes of even keys, and those of odd ones."""
    order = [j for j in range(2 * lanes) if j // width % 2 == 0]
    return order, [j + width for j in order]


def _natural(lanes: int) -> tuple[list[int], list[int]]:
    """What brings two vectors of results, a lane a pair of `_interleaved`, into the order of the elements."""
    order = [j // 8 * 4 + j % 4 + (lanes if j % 8 >= 4 else 0) for j in range(2 * lanes)]
    return order[:lanes], order[lanes:]


def _rounded(x: "tirx.PrimExpr") -> "tirx.PrimExpr":
    """i32 whose low 16 bits are the nearest integer, for |x| < 2^15."""
    return bits(keep(x + like(x, _ROUNDS)), "int32")


def _add_pairs(a: "tirx.PrimExpr", b: "tirx.PrimExpr", sums: "tirx.PrimExpr") -> "tirx.PrimExpr":
    """Each sum with the products of two pairs of 16 bits added."""
    lanes = int(sums.ty.dtype.lanes)
    a, b = (T.reinterpret(f"int16x{2 * lanes}", x) for x in (a, b))
    return T.call_llvm_pure_intrin(f"int32x{lanes}", f"llvm.x86.avx512.vpdpwssd.{32 * lanes}", sums, a, b)
