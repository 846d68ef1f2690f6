"""Loops over boxes of elements: shares of tasks, blocks of rows, and vectors along the last axis with their ends."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import sympy
from tvm import tirx
from tvm.script.ir_builder import tirx as T  # noqa: N812 - TVM's own name for its script namespace

from planish.codegen.tvm.kernel import KernelBuilder, bind
from planish.compiler.types import Dim, Shape, simplify

Index: TypeAlias = "tuple[tirx.PrimExpr, ...]"
Body: TypeAlias = Callable[[Index, int], None]

_BLOCK = 2048  # elements of a unit of work: its indices are divided out once, and it fits level one cache


@dataclass(frozen=True, slots=True)
class Group:
    """Positions that are worked on side by side; `turn` is 0 and 1 for one group after another.

    `after` gives the group after this one, or this one once more where it is the last.
    """

    leads: tuple[Index, ...]
    turn: "tirx.PrimExpr"
    after: "Callable[[], Group]"


@dataclass(frozen=True, slots=True)
class Stages:
    """Work in two parts: `enter` begins the first group, `follow` begins one and ends that before it, `leave` ends."""

    enter: Callable[[Group], None]
    follow: Callable[[Group, Group], None]
    leave: Callable[[Group], None]


def integer(value: int) -> "tirx.PrimExpr":
    """An int64 literal."""
    return tirx.const(value, "int64")


def unravel(k: KernelBuilder, unit: "tirx.PrimExpr", shape: Shape) -> Index:
    """The index over `shape` of the row-major position `unit`."""
    index: list[tirx.PrimExpr] = []
    for dim in reversed(shape[1:]):
        if isinstance(dim, int) and dim == 1:
            index.append(integer(0))
            continue
        size = bind(k.dim(dim))
        index.append(bind(T.truncmod(unit, size)))
        unit = bind(T.truncdiv(unit, size))
    return (*((unit,) if shape else ()), *reversed(index))


def product(k: KernelBuilder, shape: Shape) -> "tirx.PrimExpr":
    """The number of elements, as int64 TIR."""
    total: tirx.PrimExpr = integer(1)
    for dim in shape:
        total = total * k.dim(dim)
    return total


def box(k: KernelBuilder, shape: Shape, body: Body, lanes: int, block: int = _BLOCK) -> None:
    """Call `body(index, lanes)` once or more for every element of `shape`, vectors of `lanes` along the last axis.

    The work of all but the innermost axes is shared between tasks. Near the end of a row that holds a whole vector the
    last one starts earlier, so that some elements are computed twice, always by the same task. An axis of size 0 leaves
    nothing to do.
    """
    if 0 in shape:
        return
    if not shape:
        with T.If(k.task == 0), T.Then():
            body((), 1)
        return
    rows, width = (shape[-2] if len(shape) > 1 else 1), shape[-1]
    step = block if len(shape) > 1 or not isinstance(width, int) else max(block // 2, lanes)
    columns = block_count(width, step)
    height = max(1, block // width) if isinstance(width, int) else 1
    row_blocks = block_count(rows, height)

    def unit(index: Index) -> None:
        (*lead, i, j) = index
        first, last = span(k, rows, row_blocks, height, i)
        start, stop = span(k, width, columns, step, j)
        whole = isinstance(width, int) and columns == 1
        with T.serial(last - first) as r:
            row = (*lead, bind(first + r)) if len(shape) > 1 else ()
            vectors(k, start, width if whole else stop - start, lambda at, n: body((*row, at), n), lanes)

    units(k, (*shape[:-2], row_blocks, columns), unit)


def units(k: KernelBuilder, shape: Shape, body: Callable[[Index], None]) -> None:
    """This task's share of the positions of `shape`, one after another."""
    first, last = k.share(bind(product(k, shape)))
    with T.serial(last - first) as u:
        body(unravel(k, bind(first + u), shape))


def pipeline(k: KernelBuilder, shape: Shape, together: int, stages: Stages) -> None:
    """This task's share of the positions of `shape` in groups of `together`, and those left over one by one."""
    first, last = k.share(bind(product(k, shape)))
    if together > 1:
        whole = bind(T.truncdiv(last - first, integer(together)))
        _staged(k, shape, first, whole, together, stages)
        first = bind(first + whole * together)
    _staged(k, shape, first, bind(last - first), 1, stages)


def _staged(
    k: KernelBuilder,
    shape: Shape,
    start: "tirx.PrimExpr",
    count: "tirx.PrimExpr",
    together: int,
    stages: Stages,
) -> None:
    def group(number: "tirx.PrimExpr") -> Group:
        at = bind(start + number * together)
        leads = tuple(unravel(k, bind(at + i), shape) for i in range(together))
        after = lambda: group(bind(tirx.min(number + 1, count - 1)))  # noqa: E731
        return Group(leads, bind(tirx.bitwise_and(number, integer(1))), after)

    with T.If(count > 0), T.Then():
        stages.enter(group(integer(0)))
        with T.serial(count - 1) as u:
            stages.follow(group(bind(u + 1)), group(u))
        stages.leave(group(bind(count - 1)))


def block_count(size: Dim, step: int) -> Dim:
    """How many blocks of at least `step` a range has; the last takes the rest."""
    if isinstance(size, int):
        return max(1, size // step)
    return size if step == 1 else simplify(sympy.Max(1, sympy.floor(size / sympy.Integer(step))))


def span(
    k: KernelBuilder, size: Dim, blocks: Dim, step: int, block: "tirx.PrimExpr"
) -> "tuple[tirx.PrimExpr, tirx.PrimExpr]":
    """Where a block of a range begins and ends."""
    if isinstance(blocks, int) and blocks == 1:
        return integer(0), k.dim(size)
    first = bind(block * step)
    last = tirx.Select(block + 1 < k.dim(blocks), first + step, k.dim(size))
    return first, bind(last)


def vectors(
    k: KernelBuilder,
    start: "tirx.PrimExpr",
    count: "Dim | tirx.PrimExpr",
    body: "Callable[[tirx.PrimExpr, int], None]",
    lanes: int,
) -> None:
    """Call `body(at, lanes)` so that `count` elements from `start` are covered, the last vector overlapping."""
    if isinstance(count, int):
        _static_vectors(start, count, body, lanes)
        return
    size = bind(k.dim(count))
    with T.If(size >= lanes):
        with T.Then():
            with T.serial(bind(T.truncdiv(size, integer(lanes)))) as v:
                body(bind(start + v * lanes), lanes)
            with T.If(T.truncmod(size, integer(lanes)) > 0), T.Then():
                body(bind(start + size - lanes), lanes)
        with T.Else(), T.serial(size) as i:
            body(bind(start + i), 1)


def _static_vectors(
    start: "tirx.PrimExpr", count: int, body: "Callable[[tirx.PrimExpr, int], None]", lanes: int
) -> None:
    while lanes > count:
        lanes //= 2
    if count == lanes:
        body(start, lanes)
        return
    with T.serial(integer(count // lanes)) as v:
        body(bind(start + v * lanes), lanes)
    if count % lanes:
        body(bind(start + (count - lanes)), lanes)


def wide_vectors(
    k: KernelBuilder,
    start: "tirx.PrimExpr",
    count: "Dim | tirx.PrimExpr",
    body: "Callable[[tirx.PrimExpr, int, int], None]",
    lanes: int,
    ways: int,
) -> None:
    """Call `body(at, lanes, ways)`, which covers `ways` vectors from `at`, until `count` elements are covered."""
    step = lanes * ways
    if isinstance(count, int):
        whole: int | tirx.PrimExpr = count // step
        rest: int | tirx.PrimExpr = count % step
    else:
        size = bind(k.dim(count))
        whole = bind(T.truncdiv(size, integer(step)))
        rest = bind(size - whole * step)
    if not (isinstance(whole, int) and whole == 0):
        with T.serial(whole) as i:
            body(bind(start + i * step), lanes, ways)
    if isinstance(rest, int):
        if rest:
            vectors(k, bind(start + whole * step), rest, lambda at, n: body(at, n, 1), lanes)
        return
    with T.If(rest > 0), T.Then():
        vectors(k, bind(start + whole * step), rest, lambda at, n: body(at, n, 1), lanes)


def nest(sizes: "Sequence[Dim | tirx.PrimExpr]", k: KernelBuilder, body: Callable[[Index], None]) -> None:
    """Call `body` at every position, by one serial loop an axis."""
    _nest(tuple(sizes), k, (), body)


def _nest(
    sizes: "tuple[Dim | tirx.PrimExpr, ...]", k: KernelBuilder, outer: Index, body: Callable[[Index], None]
) -> None:
    if len(outer) == len(sizes):
        body(outer)
        return
    with T.serial(k.dim(sizes[len(outer)])) as i:
        _nest(sizes, k, (*outer, i), body)
