"""Ops that move elements without computing: views, joins, padding and gathers."""

import torch
from torch import Tensor
from torch.nn import functional

from planish.compiler.ir import op
from planish.compiler.ops.checks import check_axes, check_computed, check_index, check_same_dtype
from planish.compiler.types import Dim, Shape, TensorType, elements, same_dim, simplify
from planish.errors import TypeRuleError


def _reshape(x: Tensor, *, shape: Shape) -> Tensor:
    return x.reshape(shape)


@op(_reshape, "movement")
def reshape(x: TensorType, *, shape: Shape) -> TensorType:
    """The same elements in row-major order under another shape."""
    if not same_dim(elements(x.shape), elements(shape)):
        raise TypeRuleError(f"{x} has not as many elements as shape {list(shape)}")
    return x.with_shape(shape)


def _transpose(x: Tensor, *, order: tuple[int, ...]) -> Tensor:
    return x.permute(order)


@op(_transpose, "movement")
def transpose(x: TensorType, *, order: tuple[int, ...]) -> TensorType:
    """Axis i of the result is axis `order[i]` of x."""
    if sorted(order) != list(range(x.rank)):
        raise TypeRuleError(f"order {list(order)} is no permutation of the axes of {x}")
    return x.with_shape(tuple(x.shape[i] for i in order))


def _expand(x: Tensor, *, shape: Shape) -> Tensor:
    return x.expand(shape)


@op(_expand, "movement")
def expand(x: TensorType, *, shape: Shape) -> TensorType:
    """x repeated along its axes of size 1 and along new leading axes."""
    fits = len(shape) >= x.rank and all(
        d == 1 or same_dim(d, s) for d, s in zip(x.shape, shape[len(shape) - x.rank :], strict=True)
    )
    if not fits:
        raise TypeRuleError(f"{x} does not expand to {list(shape)}")
    return x.with_shape(shape)


def _slice(x: Tensor, *, axis: int, start: int, stop: int, step: int) -> Tensor:
    return x[(slice(None),) * axis + (slice(start, stop, step),)]


@op(_slice, "movement")
def slice_(x: TensorType, *, axis: int, start: Dim = 0, stop: Dim, step: int = 1) -> TensorType:
    """Elements `start, start + step, ...` below `stop` of a non-negative axis; the bounds lie inside the axis."""
    if not 0 <= axis < x.rank or step < 1:
        raise TypeRuleError(f"slice needs an axis inside {x} and a positive step, not axis {axis}, step {step}")
    size = x.shape[axis]
    if _is_below(start, 0) or _is_below(stop, start) or _is_below(size, stop):
        raise TypeRuleError(f"slice {start}..{stop} lies outside axis {axis} of {x}")
    length = simplify(stop - start)
    count = length if step == 1 else simplify((length + step - 1) // step)
    return x.with_shape((*x.shape[:axis], count, *x.shape[axis + 1 :]))


def _is_below(left: Dim, right: Dim) -> bool:
    """Whether `left < right` for every value of their sizes, as far as numbers alone show."""
    return isinstance(left, int) and isinstance(right, int) and left < right


def _concat(*inputs: Tensor, axis: int) -> Tensor:
    return torch.cat(inputs, dim=axis)


@op(_concat)
def concat(*inputs: TensorType, axis: int) -> TensorType:
    """The inputs one after another along a non-negative axis."""
    if not inputs:
        raise TypeRuleError("concat needs an input")
    first = inputs[0]
    check_axes(first, (axis,))
    check_same_dtype(*inputs)
    for other in inputs[1:]:
        if other.rank != first.rank or any(
            not same_dim(other.shape[i], first.shape[i]) for i in range(first.rank) if i != axis
        ):
            raise TypeRuleError(f"{first} and {other} do not join along axis {axis}")
    total: Dim = simplify(sum((t.shape[axis] for t in inputs), start=0))
    return first.with_shape((*first.shape[:axis], total, *first.shape[axis + 1 :]))


def _pad(x: Tensor, *, before: tuple[int, ...], after: tuple[int, ...], value: float) -> Tensor:
    pairs = [p for axis in reversed(range(x.ndim)) for p in (before[axis], after[axis])]
    return functional.pad(x, pairs, value=value)


@op(_pad)
def pad(x: TensorType, *, before: tuple[int, ...], after: tuple[int, ...], value: float = 0.0) -> TensorType:
    """`value` added before and after each axis (non-negative counts)."""
    if len(before) != x.rank or len(after) != x.rank or min((*before, *after), default=0) < 0:
        raise TypeRuleError(f"pad needs a non-negative count before and after each axis of {x}")
    return x.with_shape(tuple(b + d + a for b, d, a in zip(before, x.shape, after, strict=True)))


def _roll(x: Tensor, *, shifts: tuple[int, ...], axes: tuple[int, ...]) -> Tensor:
    return torch.roll(x, shifts, axes)


@op(_roll)
def roll(x: TensorType, *, shifts: tuple[int, ...], axes: tuple[int, ...]) -> TensorType:
    """Elements moved cyclically by `shifts` along non-negative `axes`."""
    check_axes(x, axes)
    if len(shifts) != len(axes):
        raise TypeRuleError(f"roll needs one shift an axis, not {list(shifts)} for {list(axes)}")
    return x


def _flip(x: Tensor, *, axes: tuple[int, ...]) -> Tensor:
    return torch.flip(x, axes)


@op(_flip)
def flip(x: TensorType, *, axes: tuple[int, ...]) -> TensorType:
    """The elements of non-negative `axes` in reverse."""
    check_computed(x)
    check_axes(x, axes)
    return x


def _embedding(table: Tensor, index: Tensor) -> Tensor:
    return functional.embedding(index, table)


@op(_embedding)
def embedding(table: TensorType, index: TensorType) -> TensorType:
    """Rows of table [V, D] at index [...], giving [..., D]."""
    check_index(index)
    if table.rank != 2:
        raise TypeRuleError(f"embedding takes a table of rank 2, not {table}")
    return table.with_shape((*index.shape, table.shape[1]))


def _gather(x: Tensor, index: Tensor, *, axis: int) -> Tensor:
    return torch.gather(x, axis, index)


@op(_gather)
def gather(x: TensorType, index: TensorType, *, axis: int) -> TensorType:
    """`result[i, j, k] = x[i, index[i, j, k], k]` for axis 1, and alike for others (torch.gather)."""
    check_index(index)
    check_axes(x, (axis,))
    if x.rank != index.rank:
        raise TypeRuleError(f"gather takes x and index of one rank, not {x} and {index}")
    if any(_is_below(d, i) for a, (d, i) in enumerate(zip(x.shape, index.shape, strict=True)) if a != axis):
        raise TypeRuleError(f"index {index} is larger than x {x} outside axis {axis}")
    return x.with_shape(index.shape)


def _index_select(x: Tensor, index: Tensor, *, axis: int) -> Tensor:
    picked = torch.index_select(x, axis, index.reshape(-1))
    return picked.reshape(*x.shape[:axis], *index.shape, *x.shape[axis + 1 :])


@op(_index_select)
def index_select(x: TensorType, index: TensorType, *, axis: int) -> TensorType:
    """Slices of x at index [...] along `axis`, whose place the index's shape takes; indices lie in 0..size-1."""
    check_index(index)
    check_axes(x, (axis,))
    return x.with_shape((*x.shape[:axis], *index.shape, *x.shape[axis + 1 :]))
