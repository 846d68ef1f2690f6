"""What may be computed around an anchor by fragments: elementwise nodes on its result, expressions on its operands."""

from planish.codegen.call import Call
from planish.codegen.triton.elementwise import TABLE, refuse_elementwise
from planish.codegen.triton.fragment import EVALUATED
from planish.compiler.ir import Node, Value
from planish.compiler.types import same_shape


def fuses_after(anchor: Node, node: Node) -> bool:
    """Whether the node is computed element by element on the result of the anchor, in its shape."""
    same = same_shape(node.types[0].shape, anchor.types[0].shape)
    return node.op in TABLE and same and refuse_elementwise(node) is None


def fuses_before(node: Node) -> bool:
    """Whether the node is computed where an operand is read."""
    return node.op in EVALUATED and refuse_elementwise(node) is None


def refuse_around(call: Call) -> str | None:
    """Why the nodes around the anchor cannot be computed with it, or None."""
    reached: set[Value] = set(call.anchor.values)
    for node in call.nodes:
        if node is call.anchor:
            continue
        after = not reached.isdisjoint(node.operands)
        if not (fuses_after(call.anchor, node) if after else fuses_before(node)):
            return f"{node.op.name} is not computed element by element with {call.anchor.op.name}"
        reached.update(node.values if after else ())
    return None if call.output in reached else f"the output does not depend on {call.anchor.op.name}"
