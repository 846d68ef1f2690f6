"""What attention masks mean: everything kept, causal, a window, and the rest."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from torch import Tensor

from planish.compiler.ir import Node, Value
from planish.compiler.ops import (
    attention,
    eq,
    expand,
    ge,
    gt,
    le,
    logical_and,
    logical_not,
    logical_or,
    lt,
    ne,
    reshape,
    where,
)
from planish.compiler.ops.contract import mask_of
from planish.compiler.types import Dim, DType, same_dim, same_shape, simplify
from planish.passes.indices import COMPARISONS, Indices
from planish.passes.matching import conjunction, literal, reshaped
from planish.passes.stored_masks import stored_triangle

Uses = Mapping[Node, int]


@dataclass(frozen=True, slots=True)
class _Band:
    """Bounds on `key - query`: from `low` to `high`, None where there is none."""

    low: Dim | None = None
    high: Dim | None = None


@dataclass(frozen=True, slots=True)
class Masks:
    """Rewrites of attention's mask that follow from positions."""

    indices: Indices
    weights: Mapping[str, Tensor]

    def positional(self, node: Node, uses: Uses) -> Value | str | None:
        """Terms of a bool mask that follow from positions become `causal` and `window`; true terms go."""
        mask = mask_of(node)
        if mask is None or mask.dtype is not DType.bool:
            return _without_zero_mask(node, mask)
        terms = list(_terms(mask))
        kept = [t for t in terms if not self._is_true(t)]
        bands = {t: band for t in kept if (band := self._band(t)) is not None}
        found = self._causal(node, bands)
        used, attrs = found or ((), {})
        rest = [t for t in kept if t not in used]
        if len(rest) == len(terms):
            return None
        joined = conjunction([reshaped(t, (1,) * (4 - t.type.rank) + t.shape, node.scope) for t in rest], node.scope)
        return attention(*node.inputs[:3], joined, *node.inputs[4:], scope=node.scope, **{**node.attrs, **attrs})

    def as_bool(self, node: Node, uses: Uses) -> Value | str | None:
        """A float mask of 0 and the lowest number as a bool mask, where every query is sure to see a key."""
        found = _kept(mask_of(node))
        if found is None:
            return None
        condition, low = found
        if low != float("-inf") and not self._every_query_sees(condition, node):
            return "a query may see no key, and with a finite mask the model then averages over all keys"
        rank4 = reshaped(condition, (1,) * (4 - condition.type.rank) + condition.shape, node.scope)
        return attention(*node.inputs[:3], rank4, *node.inputs[4:], scope=node.scope, **node.attrs)

    def _every_query_sees(self, condition: Value, node: Node) -> bool:
        """Whether the condition follows from positions and holds where key and query are the same."""
        terms = [t for t in _terms(condition) if not self._is_true(t)]
        bands = {t: band for t in terms if (band := self._band(t)) is not None}
        found = self._causal(node, bands)
        square = same_dim(node.operands[0].shape[2], node.operands[1].shape[2])
        return found is not None and len(found[0]) == len(terms) and square

    def _is_true(self, term: Value) -> bool:
        return literal(term) is True or (term.node.op in COMPARISONS and self.indices.decided(term.node) is True)

    def _band(self, term: Value) -> _Band | None:
        """The band that a comparison of a key's position with a query's keeps, or that a stored triangle does."""
        if term.type.rank < 2:
            return None
        if term.node.op not in (le, lt, ge, gt) or not term.node.operands[0].dtype.is_integer:
            stored = stored_triangle(term, self.weights)
            return None if stored is None else _Band(high=stored)
        form = self.indices.difference(term.node)
        if form is None or any(not same_dim(c, 0) for c in form.coefficients[:-2]):
            return None
        query, key = form.coefficients[-2:]
        if not same_dim(simplify(query + key), 0) or abs(key) != 1:
            return None
        upper = (term.node.op in (le, lt)) == (key == 1)
        bound = simplify(-form.constant * key)
        slack = int(term.node.op in (lt, gt))
        return _Band(high=simplify(bound - slack)) if upper else _Band(low=simplify(bound + slack))

    def _causal(self, node: Node, bands: Mapping[Value, _Band]) -> tuple[tuple[Value, ...], dict[str, object]] | None:
        """The terms that `causal` and `window` stand for, with those attributes."""
        queries, keys = node.operands[0].shape[2], node.operands[1].shape[2]
        bands = {t: band for t, band in bands.items() if same_shape(t.shape[-2:], (queries, keys))}
        ahead = simplify(keys - queries)
        ends = [t for t, band in bands.items() if band.high is not None and same_dim(band.high, ahead)]
        if not ends and not node.attrs["causal"]:
            return None
        windows = {t: simplify(ahead + 1 - band.low) for t, band in bands.items() if band.low is not None}
        fixed = {t: width for t, width in windows.items() if isinstance(width, int) and width > 0}
        known = node.attrs["window"]
        widths = [*fixed.values(), *([known] if isinstance(known, int) else [])]
        return (*ends, *fixed), {"causal": True, "window": min(widths, default=None)}


def _terms(mask: Value) -> Iterator[Value]:
    """The terms of a conjunction, seen through expansions and casts of shape that keep their ranks."""
    if mask.node.op is logical_and:
        for value in mask.node.operands:
            yield from _terms(value)
    elif only_broadcasts(mask):
        yield from _terms(mask.node.operands[0])
    else:
        yield mask


def only_broadcasts(mask: Value) -> bool:
    """Whether the mask is an expansion, or a reshape that adds leading axes of size 1."""
    if mask.node.op not in (expand, reshape):
        return False
    inner = mask.node.operands[0]
    if mask.node.op is expand:
        return inner.type.rank > 1
    extra = mask.type.rank - inner.type.rank
    return extra > 0 and inner.type.rank > 1 and mask.shape == (1,) * extra + inner.shape


def _kept(mask: Value | None) -> tuple[Value, float] | None:
    """The condition and the low number of a mask that is 0 where the condition holds and low elsewhere."""
    while mask is not None and mask.node.op is reshape and only_broadcasts(mask):
        mask = mask.node.operands[0]
    if mask is None or mask.node.op is not where:
        return None
    condition, x, y = mask.node.operands
    keep, drop = literal(x), literal(y)
    if keep == 0 and drop is not None and drop < -1e30:
        return condition, drop
    dropped = drop == 0 and keep is not None and keep < -1e30
    return (negated(condition), keep) if dropped and keep is not None else None


def negated(condition: Value) -> Value:
    """`not condition`, pushed into comparisons of integers and through `and` and `or`."""
    node, scope = condition.node, condition.node.scope
    if node.op is logical_not and node.operands[0].dtype is DType.bool:
        return node.operands[0]
    if node.op in _COMPLEMENT and node.operands[0].dtype.is_integer:
        return _COMPLEMENT[node.op](*node.operands, scope=scope)
    if node.op in (logical_and, logical_or) and all(v.dtype is DType.bool for v in node.operands):
        other = logical_or if node.op is logical_and else logical_and
        return other(*map(negated, node.operands), scope=scope)
    return logical_not(condition, scope=scope)


_COMPLEMENT = {le: gt, gt: le, lt: ge, ge: lt, eq: ne, ne: eq}


def _without_zero_mask(node: Node, mask: Value | None) -> Value | None:
    """A float mask of zeros adds nothing."""
    if mask is None or literal(mask) != 0:
        return None
    return attention(*node.inputs[:3], None, *node.inputs[4:], scope=node.scope, **node.attrs)
