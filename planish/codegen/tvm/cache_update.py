"""New tokens written into a cache of keys or values, in place."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import ClassVar

from tvm import tirx
from tvm.script.ir_builder import tirx as T  # noqa: N812 - TVM's own name for its script namespace

from planish.codegen.call import Call
from planish.codegen.tvm.around import fuses_before
from planish.codegen.tvm.expression import Expression, Known, store
from planish.codegen.tvm.isa import Isa
from planish.codegen.tvm.kernel import Kernel, KernelBuilder, bind, kernel
from planish.codegen.tvm.loops import Index, integer, units, vectors
from planish.codegen.tvm.rope import rotate
from planish.compiler.ir import Node, Op, Value
from planish.compiler.ops import cache_update, cast, rope
from planish.compiler.types import Shape


@dataclass(frozen=True, slots=True)
class CacheUpdate:
    """Writes the slots of the new tokens and nothing else: the output's memory holds the cache already.

    Caches of any dtype and trailing shape; elementwise nodes that make the tokens, such as a cast, and the rotary
    positions of keys are computed on the way. Counts beyond the tokens are cut, and negative positions count as 0, so
    that nothing outside is written.
    """

    name: ClassVar[str] = "cache-update"
    ops: ClassVar[tuple[Op, ...]] = (cache_update,)

    def refuse(self, call: Call, isa: Isa) -> str | None:
        if call.epilogue:
            return "a cache is updated in place, so nothing is computed on the result"
        if call.anchor.operands[0] not in call.inputs:
            return "a cache is updated in place, so it must lie in memory"
        others = [node.op.name for node in call.prologue if not self.fuses_before(call.anchor, node)]
        return f"{others[0]} is not computed element by element" if others else None

    def build(self, call: Call, isa: Isa) -> Kernel:
        with kernel(call, isa) as (k, done):
            units(k, call.anchor.operands[1].shape[:3], lambda at: _token(k, at))
        return Kernel(done[0], 0)

    def fuses_after(self, anchor: Node, node: Node) -> bool:
        return False

    def fuses_before(self, anchor: Node, node: Node) -> bool:
        return fuses_before(node) or node is _rotation(anchor)


def _rotation(anchor: Node) -> Node | None:
    """The rope that makes the tokens, but for casts."""
    made = anchor.operands[1].node
    while made.op is cast:
        made = made.operands[0].node
    return made if made.op is rope else None


def _token(k: KernelBuilder, at: Index) -> None:
    """One token of one head, where the row has as many."""
    row, head, token = at
    cache, new, past, count = k.call.anchor.operands
    with T.If(token < bind(Expression(k).at(count, (row,), 1))), T.Then():
        first = bind(tirx.max(integer(0), bind(Expression(k).at(past, (row,), 1))))
        slot = bind(T.truncmod(first + token, bind(k.dim(cache.shape[2]))))

        def some(rest: Index, lanes: int, known: Mapping[Value, Known] | None = None) -> None:
            value = Expression(k, known).at(new, (*at, *rest), lanes)
            store(k, k.call.view, (row, head, slot, *rest), value, lanes)

        if (turned := _rotation(k.call.anchor)) in k.call.prologue:
            rotate(k, turned, at, lambda d, x, lanes: some((d,), lanes, {turned.values[0]: lambda *_: x}))
        else:
            _elements(k, new.shape[3:], some, k.isa.lanes)


def _elements(k: KernelBuilder, shape: Shape, body: "Callable[[Index, int], None]", lanes: int) -> None:
    """Call `body(index, lanes)` for all elements of `shape`, in vectors along its last axis."""
    if not shape:
        body((), 1)
    elif len(shape) == 1:
        vectors(k, integer(0), shape[0], lambda at, n: body((at,), n), lanes)
    else:
        with T.serial(k.dim(shape[0])) as i:
            _elements(k, shape[1:], lambda rest, n: body((i, *rest), n), lanes)
