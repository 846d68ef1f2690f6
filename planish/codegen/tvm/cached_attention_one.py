"""The kernel of attention over caches for one token: the queries that share a head of keys are the lanes of vectors.

Scores lie in scratch as [keys][W], where W is the next power of two of the queries, so that one vector holds the scores
of several keys where W is short. Keys are read as scalars in register tiles of keys x W; for a few queries they are
multiplied along the head instead.
"""

import math
from dataclasses import replace
from itertools import accumulate

from tvm import tirx
from tvm.script.ir_builder import tirx as T  # noqa: N812 - TVM's own name for its script namespace

from planish.codegen.tvm.attention_blocks import LOWEST
from planish.codegen.tvm.attention_mask import sink_scores
from planish.codegen.tvm.attention_plan import AttentionPlan, dense_values
from planish.codegen.tvm.cached_attention_blocks import scale_of
from planish.codegen.tvm.cached_attention_pieces import GRANULE, STATES, Deal, Merge, even, lanes_of_group, state_floats
from planish.codegen.tvm.isa import Isa
from planish.codegen.tvm.kernel import Kernel, KernelBuilder, bind, kernel, ramp
from planish.codegen.tvm.reading_order import in_order, ordered
from planish.codegen.tvm.tiles import ceil_div, index, lane_sum, load, steps, tile, transposed
from planish.codegen.tvm.vector_math import either, fast_maximum, fma, keep, like, power_of_two, select, splat
from planish.compiler.ir import Value
from planish.compiler.types import DType, same_dim

_READ_SOON = (T.int32(0), T.int32(2), T.int32(1))  # of llvm.prefetch: for reading, into L2, data
_ALONG_HEAD = 4  # queries at most whose products along the head cost less than keys read as scalars
_LINE = 64


def serves(plan: AttentionPlan) -> bool:
    """Whether the kernel is one for a call: one token, as many queries as lanes at most, whole vectors of a head."""
    k, v = (plan.call.inputs[value] for value in (plan.k, plan.v))
    slots = k.shape[2]
    whole = same_dim(k.strides[3], 1) and plan.head % plan.isa.lanes == 0 and dense_values(v, plan.isa)
    enough = isinstance(slots, int) and slots >= _tile_keys(plan.isa)
    return same_dim(plan.q.shape[2], 1) and plan.group <= plan.isa.lanes and whole and enough


def along_head(plan: AttentionPlan) -> bool:
    """Whether products run along the head, key by key."""
    return plan.group <= _ALONG_HEAD


def _dot_lanes(isa: Isa) -> int:
    """Lanes that are summed of a product along the head: where vectors run in two halves, these are added first."""
    return isa.lanes // 2 if isa.halved else isa.lanes


def _tile_keys(isa: Isa) -> int:
    return 16 if isa.registers >= 32 else 8


class OneToken(Deal):
    """A piece is a range of keys of one head of one row: `width` lanes hold its queries, `apart` keys a vector."""

    @classmethod
    def build(cls, plan: AttentionPlan) -> Kernel:
        """The kernel of a plan that it serves."""
        places = [0, *accumulate(-(-size // 16) * 16 for size in cls.sizes(plan).values())]
        plan = replace(plan, regions=dict(zip(cls.sizes(plan), places, strict=False)), scratch_bytes=places[-1] * 4)
        with kernel(plan.call, plan.isa, plan.scratch_bytes) as (k, done), ordered():
            cls(k, plan).emit()
        with kernel(plan.call, plan.isa, plan.scratch_bytes) as (k, merged):
            Merge(k, plan).emit()
        return Kernel(done[0], plan.scratch_bytes, merge=merged[0])

    @classmethod
    def sizes(cls, plan: AttentionPlan) -> dict[str, int]:
        """The regions of its scratch memory, in elements of 4 bytes."""
        tile, width = _tile_keys(plan.isa), lanes_of_group(plan)
        return {
            "wants": 1,  # whether there is something to merge
            "q": plan.head * width,
            "k": tile * plan.head if plan.k.dtype is not DType.f32 else 0,
            # a tile at the end of the cache begins earlier and writes what lies before the block once more
            "p": (tile + GRANULE) * width,
            "rescale": plan.isa.lanes,
            "states": STATES * state_floats(plan),
        }

    def __init__(self, k: KernelBuilder, plan: AttentionPlan) -> None:
        super().__init__(k, plan)
        self.apart = self.lanes // self.width
        self.along_head = along_head(plan)
        self.dot_lanes = _dot_lanes(plan.isa)
        self.rows_of_tile = max(8, self.dot_lanes) if self.along_head else _tile_keys(plan.isa)

    def _start(self) -> None:
        plan, lanes = self.plan, self.lanes
        self.q, self.p = self.own + plan.regions["q"], self.own + (plan.regions["p"] + self.rows_of_tile * self.width)
        heads = [self.g * plan.group + min(m, plan.group - 1) for m in range(self.width)]
        self._start_sums_of(heads)
        with T.serial(index(plan.group * plan.width // lanes)) as i:
            self.put(self.region("o") + i * lanes, splat(tirx.const(0.0, "float32"), lanes))
        view = plan.call.inputs[plan.q]
        places = [bind(self.k.address(view, (self.b, head, 0, 0))) for head in heads]
        self._queries_along(places[: plan.group]) if self.along_head else self._queries_across(places)

    def _start_sums_of(self, heads: "list[tirx.PrimExpr]") -> None:
        """Maxima and sums of weights; the piece with the first keys of a head counts its sink, in one lane."""
        lanes = self.lanes
        highest, total = splat(tirx.const(LOWEST, "float32"), lanes), splat(tirx.const(0.0, "float32"), lanes)
        if self.plan.sink is not None:
            sinks = bind(sink_scores(self, self.plan.sink, heads * self.apart))
            ones = [tirx.const(float(j < self.width), "float32") for j in range(lanes)]
            highest = select(self.begins, sinks, highest)
            total = select(self.begins, tirx.Shuffle(ones, list(range(lanes))), total)
        self.put(self.region("maximum"), highest)
        self.put(self.region("total"), total)

    def _queries_along(self, places: "list[tirx.PrimExpr]") -> None:
        """Queries as they are, scaled: [group][head]."""
        for m, place in enumerate(places):
            for d in range(0, self.plan.head, self.lanes):
                self.put(self.q + (m * self.plan.head + d), self._query(place, index(d), self.lanes))

    def _queries_across(self, places: "list[tirx.PrimExpr]") -> None:
        """Queries as the lanes of vectors, scaled: [head][width]; those past the last repeat it."""
        width = self.width
        with T.serial(index(self.plan.head // width)) as i:
            rows = [bind(self._query(place, i * width, width)) for place in places]
            for j, row in enumerate(transposed(rows)):
                T.buffer_store(self.memory, row, [ramp(self.q + (i * width + j) * width, width)])

    def _query(self, place: "tirx.PrimExpr", d: "tirx.PrimExpr", lanes: int) -> "tirx.PrimExpr":
        view = self.plan.call.inputs[self.plan.q]
        source = steps(place, d, self.k.dim(view.strides[3]))
        x = load(self.k, self.k.buffers[self.plan.q], view, source, lanes)
        return x * like(x, self.scale)

    def _blocks(self, first: "tirx.PrimExpr", stop: "tirx.PrimExpr") -> None:
        """All keys of a range; a task's first block is asked for at once, those after it block by block."""
        slot = bind(self.slot(first))
        with T.If(self.opens), T.Then(), T.serial(bind(tirx.min(index(GRANULE), stop - first))) as i:
            for value in (self.plan.k, self.plan.v):
                self._fetch_lines(value, bind(self._key(value, slot + i)))
        super()._blocks(first, stop)

    def _block(self, first: "tirx.PrimExpr", count: "tirx.PrimExpr") -> None:
        slot, rows = bind(self.slot(first)), self.rows_of_tile
        self._look_ahead(first, count, slot)
        if self.along_head:
            self._hold_queries()
        with T.serial(ceil_div(count, rows)) as i:
            wanted = bind(slot + i * rows)
            start = bind(tirx.min(wanted, self.slots - rows))
            target = bind(self.p + (i * rows - (wanted - start)) * self.width)
            (self._tile_along_head if self.along_head else self._tile)(start, target)
        self._hide_missing(count)
        self._weigh(count)
        if self.plan.v.dtype is DType.i8:
            self._scale_weights(slot, count)
        self._add_values(slot, count)

    def _look_ahead(self, first: "tirx.PrimExpr", count: "tirx.PrimExpr", slot: "tirx.PrimExpr") -> None:
        """Bind how far away the next block lies: the keys after this one, or after the last one the head after this.

        A task that is at its last head has none.
        """
        more = bind(first + count < self.end)
        head, key = tirx.Select(more, self.g, self.g + 1), tirx.Select(more, slot + count, index(0))
        self.ahead = {}
        for value in (self.plan.k, self.plan.v):
            there = self.k.address(self.plan.call.inputs[value], (self.b, head, key, 0))
            self.ahead[value] = bind(tirx.Select(either(more, self.goes_on), there - self._key(value, slot), index(0)))

    def _fetch_row(self, value: Value, place: "tirx.PrimExpr", part: int = 0, parts: int = 1) -> None:
        """Ask for a part of the lines that lie in the next block as a key or value at `place` in this one."""
        self._fetch_lines(value, place + self.ahead[value], part, parts)

    def _fetch_lines(self, value: Value, place: "tirx.PrimExpr", part: int = 0, parts: int = 1) -> None:
        """Ask for a part of the lines of the key or value at `place`."""
        line = _LINE // value.dtype.itemsize
        lines = -(-int(value.shape[3]) // line)
        for i in range(lines * part // parts, lines * (part + 1) // parts):
            self._fetch(value, place + i * line)

    def _fetch(self, value: Value, place: "tirx.PrimExpr") -> None:
        """Ask for a line; past the end of the cache nothing is read."""
        T.evaluate(T.call_llvm_intrin("void", "llvm.prefetch", T.address_of(self.k.buffers[value][place]), *_READ_SOON))

    def _key(self, value: Value, slot: "tirx.PrimExpr") -> "tirx.PrimExpr":
        return self.k.address(self.plan.call.inputs[value], (self.b, self.g, slot, 0))

    def _scale(self, value: Value, slot: "tirx.PrimExpr") -> "tirx.PrimExpr":
        """The scale of a key or value of codes."""
        scale = scale_of(self.plan, value)
        return bind(load(self.k, self.k.buffers[scale], self.plan.call.inputs[scale], self._key(scale, slot), 1))

    def _tile(self, slot: "tirx.PrimExpr", target: "tirx.PrimExpr") -> None:
        """Scores of a tile of keys, read as scalars; narrow keys are widened to scratch first."""
        plan, rows, w = self.plan, self.rows_of_tile, self.width
        view = plan.call.inputs[plan.k]
        source, start, pitch = self.k.buffers[plan.k], bind(self._key(plan.k, slot)), self.k.dim(view.strides[2])
        narrow = view.dtype is not DType.f32
        place = start
        if narrow:
            self._widen(start)
            source, start, pitch = self.memory, self.own + plan.regions["k"], index(plan.head)

        def finish(i: int, _: int, value: "tirx.PrimExpr") -> None:
            if plan.k.dtype is DType.i8:
                value = value * splat(self._scale(plan.k, slot + i), w)
            T.buffer_store(self.memory, value, [ramp(target + i * w, w)])

        def query(d: "tirx.PrimExpr", _: int) -> "tirx.PrimExpr":
            if not narrow:
                self._fetch(plan.k, place + self.ahead[plan.k] + d * rows)
            return self.memory[ramp(self.q + d * w, w)]

        tile(
            (rows, 1, w),
            index(plan.head),
            lambda d, i: source[start + i * pitch + d],
            query,
            lambda *_: splat(tirx.const(0.0, "float32"), w),
            finish,
        )

    def _widen(self, start: "tirx.PrimExpr") -> None:
        plan, lanes = self.plan, self.lanes
        view, buffer = plan.call.inputs[plan.k], self.k.buffers[plan.k]
        with T.serial(index(self.rows_of_tile)) as i:
            row = bind(start + i * self.k.dim(view.strides[2]))
            self._fetch_row(plan.k, row)
            for d in range(0, plan.head, lanes):
                self.put(self.own + (plan.regions["k"] + d) + i * plan.head, load(self.k, buffer, view, row + d, lanes))

    def _tile_along_head(self, slot: "tirx.PrimExpr", target: "tirx.PrimExpr") -> None:
        """Scores of a tile of keys for a few queries: vectors along the head, whose lanes are summed."""
        lanes = self.dot_lanes
        for part in range(0, self.rows_of_tile, lanes):
            sums = self._dots(bind(slot + part), lanes)
            sums = self._scaled(sums, slot + part)
            for i, x in enumerate(self._interleaved(sums)):
                T.buffer_store(self.memory, x, [ramp(target + part * self.width + i * lanes, lanes)])

    def _scaled(self, sums: "list[tirx.PrimExpr]", slot: "tirx.PrimExpr") -> "list[tirx.PrimExpr]":
        """Products with consecutive keys as scores."""
        if self.plan.k.dtype is not DType.i8:
            return sums
        scales = [self._scale(self.plan.k, slot + i) for i in range(self.dot_lanes)]
        factor = keep(tirx.Shuffle(scales, list(range(self.dot_lanes))))
        return [keep(x * factor) for x in sums]

    def _interleaved(self, sums: "list[tirx.PrimExpr]") -> "list[tirx.PrimExpr]":
        """Vectors of one query each as vectors of keys x `width`; lanes without a query repeat the last one."""
        if self.width == 1:
            return sums
        lanes, last = self.dot_lanes, len(sums) - 1
        order = [lanes * min(i % self.width, last) + i // self.width for i in range(lanes * self.width)]
        return [tirx.Shuffle(sums, order[i : i + lanes]) for i in range(0, len(order), lanes)]

    def _dots(self, slot: "tirx.PrimExpr", keys: int) -> "list[tirx.PrimExpr]":
        """For each query a vector whose parts of lanes are the sums of so many keys; few are live at a time."""
        if keys > 1:
            half = keys // 2
            pairs = zip(self._dots(slot, half), self._dots(slot + half, half), strict=True)
            return [lane_sum(a, b, half, self.dot_lanes) for a, b in pairs]
        in_order()
        place = bind(self._key(self.plan.k, slot))
        self._fetch_row(self.plan.k, place)
        return self._products(place)

    def _products(self, place: "tirx.PrimExpr") -> "list[tirx.PrimExpr]":
        """For each query a vector whose lanes add up to its product with the key at `place`."""
        plan, lanes = self.plan, self.lanes
        view, buffer = plan.call.inputs[plan.k], self.k.buffers[plan.k]
        key = [bind(load(self.k, buffer, view, place + d, lanes)) for d in range(0, plan.head, lanes)]
        return [self._folded(self._dot(query, key)) for query in self.held]

    def _folded(self, x: "tirx.PrimExpr") -> "tirx.PrimExpr":
        """Both halves of a vector added where `dot_lanes` are half of it."""
        if self.dot_lanes == self.lanes:
            return x
        low, high = (list(range(i, i + self.dot_lanes)) for i in (0, self.dot_lanes))
        return keep(keep(tirx.Shuffle([x], low)) + keep(tirx.Shuffle([x], high)))

    def _dot(self, query: "list[tirx.PrimExpr]", key: "list[tirx.PrimExpr]") -> "tirx.PrimExpr":
        total = keep(query[0] * key[0])
        for x, y in zip(query[1:], key[1:], strict=True):
            total = keep(fma(x, y, total))
        return total

    def _hold_queries(self) -> None:
        plan, lanes = self.plan, self.lanes
        rows = [self.q + m * plan.head for m in range(plan.group)]
        self.held = [[bind(self.memory[ramp(row + d, lanes)]) for d in range(0, plan.head, lanes)] for row in rows]

    def _hide_missing(self, count: "tirx.PrimExpr") -> None:
        """The last vector may hold more keys than there are."""
        if self.apart == 1:
            return
        with T.serial(bind(ceil_div(count, self.apart) * self.apart - count)) as i:
            row = splat(tirx.const(-math.inf, "float32"), self.width)
            T.buffer_store(self.memory, row, [ramp(self.p + (count + i) * self.width, self.width)])

    def _weigh(self, count: "tirx.PrimExpr") -> None:
        """Scores to weights relative to the maximum so far; each lane adds up those of its own keys."""
        lanes = self.lanes
        held, every = T.alloc_buffer((lanes,), "float32"), ramp(tirx.const(0, "int32"), lanes)
        vectors = bind(ceil_div(count, self.apart))
        old = bind(self.get(self.region("maximum")))
        T.buffer_store(held, old, [every])
        with T.serial(vectors) as i:
            T.buffer_store(held, fast_maximum(self.get(self.p + i * lanes), held[every]), [every])
        new = bind(held[every])
        step = self.width
        while step < lanes:
            new = keep(fast_maximum(keep(tirx.Shuffle([new], [j ^ step for j in range(lanes)])), new))
            step *= 2
        rescale = keep(power_of_two(old - new))
        T.buffer_store(held, self.get(self.region("total")) * rescale, [every])
        with T.serial(vectors) as i:
            place = bind(self.p + i * lanes)
            weight = keep(power_of_two(self.get(place) - new))
            self.put(place, weight)
            T.buffer_store(held, held[every] + weight, [every])
        for name, value in (("maximum", new), ("rescale", rescale), ("total", held[every])):
            self.put(self.region(name), value)

    def _scale_weights(self, slot: "tirx.PrimExpr", count: "tirx.PrimExpr") -> None:
        with T.serial(count) as t:
            place = ramp(bind(self.p + t * self.width), self.width)
            scale = splat(self._scale(self.plan.v, slot + t), self.width)
            T.buffer_store(self.memory, self.memory[place] * scale, [place])

    def _add_values(self, slot: "tirx.PrimExpr", count: "tirx.PrimExpr") -> None:
        """Rescale the sums and add weights times values, in register tiles of queries x vectors."""
        plan, wide = self.plan, self.plan.isa.registers >= 32
        total = plan.width // self.lanes
        vectors = even(total, 8 if wide else 4)
        rows = even(plan.group, max(1, (24 if wide else 12) // vectors))
        start = bind(self._key(plan.v, slot))
        tiles = [(m, column) for m in range(0, plan.group, rows) for column in range(0, total, vectors)]
        for i, (m, column) in enumerate(tiles):
            size = (min(rows, plan.group - m), min(vectors, total - column))
            self._value_tile(start, count, (m, column * self.lanes), size, (i, len(tiles)))

    def _value_tile(
        self,
        start: "tirx.PrimExpr",
        count: "tirx.PrimExpr",
        at: tuple[int, int],
        size: tuple[int, int],
        turn: tuple[int, int],
    ) -> None:
        plan, lanes, (m, column) = self.plan, self.lanes, at
        view, buffer = plan.call.inputs[plan.v], self.k.buffers[plan.v]
        pitch, o = self.k.dim(view.strides[2]), bind(self.region("o") + (m * plan.width + column))
        rescale = bind(self.region("rescale") + m)

        def value(t: "tirx.PrimExpr", j: int) -> "tirx.PrimExpr":
            if j == 0:
                self._fetch_row(plan.v, start + t * pitch, *turn)
            return load(self.k, buffer, view, start + t * pitch + (column + j * lanes), lanes)

        tile(
            (*size, lanes),
            count,
            lambda t, i: self.memory[self.p + t * self.width + (m + i)],
            value,
            lambda i, j: self.get(o + (i * plan.width + j * lanes)) * splat(self.memory[rescale + i], lanes),
            lambda i, j, value: self.put(o + (i * plan.width + j * lanes), value),
        )
