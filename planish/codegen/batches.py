"""Loops over the batch: calls that run a few images at a time, so that what one writes is in cache for the next."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby

import sympy

from planish.codegen.select import Choice
from planish.compiler import ops
from planish.compiler.ir import Node, Value
from planish.compiler.types import Dim, Shape, elements, evaluate_dim, same_dim, simplify

_BY_IMAGE = (ops.conv, ops.max_pool, ops.avg_pool, ops.transpose, ops.expand, ops.full)
_LARGE = 512 * 1024  # bytes of one image from which on a batch falls out of the caches that a core has for itself


@dataclass(frozen=True, slots=True)
class Loop:
    """Calls `first` to `last - 1`, which run for a few positions of the leading axis `size` at a time."""

    first: int
    last: int
    size: str

    def __contains__(self, call: int) -> bool:
        return self.first <= call < self.last


def batch_loops(calls: Sequence[Choice], hints: Mapping[str, int]) -> tuple[Loop, ...]:
    """The runs of two or more calls that compute image by image on large images with smaller weights.

    `hints` are the expected sizes. Only a leading axis of a named size is looped over.
    """
    sizes = [_looped(choice, hints) for choice in calls]
    runs: list[Loop] = []
    for size, members in groupby(range(len(calls)), sizes.__getitem__):
        indices = list(members)
        if size is not None and len(indices) > 1:
            runs.append(Loop(indices[0], indices[-1] + 1, size))
    return tuple(runs)


def image_bytes(value: Value) -> Dim:
    """Bytes of one position of the leading axis of a value's buffer."""
    return simplify(elements(value.shape[1:]) * value.dtype.itemsize)


def _looped(choice: Choice, hints: Mapping[str, int]) -> str | None:
    """The name of the leading size by which the call may be split and gains from it, or None."""
    output = choice.call.output
    size = output.shape[0] if output.shape else None
    if not isinstance(size, sympy.Symbol) or not _separable(choice, size):
        return None
    images = [evaluate_dim(image_bytes(root), hints) for root in _batched(choice, size)]
    weights = [root for root in choice.roots.values() if root.node.op is ops.weight]
    constant = sum(evaluate_dim(elements(w.shape), hints) * w.dtype.itemsize for w in weights)
    return str(size.name) if max(images) >= max(_LARGE, constant) else None


def _batched(choice: Choice, size: sympy.Symbol) -> Iterator[Value]:
    """The values with a leading axis of that size that the call reads and writes."""
    yield choice.call.output
    yield from (root for root in choice.roots.values() if _has(root.shape, size))


def _separable(choice: Choice, size: sympy.Symbol) -> bool:
    """Whether position i of the leading axis of the result depends on position i of the operands alone."""
    call, rank = choice.call, len(choice.call.output.shape)
    if not all(_by_image(node, size) for node in call.nodes):
        return False
    shapes = [t.shape for node in call.nodes for t in node.types] + [v.shape for v in call.inputs]
    if not all(_leads(shape, size, rank) for shape in shapes):
        return False
    places = [(choice.roots[v], view) for v, view in call.inputs.items()] + [(call.output, call.view)]
    return all(
        _leads(root.shape, size, rank)
        and not _has((view.offset, *view.strides), size)
        and (not _has(root.shape, size) or same_dim(view.strides[0], elements(root.shape[1:])))
        for root, view in places
    )


def _by_image(node: Node, size: sympy.Symbol) -> bool:
    if node.op is ops.transpose and node.attrs["order"][0] != 0:  # type: ignore[index]
        return False
    numbers = (v for name, v in node.attrs.items() if name != "shape" and isinstance(v, sympy.Expr))
    return (node.op in _BY_IMAGE or "elementwise" in node.op.traits) and not _has(tuple(numbers), size)


def _leads(shape: Shape, size: sympy.Symbol, rank: int) -> bool:
    """Whether the size is the leading axis of a shape of that rank and no other, or does not occur."""
    return not _has(shape, size) or (len(shape) == rank and shape[0] == size and not _has(shape[1:], size))


def _has(dims: Shape, size: sympy.Symbol) -> bool:
    return any(isinstance(dim, sympy.Expr) and size in dim.free_symbols for dim in dims)
