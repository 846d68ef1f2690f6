"""Attention over caches: what each attention over tokens sees, its caches, and scores that `attention` cannot say."""

import operator
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TypeAlias

from planish.compiler.ir import Node, Value
from planish.compiler.ops import (
    add,
    arange,
    attention,
    cache_update,
    cast,
    dequantize,
    full,
    input_,
    le,
    logical_and,
    logical_not,
    lt,
    matmul,
    mul,
    pack_groups,
    quantization_scale,
    quantize,
    remainder,
    reshape,
    softmax,
    sub,
    tanh,
    transpose,
    unpack_groups,
    where,
)
from planish.compiler.ops.contract import mask_of, sink_of
from planish.compiler.types import Dim, DType
from planish.errors import PassError
from planish.passes import split_generation_analysis as analysis
from planish.passes.attention_masks import Masks, negated, only_broadcasts
from planish.passes.matching import conjunction, literal, reshaped
from planish.passes.split_generation_analysis import Kind, Tokens
from planish.passes.split_generation_bands import seen_back

Pair: TypeAlias = tuple[Value, Value]

_LOW = -3.4028234663852886e38


@dataclass(frozen=True, slots=True)
class Attend:
    """The `window` an attention sees, a `bias` [1, H or 1, 1, keys] of its scores, and a `cap` by tanh."""

    window: int | None = None
    bias: Value | None = None
    cap: float | None = None

    @property
    def spelled(self) -> bool:
        """Whether `attention` cannot say it."""
        return self.bias is not None or self.cap is not None


def attend(node: Node, tokens: Tokens, masks: Masks, context: int, cap: float | None) -> Attend:
    """What the attention sees; raises PassError where that does not follow from positions, or includes later tokens."""
    conditions: list[Value] = []
    biases: list[Value] = []
    if (mask := mask_of(node)) is not None:
        _split(mask, conditions, biases)
    window = _window(node, conditions, tokens, masks, context)
    place = f"attention{analysis.where(node)}"
    for bias in biases:
        if tokens.kinds.get(bias.node, Kind.token) is Kind.token or bias.shape[-2:-1] not in ((1,), ()):
            raise PassError(
                f"split-generation: {place} adds {bias.type} to its scores, which no cache of keys can hold"
            )
    found = Attend(window, _sum(biases, node.scope), cap)
    if found.spelled and sink_of(node) is not None:
        raise PassError(f"split-generation: {place} has a sink beside a bias or a cap of its scores; import without it")
    return found


def _window(node: Node, conditions: list[Value], tokens: Tokens, masks: Masks, context: int) -> int | None:
    """The window of an attention under these conditions, None where each query sees all keys before it."""
    ranked = [reshaped(c, (1,) * (4 - c.type.rank) + c.shape, node.scope) for c in conditions]
    probe = attention(*node.inputs[:3], conjunction(ranked, node.scope), scope=node.scope, **node.attrs).node
    known = masks.positional(probe, {})
    seen = known.node if isinstance(known, Value) else probe
    place, window, rest = f"attention{analysis.where(node)}", seen.attrs["window"], mask_of(probe)
    assert window is None or isinstance(window, int)
    if mask_of(seen) is None and seen.attrs["causal"]:
        return window
    back = None if rest is None else seen_back(rest, tokens, masks.weights, context, causal=bool(node.attrs["causal"]))
    if back is not None and not node.attrs["window"]:
        return back if back < context else None
    if mask_of(seen) is not None:
        raise PassError(f"split-generation: {place} has a mask that is neither causal nor a window; import without it")
    raise PassError(f"split-generation: {place} is not causal: it sees later tokens, so no cache can hold it")


def _split(mask: Value, conditions: list[Value], biases: list[Value]) -> None:
    """Take a mask apart: what it keeps, and what it adds to the scores."""
    node = mask.node
    if mask.dtype is DType.bool:
        conditions.append(_decided(mask))
    elif node.op is add:
        for part in node.operands:
            _split(part, conditions, biases)
    elif node.op is where and (found := _kept(node)) is not None:
        condition, other = found
        conditions.append(condition)
        _split(other, conditions, biases)
    elif only_broadcasts(mask):
        _split(node.operands[0], conditions, biases)
    elif literal(mask) != 0:
        biases.append(mask)


def _kept(node: Node) -> tuple[Value, Value] | None:
    """The condition under which a `where` is not the lowest number, and what it is then."""
    condition, x, y = node.operands
    keep = _decided(condition)
    for low, other, kept in ((y, x, keep), (x, y, negated(keep))):
        number = literal(low)
        if number is not None and number < -1e30:
            return kept, other
    return None


def _decided(condition: Value) -> Value:
    """`not (where(c, 0, low) < number)` and the like as c: a comparison of two literals by a condition."""
    node = condition.node
    if node.op is logical_not:
        return negated(_decided(node.operands[0]))
    if node.op.name not in _COMPARE or node.operands[0].node.op is not where:
        return condition
    inner, x, y = node.operands[0].node.operands
    a, b, limit = (literal(v) for v in (x, y, node.operands[1]))
    if a is None or b is None or limit is None:
        return condition
    compare = _COMPARE[node.op.name]
    outcomes = (compare(a, limit), compare(b, limit))
    return inner if outcomes == (True, False) else negated(inner) if outcomes == (False, True) else condition


_COMPARE: Mapping[str, Callable[[float, float], bool]] = {
    "lt": operator.lt,
    "le": operator.le,
    "gt": operator.gt,
    "ge": operator.ge,
    "eq": operator.eq,
    "ne": operator.ne,
}


def _sum(values: list[Value], scope: str) -> Value | None:
    total: Value | None = None
    for value in values:
        total = value if total is None else add(total, value, scope=scope)
    return total


@dataclass(frozen=True, slots=True)
class Layout:
    """Where one pair of keys and values is kept: its number among the caches and its slots."""

    layer: int
    slots: int


def layouts(
    tokens: Tokens, attends: Mapping[Node, Attend], context: int, chunk: int
) -> dict[tuple[Value, Value], Layout]:
    """A cache for every pair of keys and values; a window keeps what a chunk of tokens behind it sees."""
    seen: dict[tuple[Value, Value], list[int]] = {}
    for node in tokens.attending:
        what = attends[node]
        whole = what.window is None or what.bias is not None or what.window >= context
        slots = context if whole or what.window is None else -(-min(context, what.window + chunk - 1) // 16) * 16
        seen.setdefault(pair_of(node), []).append(slots)
    return {pair: Layout(i, max(slots)) for i, (pair, slots) in enumerate(seen.items())}


def pair_of(node: Node) -> Pair:
    """The keys and values of an attention."""
    return node.operands[1], node.operands[2]


@dataclass(slots=True)
class Caches:
    """The caches of one function: inputs as they are asked for, and outputs in the same order."""

    kind: str
    past: Value
    count: Value
    inputs: list[Value] = field(default_factory=list)
    outputs: list[Value] = field(default_factory=list)

    def extended(self, new: Value, name: str, slots: int, scope: str) -> Value:
        """The cache `name` with `new` [rows, G, S, D] written, as numbers of the dtype of `new` [rows, G, slots, D]."""
        return held(new, self.kind, lambda part, suffix: self._state(part, name + suffix, slots, scope), scope)

    def _state(self, new: Value, name: str, slots: int, scope: str) -> Value:
        shape = (*new.shape[:2], slots, new.shape[3])
        cache = input_(name=name, shape=shape, dtype=new.dtype)
        self.inputs.append(cache)
        self.outputs.append(cache_update(cache, new, self.past, self.count, scope=scope))
        return self.outputs[-1]


def held(new: Value, kind: str, keep: Callable[[Value, str], Value], scope: str) -> Value:
    """What a cache of this kind gives back of `new` [rows, G, S, D], in its dtype.

    `keep` is given each tensor that is stored, with the end of its name, and returns what is read of it later.
    """
    if kind == "i8":
        return _quantized(new, keep, scope)
    if kind == "i4":
        return _packed(new, keep, scope)
    return _cast(keep(_cast(new, DType(kind), scope), ""), new.dtype, scope)


def _quantized(new: Value, keep: Callable[[Value, str], Value], scope: str) -> Value:
    width = new.shape[3]
    assert isinstance(width, int)
    scale = quantization_scale(new, group=width, scope=scope)
    codes = keep(quantize(new, scale, group=width, scope=scope), "")
    return dequantize(codes, keep(scale, "_scale"), group=width, dtype=new.dtype, scope=scope)


def _packed(new: Value, keep: Callable[[Value, str], Value], scope: str) -> Value:
    width = new.shape[3]
    if not isinstance(width, int) or width % 8:
        raise PassError(
            f"split-generation: heads of {width} in '{scope}' have no form in 4 bits, which takes multiples of 8; "
            "use a cache of f32, f16 or i8"
        )
    return unpack_groups(keep(pack_groups(new, scope=scope), ""), width=width, dtype=new.dtype, scope=scope)


def _cast(value: Value, dtype: DType, scope: str) -> Value:
    return value if value.dtype is dtype else cast(value, dtype=dtype, scope=scope)


def attended(q: Value, k: Value, v: Value, past: Value, what: Attend, node: Node) -> Value:
    """Attention of q [rows, H, S, D] over caches k and v [rows, G, R, D], as `node` had it over tokens."""
    scale, scope = node.attrs["scale"], node.scope
    if not what.spelled:
        return attention(q, k, v, None, past, sink_of(node), causal=True, window=what.window, scale=scale, scope=scope)
    assert isinstance(scale, float)
    rows, heads, queries, width = q.shape
    groups, slots = k.shape[1:3]
    merged = (rows, groups, heads * queries // groups if isinstance(queries, int) else heads // groups * queries)
    scores = matmul(reshaped(q, (*merged, width), scope), transpose(k, order=(0, 1, 3, 2), scope=scope), scope=scope)
    scores = mul(reshaped(scores, (rows, heads, queries, slots), scope), _number(scale, scores, scope), scope=scope)
    if what.cap is not None:
        cap = _number(what.cap, scores, scope)
        scores = mul(
            tanh(mul(scores, _number(1 / what.cap, scores, scope), scope=scope), scope=scope), cap, scope=scope
        )
    scores = scores if what.bias is None else add(scores, what.bias, scope=scope)
    seen = _visible(past, queries, slots, what.window, scope)
    kept = where(seen, scores, _number(_LOW, scores, scope), scope=scope)
    weights = reshaped(softmax(kept, axis=3, scope=scope), (*merged, slots), scope)
    return reshaped(matmul(weights, v, scope=scope), (rows, heads, queries, v.shape[3]), scope)


def _number(value: float, like: Value, scope: str) -> Value:
    return full(value=float(value), dtype=like.dtype, scope=scope)


def _visible(past: Value, queries: Dim, slots: Dim, window: int | None, scope: str) -> Value:
    """Which slots [rows, 1, queries, slots] each query sees: how far back their positions are, as `attention` says."""
    first = reshape(past, shape=(past.shape[0], 1, 1, 1), scope=scope)
    step = reshape(arange(length=queries, scope=scope), shape=(1, 1, queries, 1), scope=scope)
    slot = reshape(arange(length=slots, scope=scope), shape=(1, 1, 1, slots), scope=scope)
    position = add(first, step, scope=scope)
    count = full(value=slots, dtype=DType.i64, scope=scope)
    back = remainder(sub(position, slot, scope=scope), count, scope=scope)
    seen = le(back, position, scope=scope)
    if window is None:
        return seen
    near = lt(back, full(value=window, dtype=DType.i64, scope=scope), scope=scope)
    return logical_and(seen, near, scope=scope)
