"""Builds `prefill` and `decode` from a graph whose tokens meet in causal attention only."""

from collections.abc import Mapping
from dataclasses import dataclass, field

import sympy

from planish.compiler import ops
from planish.compiler.ir import Attr, Graph, Node, Value
from planish.compiler.types import Dim, DType, Shape, Size, elements, same_shape, simplify, symbol
from planish.errors import PassError
from planish.passes.matching import reshaped, transposed
from planish.passes.split_generation_analysis import Kind, Tokens, where
from planish.passes.split_generation_attention import Attend, Caches, Layout, attended, pair_of
from planish.passes.split_generation_lanes import Lane
from planish.passes.split_generation_tables import Tables


@dataclass(frozen=True, slots=True)
class Signature:
    """The sizes of one function: `rows` and `tokens` as dimensions, and the declarations of the named ones."""

    name: str
    rows: Dim
    tokens: Dim
    sizes: tuple[Size, ...]


def signatures(batch: int, chunk: int) -> tuple[Signature, Signature]:
    """Those of `prefill` and `decode`."""
    rows: Dim = symbol("rows") if batch > 1 else 1
    declared = (Size("rows", 1, batch, batch),) if batch > 1 else ()
    tokens = (Size("tokens", 1, chunk, chunk),)
    return (
        Signature("prefill", rows, symbol("tokens"), declared + tokens),
        Signature("decode", rows, 1, declared),
    )


@dataclass(frozen=True, slots=True, eq=False)
class Plan:
    """What both functions are built from; `logits` is the value [rows, tokens, vocabulary] of the analysed graph."""

    tokens: Tokens
    logits: Value
    tables: Tables
    attends: Mapping[Node, Attend]
    layouts: Mapping[tuple[Value, Value], Layout]
    cache: str


def build(plan: Plan, signature: Signature) -> Graph:
    """One function: `(ids, past, count, caches) -> (logits of the last token [rows, V], caches)`."""
    maker = _Maker(plan, signature)
    result = maker.run()
    if result.dtype is not DType.f32:
        result = ops.cast(result, dtype=DType.f32)
    result = reshaped(result, (signature.rows, plan.logits.shape[-1]), "")
    inputs = (maker.ids, maker.past, maker.count, *maker.caches.inputs)
    return Graph(signature.name, inputs, (result, *maker.caches.outputs), signature.sizes)


@dataclass(slots=True, eq=False)
class _World:
    """Values as they are for all tokens of a call, or for the last one alone.

    `past` [rows] and `positions` [rows, tokens] are those of its tokens; positions stay inside the context.
    """

    tokens: Dim
    past: Value
    positions: Value
    values: dict[Value, Value] = field(default_factory=dict)
    tables: dict[tuple[Value, int], Value] = field(default_factory=dict)


class _Maker:
    """Rebuilds the nodes of one function.

    Keys and values, and what they are computed from, exist for all tokens; everything else for the last token alone.
    """

    def __init__(self, plan: Plan, signature: Signature) -> None:
        rows = (signature.rows,)
        self.plan, self.signature = plan, signature
        self.ids = ops.input_(name="ids", shape=(*rows, signature.tokens), dtype=DType.i64)
        self.past = ops.input_(name="past", shape=rows, dtype=DType.i64)
        self.count = ops.input_(name="count", shape=rows, dtype=DType.i64)
        self.caches = Caches(plan.cache, self.past, self.count)
        self.cached: dict[tuple[Value, Value], tuple[Value, Value]] = {}
        self.steps: Value | None = None
        self.full = self._world(signature.tokens, self.past)
        self.final = self.full if signature.tokens == 1 else self._final()
        kind = plan.tokens.ids.dtype
        self.full.values[plan.tokens.ids] = self.ids if kind is DType.i64 else ops.cast(self.ids, dtype=kind)

    def _final(self) -> _World:
        one = ops.full(value=1, dtype=DType.i64)
        self.offset = ops.clamp(ops.sub(self.count, one), low=0)
        return self._world(1, ops.add(self.past, self.offset))

    def _world(self, tokens: Dim, past: Value) -> _World:
        first = reshaped(past, (self.signature.rows, 1), "")
        positions = first if tokens == 1 else ops.add(first, ops.arange(length=tokens))
        return _World(tokens, past, ops.clamp(positions, high=self.plan.tables.context - 1))

    def run(self) -> Value:
        """Every node in order; the logits of the last token."""
        tokens = self.plan.tokens
        stored = [v for node in tokens.attending for v in pair_of(node)]
        needed = {n for n in Graph("", (), tuple(stored)).nodes() if tokens.kinds[n] is Kind.token}
        for node in tokens.graph.nodes():
            if tokens.kinds[node] is Kind.token and node is not tokens.ids.node:
                self._rebuild(node, self.full if node in needed else self.final)
        return self._operand(self.plan.logits, self.final, None)

    def _rebuild(self, node: Node, world: _World) -> None:
        if node in self.plan.attends:
            world.values[Value(node)] = self._attention(node, world)
            return
        inputs = tuple(None if v is None else self._operand(v, world, node) for v in node.inputs)
        again = node.op.node(inputs, self._attrs(node, world), node.scope)
        world.values.update(zip(node.values, again.values, strict=True))

    def _attrs(self, node: Node, world: _World) -> dict[str, Attr]:
        return {name: self._sized(attr, world) for name, attr in node.attrs.items()}

    def _sized(self, attr: Attr, world: _World) -> Attr:
        if isinstance(attr, tuple):
            return tuple(self._sized(part, world) for part in attr)
        return self._dim(attr, world) if isinstance(attr, sympy.Expr) else attr

    def _dim(self, dim: Dim, world: _World) -> Dim:
        if isinstance(dim, int):
            return dim
        tokens = self.plan.tokens
        known = {tokens.tokens: sympy.sympify(world.tokens)}
        known |= {} if tokens.rows is None else {tokens.rows: sympy.sympify(self.signature.rows)}
        return simplify(dim.xreplace(known))

    def _operand(self, value: Value, world: _World, user: Node | None) -> Value:
        """The value as `user` reads it in the world."""
        kind = self.plan.tokens.kinds[value.node]
        if kind is Kind.constant:
            return value
        if kind is Kind.position:
            assert user is not None
            return self._table(value, world, user)
        if value not in world.values:
            world.values[value] = self._repeated(value, world) if kind is Kind.uniform else self._picked(value)
        return world.values[value]

    def _repeated(self, value: Value, world: _World) -> Value:
        inputs = tuple(self._operand(v, world, None) for v in value.node.operands)
        return value.node.op.node(inputs, self._attrs(value.node, world), value.node.scope).values[0]

    def _table(self, value: Value, world: _World, user: Node) -> Value:
        """The rows of a table at the world's positions, in the shape that the user read."""
        rows = self._row_axis(value, user)
        if (value, rows) not in world.tables:
            world.tables[value, rows] = self._read(value, world, rows)
        return world.tables[value, rows]

    def _row_axis(self, value: Value, user: Node) -> int:
        """The axis of the value that the rows of the batch get; negative where it needs more axes in front."""
        tokens = self.plan.tokens
        if (own := tokens.row_lanes.get(value)) is not None:
            return own.axis
        result = tokens.row_lanes.get(Value(user), Lane(0))
        return result.axis - (user.types[0].rank - value.type.rank)

    def _read(self, value: Value, world: _World, rows: int) -> Value:
        table, scope = self.plan.tables.found[value], value.node.scope
        shape = tuple(self._dim(d, world) for d in value.shape)
        if table.token is None:
            return table.stored if same_shape(table.stored.shape, shape) else ops.expand(table.stored, shape=shape)
        if rows < 0:
            shape = (1,) * -rows + shape
        shift, row = max(0, -rows), max(0, rows)
        token, others = table.token + shift, tuple(axis + shift for axis in table.others)
        picked = ops.index_select(table.stored, world.positions, axis=0, scope=scope)
        if row == token or self.signature.rows == 1:
            picked = reshaped(picked, (elements(picked.shape[:2]), *picked.shape[2:]), scope)
            return self._ordered(picked, (token, *others), shape, scope)
        if row in others or (shape[row] != 1 and value not in self.plan.tokens.row_lanes):
            raise PassError(f"split-generation: {value.node.op.name}{where(value.node)} has no axis for the batch")
        shape = (*shape[:row], self.signature.rows, *shape[row + 1 :])
        return self._ordered(picked, (row, token, *others), shape, scope)

    def _ordered(self, picked: Value, held: tuple[int, ...], shape: Shape, scope: str) -> Value:
        """`picked`, whose axes are the axes `held` of the result, as `shape`."""
        order = tuple(sorted(range(len(held)), key=held.__getitem__))
        wide = [i for i in order if picked.shape[i] != 1]
        if wide != sorted(wide):
            picked = transposed(picked, order, scope)
        return reshaped(picked, shape, scope)

    def _picked(self, value: Value) -> Value:
        """The last token of a value of all tokens."""
        tokens, scope = self.plan.tokens, value.node.scope
        whole, lane, rows = self.full.values[value], tokens.lanes[value], tokens.row_lanes.get(value)
        if lane.inner != 1 or (rows is not None and rows.axis > lane.axis):
            raise PassError(f"split-generation: {value.node.op.name}{where(value.node)} holds its tokens inside out")
        shape = tuple(self._dim(d, self.final) for d in value.shape)
        if self.signature.rows == 1:
            return ops.index_select(whole, self.offset, axis=lane.axis, scope=scope)
        if rows is None or rows.axis == lane.axis:
            return reshaped(ops.index_select(whole, self._steps(), axis=lane.axis, scope=scope), shape, scope)
        others = [i for i in range(whole.type.rank) if i not in (rows.axis, lane.axis)]
        order = (rows.axis, lane.axis, *others)
        moved = transposed(whole, order, scope)
        flat = reshaped(moved, (elements(moved.shape[:2]), *moved.shape[2:]), scope)
        picked = ops.index_select(flat, self._steps(), axis=0, scope=scope)
        return self._ordered(picked, (rows.axis, *others), shape, scope)

    def _steps(self) -> Value:
        """The number of each row's last token among the tokens of all rows."""
        if self.steps is None:
            tokens = ops.dim_value(value=self.signature.tokens)
            self.steps = ops.add(ops.mul(ops.arange(length=self.signature.rows), tokens), self.offset)
        return self.steps

    def _attention(self, node: Node, world: _World) -> Value:
        what, scope = self.plan.attends[node], node.scope
        k, v = self._cached(node)
        q = self._heads(node.operands[0], self._operand(node.operands[0], world, node), node)
        bias = None if what.bias is None else self.plan.tables.biases[what.bias]
        found = attended(q, k, v, world.past, Attend(what.window, bias, what.cap), node)
        return reshaped(found, tuple(self._dim(d, world) for d in node.types[0].shape), scope)

    def _cached(self, node: Node) -> tuple[Value, Value]:
        pair = pair_of(node)
        if pair not in self.cached:
            layout = self.plan.layouts[pair]
            new = [self._heads(v, self._operand(v, self.full, node), node) for v in pair]
            names = [f"cache.{layout.layer}.{end}" for end in "kv"]
            k, v = (self.caches.extended(x, n, layout.slots, node.scope) for x, n in zip(new, names, strict=True))
            self.cached[pair] = (k, v)
        return self.cached[pair]

    def _heads(self, old: Value, new: Value, node: Node) -> Value:
        """A rank 4 operand of attention as [rows, heads, S, D], where rows may be merged with the heads."""
        heads, lane = elements(old.shape[:2]), self.plan.tokens.row_lanes.get(old)
        if lane is not None and self.plan.tokens.rows is not None:
            heads = simplify(sympy.sympify(heads) / self.plan.tokens.rows)
            if elements((lane.inner, *old.shape[lane.axis + 1 : 2])) != heads:
                raise PassError(f"split-generation: attention{where(node)} holds the batch inside its heads")
        return reshaped(new, (self.signature.rows, heads, *new.shape[2:]), node.scope)
