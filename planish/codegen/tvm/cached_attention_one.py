"""The kernel of attention over caches for one token: the queries that share a head of keys are the lanes of vectors.

Scores lie in scratch as [keys][W], where W is the next power of two of the queries, so that one vector holds the scores
of several keys where W is short. Keys are read as scalars in register tiles of keys x W; for a few queries they are
multiplied along the head instead.
"""

import math

from tvm import tirx
from tvm.script.ir_builder import tirx as T  # noqa: N812 - TVM's own name for its script namespace

from planish.codegen.tvm.attention_blocks import LOWEST, power_of_two
from planish.codegen.tvm.attention_plan import AttentionPlan, dense_values
from planish.codegen.tvm.cached_attention_blocks import CachedBlocks, scale_of
from planish.codegen.tvm.isa import Isa
from planish.codegen.tvm.kernel import Kernel, KernelBuilder, bind, kernel, ramp
from planish.codegen.tvm.tiles import ceil_div, index, lane_sum, load, steps, tile
from planish.codegen.tvm.vector_math import fast_maximum, fma, keep, splat
from planish.compiler.ir import Value
from planish.compiler.types import DType, same_dim

_READ_SOON = (T.int32(0), T.int32(2), T.int32(1))  # of llvm.prefetch: for reading, into L2, data
_ALONG_HEAD = 4  # queries at most whose products along the head cost less than keys read as scalars
ONE_KEYS = 64  # that are visited at a time: their values stay in level one cache until all queries have read them


def serves(plan: AttentionPlan) -> bool:
    """Whether the kernel is one for a call: one token, as many queries as lanes at most, whole vectors of a head."""
    k, v = (plan.call.inputs[value] for value in (plan.k, plan.v))
    slots = k.shape[2]
    whole = same_dim(k.strides[3], 1) and plan.head % plan.isa.lanes == 0 and dense_values(v, plan.isa)
    enough = isinstance(slots, int) and slots >= _tile_keys(plan.isa)
    return same_dim(plan.q.shape[2], 1) and plan.group <= plan.isa.lanes and whole and enough


def build_one(plan: AttentionPlan) -> Kernel:
    """The kernel of a plan that it serves, of which a block has at most `ONE_KEYS` keys."""
    with kernel(plan.call, plan.isa, plan.scratch_bytes) as (k, done):
        OneToken(k, plan).emit()
    return Kernel(done[0], plan.scratch_bytes)


def _tile_keys(isa: Isa) -> int:
    return 16 if isa.registers >= 32 else 8


class OneToken(CachedBlocks):
    """A unit is a head of keys of one row: `width` lanes hold its queries, `apart` keys lie in one vector."""

    def __init__(self, k: KernelBuilder, plan: AttentionPlan) -> None:
        super().__init__(k, plan)
        self.rows_of_tile = _tile_keys(plan.isa)
        self.width = 1 << (plan.group - 1).bit_length()
        self.apart = self.lanes // self.width
        # a tile at the end of the cache begins earlier and writes what lies before the block once more
        self.p = plan.regions["p"] + self.rows_of_tile * self.width
        self.along_head = plan.group <= _ALONG_HEAD

    def _start(self) -> None:
        where, lanes, plan = self.plan.regions, self.lanes, self.plan
        for name, value in (("maximum", LOWEST), ("total", 0.0)):
            self.put(index(where[name]), splat(tirx.const(value, "float32"), lanes))
        with T.serial(index(plan.group * plan.width // lanes)) as i:
            self.put(where["o"] + i * lanes, splat(tirx.const(0.0, "float32"), lanes))
        view, buffer = plan.call.inputs[plan.q], self.k.buffers[plan.q]
        places = [bind(self.k.address(view, (self.b, self.g * plan.group + m, 0, 0))) for m in range(plan.group)]
        across, along = (1, plan.head) if self.along_head else (self.width, 1)
        with T.serial(index(plan.head)) as d:
            for m in range(self.width):
                value = tirx.const(0.0, "float32")
                if m < plan.group:
                    x = load(self.k, buffer, view, steps(places[m], d, self.k.dim(view.strides[3])), 1)
                    value = x * tirx.const(self.scale, "float32")
                T.buffer_store(self.memory, value, [where["q"] + d * across + m * along])

    def _block(self, first: "tirx.PrimExpr", count: "tirx.PrimExpr") -> None:
        slot, rows = bind(self.slot(first)), self.rows_of_tile
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

    def _row(self, value: Value, slot: "tirx.PrimExpr") -> "tirx.PrimExpr":
        return self.k.address(self.plan.call.inputs[value], (self.b, self.g, slot, 0))

    def _scale(self, value: Value, slot: "tirx.PrimExpr") -> "tirx.PrimExpr":
        """The scale of a key or value of codes."""
        scale = scale_of(self.plan, value)
        return bind(load(self.k, self.k.buffers[scale], self.plan.call.inputs[scale], self._row(scale, slot), 1))

    def _tile(self, slot: "tirx.PrimExpr", target: "tirx.PrimExpr") -> None:
        """Scores of a tile of keys, read as scalars; narrow keys are widened to scratch first."""
        plan, rows, w = self.plan, self.rows_of_tile, self.width
        view = plan.call.inputs[plan.k]
        source, start, pitch = self.k.buffers[plan.k], bind(self._row(plan.k, slot)), self.k.dim(view.strides[2])
        narrow = view.dtype is not DType.f32
        ahead = bind(self._row(plan.v, slot))
        if narrow:
            self._widen(slot, start)
            source, start, pitch = self.memory, index(plan.regions["k"]), index(plan.head)

        def finish(i: int, _: int, value: "tirx.PrimExpr") -> None:
            if plan.k.dtype is DType.i8:
                value = value * splat(self._scale(plan.k, slot + i), w)
            T.buffer_store(self.memory, value, [ramp(target + i * w, w)])

        def query(d: "tirx.PrimExpr", _: int) -> "tirx.PrimExpr":
            if not narrow:
                self._fetch(plan.v, ahead + d * rows)
            return self.memory[ramp(plan.regions["q"] + d * w, w)]

        tile(
            (rows, 1, w),
            index(plan.head),
            lambda d, i: source[start + i * pitch + d],
            query,
            lambda *_: splat(tirx.const(0.0, "float32"), w),
            finish,
        )

    def _widen(self, slot: "tirx.PrimExpr", start: "tirx.PrimExpr") -> None:
        plan, lanes = self.plan, self.lanes
        view, buffer = plan.call.inputs[plan.k], self.k.buffers[plan.k]
        with T.serial(index(self.rows_of_tile)) as i:
            row = bind(start + i * self.k.dim(view.strides[2]))
            self._fetch_row(plan.v, slot + i)
            for d in range(0, plan.head, lanes):
                self.put(plan.regions["k"] + i * plan.head + d, load(self.k, buffer, view, row + d, lanes))

    def _tile_along_head(self, slot: "tirx.PrimExpr", target: "tirx.PrimExpr") -> None:
        """Scores of a tile of keys for a few queries: vectors along the head, whose lanes are summed."""
        plan, lanes = self.plan, self.lanes
        for part in range(0, self.rows_of_tile, lanes):
            sums = self._dots(bind(slot + part), lanes)
            if plan.k.dtype is DType.i8:
                scales = [self._scale(plan.k, slot + (part + i)) for i in range(lanes)]
                factor = keep(tirx.Shuffle(scales, list(range(lanes))))
                sums = [keep(x * factor) for x in sums]
            for i, x in enumerate(self._interleaved(sums)):
                self.put(target + part * self.width + i * lanes, x)

    def _interleaved(self, sums: "list[tirx.PrimExpr]") -> "list[tirx.PrimExpr]":
        """Vectors of one query each as vectors of keys x `width`; lanes without a query repeat the last one."""
        if self.width == 1:
            return sums
        lanes, last = self.lanes, len(sums) - 1
        order = [lanes * min(i % self.width, last) + i // self.width for i in range(lanes * self.width)]
        return [tirx.Shuffle(sums, order[i : i + lanes]) for i in range(0, len(order), lanes)]

    def _dots(self, slot: "tirx.PrimExpr", keys: int) -> "list[tirx.PrimExpr]":
        """For each query a vector whose parts of lanes are the sums of so many keys; few are live at a time."""
        if keys > 1:
            half = keys // 2
            pairs = zip(self._dots(slot, half), self._dots(slot + half, half), strict=True)
            return [lane_sum(a, b, half, self.lanes) for a, b in pairs]
        plan, lanes = self.plan, self.lanes
        view, buffer, place = plan.call.inputs[plan.k], self.k.buffers[plan.k], bind(self._row(plan.k, slot))
        key = [bind(load(self.k, buffer, view, place + d, lanes)) for d in range(0, plan.head, lanes)]
        return [self._dot(query, key) for query in self.held]

    def _dot(self, query: "list[tirx.PrimExpr]", key: "list[tirx.PrimExpr]") -> "tirx.PrimExpr":
        total = keep(query[0] * key[0])
        for x, y in zip(query[1:], key[1:], strict=True):
            total = keep(fma(x, y, total))
        return total

    def _hold_queries(self) -> None:
        plan, lanes = self.plan, self.lanes
        rows = [plan.regions["q"] + m * plan.head for m in range(plan.group)]
        self.held = [[bind(self.get(index(row + d))) for d in range(0, plan.head, lanes)] for row in rows]

    def _hide_missing(self, count: "tirx.PrimExpr") -> None:
        """The last vector may hold more keys than there are."""
        if self.apart == 1:
            return
        with T.serial(bind(ceil_div(count, self.apart) * self.apart - count)) as i:
            row = splat(tirx.const(-math.inf, "float32"), self.width)
            T.buffer_store(self.memory, row, [ramp(self.p + (count + i) * self.width, self.width)])

    def _weigh(self, count: "tirx.PrimExpr") -> None:
        """Scores to weights relative to the maximum so far; each lane adds up those of its own keys."""
        where, lanes = self.plan.regions, self.lanes
        held, every = T.alloc_buffer((lanes,), "float32"), ramp(tirx.const(0, "int32"), lanes)
        vectors = bind(ceil_div(count, self.apart))
        old = bind(self.get(index(where["maximum"])))
        T.buffer_store(held, old, [every])
        with T.serial(vectors) as i:
            T.buffer_store(held, fast_maximum(self.get(self.p + i * lanes), held[every]), [every])
        new = bind(held[every])
        step = self.width
        while step < lanes:
            new = keep(fast_maximum(keep(tirx.Shuffle([new], [j ^ step for j in range(lanes)])), new))
            step *= 2
        rescale = keep(power_of_two(old - new))
        T.buffer_store(held, self.get(index(where["total"])) * rescale, [every])
        with T.serial(vectors) as i:
            place = bind(self.p + i * lanes)
            weight = keep(power_of_two(self.get(place) - new))
            self.put(place, weight)
            T.buffer_store(held, held[every] + weight, [every])
        for name, value in (("maximum", new), ("rescale", rescale), ("total", held[every])):
            self.put(index(where[name]), value)

    def _scale_weights(self, slot: "tirx.PrimExpr", count: "tirx.PrimExpr") -> None:
        with T.serial(count) as t:
            place = ramp(bind(self.p + t * self.width), self.width)
            scale = splat(self._scale(self.plan.v, slot + t), self.width)
            T.buffer_store(self.memory, self.memory[place] * scale, [place])

    def _add_values(self, slot: "tirx.PrimExpr", count: "tirx.PrimExpr") -> None:
        """Rescale the sums and add weights times values, in register tiles of queries x vectors."""
        plan, wide = self.plan, self.plan.isa.registers >= 32
        total = plan.width // self.lanes
        vectors = min(total, 6 if wide else 4)
        most = max(1, (24 if wide else 12) // vectors)
        rows = -(-plan.group // -(-plan.group // most))
        start = bind(self._row(plan.v, slot))
        # rows read one after another are streamed faster by the processor's own fetching, which ours would hold up
        following = None if self.along_head else slot + count
        for m in range(0, plan.group, rows):
            for column in range(0, total, vectors):
                size = (min(rows, plan.group - m), min(vectors, total - column))
                self._value_tile(start, count, (m, column * self.lanes), size, following if m + column == 0 else None)

    def _value_tile(
        self,
        start: "tirx.PrimExpr",
        count: "tirx.PrimExpr",
        at: tuple[int, int],
        size: tuple[int, int],
        following: "tirx.PrimExpr | None",
    ) -> None:
        plan, lanes, (m, column) = self.plan, self.lanes, at
        view, buffer = plan.call.inputs[plan.v], self.k.buffers[plan.v]
        pitch, o = self.k.dim(view.strides[2]), plan.regions["o"] + m * plan.width + column
        rescale = plan.regions["rescale"] + m

        def value(t: "tirx.PrimExpr", j: int) -> "tirx.PrimExpr":
            if following is not None and j == 0:
                self._fetch_row(plan.k, following + t)
            return load(self.k, buffer, view, start + t * pitch + (column + j * lanes), lanes)

        tile(
            (*size, lanes),
            count,
            lambda t, i: self.memory[self.p + t * self.width + (m + i)],
            value,
            lambda i, j: (
                self.get(index(o + i * plan.width + j * lanes)) * splat(self.memory[index(rescale + i)], lanes)
            ),
            lambda i, j, value: self.put(index(o + i * plan.width + j * lanes), value),
        )

    def _fetch_row(self, value: Value, slot: "tirx.PrimExpr") -> None:
        """Ask for a key or value that is read soon; one after the last slot is not read, but may be asked for."""
        line = 64 // value.dtype.itemsize
        start = bind(self._row(value, slot))
        for d in range(0, int(value.shape[3]), line):
            self._fetch(value, start + d)

    def _fetch(self, value: Value, place: "tirx.PrimExpr") -> None:
        pointer = T.address_of(self.k.buffers[value][place])
        T.evaluate(T.call_llvm_intrin("void", "llvm.prefetch", pointer, *_READ_SOON))

    def _finish(self) -> None:
        place, step = index(self.plan.regions["total"]), self.width
        total = bind(self.get(place))
        while step < self.lanes:
            total = keep(total + keep(tirx.Shuffle([total], [j ^ step for j in range(self.lanes)])))
            step *= 2
        self.put(place, total)
        super()._finish()
