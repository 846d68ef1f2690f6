"""compute-bf16: linear(x, @w, b) -> linear(cast(x), @w.bf16, b) {dtype=f32}."""

from collections.abc import Callable, Container, Mapping
from dataclasses import dataclass, field, replace
from fnmatch import fnmatch
from typing import ClassVar

import torch
from torch import Tensor

from planish.compiler.analysis import weight_names
from planish.compiler.ir import Graph, Node, Program, Value
from planish.compiler.ops import (
    attention,
    cast,
    concat,
    conv,
    dequantize,
    embedding,
    expand,
    grouped_linear,
    linear,
    matmul,
    reshape,
    slice_,
    transpose,
    weight,
)
from planish.compiler.pass_ import Change, Close, Context, Contract
from planish.compiler.rewrite import Hit, substitute
from planish.compiler.types import DType, elements, evaluate_dim
from planish.compiler.weights import Recipe, Weights
from planish.hardware_profiles import Profile

_RULE = "narrow"
_MOVES = (reshape, transpose, slice_, expand, concat)
_DOT = "avx512bf16"
_FEW_ROWS = 16  # up to which products with codes are bound by reading them, whatever they compute in
_Narrow = Callable[[Value], Value]


@dataclass(frozen=True, slots=True)
class ComputeBf16:
    """Multiplies in bf16, with sums in f32, twice as fast where the processor has a dot product of bf16.

    `linear(x, @w, b)` becomes `linear(cast(x), @w.bf16, b)` whose result is f32; convolutions alike. Queries, keys,
    values and results of attention are bf16, its scores and softmax f32. Weights, also tables of embeddings, are stored
    in 2 bytes. Codes of `dequantize` become bf16 where there are rows enough. Norms, sums, activations and outputs
    stay f32.
    skip: patterns of scopes to leave alone, such as `["lm_head", "layers.0.*"]`.
    """

    skip: tuple[str, ...] = ()

    name: ClassVar[str] = "compute-bf16"
    contract: ClassVar[Contract] = Close(rtol=2e-2, atol=1e-2)

    def apply(self, program: Program, context: Context) -> Change:
        work = _Narrower(self.skip, context.profile, program.weights)
        hits: tuple[Hit, ...] = ()
        for graph in program.functions.values():
            after, found = work.rewrite(graph)
            program, hits = program.with_function(after), hits + found
        kept = Weights(program.weights).joined(work.made).kept(weight_names(program))
        return Change(replace(program, weights=kept), hits)


@dataclass(slots=True)
class _Narrower:
    """The weights that were rounded so far, shared by all functions of a program."""

    skip: tuple[str, ...]
    profile: Profile | None
    weights: Mapping[str, Tensor]
    made: dict[str, Recipe] = field(default_factory=dict)

    def rewrite(self, graph: Graph) -> tuple[Graph, tuple[Hit, ...]]:
        hits: list[Hit] = []
        rows = {size.name: size.high for size in graph.sizes}
        reasons = {n: self._refusal(n, rows) for n in graph.nodes() if _is_product(n)}
        only = _read_narrow(graph, {n for n, why in reasons.items() if why is None})
        done: dict[Value, Value] = {}

        def narrow(value: Value) -> Value:
            if value not in done:
                done[value] = self._narrowed(value, only, narrow)
            return done[value]

        def visit(node: Node) -> tuple[Value, ...] | None:
            if not _is_product(node):
                return None
            why = self._refusal(node, rows)
            hits.append(Hit(_RULE, node.scope, why))
            if why is not None:
                return None
            product = _product(node, narrow)
            only[product.node] = only.get(node, 0)
            return (product,)

        return substitute(graph, visit, only), tuple(hits)

    def _refusal(self, node: Node, rows: Mapping[str, int]) -> str | None:
        """Why a product, or the look-up of a table, stays as it is; None where it becomes narrow."""
        if any(fnmatch(node.scope, pattern) for pattern in self.skip):
            return "skipped by its scope"
        if self.profile is not None and self.profile.backend != "tvm":
            return f"products on {self.profile.name} compute in the dtype of the model; convert it: model.bfloat16()"
        if self.profile is not None and _DOT not in self.profile.cpu.features:
            return f"{self.profile.name} has no dot product of bf16 ({_DOT}) that planish uses; it computes in f32"
        if node.op is matmul:
            return "products of two activations compute in f32"
        if node.op is attention:
            return "attention over a cache computes in f32" if len(node.inputs) > 4 and node.inputs[4] else None
        return _refused_conv(node) if node.op is conv else _refused_weight(node, rows)

    def _narrowed(self, value: Value, only: Mapping[Node, int], narrow: _Narrow) -> Value:
        """The value in bf16: as it was before it was widened, moved in bf16 where nothing reads it in f32, or cast."""
        node = value.node
        if node.op is weight:
            return self._stored(value)
        if node.op is cast and node.operands[0].dtype is DType.bf16:
            return node.operands[0]
        if node.op is dequantize:
            return dequantize(*node.operands, scope=node.scope, **{**node.attrs, "dtype": DType.bf16})
        if node.op in _MOVES and only.get(node) and all(_is_free(v.node, only) for v in node.operands):
            return node.op(*map(narrow, node.operands), scope=node.scope, **node.attrs)
        return cast(value, dtype=DType.bf16, scope=node.scope)

    def _stored(self, value: Value) -> Value:
        """The weight rounded to bf16, under a name of its own."""
        name = str(value.node.attrs["name"])
        stored = f"{name}.bf16"
        if stored not in self.made:
            shape = tuple(Weights(self.weights).like(name).shape)
            self.made[stored] = Recipe(shape, torch.bfloat16, lambda: self.weights[name].detach().to(torch.bfloat16))
        return weight(name=stored, shape=value.shape, dtype=DType.bf16)


def _is_product(node: Node) -> bool:
    """Whether the node multiplies, or looks up, in f32."""
    return (
        node.op in (linear, grouped_linear, matmul, conv, attention, embedding)
        and node.types[0].dtype is node.operands[0].dtype is DType.f32
    )


def _read_narrow(graph: Graph, narrowed: Container[Node]) -> dict[Node, int]:
    """1 for each node whose result is only read where it is rounded to bf16, directly or moved, 0 for the others."""
    nodes = graph.nodes()
    found = dict.fromkeys(nodes, 1) | {value.node: 0 for value in graph.outputs}
    for node in reversed(nodes):
        rounds = len(_rounded(node)) if node in narrowed else 0
        for i, value in enumerate(node.inputs):
            if value is not None and not (i < rounds or (node.op in _MOVES and found[node])):
                found[value.node] = 0
    return found


def _is_free(node: Node, only: Mapping[Node, int]) -> bool:
    """Whether bf16 of the node's result costs nothing, or is all that is read of it."""
    return bool(only.get(node)) or (node.op is cast and node.operands[0].dtype is DType.bf16)


def _rounded(node: Node) -> tuple[Value, ...]:
    """The operands that are rounded to bf16, which come first."""
    return node.operands[: {attention: 3, embedding: 1}.get(node.op, 2)]


def _product(node: Node, narrow: _Narrow) -> Value:
    """The node with narrow operands; its result is f32."""
    operands = _rounded(node)
    inputs = (*map(narrow, operands), *node.inputs[len(operands) :])
    if node.op in (linear, grouped_linear, conv):
        return node.op(*inputs, scope=node.scope, **{**node.attrs, "dtype": DType.f32})
    return cast(node.op(*inputs, scope=node.scope, **node.attrs), dtype=DType.f32, scope=node.scope)


def _refused_conv(node: Node) -> str | None:
    x, w = node.operands[:2]
    if w.node.op is not weight:
        return f"its weight is computed by {w.node.op.name}"
    if w.shape[-1] == 1 and node.attrs["groups"] == x.shape[-1]:
        return "it is depthwise: no sums along channels"
    grouped = node.attrs["groups"] != 1
    run = w.shape[-1] * (1 if grouped else w.shape[-2])
    return f"it reads {run} numbers in a row; pairs need an even count" if run % 2 else None


def _refused_weight(node: Node, rows: Mapping[str, int]) -> str | None:
    if node.op is embedding:
        return None if node.operands[0].node.op is weight else "its table is computed"
    x, w = node.operands[:2]
    if w.node.op is weight:
        return None
    if w.node.op is not dequantize:
        return f"its weight is computed by {w.node.op.name}"
    if x.node.op is dequantize:
        return "it multiplies integers"
    count = evaluate_dim(elements(x.shape[:-1]), rows)
    return f"up to {count} rows wait for the codes of its weight" if count <= _FEW_ROWS else None
