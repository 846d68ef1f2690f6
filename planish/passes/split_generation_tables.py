"""What depends on positions alone, evaluated for the whole context and stored as weights."""

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from planish.compiler.evaluate import run_node
from planish.compiler.ir import Graph, Node, Value
from planish.compiler.ops import full, weight
from planish.compiler.ops.structure import FROM_TORCH
from planish.compiler.weights import Weights
from planish.errors import PassError
from planish.passes.split_generation_analysis import Kind, Tokens, where

_MOVEMENT = "movement"


@dataclass(frozen=True, slots=True)
class Table:
    """A value of positions: `stored` [context, *others], where `others` are the axes of the value that it keeps.

    `token` is the axis of the value that ran over tokens; None where the value is the same for every position, and then
    `stored` is the value for one row.
    """

    stored: Value
    token: int | None
    others: tuple[int, ...] = ()


@dataclass(slots=True)
class Tables:
    """The tables of one graph; `weights` grows by those that were asked for."""

    tokens: Tokens
    context: int
    weights: Weights
    found: dict[Value, Table] = field(default_factory=dict)
    biases: dict[Value, Value] = field(default_factory=dict)
    _names: dict[tuple[object, ...], str] = field(default_factory=dict)

    def build(self, roots: Iterable[Value], biases: Iterable[Value]) -> None:
        """Evaluate all `roots` for the context, and again for a shorter length that must give the same beginning.

        `biases` are those of attention scores, [.., 1, keys], which are stored as [1, H or 1, 1, context], relative to
        that of the first key: a softmax does not see what all scores have in common.
        Raises PassError naming the value that changes with the length itself.
        """
        roots, biases = tuple(dict.fromkeys(roots)), tuple(dict.fromkeys(biases))
        short = max(1, self.context // 2)
        whole, begun = (self._evaluate((*roots, *biases), *size) for size in ((self.context, 1), (short, 2)))
        for root in roots:
            lane = self.tokens.lanes.get(root)
            token = None if lane is None else lane.axis
            rows = self.tokens.row_lanes.get(root)
            _check(root, whole[root], begun[root], token, None if rows is None else rows.axis)
            self.found[root] = self._stored(root, whole[root], token)
        for bias in biases:
            token = None if isinstance(bias.shape[-1], int) else bias.type.rank - 1
            rows_axis = 0 if bias.type.rank == 4 and not isinstance(bias.shape[0], int) else None
            kept = _from_first(whole[bias])
            _check(bias, kept, _from_first(begun[bias]), token, rows_axis)
            self.biases[bias] = self._weight(bias, kept.reshape((1,) * (4 - bias.type.rank) + kept.shape))

    @torch.no_grad()
    def _evaluate(self, roots: tuple[Value, ...], length: int, rows: int) -> dict[Value, Tensor]:
        sizes = {self.tokens.tokens.name: length}
        sizes |= {} if self.tokens.rows is None else {self.tokens.rows.name: rows}
        values: dict[Value, Tensor] = {}
        for node in Graph("positions", (), roots).nodes():
            if node.op is weight:
                values[Value(node)] = self.weights[str(node.attrs["name"])]
            else:
                values.update(zip(node.values, run_node(node, values, sizes), strict=True))
        return {root: values[root] for root in roots}

    def _stored(self, root: Value, whole: Tensor, token: int | None) -> Table:
        if token is None:
            return Table(self._weight(root, whole), None)
        others = tuple(i for i, size in enumerate(whole.shape) if i != token and size != 1)
        kept = whole.movedim(token, 0).reshape(self.context, *(whole.shape[i] for i in others))
        return Table(self._weight(root, kept), token, others)

    def _weight(self, root: Value, content: Tensor) -> Value:
        content = content.contiguous()
        mark = hashlib.sha256(content.reshape(-1).view(torch.uint8).numpy().tobytes()).digest()
        key = (content.dtype, tuple(content.shape), mark)
        if key not in self._names:
            self._names[key] = self._same(content) or self._fresh(root.node)
            self.weights = self.weights.joined({self._names[key]: content})
        return weight(name=self._names[key], shape=tuple(content.shape), dtype=FROM_TORCH[content.dtype])

    def _same(self, content: Tensor) -> str | None:
        """A weight that holds the same already."""
        types = ((name, self.weights.like(name)) for name in self.weights)
        alike = (n for n, t in types if t.dtype is content.dtype and t.shape == content.shape)
        return next((name for name in alike if torch.equal(self.weights[name], content)), None)

    def _fresh(self, node: Node) -> str:
        while _MOVEMENT in node.op.traits:
            node = node.operands[0].node
        named = node.attrs["name"] if node.op is weight else node.scope
        base = f"{named or 'positions'}.{'positions' if node.op is weight else node.op.name}"
        numbered = (base if i == 1 else f"{base}.{i}" for i in range(1, 1 << 30))
        return next(name for name in numbered if name not in self.weights)


def _from_first(bias: Tensor) -> Tensor:
    first = bias[..., :1]
    return bias - torch.where(first.isfinite(), first, 0)


def _check(root: Value, whole: Tensor, begun: Tensor, token: int | None, rows: int | None) -> None:
    """Whether each of two rows of a shorter run of positions is the beginning of the one of all positions."""
    if rows is None:
        begun = begun[None]
    elif rows == token:
        begun = torch.stack(begun.chunk(2, rows))
    else:
        begun = begun.movedim(rows, 0).unsqueeze(1 + rows)
    expected = whole if token is None else whole.narrow(token, 0, begun.shape[1 + token])
    if not _close(begun, expected[None].expand(begun.shape)):
        raise PassError(
            f"split-generation: {root.node.op.name}{where(root.node)} depends on the number of tokens itself, not only "
            "on their positions: it would change for tokens that are in a cache already"
        )


def _close(left: Tensor, right: Tensor) -> bool:
    if not left.is_floating_point():
        return torch.equal(left, right)
    return torch.allclose(left.float(), right.float(), rtol=1e-5, atol=1e-6, equal_nan=True)


def roots_of(tokens: Tokens, skipped: Mapping[Node, int]) -> list[Value]:
    """The values of positions that nodes of tokens read; of nodes in `skipped` only the first so many operands."""
    nodes = [n for n in tokens.graph.nodes() if tokens.kinds[n] is Kind.token]
    read = [v for n in nodes for v in n.operands[: skipped.get(n, len(n.operands))]]
    return [v for v in read if tokens.kinds[v.node] is Kind.position and v.node.op is not full]
