"""fuse-attention: softmax(q k^T * scale + mask) v -> attention(q, k, v, mask)."""

from dataclasses import dataclass
from typing import ClassVar

from planish.compiler.ir import Graph, Program
from planish.compiler.ops import attention, matmul
from planish.compiler.pass_ import Change, Context, Contract, Exact
from planish.compiler.rewrite import Hit, Step, apply_steps
from planish.passes.attention_masks import Masks
from planish.passes.attention_scores import fuse
from planish.passes.grouped_heads import drop_repeat, scale_of_query
from planish.passes.indices import Indices
from planish.passes.matching import each_function


@dataclass(frozen=True, slots=True)
class FuseAttention:
    """Makes one `attention` of every spelling of it, and says what is known of its mask.

    `matmul(softmax(matmul(q, transpose(k)) * scale + mask), v)` becomes `attention(q, k, v, mask, scale)`; keys and
    values that are repeated for groups of heads are not repeated any more; a mask that keeps everything is dropped,
    one that follows from positions becomes `causal` and `window`, and what remains (padding) stays the mask. It
    leaves attention whose probabilities something else reads, and float masks that may hide all keys from a query.
    """

    name: ClassVar[str] = "fuse-attention"
    contract: ClassVar[Contract] = Exact()

    def apply(self, program: Program, context: Context) -> Change:
        return each_function(program, lambda graph: _fuse(graph, program))


def _fuse(graph: Graph, program: Program) -> tuple[Graph, tuple[Hit, ...]]:
    graph, spelled = apply_steps(graph, (Step("attention", (matmul,), fuse),))
    masks = Masks(Indices(graph, program.weights), program.weights)
    steps = (
        Step("grouped heads", (attention,), drop_repeat),
        Step("scale of q", (attention,), scale_of_query),
        Step("positional mask", (attention,), masks.positional),
        Step("bool mask", (attention,), masks.as_bool),
    )
    graph, found = apply_steps(graph, steps)
    return graph, spelled + found
