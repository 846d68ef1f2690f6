"""Gated layers: what is computed from two slices of one product, such as silu(gate) * up, in the kernel of the product.

The kernel walks the columns of both slices in turns, so that it holds a column of the one slice when it has its partner
of the other.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy
from numpy.typing import NDArray

from planish.codegen.attributes import integer_of
from planish.codegen.call import Call
from planish.compiler import ops
from planish.compiler.ir import Node, Value
from planish.compiler.types import same_dim


@dataclass(frozen=True, slots=True)
class Halves:
    """Two slices of the last axis of a product, `width` columns each from their `starts` on, in turns of `turn`."""

    values: tuple[Value, Value]
    starts: tuple[int, int]
    width: int
    turn: int

    @property
    def columns(self) -> int:
        """Columns of both that the kernel walks, the last turns filled up."""
        return 2 * (-(-self.width // self.turn) * self.turn)

    @property
    def text(self) -> str:
        """What tells the order of a packed weight from others."""
        return f" of columns {self.starts[0]} and {self.starts[1]} by turns of {self.turn}, {self.width} each"

    def in_turns(self, array: NDArray[numpy.generic]) -> NDArray[numpy.generic]:
        """Rows of the weight, or of what goes with them, in the order in which the kernel walks its columns.

        Fewer rows than the slices have, a sample for timing, stay as they are.
        """
        if array.shape[-2] < max(self.starts) + self.width:
            return array
        column = numpy.arange(self.columns)
        within = column // (2 * self.turn) * self.turn + column % self.turn
        start = numpy.where(column // self.turn % 2 == 0, *self.starts)
        rows: NDArray[numpy.generic] = array.take(start + numpy.minimum(within, self.width - 1), axis=-2)
        return rows


def halves_of(call: Call, turn: int) -> Halves | None:
    """The two slices that a call's result is computed from, where it is no more than elementwise of the product."""
    product = call.anchor.values[0]
    slices = [node for node in call.epilogue if node.op is ops.slice_ and node.operands[0] == product]
    return _halves(slices, turn) if slices and fuses_slices(call.anchor, slices) else None


def fuses_slices(anchor: Node, slices: Sequence[Node]) -> bool:
    """Whether the kernel of a product can take these slices of its result together."""
    last = len(anchor.types[0].shape) - 1
    if len(slices) != 2 or anchor.op not in (ops.linear, ops.grouped_linear):
        return False
    one, other = slices
    along = all(integer_of(n, "axis") == last and integer_of(n, "step") == 1 for n in slices)
    known = all(isinstance(n.attrs["start"], int) and isinstance(n.types[0].shape[last], int) for n in slices)
    return along and known and same_dim(one.types[0].shape[last], other.types[0].shape[last])


def _halves(slices: Sequence[Node], turn: int) -> Halves:
    one, other = sorted(slices, key=lambda node: integer_of(node, "start"))
    width = one.types[0].shape[-1]
    assert isinstance(width, int)
    return Halves((Value(one), Value(other)), (integer_of(one, "start"), integer_of(other, "start")), width, turn)
