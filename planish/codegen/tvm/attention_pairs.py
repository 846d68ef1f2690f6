"""The attention kernel of bf16: both products as dot products of pairs, along the head and along the keys.

Scratch memory holds pairs as f32 of the same bits, because memory that is seen as two dtypes may be reordered.
"""

from tvm import tirx
from tvm.script.ir_builder import tirx as T  # noqa: N812 - TVM's own name for its script namespace

from planish.codegen.tvm.attention_blocks import Blocks
from planish.codegen.tvm.attention_plan import AttentionPlan, key_rows, value_rows
from planish.codegen.tvm.bf16 import dot, rounded
from planish.codegen.tvm.kernel import Kernel, bind, kernel, ramp
from planish.codegen.tvm.short_math import TWO_TO
from planish.codegen.tvm.tiles import ceil_div, each_chunk, index, quotient, remainder, tile, transposed
from planish.codegen.tvm.vector_math import bits, cast, keep, like, splat
from planish.compiler.ir import Value


def build_pairs(plan: AttentionPlan) -> Kernel:
    """The kernel of a plan of pairs."""
    with kernel(plan.call, plan.isa, plan.scratch_bytes) as (k, done):
        PairBlocks(k, plan).emit()
    return Kernel(done[0], plan.scratch_bytes)


class PairBlocks(Blocks):
    """Blocks whose queries, keys, weights and values lie in pairs; scores are scaled when they are written."""

    fit = TWO_TO

    def _queries(self, c: "tirx.PrimExpr") -> None:
        view, lanes, units = self.plan.call.inputs[self.plan.q], self.lanes, self.plan.head // 2
        places = []
        for j in range(lanes):
            head, position = self.place(c * lanes + j)
            places.append(bind(self.k.address(view, (self.b, head, position, 0))))
        column = bind(self._panel("q", c, units))
        whole = units // lanes
        with T.serial(index(whole)) as i:
            rows = [bind(self._pairs(self.plan.q, place + i * (2 * lanes), lanes)) for place in places]
            for j, row in enumerate(transposed(rows)):
                self.put(column + (i * lanes + j) * 2 * lanes, row)
        with T.serial(index(whole * lanes), index(units)) as d:
            for j, place in enumerate(places):
                pair = self._pairs(self.plan.q, place + d * 2, 1)
                T.buffer_store(self.memory, pair, [column + d * (2 * lanes) + j])

    def _pairs(self, value: Value, place: "tirx.PrimExpr", lanes: int) -> "tirx.PrimExpr":
        """Consecutive elements of an operand in pairs."""
        wide = "float32" if lanes == 1 else f"float32x{lanes}"
        return T.reinterpret(wide, self.k.buffers[value][ramp(place, 2 * lanes)])

    def _scores(self, first: "tirx.PrimExpr", count: "tirx.PrimExpr") -> None:
        self._copy_keys(first, count)
        self._copy_values(first, count)
        self._score_tiles(count)

    def _copy_keys(self, first: "tirx.PrimExpr", count: "tirx.PrimExpr") -> None:
        plan = self.plan
        view, units = plan.call.inputs[plan.k], plan.head // 2
        with T.serial(count) as t:
            place = bind(self.k.address(view, (self.b, self.g, self.slot(bind(first + t)), 0)))
            row = bind(plan.regions["k"] + t * units)

            def move(start: "tirx.PrimExpr", lanes: int) -> None:
                T.buffer_store(self.memory, self._pairs(plan.k, place + start * 2, lanes), [ramp(row + start, lanes)])

            each_chunk(units, self.lanes, move)

    def _copy_values(self, first: "tirx.PrimExpr", count: "tirx.PrimExpr") -> None:
        """Two rows at a time, element beside element; the row after an odd last one repeats it and has no weight."""
        plan = self.plan
        view, buffer = plan.call.inputs[plan.v], self.k.buffers[plan.v]
        with T.serial(ceil_div(count, 2)) as t:
            keys = (bind(first + t * 2), bind(first + tirx.min(t * 2 + 1, count - 1)))
            places = [bind(self.k.address(view, (self.b, self.g, self.slot(key), 0))) for key in keys]
            row = bind(plan.regions["v"] + t * plan.width)

            def move(start: "tirx.PrimExpr", lanes: int) -> None:
                low, high = (cast(buffer[ramp(place + start, lanes)], "uint32") for place in places)
                pair = tirx.bitwise_or(low, keep(high) << like(high, 16))
                T.buffer_store(self.memory, bits(pair, "float32"), [ramp(row + start, lanes)])

            each_chunk(plan.values, self.lanes, move)

    def _score_tile(self, c: "tirx.PrimExpr", key: "tirx.PrimExpr", vectors: int) -> None:
        plan, lanes, units = self.plan, self.lanes, self.plan.head // 2
        q = bind(self._panel("q", c, units))
        row = bind(plan.regions["k"] + key * units)
        out = bind(self._panel("p", c, plan.depth) + key * 2 * lanes)
        tile(
            (key_rows(plan.isa), vectors, lanes),
            index(units),
            lambda d, i: self.memory[row + i * units + d],
            lambda d, j: self.get(q + d * (2 * lanes) + j * lanes),
            lambda i, j: splat(tirx.const(0.0, "float32"), lanes),
            lambda i, j, value: self.put(out + (i * 2 + j) * lanes, value * like(value, self.scale)),
            multiply_add=_dot,
        )

    def _exponentiate(
        self, column: "tirx.PrimExpr", count: "tirx.PrimExpr", new: "tirx.PrimExpr", held: "tirx.Buffer"
    ) -> None:
        """Weights of two keys at a time, which take the place of the first rows of the scores."""
        panel, every = 2 * self.lanes, ramp(tirx.const(0, "int32"), self.lanes)

        def pair(t: "tirx.PrimExpr", rows: int) -> None:
            place = bind(column + t * (2 * panel))
            weights = [keep(self._power(self.get(place + i * panel) - new)) for i in range(rows)]
            for weight in weights:
                T.buffer_store(held, held[every] + weight, [every])
            self.put(column + t * panel, self._together(weights))

        whole = bind(quotient(count, 2))
        with T.serial(whole) as t:
            pair(t, 2)
        with T.If(tirx.EQ(remainder(count, 2), index(1))), T.Then():
            pair(whole, 1)

    def _together(self, weights: "list[tirx.PrimExpr]") -> "tirx.PrimExpr":
        """One or two vectors in pairs, rounded to bf16; a missing second one is zero."""
        low = bind(rounded(weights[0], self.lanes))
        high = bind(rounded(weights[1], self.lanes)) if len(weights) > 1 else like(low, 0)
        mixed = tirx.Shuffle([low, high], [j + self.lanes * i for j in range(self.lanes) for i in range(2)])
        return T.reinterpret(f"float32x{self.lanes}", mixed)

    def _sum_tile(
        self,
        first: "tirx.PrimExpr",
        count: "tirx.PrimExpr",
        row: "tirx.PrimExpr",
        column: "tirx.PrimExpr",
        vectors: int,
    ) -> None:
        plan, lanes, panel = self.plan, self.lanes, 2 * self.lanes
        p = bind(plan.regions["p"] + quotient(row, panel) * (plan.depth * panel) + remainder(row, panel))
        o = bind(plan.regions["o"] + row * plan.width + column)
        v, rescale = bind(plan.regions["v"] + column), plan.regions["rescale"] + row
        tile(
            (value_rows(plan.isa), vectors, lanes),
            ceil_div(count, 2),
            lambda t, i: self.memory[p + t * panel + i],
            lambda t, j: self.get(v + t * plan.width + j * lanes),
            lambda i, j: self.get(o + i * plan.width + j * lanes) * splat(self.memory[rescale + i], lanes),
            lambda i, j, value: self.put(o + i * plan.width + j * lanes, value),
            multiply_add=_dot,
        )


def _dot(x: "tirx.PrimExpr", y: "tirx.PrimExpr", total: "tirx.PrimExpr") -> "tirx.PrimExpr":
    """The sums plus the products of pairs that are seen as f32."""
    return dot(total, bits(x, "int32"), bits(y, "int32"))
