"""group-experts: index_select(@w, index) x -> grouped_linear(x, @w, index)."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from planish.compiler.ir import Node, Program, Value
from planish.compiler.ops import grouped_linear, index_select, matmul, reshape, transpose
from planish.compiler.pass_ import Change, Context, Contract, Exact
from planish.compiler.rewrite import Step, apply_steps
from planish.compiler.types import same_dim, same_shape
from planish.passes.matching import axes, each_function, expanded, is_constant, reshaped, swapped

Uses = Mapping[Node, int]


@dataclass(frozen=True, slots=True)
class GroupExperts:
    """Multiplies each token with the weights of its experts where they lie, instead of copying them for every token.

    `matmul(index_select(@w, index), x)` over experts [E, N, K] becomes `grouped_linear(x, @w, index)`, also where the
    weights are stored as [E, K, N] or stand on the right. How tokens choose their experts stays as it is. Experts that
    are computed, and rows that share gathered weights otherwise than one set a row of the index, stay as they are.
    """

    name: ClassVar[str] = "group-experts"
    contract: ClassVar[Contract] = Exact()

    def apply(self, program: Program, context: Context) -> Change:
        return each_function(program, lambda graph: apply_steps(graph, _STEPS))


@dataclass(frozen=True, slots=True)
class _Experts:
    """Weights [..., N, K] that `index` [...] takes out of `w` [E, N, K]."""

    w: Value
    index: Value


def _grouped(node: Node, uses: Uses) -> Value | str | None:
    left, right = node.operands
    if (found := _experts(left, True, node.scope)) is not None:
        return _refusal(node, found) or _turned(_product(found, _turned(right, node.scope), node), node.scope)
    if (found := _experts(right, False, node.scope)) is not None:
        return _refusal(node, found) or _product(found, left, node)
    return None


def _experts(value: Value, natural: bool, scope: str) -> _Experts | None:
    """What a gathered operand is taken from; `natural` where it stands as [..., N, K], else as [..., K, N]."""
    shape, gathered = value.shape, value.node
    if gathered.op is transpose and axes(gathered.attrs["order"])[-2:] == (value.type.rank - 1, value.type.rank - 2):
        natural, gathered = not natural, gathered.operands[0].node
    if gathered.op is reshape and all(map(same_dim, gathered.types[0].shape[-2:], gathered.operands[0].shape[-2:])):
        gathered = gathered.operands[0].node
    if gathered.op is not index_select or gathered.attrs["axis"] != 0 or gathered.operands[0].type.rank != 3:
        return None
    w, index = gathered.operands
    return _Experts(w if natural else swapped(w, scope), reshaped(index, shape[:-2], scope))


def _refusal(node: Node, found: _Experts) -> str | None:
    if not is_constant(found.w):
        return "its experts are computed, not stored"
    if not found.w.dtype.is_float:
        return f"its experts are {found.w.dtype}"
    if not same_shape(node.types[0].shape[:-2], found.index.shape):
        return f"each expert of {found.index.type} is multiplied with several blocks of rows"
    return None


def _product(found: _Experts, x: Value, node: Node) -> Value:
    """Rows x [..., M, K], whose leading axes broadcast to those of the index, times their experts: [..., M, N]."""
    lead, (count, depth), scope = found.index.shape, x.shape[-2:], node.scope
    x = expanded(x, (*lead, count, depth), scope)
    if count == 1:
        rows = grouped_linear(reshaped(x, (*lead, depth), scope), found.w, found.index, scope=scope)
        return reshaped(rows, (*lead, 1, rows.shape[-1]), scope)
    index = expanded(reshaped(found.index, (*lead, 1), scope), (*lead, count), scope)
    return grouped_linear(x, found.w, index, scope=scope)


def _turned(value: Value, scope: str) -> Value:
    """The last two axes exchanged; a reshape where one of them has a single element."""
    *lead, rows, columns = value.shape
    if rows == 1 or columns == 1:
        return reshaped(value, (*lead, columns, rows), scope)
    return swapped(value, scope)


_STEPS = (Step("grouped product", (matmul,), _grouped),)
