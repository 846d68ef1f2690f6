"""What masks do to scores of attention whose queries lie along the lanes, and the scores of sinks."""

import math
from collections.abc import Callable
from typing import TYPE_CHECKING

from tvm import tirx

from planish.codegen.tvm.kernel import KernelBuilder, bind
from planish.codegen.tvm.tiles import load, steps
from planish.codegen.tvm.vector_math import differ, like, select, splat
from planish.codegen.view import View
from planish.compiler.ir import Value
from planish.compiler.types import DType, same_dim

if TYPE_CHECKING:
    from planish.codegen.tvm.attention_blocks import Blocks


def change_by_mask(
    blocks: "Blocks", c: "tirx.PrimExpr", first: "tirx.PrimExpr"
) -> "Callable[[tirx.PrimExpr, tirx.PrimExpr], tirx.PrimExpr]":
    """How key t of the block from key `first` on changes the scores of vector c of queries."""
    plan, k, lanes = blocks.plan, blocks.k, blocks.lanes
    view, value = plan.mask_view, plan.mask
    if view is None or value is None:
        return lambda t, score: score
    shared = same_dim(view.strides[2], 0) and (plan.group == 1 or same_dim(view.strides[1], 0))
    places = []
    for j in range(1 if shared else lanes):
        head, position = blocks.place(c * lanes + j)
        places.append(bind(k.address(view, (blocks.b, head, position, first))))
    step = k.dim(view.strides[3])

    def change(t: "tirx.PrimExpr", score: "tirx.PrimExpr") -> "tirx.PrimExpr":
        items = [bind(_item(k, k.buffers[value], view, steps(place, t, step))) for place in places]
        mask = splat(items[0], lanes) if shared else tirx.Shuffle(items, list(range(lanes)))
        if view.dtype is not DType.bool:
            return score + mask
        return select(differ(mask, like(mask, 0)), score, like(score, -math.inf))

    return change


def sink_scores(blocks: "Blocks", sink: Value, heads: "list[tirx.PrimExpr]") -> "tirx.PrimExpr":
    """The sinks of heads, a lane each, in the unit of the scores."""
    k, view = blocks.k, blocks.plan.call.inputs[sink]
    held = [bind(load(k, k.buffers[sink], view, k.address(view, (head,)), 1)) for head in heads]
    scores = bind(tirx.Shuffle(held, list(range(len(held)))))
    return scores * like(scores, blocks.plan.unit)


def _item(k: KernelBuilder, buffer: "tirx.Buffer", view: View, place: "tirx.PrimExpr") -> "tirx.PrimExpr":
    return buffer[place].astype("int32") if view.dtype is DType.bool else load(k, buffer, view, place, 1)
