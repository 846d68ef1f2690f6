"""Elementwise computation, copies, joins and look-ups: every output element from input elements at known places."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import ClassVar

from tvm import tirx
from tvm.script.ir_builder import tirx as T  # noqa: N812 - TVM's own name for its script namespace

from planish.codegen.call import Call
from planish.codegen.tvm import vector_math as vm
from planish.codegen.tvm.elementwise import compute, from_memory, refuse_elementwise, to_memory
from planish.codegen.tvm.expression import EVALUATED, Expression, literal, store
from planish.codegen.tvm.fabric import Apply, Fabric, Leaf, Literal, Thread, weave
from planish.codegen.tvm.isa import Isa
from planish.codegen.tvm.kernel import Kernel, KernelBuilder, bind, kernel, ramp
from planish.codegen.tvm.loops import Index, block_count, box, integer, span, units
from planish.codegen.tvm.streaming import Stream, streaming
from planish.codegen.tvm.transpose import tile_size, transposed
from planish.codegen.view import View
from planish.compiler.ir import Node, Op
from planish.compiler.types import Dim, same_dim


@dataclass(frozen=True, slots=True)
class Map:
    """Kernels without an order between elements; inputs and output must not overlap in memory.

    Where all operands lie at strides, axes that allow it are merged, so that rows are long, and operands that are
    contiguous along another axis than the output are read in square tiles. Everything else is indexed one by one.
    """

    name: ClassVar[str] = "map"
    ops: ClassVar[tuple[Op, ...]] = EVALUATED

    def refuse(self, call: Call, isa: Isa) -> str | None:
        for node in call.nodes:
            if node.op not in EVALUATED:
                return f"{node.op.name} is not computed element by element"
            if why := refuse_elementwise(node):
                return why
        return None

    def build(self, call: Call, isa: Isa) -> Kernel:
        fabrics = weave(call)
        scratch = max((_tile_bytes(fabric, isa) for fabric in fabrics or ()), default=0)
        with kernel(call, isa, scratch) as (k, done):
            if fabrics is None:
                _general(k)
            for fabric in fabrics or ():
                _emit(k, fabric)
        return Kernel(done[0], scratch)

    def fuses_after(self, anchor: Node, node: Node) -> bool:
        return node.op in EVALUATED and refuse_elementwise(node) is None

    def fuses_before(self, anchor: Node, node: Node) -> bool:
        return node.op in EVALUATED and refuse_elementwise(node) is None


def _general(k: KernelBuilder) -> None:
    """Every element by its index."""
    call = k.call

    def body(index: Index, lanes: int) -> None:
        store(k, call.view, index, Expression(k).at(call.output, index, lanes), lanes)

    box(k, call.output.shape, body, k.isa.lanes)


def _emit(k: KernelBuilder, fabric: Fabric) -> None:
    tiling = _tiling(fabric, k.isa)
    if tiling is not None:
        _tiles(k, *tiling)
        return
    crossed, last = _crossed(fabric), len(fabric.shape) - 1
    axis = _shared_axis(crossed)
    if axis is not None and not _reaches(fabric.shape[last], k.isa.lanes):
        # where the output's own axis is short, vectors run along the operands'
        fabric = _ordered(fabric, [*(i for i in range(last + 1) if i != axis), axis])
    with streaming(k, fabric.out) as stream:
        box(k, fabric.shape, partial(_write, k, fabric, {}, stream=stream), k.isa.lanes)


def _tiling(fabric: Fabric, isa: Isa) -> tuple[Fabric, int] | None:
    """The fabric with the axis that its crossed operands are contiguous along as its last but one, and the tile."""
    crossed, last = _crossed(fabric), len(fabric.shape) - 1
    axis = _shared_axis(crossed)
    if axis is None:
        return None
    tile = min(tile_size(leaf.view.dtype, isa.lanes) for leaf in crossed)
    if not (_reaches(fabric.shape[axis], tile) and _reaches(fabric.shape[last], tile)):
        return None
    return _ordered(fabric, [*(i for i in range(last) if i != axis), axis, last]), tile


def _tile_bytes(fabric: Fabric, isa: Isa) -> int:
    """Scratch that holds a tile of every operand that has to be turned before it is computed with."""
    tiling = _tiling(fabric, isa)
    if tiling is None or isinstance(fabric.root, Leaf):
        return 0
    return sum(tiling[1] ** 2 * leaf.view.dtype.itemsize for leaf in _crossed(fabric))


def _crossed(fabric: Fabric) -> tuple[Leaf, ...]:
    return tuple(leaf for leaf in fabric.leaves if _is_crossed(leaf.view))


def _is_crossed(view: View) -> bool:
    return bool(view.strides) and not any(same_dim(view.strides[-1], s) for s in (0, 1))


def _shared_axis(crossed: tuple[Leaf, ...]) -> int | None:
    """The axis along which all of the views are contiguous."""
    if not crossed:
        return None
    axes = range(len(crossed[0].view.shape))
    return next((i for i in axes if all(same_dim(leaf.view.strides[i], 1) for leaf in crossed)), None)


def _reaches(dim: Dim, tile: int) -> bool:
    return not isinstance(dim, int) or dim >= tile


def _ordered(fabric: Fabric, order: list[int]) -> Fabric:
    return fabric.over(tuple(fabric.shape[i] for i in order), lambda view: view.transpose(tuple(order)))


def _tiles(k: KernelBuilder, fabric: Fabric, tile: int) -> None:
    """Square tiles, the last of a row or column overlapping; one by one where a size turns out smaller than a tile."""
    rows, width = fabric.shape[-2:]
    if isinstance(rows, int) and isinstance(width, int):
        _all_tiles(k, fabric, tile)
        return
    with T.If(tirx.bitwise_and(k.dim(rows) >= tile, k.dim(width) >= tile)):
        with T.Then():
            _all_tiles(k, fabric, tile)
        with T.Else():
            box(k, fabric.shape, partial(_write, k, fabric, {}), 1)


def _all_tiles(k: KernelBuilder, fabric: Fabric, tile: int) -> None:
    rows, width = fabric.shape[-2:]
    blocks = block_count(rows, tile)

    def unit(index: Index) -> None:
        first, last = span(k, rows, blocks, tile, index[-1])
        size = integer(tile)
        across = bind(T.truncdiv(k.dim(width) + (tile - 1), size))
        with T.serial(bind(T.truncdiv(last - first + (tile - 1), size))) as i:
            row = bind(tirx.min(first + i * tile, last - tile))
            with T.serial(across) as j:
                column = bind(tirx.min(j * tile, k.dim(width) - tile))
                _tile(k, fabric, tile, (*index[:-1], row, column))

    units(k, (*fabric.shape[:-2], blocks), unit)


def _tile(k: KernelBuilder, fabric: Fabric, tile: int, corner: Index) -> None:
    if isinstance(fabric.root, Leaf):
        for i, vector in enumerate(_columns(k, fabric.root, tile, corner)):
            T.buffer_store(k.output, vector, [ramp(k.address(fabric.out, _below(corner, i)), tile)])
        return
    slots, offset = {}, 0
    for leaf in _crossed(fabric):
        slots[leaf] = k.scratch_buffer(tile * tile, leaf.view.dtype, offset)
        offset += tile * tile * leaf.view.dtype.itemsize
        for i, vector in enumerate(_columns(k, leaf, tile, corner)):
            T.buffer_store(slots[leaf], vector, [ramp(integer(i * tile), tile)])
    with T.serial(integer(tile)) as i:
        read = {leaf: slot[ramp(bind(i * tile), tile)] for leaf, slot in slots.items()}
        _write(k, fabric, read, _below(corner, i), tile)


def _columns(k: KernelBuilder, leaf: Leaf, tile: int, corner: Index) -> "list[tirx.PrimExpr]":
    """The tile as vectors along the last axis, read along the one before it."""
    (*lead, row, column) = corner
    places = [k.address(leaf.view, (*lead, row, column + i)) for i in range(tile)]
    return transposed([bind(k.buffers[leaf.value][ramp(place, tile)]) for place in places])


def _below(corner: Index, rows: "tirx.PrimExpr | int") -> Index:
    return (*corner[:-2], corner[-2] + rows, corner[-1])


def _write(
    k: KernelBuilder,
    fabric: Fabric,
    read: "Mapping[Leaf, tirx.PrimExpr]",
    index: Index,
    lanes: int,
    stream: Stream | None = None,
) -> None:
    """Compute and store `lanes` elements at an index; `read` gives leaves as they lie in memory."""
    place = _place(k, fabric.out, index, lanes)
    if isinstance(fabric.root, Leaf):
        value = _raw(k, fabric.root, read, index, lanes)
    else:
        value = to_memory(_value(k, fabric.root, read, index, lanes, _fan_out(fabric.root), {}), fabric.out.dtype)
    if stream is None:
        T.buffer_store(k.output, value, [place])
        return
    value = vm.keep(value)
    stream.choose(lambda: T.buffer_store(k.output, value, [place]), k.address(fabric.out, index), value)


def _value(
    k: KernelBuilder,
    thread: Thread,
    read: "Mapping[Leaf, tirx.PrimExpr]",
    index: Index,
    lanes: int,
    uses: Mapping[Thread, int],
    memo: "dict[Thread, tirx.PrimExpr]",
) -> "tirx.PrimExpr":
    if thread in memo:
        return memo[thread]
    if isinstance(thread, Leaf):
        result = from_memory(_raw(k, thread, read, index, lanes), thread.view.dtype)
    elif isinstance(thread, Literal):
        result = literal(k, thread.node, lanes)
    else:
        operands = [_value(k, t, read, index, lanes, uses, memo) for t in thread.operands]
        result = compute(thread.node, operands)
    memo[thread] = vm.keep(result) if uses.get(thread, 0) > 1 else result
    return memo[thread]


def _fan_out(root: Thread) -> dict[Thread, int]:
    """How many operands each thread is."""
    counts: dict[Thread, int] = {}
    waiting: list[Thread] = [root]
    while waiting:
        thread = waiting.pop()
        counts[thread] = counts.get(thread, 0) + 1
        if counts[thread] == 1 and isinstance(thread, Apply):
            waiting += thread.operands
    return counts


def _raw(
    k: KernelBuilder, leaf: Leaf, read: "Mapping[Leaf, tirx.PrimExpr]", index: Index, lanes: int
) -> "tirx.PrimExpr":
    if leaf in read:
        return bind(read[leaf])
    return vm.splat(bind(k.buffers[leaf.value][_place(k, leaf.view, index, lanes)]), lanes)


def _place(k: KernelBuilder, view: View, index: Index, lanes: int) -> "tirx.PrimExpr":
    """The flat index of the elements: one that all lanes share where the last axis is repeated."""
    base = k.address(view, index)
    if lanes == 1 or same_dim(view.strides[-1], 0):
        return base
    return T.ramp(base, k.dim(view.strides[-1]), lanes)
