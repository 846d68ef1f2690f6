"""Kernel templates: what can compute a call, and why not."""

from typing import TYPE_CHECKING, ClassVar, Protocol

from planish.codegen.call import Call
from planish.compiler.ir import Node, Op

if TYPE_CHECKING:
    from planish.codegen.tvm.isa import Isa
    from planish.codegen.tvm.kernel import Kernel


class Template(Protocol):
    """A family of kernels for calls anchored at one of `ops`.

    `refuse` says why this template does not take a call, or None; `build` makes the kernel of a call it takes.
    `fuses_after` says whether an elementwise node may join the call as its epilogue, `fuses_before` whether an
    elementwise or movement node may be computed while the anchor's operands are read.
    """

    name: ClassVar[str]
    ops: ClassVar[tuple[Op, ...]]

    def refuse(self, call: Call, isa: "Isa") -> str | None: ...

    def build(self, call: Call, isa: "Isa") -> "Kernel": ...

    def fuses_after(self, anchor: Node, node: Node) -> bool: ...

    def fuses_before(self, anchor: Node, node: Node) -> bool: ...
