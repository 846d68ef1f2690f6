"""Kernel templates: what can compute a call, and why not."""

from collections.abc import Sequence
from typing import Any, ClassVar, Protocol, TypeAlias, TypeVar, runtime_checkable

from planish.codegen.call import Call
from planish.compiler.ir import Node, Op

Machine = TypeVar("Machine", contravariant=True)
Kernel = TypeVar("Kernel", covariant=True)


class Template(Protocol[Machine, Kernel]):
    """A family of kernels for calls anchored at one of `ops`, on a machine: an instruction set, or a device.

    `refuse` says why this template does not take a call, or None; `build` makes the kernel of a call it takes.
    `fuses_after` says whether an elementwise node may join the call as its epilogue, `fuses_before` whether an
    elementwise or movement node may be computed while the anchor's operands are read.
    """

    name: ClassVar[str]
    ops: ClassVar[tuple[Op, ...]]

    def refuse(self, call: Call, machine: Machine, /) -> str | None: ...

    def build(self, call: Call, machine: Machine, /) -> Kernel: ...

    def fuses_after(self, anchor: Node, node: Node) -> bool: ...

    def fuses_before(self, anchor: Node, node: Node) -> bool: ...


@runtime_checkable
class FusesSlices(Protocol):
    """A template whose kernels may also compute elementwise nodes over slices of the anchor's result."""

    def fuses_slices(self, anchor: Node, slices: Sequence[Node]) -> bool: ...


@runtime_checkable
class FusesBeside(Protocol):
    """A template whose kernels may also compute a second region of one of its ops."""

    def fuses_beside(self, anchor: Node, other: Node) -> bool: ...


@runtime_checkable
class WritesRead(Protocol):
    """A template whose kernels may also write what they compute before the anchor, a sum say, where others read it."""

    def writes_read(self, anchor: Node) -> bool: ...


# fusion and selection are the same for every kind of machine, and hand it through
AnyTemplate: TypeAlias = Template[Any, Any]
