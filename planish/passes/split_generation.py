"""split-generation: main(ids) -> logits becomes prefill and decode with caches."""

from dataclasses import dataclass, replace
from typing import ClassVar

from planish.compiler.analysis import weight_names
from planish.compiler.ir import Graph, Node, Program, Value
from planish.compiler.ops import arange, attention, expand, full, matmul, reshape
from planish.compiler.pass_ import Change, Close, Context, Contract, Pass
from planish.compiler.rewrite import Hit, substitute
from planish.compiler.types import DType
from planish.compiler.weights import Weights
from planish.errors import PassError
from planish.passes.attention_masks import Masks
from planish.passes.attention_scores import fuse_capped
from planish.passes.cancel_movements import CancelMovements
from planish.passes.fuse_attention import FuseAttention
from planish.passes.grouped_heads import drop_repeat
from planish.passes.indices import Indices
from planish.passes.merge_common_subexpressions import MergeCommonSubexpressions
from planish.passes.simplify_arithmetic import SimplifyArithmetic
from planish.passes.simplify_indices import SimplifyIndices
from planish.passes.split_generation_analysis import Tokens, analyse, name_of, token_ids
from planish.passes.split_generation_attention import attend, layouts
from planish.passes.split_generation_functions import Plan, build, signatures
from planish.passes.split_generation_lanes import Lane
from planish.passes.split_generation_last import of_all_tokens
from planish.passes.split_generation_tables import Tables, roots_of

_AGAIN: tuple[Pass, ...] = (
    SimplifyIndices(),
    SimplifyArithmetic(),
    CancelMovements(),
    FuseAttention(),
    SimplifyArithmetic(),
    MergeCommonSubexpressions(),
)


@dataclass(frozen=True, slots=True)
class SplitGeneration:
    """Makes a language model generate token by token: `prefill` reads a prompt, `decode` adds one token.

    `main(ids [B, S], ..) -> logits [B, S, V]` becomes `prefill(ids [B, S], past, count, caches) -> (logits [B, V],
    caches)` and `decode`, the same with one token. Keys and values of every attention are kept in caches for `context`
    tokens (or for the window of the attention), as `cache` says: "f32", "f16", "i8" or "i4". What follows from
    positions becomes tables. `prefill` takes up to `chunk` tokens, both up to `batch` rows. Masks of padding count as
    all ones; outputs besides the logits are dropped. It will not touch a model in which anything but causal attention
    mixes tokens: that is an error. The contract holds for f32 caches; narrower ones add the rounding of keys and
    values.
    """

    context: int = 2048
    chunk: int = 512
    batch: int = 1
    cache: str = "f32"
    name: ClassVar[str] = "split-generation"
    contract: ClassVar[Contract] = Close(rtol=1e-4, atol=1e-4)

    def __post_init__(self) -> None:
        if min(self.context, self.chunk, self.batch) < 1:
            raise ValueError(f"context, chunk and batch are at least 1, not {self.context}, {self.chunk}, {self.batch}")
        if self.cache not in ("f32", "f16", "i8", "i4"):
            raise ValueError(f"cache is 'f32', 'f16', 'i8' or 'i4', not {self.cache!r}")

    def apply(self, program: Program, context: Context) -> Change:
        """The program of `prefill` and `decode`; raises PassError naming the op that does not allow it."""
        if list(program.functions) != ["main"]:
            raise PassError(f"split-generation: it splits a single function 'main', not {list(program.functions)}")
        ids = token_ids(program.main)
        program, dropped = _logits_alone(_without_extra_inputs(program, ids, context), ids)
        graph, caps = _capped(program.main)
        tokens = analyse(graph, ids)
        self._check(tokens)
        plan = self._plan(tokens, program, caps)
        functions = {s.name: build(plan, s) for s in signatures(self.batch, min(self.chunk, self.context))}
        split = replace(program, functions=functions, weights=plan.tables.weights)
        used = plan.tables.weights.kept(weight_names(split))
        notes = {**split.notes, **({"dropped outputs": dropped} if dropped else {})}
        hits = [Hit("cache", node.scope) for node in tokens.attending]
        hits += [Hit("table", value.node.scope) for value in plan.tables.found]
        return Change(replace(split, weights=used, notes=notes), tuple(hits))

    def _check(self, tokens: Tokens) -> None:
        if not tokens.attending:
            raise PassError("split-generation: no causal attention over the tokens is left; there is nothing to cache")
        if tokens.rows is None and self.batch > 1:
            raise PassError(f"split-generation: a batch of {self.batch} needs a dynamic axis 0 of the token ids")
        for size in tokens.graph.sizes:
            wanted = self.context if size.symbol == tokens.tokens else self.batch
            if wanted > size.high:
                what = "context" if size.symbol == tokens.tokens else "batch"
                raise PassError(
                    f"split-generation: {what} {wanted} is over {size.high}, the most that '{size.name}' may be in the "
                    f"model; use a smaller {what}"
                )

    def _plan(self, tokens: Tokens, program: Program, caps: dict[Node, float]) -> Plan:
        masks = Masks(Indices(tokens.graph, program.weights), program.weights)
        attends = {node: attend(node, tokens, masks, self.context, caps.get(node)) for node in tokens.attending}
        tables = Tables(tokens, self.context, Weights(program.weights))
        masked = dict.fromkeys(tokens.attending, 3)
        biases = [what.bias for what in attends.values() if what.bias is not None]
        tables.build(roots_of(tokens, masked), biases)
        kept = layouts(tokens, attends, self.context, min(self.chunk, self.context))
        return Plan(tokens, _logits(tokens), tables, attends, kept, self.cache)


def _logits(tokens: Tokens) -> Value:
    """The output of the graph, checked to be [rows, tokens, vocabulary]."""
    (value,) = tokens.graph.outputs
    rows = tokens.row_lanes.get(value)
    if value.type.rank != 3 or tokens.lanes.get(value) != Lane(1) or rows not in (None, Lane(0)):
        raise PassError(
            f"split-generation: the output {value.type} is no [rows, tokens, vocabulary]; return the logits"
        )
    return value


def _logits_alone(program: Program, ids: Value) -> tuple[Program, tuple[str, ...]]:
    """The program with its logits, of all tokens, as the only output, and the types of those that go."""
    graph = program.main
    lookups = [n for n in graph.nodes() if n.op.name == "embedding" and n.operands[1].type.rank == 2]
    vocabulary = {n.operands[0].shape[0] for n in lookups}
    ranked = [v for v in graph.outputs if v.dtype.is_float and v.type.rank in (2, 3)]
    found = [v for v in ranked if v.shape[-1] in vocabulary] or [v for v in ranked if v.type.rank == 3]
    if not found:
        raise PassError("split-generation: the model returns no logits [rows, tokens, vocabulary]")
    dropped = tuple(str(v.type) for v in graph.outputs if v != found[0])
    logits = of_all_tokens(found[0], ids.shape[1]) or found[0]
    return program.with_function(Graph(graph.name, graph.inputs, (logits,), graph.sizes)), dropped


def _without_extra_inputs(program: Program, ids: Value, context: Context) -> Program:
    """The program whose only input is `ids`: masks are ones, positions count from 0."""
    graph = program.main
    others = {v.node: _stand_in(v, ids) for v in graph.inputs if v != ids}
    if not others:
        return program
    graph = substitute(graph, lambda node: (others[node],) if node in others else None)
    program = program.with_function(Graph(graph.name, (ids,), graph.outputs, graph.sizes))
    for each in _AGAIN:
        program = each.apply(program, context).program
    return program


def _stand_in(value: Value, ids: Value) -> Value:
    """What an input besides the token ids is for unpadded tokens that start at position 0."""
    name = name_of(value)
    sized = value.type.rank > 0 and value.shape[-1] == ids.shape[1]
    if sized and "mask" in name and value.type.rank == 2:
        return full(shape=value.shape, value=True if value.dtype is DType.bool else 1, dtype=value.dtype)
    if sized and "position" in name and value.dtype.is_integer:
        positions = arange(length=ids.shape[1], dtype=value.dtype)
        ranked = reshape(positions, shape=(1,) * (value.type.rank - 1) + positions.shape)
        return expand(ranked, shape=value.shape)
    raise PassError(
        f"split-generation: the input '{name}' {value.type} is neither token ids nor an attention mask or positions; "
        "import the model without it"
    )


def _capped(graph: Graph) -> tuple[Graph, dict[Node, float]]:
    """The graph with attention in place of attention whose scores tanh caps, and the cap of each."""
    caps: dict[Node, float] = {}

    def visit(node: Node) -> tuple[Value, ...] | None:
        found = fuse_capped(node, {}) if node.op is matmul else None
        if not isinstance(found, tuple) or found[1] is None:
            return None
        value = found[0]
        inner = value.node if value.node.op is attention else value.node.operands[0].node
        short = drop_repeat(inner, {})
        final = short if isinstance(short, Value) else Value(inner)
        caps[final.node] = found[1]
        return (final if value.node is inner else reshape(final, shape=value.shape, scope=node.scope),)

    return substitute(graph, visit), caps
