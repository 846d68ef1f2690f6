"""What may be computed around an anchor by expressions: before it while operands are read, after it on its result."""

from collections.abc import Callable, Container, Sequence
from dataclasses import dataclass

from planish.codegen.call import Call
from planish.compiler.ir import Node, Op, Value
from planish.compiler.types import same_shape


@dataclass(frozen=True, slots=True)
class Around:
    """What a backend's expressions compute: `elementwise` ops on results, `evaluated` ones on operands, each unless
    `refuse` has a reason against the node."""

    elementwise: Container[Op]
    evaluated: Container[Op]
    refuse: Callable[[Node], str | None]

    def fuses_after(self, anchor: Node, node: Node) -> bool:
        """Whether the node is computed element by element on the result of the anchor, in its shape."""
        same = same_shape(node.types[0].shape, anchor.types[0].shape)
        return node.op in self.elementwise and same and self.refuse(node) is None

    def fuses_before(self, node: Node) -> bool:
        """Whether the node is computed where an operand is read."""
        return node.op in self.evaluated and self.refuse(node) is None

    def refuse_around(self, call: Call, results: Sequence[Value] = ()) -> str | None:
        """Why the nodes around the anchor cannot be computed with it, or None.

        `results` are slices of the anchor's result that the kernel hands on in place of it.
        """
        given = results or call.anchor.values
        reached: set[Value] = set(given)
        for node in call.nodes:
            if node is call.anchor or node in [value.node for value in given]:
                continue
            after = not reached.isdisjoint(node.operands)
            if not (self.fuses_after(given[0].node, node) if after else self.fuses_before(node)):
                return f"{node.op.name} is not computed element by element with {call.anchor.op.name}"
            reached.update(node.values if after else ())
        return None if call.output in reached else f"the output does not depend on {call.anchor.op.name}"
