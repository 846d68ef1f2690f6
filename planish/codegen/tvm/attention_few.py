"""Scores and sums of attention for a few queries a head of keys, as in decoding: keys and values read in place."""

from typing import TYPE_CHECKING

from tvm import tirx
from tvm.script.ir_builder import tirx as T  # noqa: N812 - TVM's own name for its script namespace

from planish.codegen.tvm.attention_plan import dense_values
from planish.codegen.tvm.kernel import bind, ramp
from planish.codegen.tvm.tiles import ceil_div, index, lane_sums, load, tile
from planish.codegen.tvm.vector_math import fma, keep, like, splat

if TYPE_CHECKING:
    from planish.codegen.tvm.attention_blocks import Blocks

_VECTORS = 8  # of values that one pass over the keys adds up


def few_scores(blocks: "Blocks", first: "tirx.PrimExpr", count: "tirx.PrimExpr") -> None:
    """Dot products along the head, as many keys at a time as a vector has lanes."""
    lanes, plan, k = blocks.lanes, blocks.plan, blocks.k
    keys, queries = plan.call.inputs[plan.k], plan.call.inputs[plan.q]
    held = T.alloc_buffer((lanes,), "float32")
    with T.serial(ceil_div(count, lanes)) as i:
        start = bind(i * lanes)
        rows = [bind(tirx.min(start + j, count - 1) + first) for j in range(lanes)]
        places = [bind(k.address(keys, (blocks.b, blocks.g, row, 0))) for row in rows]
        with T.serial(blocks.count) as m:
            head, position = blocks.place(m)
            origin = bind(k.address(queries, (blocks.b, head, position, 0)))
            sums = [_dot(blocks, origin, place) for place in places]
            T.buffer_store(held, lane_sums(sums), [ramp(tirx.const(0, "int32"), lanes)])
            target = bind(plan.regions["p"] + start * (2 * lanes) + m)
            with T.serial(bind(tirx.min(index(lanes), count - start))) as j:
                T.buffer_store(blocks.memory, held[j], [target + j * (2 * lanes)])


def _dot(blocks: "Blocks", query: "tirx.PrimExpr", key: "tirx.PrimExpr") -> "tirx.PrimExpr":
    """The products of one query and one key, of which each lane holds a part of the sum."""
    plan, k, lanes = blocks.plan, blocks.k, blocks.lanes
    total = None
    for d in range(0, plan.head, lanes):
        x = load(k, k.buffers[plan.q], plan.call.inputs[plan.q], query + d, lanes)
        y = bind(load(k, k.buffers[plan.k], plan.call.inputs[plan.k], key + d, lanes))
        x = bind(x * like(x, blocks.scale))
        total = keep(x * y if total is None else fma(x, y, total))
    assert total is not None
    return total


def few_sums(blocks: "Blocks", first: "tirx.PrimExpr", count: "tirx.PrimExpr") -> None:
    """Rescale the sums and add weights times values, one query at a time."""
    total = blocks.plan.width // blocks.lanes
    with T.serial(blocks.count) as m:
        for start in range(0, total, _VECTORS):
            _few_sums(blocks, first, count, m, start * blocks.lanes, min(_VECTORS, total - start))


def _few_sums(
    blocks: "Blocks", first: "tirx.PrimExpr", count: "tirx.PrimExpr", m: "tirx.PrimExpr", column: int, vectors: int
) -> None:
    plan, lanes, k = blocks.plan, blocks.lanes, blocks.k
    view, buffer = plan.call.inputs[plan.v], k.buffers[plan.v]
    p, o = bind(plan.regions["p"] + m), bind(plan.regions["o"] + m * plan.width + column)
    if dense_values(view, plan.isa):
        start = bind(k.address(view, (blocks.b, blocks.g, first, column)))
        pitch = k.dim(view.strides[2])
    else:
        start, pitch = bind(index(plan.regions["v"] + column)), index(plan.width)

    def value(t: "tirx.PrimExpr", j: int) -> "tirx.PrimExpr":
        place = start + t * pitch + j * lanes
        return load(k, buffer, view, place, lanes) if dense_values(view, plan.isa) else blocks.get(place)

    rescale = bind(splat(blocks.memory[plan.regions["rescale"] + m], lanes))
    tile(
        (1, vectors, lanes),
        count,
        lambda t, i: blocks.memory[p + t * (2 * lanes)],
        value,
        lambda i, j: splat(tirx.const(0.0, "float32"), lanes),
        lambda i, j, sums: blocks.put(o + j * lanes, fma(blocks.get(o + j * lanes), rescale, sums)),
    )
