"""Masks that a model stores as a weight: a lower triangle of which it cuts the sizes of the call."""

from collections.abc import Mapping

import sympy
import torch
from torch import Tensor

from planish.compiler.evaluate import run_node
from planish.compiler.ir import Node, Value
from planish.compiler.ops import cast, eq, full, ge, gt, le, logical_not, lt, ne, slice_, weight
from planish.compiler.types import Dim, simplify

_THROUGH = (slice_, cast, logical_not, eq, ne, lt, le, gt, ge)


def stored_triangle(term: Value, weights: Mapping[str, Tensor]) -> Dim | None:
    """The d of a bool value that holds where `key - query <= d`, cut from a stored matrix; None for others."""
    chain = _chain(term)
    if chain is None:
        return None
    rows, columns = _starts(chain, term.type.rank)
    if rows is None or columns is None:
        return None
    content = _content(chain, weights)
    diagonal = _diagonal(content) if content.dtype is torch.bool else None
    return None if diagonal is None else simplify(diagonal + rows - columns)


def _chain(term: Value) -> list[Node] | None:
    """The nodes from a weight to the term, where only cuts, casts and comparisons with a number lie between."""
    found = [term.node]
    while found[0].op in _THROUGH:
        numbers = [v for v in found[0].operands[1:] if v.node.op is not full]
        if numbers:
            return None
        found.insert(0, found[0].operands[0].node)
    return found if found[0].op is weight and len(found) > 1 else None


def _starts(chain: list[Node], rank: int) -> tuple[Dim | None, Dim | None]:
    """Where the cuts start in the last two axes, None where they skip elements or cut other axes."""
    starts: dict[int, Dim] = {rank - 2: 0, rank - 1: 0}
    for node in chain:
        if node.op is slice_:
            axis, start = node.attrs["axis"], node.attrs["start"]
            assert isinstance(axis, int)
            assert isinstance(start, int | sympy.Expr)
            if axis not in starts or node.attrs["step"] != 1:
                return None, None
            starts[axis] = simplify(starts[axis] + start)
    return starts[rank - 2], starts[rank - 1]


@torch.no_grad()
def _content(chain: list[Node], weights: Mapping[str, Tensor]) -> Tensor:
    """The term over the whole stored matrix."""
    content = weights[str(chain[0].attrs["name"])]
    for node in chain[1:]:
        if node.op is not slice_:
            values = {node.operands[0]: content}
            values |= {v: run_node(v.node, {}, {})[0] for v in node.operands[1:]}
            content = run_node(node, values, {})[0]
    return content


def _diagonal(content: Tensor) -> int | None:
    if content.numel() == 0 or any(d != 1 for d in content.shape[:-2]):
        return None
    matrix = content.reshape(content.shape[-2:])
    diagonal = int(matrix[0].sum()) - 1
    return diagonal if torch.equal(matrix, torch.ones_like(matrix).tril(diagonal)) else None
