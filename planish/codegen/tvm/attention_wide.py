"""Attention in f64 for CPUs: one query at a time over all of its keys, vectors along the head and along the keys."""

import math
from dataclasses import dataclass
from typing import ClassVar

from tvm import tirx
from tvm.script.ir_builder import tirx as T  # noqa: N812 - TVM's own name for its script namespace

from planish.codegen.call import Call
from planish.codegen.tvm import vector_math as vm
from planish.codegen.tvm import wide_math
from planish.codegen.tvm.attention import Attention, over_cache
from planish.codegen.tvm.isa import Isa
from planish.codegen.tvm.kernel import Kernel, KernelBuilder, bind, kernel, ramp
from planish.codegen.tvm.loops import units
from planish.codegen.tvm.tiles import ceil_div, each_chunk, index, lane_sums, load, quotient, steps, tile
from planish.codegen.view import View
from planish.compiler.ir import Node, Op
from planish.compiler.ops.contract import attention, sink_of
from planish.compiler.types import DType, same_dim, simplify


@dataclass(frozen=True, slots=True)
class AttentionWide:
    """Attention over f64 views, computed in f64. A query that sees no key gives zeros."""

    name: ClassVar[str] = "attention_wide"
    ops: ClassVar[tuple[Op, ...]] = (attention,)

    def refuse(self, call: Call, isa: Isa) -> str | None:
        dtype = call.anchor.operands[0].dtype
        if over_cache(call.anchor):
            return "attention over a cache has templates of its own"
        if sink_of(call.anchor) is not None:
            return "a sink beside the scores of the keys is computed in f32"
        return Attention().refuse_shapes(call) if dtype is DType.f64 else f"it computes in f64, not {dtype}"

    def build(self, call: Call, isa: Isa) -> Kernel:
        lanes, k = isa.lanes // 2, call.anchor.operands[1]
        scratch = simplify((k.shape[2] + 2 * lanes) * 8)
        with kernel(call, isa, scratch) as (builder, done):
            units(builder, call.anchor.operands[0].shape[:3], lambda u: _Query(builder, lanes, u).emit())
        return Kernel(done[0], scratch)

    def fuses_after(self, anchor: Node, node: Node) -> bool:
        return False

    def fuses_before(self, anchor: Node, node: Node) -> bool:
        return False


class _Query:
    """One query: `at` is its batch, head and position; `scores` holds one element a key, padded to whole vectors."""

    def __init__(self, k: KernelBuilder, lanes: int, at: "tuple[tirx.PrimExpr, ...]") -> None:
        self.k, self.lanes, self.at = k, lanes, at
        self.q, self.keys, self.values = k.call.anchor.operands[:3]
        self.count = bind(k.dim(self.keys.shape[2]))
        self.padded = bind(ceil_div(self.count, lanes))
        self.scores = k.scratch_buffer(self.padded * lanes, DType.f64)
        heads, shared = int(self.q.shape[1]), int(self.keys.shape[1])
        self.source = (at[0], bind(quotient(at[1], heads // shared)))
        self.every = ramp(tirx.const(0, "int32"), lanes)

    def emit(self) -> None:
        self._dots()
        with T.serial(self.count) as t:
            self._see(t)
        with T.serial(bind(self.padded * self.lanes - self.count)) as t:
            T.buffer_store(self.scores, tirx.const(-math.inf, "float64"), [self.count + t])
        self._output(self._weigh())

    def _view(self, place: int) -> View:
        return self.k.call.inputs[self.k.call.anchor.operands[place]]

    def _dots(self) -> None:
        """Scores of as many keys at a time as a vector has lanes; absent keys repeat the last."""
        query, keys, lanes = self._view(0), self._view(1), self.lanes
        origin = bind(self.k.address(query, (*self.at, 0)))
        totals = [T.alloc_buffer((lanes,), "float64") for _ in range(lanes)]
        head = int(self.q.shape[3])
        dense = same_dim(query.strides[3], 1) and same_dim(keys.strides[3], 1)
        whole = head // lanes if dense else 0
        with T.serial(self.padded) as i:
            rows = [bind(tirx.min(i * lanes + j, self.count - 1)) for j in range(lanes)]
            places = [bind(self.k.address(keys, (*self.source, row, 0))) for row in rows]
            for total in totals:
                T.buffer_store(total, vm.constant(0.0, "float64", lanes), [self.every])
            with T.serial(index(whole)) as v:
                x = bind(self._read(0, origin, v * lanes, lanes))
                for place, total in zip(places, totals, strict=True):
                    y = self._read(1, place, v * lanes, lanes)
                    T.buffer_store(total, vm.fma(x, y, total[self.every]), [self.every])
            with T.serial(index(head - whole * lanes)) as rest:
                x = bind(self._read(0, origin, rest + whole * lanes, 1))
                for place, total in zip(places, totals, strict=True):
                    T.buffer_store(total, vm.fma(x, self._read(1, place, rest + whole * lanes, 1), total[0]), [0])
            sums = lane_sums([bind(total[self.every]) for total in totals])
            scale = float(str(self.k.call.anchor.attrs["scale"]))
            T.buffer_store(self.scores, sums * vm.like(sums, scale), [ramp(i * lanes, lanes)])

    def _read(self, place: int, start: "tirx.PrimExpr", d: "tirx.PrimExpr", lanes: int) -> "tirx.PrimExpr":
        value, view = self.k.call.anchor.operands[place], self._view(place)
        return load(self.k, self.k.buffers[value], view, steps(start, d, self.k.dim(view.strides[3])), lanes)

    def _see(self, t: "tirx.PrimExpr") -> None:
        """What the mask, the order of positions and the window make of the score of key t."""
        attrs, operands = self.k.call.anchor.attrs, self.k.call.anchor.operands
        hidden = tirx.const(-math.inf, "float64")
        score = bind(self.scores[t])
        if len(operands) > 3:
            view = self._view(3).expand((*self.q.shape[:3], self.keys.shape[2]))
            item = bind(self.k.buffers[operands[3]][self.k.address(view, (*self.at, t))])
            masks = operands[3].dtype is DType.bool
            score = bind(tirx.Select(vm.differ(item, vm.like(item, 0)), score, hidden) if masks else score + item)
        if attrs["causal"]:
            last = bind(self.at[2] + self.count - self.k.dim(self.q.shape[2]))
            score = bind(tirx.Select(t <= last, score, hidden))
            if attrs["window"]:
                score = bind(tirx.Select(t > last - int(str(attrs["window"])), score, hidden))
        T.buffer_store(self.scores, score, [t])

    def _weigh(self) -> "tirx.PrimExpr":
        """Turn the scores into weights; gives what their sums are to be multiplied by."""
        lanes, held = self.lanes, T.alloc_buffer((self.lanes,), "float64")
        T.buffer_store(held, vm.constant(-1.7976931348623157e308, "float64", lanes), [self.every])
        with T.serial(self.padded) as i:
            score = bind(self.scores[ramp(i * lanes, lanes)])
            T.buffer_store(held, vm.fast_maximum(score, held[self.every]), [self.every])
        highest = bind(held[0])
        for j in range(1, lanes):
            highest = vm.keep(vm.fast_maximum(highest, held[j]))
        T.buffer_store(held, vm.constant(0.0, "float64", lanes), [self.every])
        with T.serial(self.padded) as i:
            place = ramp(bind(i * lanes), lanes)
            weight = wide_math.exp(vm.keep(self.scores[place] - vm.splat(highest, lanes)))
            T.buffer_store(self.scores, weight, [place])
            T.buffer_store(held, held[self.every] + weight, [self.every])
        total = bind(held[0])
        for j in range(1, lanes):
            total = vm.keep(total + held[j])
        zero = tirx.const(0.0, "float64")
        return bind(tirx.Select(total > zero, tirx.const(1.0, "float64") / total, zero))

    def _output(self, factor: "tirx.PrimExpr") -> None:
        """The weighted values."""
        view, out, k = self._view(2), self.k.call.view, self.k
        start = bind(k.address(view, (*self.source, 0, 0)))
        target = bind(k.address(out, (*self.at, 0)))

        def some(column: "tirx.PrimExpr", lanes: int) -> None:
            place = steps(target, column, k.dim(out.strides[3]))
            tile(
                (1, 1, lanes),
                self.count,
                lambda t, _: self.scores[t],
                lambda t, _: self._read(2, start + t * k.dim(view.strides[2]), column, lanes),
                lambda _, __: vm.constant(0.0, "float64", lanes),
                lambda _, __, total: T.buffer_store(k.output, total * vm.splat(factor, lanes), [ramp(place, lanes)]),
                dtype="float64",
            )

        dense = same_dim(view.strides[3], 1) and same_dim(out.strides[3], 1)
        each_chunk(int(self.values.shape[3]), self.lanes if dense else 1, some)
