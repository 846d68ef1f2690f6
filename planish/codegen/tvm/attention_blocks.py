"""The attention kernel for many queries: scores and sums as register-tile products over blocks of keys.

Scores are kept with queries along the lanes, S^T[t, m] = sum_d K[t, d] Q[m, d], so that only queries are transposed,
maxima and sums of the softmax are plain vector operations, and P^T[t, m] is read as consecutive scalars by the product
with the values.
"""

import math
from collections.abc import Callable

from tvm import tirx
from tvm.script.ir_builder import tirx as T  # noqa: N812 - TVM's own name for its script namespace

from planish.codegen.tvm.attention_few import few_scores, few_sums
from planish.codegen.tvm.attention_mask import change_by_mask, sink_scores
from planish.codegen.tvm.attention_plan import FEW, AttentionPlan, dense_values, key_rows, value_rows
from planish.codegen.tvm.kernel import Kernel, KernelBuilder, bind, kernel, ramp
from planish.codegen.tvm.tiles import (
    ceil_div,
    chains,
    each_chunk,
    index,
    load,
    quotient,
    remainder,
    steps,
    store,
    tile,
    transposed,
)
from planish.codegen.tvm.vector_math import (
    POWER_OF_TWO,
    both,
    fast_maximum,
    fma,
    keep,
    like,
    power_of_two,
    select,
    splat,
)
from planish.compiler.ir import Value
from planish.compiler.types import DType, same_dim

LOWEST = -3.4028234663852886e38


def build_blocks(plan: AttentionPlan) -> Kernel:
    """The kernel of a plan."""
    with kernel(plan.call, plan.isa, plan.scratch_bytes) as (k, done):
        Blocks(k, plan).emit()
    return Kernel(done[0], plan.scratch_bytes)


class Blocks:
    """The open kernel and what one unit of work has bound: batch `b`, key head `g`, first `row` and row `count`.

    `fit` is the polynomial of its exponentials.
    """

    fit: tuple[float, ...] = POWER_OF_TWO

    def __init__(self, k: KernelBuilder, plan: AttentionPlan) -> None:
        self.k, self.plan, self.lanes = k, plan, plan.isa.lanes
        self.memory = self._memory()
        self.queries, self.keys = k.dim(plan.q.shape[2]), k.dim(plan.k.shape[2])
        self.rows = bind(self.queries * plan.group + index(0))
        self.scale = plan.scale * plan.unit

    def _memory(self) -> "tirx.Buffer":
        """The task's own scratch memory, in f32."""
        return self.k.scratch_buffer(self.plan.scratch_bytes // 4, DType.f32)

    def region(self, name: str) -> "int | tirx.PrimExpr":
        """The first element of a region of the scratch memory."""
        return self.plan.regions[name]

    def emit(self) -> None:
        """Deal units to tasks: in turns, there and back, where causal units grow along the queries, else in a run."""
        blocks = bind(ceil_div(self.rows, self.plan.block))
        units = bind(self.k.dim(self.plan.k.shape[0]) * self.k.dim(self.plan.k.shape[1]) * blocks)
        if not self.plan.causal:
            first, stop = self.k.share(units)
            with T.serial(bind(stop - first)) as i:
                self._unit(bind(first + i), blocks)
            return
        task, tasks = bind(self.k.task.astype("int64")), bind(self.k.tasks.astype("int64"))
        turns = bind(quotient(units, tasks))
        last = remainder(units, tasks) > tirx.Select(tirx.EQ(remainder(turns, 2), index(0)), task, tasks - 1 - task)
        with T.serial(bind(turns + last.astype("int64"))) as turn:
            place = tirx.Select(tirx.EQ(remainder(turn, 2), index(0)), task, tasks - 1 - task)
            self._unit(bind(turn * tasks + place), blocks)

    def _unit(self, unit: "tirx.PrimExpr", blocks: "tirx.PrimExpr") -> None:
        heads = self.k.dim(self.plan.k.shape[1])
        pair = bind(quotient(unit, blocks))
        self.b, self.g = bind(quotient(pair, heads)), bind(remainder(pair, heads))
        self.row = bind(remainder(unit, blocks) * self.plan.block)
        self.count = bind(tirx.min(index(self.plan.block), self.rows - self.row))
        self.vectors = bind(ceil_div(self.count, self.lanes))
        self._keys_of_row()
        self._start()
        self._visit(*self._seen())
        self._finish()

    def _keys_of_row(self) -> None:
        """Bind what follows from the row of the batch; here nothing does."""

    def _visit(self, first: "tirx.PrimExpr", stop: "tirx.PrimExpr") -> None:
        """Take all keys of a range."""
        self._blocks(first, stop)

    def _blocks(self, first: "tirx.PrimExpr", stop: "tirx.PrimExpr") -> None:
        """Take all keys of a range, in blocks of like size."""
        pieces = bind(ceil_div(stop - first, self.plan.keys))
        with T.serial(pieces) as piece:
            start = bind(first + quotient((stop - first) * piece, pieces))
            self._block(start, bind(first + quotient((stop - first) * (piece + 1), pieces) - start))

    def slot(self, key: "tirx.PrimExpr") -> "tirx.PrimExpr":
        """Where a key lies along its axis."""
        return key

    def widened(self, value: Value, key: "tirx.PrimExpr", x: "tirx.PrimExpr") -> "tirx.PrimExpr":
        """What elements of a key or value as they are stored stand for."""
        return x

    def place(self, row: "tirx.PrimExpr") -> "tuple[tirx.PrimExpr, tirx.PrimExpr]":
        """The head and position of a row of the unit; rows past the last repeat it."""
        row = keep(tirx.min(self.row + row, self.rows - 1))
        if self.plan.group == 1:
            return self.g, row
        head = keep(quotient(row, self.queries))
        return keep(self.g * self.plan.group + head), keep(row - head * self.queries)

    def _start(self) -> None:
        """Lay out the queries, scaled; clear the sums; find each query's last visible key."""
        where, lanes = self.plan.regions, self.lanes
        with T.serial(self.vectors) as c:
            if self.plan.few != "always":
                self._queries(c)
            self._start_sums(c)
        rows = value_rows(self.plan.isa)
        with T.serial(ceil_div(self.count, rows) * (rows * self.plan.width // lanes)) as i:
            self.put(where["o"] + i * lanes, splat(tirx.const(0.0, "float32"), lanes))
        if self.plan.causal:
            with T.serial(self.vectors * lanes) as m:
                limit = self.place(m)[1] + (self.keys - self.queries)
                T.buffer_store(self.memory, limit.astype("float32"), [where["limit"] + m])

    def _start_sums(self, c: "tirx.PrimExpr") -> None:
        """The maxima and sums of weights of vector c of queries before the first key."""
        lanes, highest, total = self.lanes, splat(tirx.const(LOWEST, "float32"), self.lanes), 0.0
        if self.plan.sink is not None:
            heads = [self.place(c * lanes + j)[0] for j in range(lanes)]
            highest, total = sink_scores(self, self.plan.sink, heads), 1.0
        self.put(self.plan.regions["maximum"] + c * lanes, highest)
        self.put(self.plan.regions["total"] + c * lanes, splat(tirx.const(total, "float32"), lanes))

    def _queries(self, c: "tirx.PrimExpr") -> None:
        """Queries c * L ... of the unit as columns of their panel."""
        view, lanes, plan = self.plan.call.inputs[self.plan.q], self.lanes, self.plan
        buffer = self.k.buffers[plan.q]
        places = []
        for j in range(lanes):
            head, position = self.place(c * lanes + j)
            places.append(bind(self.k.address(view, (self.b, head, position, 0))))
        column = bind(self._panel("q", c, plan.head))
        whole = plan.head // lanes if same_dim(view.strides[3], 1) else 0
        with T.serial(index(whole)) as i:
            rows = [bind(load(self.k, buffer, view, place + i * lanes, lanes)) for place in places]
            for j, row in enumerate(transposed(rows)):
                self.put(column + (i * lanes + j) * 2 * lanes, row * like(row, self.scale))
        with T.serial(index(whole * lanes), index(plan.head)) as d:
            for j, place in enumerate(places):
                value = load(self.k, buffer, view, steps(place, d, self.k.dim(view.strides[3])), 1)
                T.buffer_store(self.memory, value * like(value, self.scale), [column + d * (2 * lanes) + j])

    def _panel(self, region: str, c: "tirx.PrimExpr", depth: int) -> "tirx.PrimExpr":
        """Where vector c of a region of panels begins."""
        return self.plan.regions[region] + quotient(c, 2) * (depth * 2 * self.lanes) + remainder(c, 2) * self.lanes

    def _seen(self) -> "tuple[tirx.PrimExpr, tirx.PrimExpr]":
        """The range of keys that any query of the unit sees."""
        if not self.plan.causal:
            return index(0), self.keys
        (head, low), (last_head, high) = self.place(index(0)), self.place(self.count - 1)
        shift = self.keys - self.queries
        if self.plan.group > 1:
            alike = tirx.EQ(bind(head), bind(last_head))
            low, high = tirx.Select(alike, low, index(0)), tirx.Select(alike, high, self.queries - 1)
        self.low, self.high = bind(low + shift), bind(high + shift)
        first = index(0) if self.plan.window is None else tirx.max(index(0), self.low - (self.plan.window - 1))
        return bind(first), bind(tirx.max(first, tirx.min(self.keys, self.high + 1)))

    def _block(self, first: "tirx.PrimExpr", count: "tirx.PrimExpr") -> None:
        """Take `count` keys from `first` into the sums."""
        self._by_count(lambda: self._few_scores(first, count), lambda: self._scores(first, count))
        if self.plan.causal:
            self._band(first, count)
        with T.serial(self.vectors) as c:
            self._softmax(c, first, count)
        self._by_count(lambda: few_sums(self, first, count), lambda: self._sums(first, count))

    def _by_count(self, few: Callable[[], None], many: Callable[[], None]) -> None:
        """Emit what serves a few queries, many, or both behind a test."""
        if self.plan.few == "sometimes":
            with T.If(self.count <= FEW):
                with T.Then():
                    few()
                with T.Else():
                    many()
        elif self.plan.few == "always":
            few()
        else:
            many()

    def _few_scores(self, first: "tirx.PrimExpr", count: "tirx.PrimExpr") -> None:
        plan = self.plan
        if not dense_values(plan.call.inputs[plan.v], plan.isa):
            self._copy(plan.v, "v", plan.values, plan.width, first, count)
        few_scores(self, first, count)

    def _copy(
        self, value: Value, region: str, length: int, pitch: int, first: "tirx.PrimExpr", count: "tirx.PrimExpr"
    ) -> None:
        """Rows of keys or values to scratch, in f32 and without gaps."""
        view = self.plan.call.inputs[value]
        buffer = self.k.buffers[value]
        with T.serial(count) as t:
            key = bind(first + t)
            place = bind(self.k.address(view, (self.b, self.g, self.slot(key), 0)))
            row = bind(self.plan.regions[region] + t * pitch)

            def move(start: "tirx.PrimExpr", lanes: int) -> None:
                source = steps(place, start, self.k.dim(view.strides[3]))
                x = self.widened(value, key, load(self.k, buffer, view, source, lanes))
                T.buffer_store(self.memory, x, [ramp(row + start, lanes)])

            each_chunk(length, self.lanes, move)

    def _scores(self, first: "tirx.PrimExpr", count: "tirx.PrimExpr") -> None:
        plan = self.plan
        self._copy(plan.k, "k", plan.head, plan.head, first, count)
        if plan.copies_values:
            self._copy(plan.v, "v", plan.values, plan.width, first, count)
        self._score_tiles(count)

    def _score_tiles(self, count: "tirx.PrimExpr") -> None:
        rows = key_rows(self.plan.isa)
        tiles = bind(ceil_div(count, rows))
        with T.serial(quotient(self.vectors, 2)) as panel, T.serial(tiles) as i:
            self._score_tile(panel * 2, i * rows, 2)
        with T.If(tirx.EQ(remainder(self.vectors, 2), index(1))), T.Then(), T.serial(tiles) as i:
            self._score_tile(self.vectors - 1, i * rows, 1)

    def _score_tile(self, c: "tirx.PrimExpr", key: "tirx.PrimExpr", vectors: int) -> None:
        plan, lanes = self.plan, self.lanes
        q = bind(self._panel("q", c, plan.head))
        row = bind(plan.regions["k"] + key * plan.head)
        out = bind(self._panel("p", c, plan.depth) + key * 2 * lanes)
        tile(
            (key_rows(plan.isa), vectors, lanes),
            index(plan.head),
            lambda d, i: self.memory[row + i * plan.head + d],
            lambda d, j: self.get(q + d * (2 * lanes) + j * lanes),
            lambda i, j: splat(tirx.const(0.0, "float32"), lanes),
            lambda i, j, value: self.put(out + (i * 2 + j) * lanes, value),
        )

    def _band(self, first: "tirx.PrimExpr", count: "tirx.PrimExpr") -> None:
        """Hide keys after a query's last one, and those before its window, where the block holds any."""
        zero = index(0)
        after = bind(tirx.min(tirx.max(self.low + 1 - first, zero), count))
        if self.plan.window is not None:
            before = bind(tirx.min(tirx.max(self.high - (self.plan.window - 1) - first, zero), after))
            self._hide(first, zero, before)
        self._hide(first, after, count)

    def _hide(self, first: "tirx.PrimExpr", start: "tirx.PrimExpr", stop: "tirx.PrimExpr") -> None:
        lanes, window = self.lanes, self.plan.window
        with T.serial(self.vectors) as c:
            limit = bind(self.get(self.plan.regions["limit"] + c * lanes))
            column = bind(self._panel("p", c, self.plan.depth))
            with T.serial(bind(stop - start)) as i:
                t = bind(start + i)
                key = bind(splat((first + t).astype("float32"), lanes))
                seen = key <= limit
                if window is not None:
                    seen = both(seen, key > limit - like(limit, float(window)))
                place = bind(column + t * (2 * lanes))
                self.put(place, select(seen, self.get(place), like(limit, -math.inf)))

    def _softmax(self, c: "tirx.PrimExpr", first: "tirx.PrimExpr", count: "tirx.PrimExpr") -> None:
        """Turn the scores of vector c of queries into weights relative to their maximum so far, and add these up."""
        where, lanes = self.plan.regions, self.lanes
        column = bind(self._panel("p", c, self.plan.depth))
        held, all_lanes = T.alloc_buffer((2 * lanes,), "float32"), ramp(tirx.const(0, "int32"), lanes)
        masked = change_by_mask(self, c, first)
        old = bind(self.get(where["maximum"] + c * lanes))
        T.buffer_store(held, old, [all_lanes])
        with T.serial(count) as t:
            place = bind(column + t * (2 * lanes))
            score = bind(masked(t, self.get(place)))
            if self.plan.mask is not None:
                self.put(place, score)
            T.buffer_store(held, fast_maximum(score, held[all_lanes]), [all_lanes])
        new = bind(held[all_lanes])
        rescale = keep(self._power(old - new))
        T.buffer_store(held, self.get(where["total"] + c * lanes) * rescale, [all_lanes])
        self._exponentiate(column, count, new, held)
        for name, value in (("maximum", new), ("rescale", rescale), ("total", held[all_lanes])):
            self.put(where[name] + c * lanes, value)

    def _exponentiate(
        self, column: "tirx.PrimExpr", count: "tirx.PrimExpr", new: "tirx.PrimExpr", held: "tirx.Buffer"
    ) -> None:
        """Turn scores into weights relative to the maximum `new`, and add these to `held`."""
        every = ramp(tirx.const(0, "int32"), self.lanes)
        part = T.alloc_buffer((self.lanes,), "float32")
        with chains(count) as (_, first, length):
            T.buffer_store(part, like(new, 0.0), [every])
            with T.serial(length) as i:
                place = bind(column + (first + i) * (2 * self.lanes))
                weight = keep(self._power(self.get(place) - new))
                self.put(place, weight)
                T.buffer_store(part, part[every] + weight, [every])
            T.buffer_store(held, held[every] + part[every], [every])

    def _power(self, x: "tirx.PrimExpr") -> "tirx.PrimExpr":
        """2^x, or e^x where scores are in natural units, for x <= 0; 0 below 2^-126."""
        return power_of_two(x * like(x, math.log2(math.e)) if self.plan.adds_mask else x, self.fit)

    def _sums(self, first: "tirx.PrimExpr", count: "tirx.PrimExpr") -> None:
        """Rescale the sums and add weights times values."""
        rows, total = value_rows(self.plan.isa), self.plan.width // self.lanes
        vectors = total if total <= 3 else 3 if total % 3 == 0 or total % 2 else 2
        with T.serial(index(total // vectors)) as group, T.serial(ceil_div(self.count, rows)) as i:
            self._sum_tile(first, count, i * rows, group * (vectors * self.lanes), vectors)
        if total % vectors:
            with T.serial(ceil_div(self.count, rows)) as i:
                done = index(total // vectors * vectors * self.lanes)
                self._sum_tile(first, count, i * rows, done, total % vectors)

    def _sum_tile(
        self,
        first: "tirx.PrimExpr",
        count: "tirx.PrimExpr",
        row: "tirx.PrimExpr",
        column: "tirx.PrimExpr",
        vectors: int,
    ) -> None:
        plan, lanes, k = self.plan, self.lanes, self.k
        panel = 2 * lanes
        p = bind(plan.regions["p"] + quotient(row, panel) * (plan.depth * panel) + remainder(row, panel))
        o = bind(plan.regions["o"] + row * plan.width + column)
        view = plan.call.inputs[plan.v]
        source, pitch = (self.memory, plan.width) if plan.copies_values else (k.buffers[plan.v], k.dim(view.strides[2]))
        start = plan.regions["v"] if plan.copies_values else k.address(view, (self.b, self.g, self.slot(first), 0))
        v = bind(start + column)
        rescale, one = plan.regions["rescale"] + row, tirx.const(1.0, "float32")
        rows = value_rows(plan.isa)
        places = [[bind(o + (i * plan.width + j * lanes)) for j in range(vectors)] for i in range(rows)]
        with chains(count) as (chain, begin, length):
            factors = [tirx.Select(tirx.EQ(chain, index(0)), self.memory[rescale + i], one) for i in range(rows)]
            factors = [bind(splat(factor, lanes)) for factor in factors]
            tile(
                (rows, vectors, lanes),
                length,
                lambda t, i: self.memory[p + (begin + t) * panel + i],
                lambda t, j: source[ramp(v + (begin + t) * pitch + j * lanes, lanes)],
                lambda i, j: splat(tirx.const(0.0, "float32"), lanes),
                lambda i, j, value: self.put(places[i][j], fma(self.get(places[i][j]), factors[i], value)),
            )

    def _finish(self) -> None:
        """Divide by the sums of weights and write; no weight at all gives zeros, an undefined one what is undefined."""
        plan, view = self.plan, self.plan.call.view
        dense = same_dim(view.strides[3], 1)
        with T.serial(self.count) as m:
            head, position = self.place(m)
            out = bind(self.k.address(view, (self.b, head, position, 0)))
            total = bind(self.memory[self.region("total") + m])
            factor = bind(
                tirx.Select(tirx.EQ(total, tirx.const(0.0, "float32")), total, tirx.const(1.0, "float32") / total)
            )
            row = bind(self.region("o") + m * plan.width)

            def write(start: "tirx.PrimExpr", lanes: int) -> None:
                value = self.memory[ramp(row + start, lanes)] * splat(factor, lanes)
                store(self.k.output, view.dtype, steps(out, start, self.k.dim(view.strides[3])), value, lanes)

            each_chunk(plan.values, self.lanes if dense else 1, write)

    def get(self, place: "tirx.PrimExpr") -> "tirx.PrimExpr":
        return self.memory[ramp(place, self.lanes)]

    def put(self, place: "tirx.PrimExpr", value: "tirx.PrimExpr") -> None:
        T.buffer_store(self.memory, value, [ramp(place, self.lanes)])
