"""Reads that stay in the order in which they are written: processors foresee no other."""

from tvm import tirx
from tvm.script.ir_builder import tirx as T  # noqa: N812 - TVM's own name for its script namespace

# LLVM moves reads of a loop's later turns before those of earlier ones; nothing is read across this.
_IN_ORDER = """
define linkonce_odr void @planish_in_order() alwaysinline {
  call void asm sideeffect "", "~{memory}"()
  ret void
}
"""


def ordered() -> "T.frame.AttrFrame":
    """Opens the part of a kernel that `in_order` is called in."""
    return T.attr(tirx.const(0, "int32"), "pragma_import_llvm", _IN_ORDER)


def in_order() -> None:
    """Emit a point that no read or store crosses; it takes no time."""
    T.evaluate(T.call_extern("void", "planish_in_order"))
