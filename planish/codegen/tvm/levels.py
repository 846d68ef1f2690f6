"""Levels of codes: the float that each code stands for, looked up lane by lane."""

from tvm import tirx
from tvm.script.ir_builder import tirx as T  # noqa: N812 - TVM's own name for its script namespace

from planish.codegen.tvm import vector_math as vm
from planish.codegen.tvm.isa import Isa
from planish.codegen.tvm.kernel import ramp
from planish.codegen.tvm.vector_math import keep, like

MOST_LEVELS = 128  # of a table on the stack, see KernelBuilder on local buffers


class Codebook:
    """A table of f32 levels in an open kernel. Tables of 16 levels are read by a permutation where there is one."""

    def __init__(self, isa: Isa, levels: tuple[float, ...]) -> None:
        self._x86 = isa.triple.startswith("x86_64")
        self._levels = (*levels, *(0.0 for _ in range(len(levels), 16)))
        self._table = T.alloc_buffer((len(self._levels),), "float32")
        for i, level in enumerate(self._levels):
            T.buffer_store(self._table, tirx.const(level, "float32"), [i])

    def at(self, codes: "tirx.PrimExpr") -> "tirx.PrimExpr":
        """The levels of int32 codes; bits above those of a code, at least 4, are ignored."""
        lanes = vm.lanes_of(codes)
        if not self._x86 or len(self._levels) > 16 or lanes not in (8, 16):
            return self._table[keep(tirx.bitwise_and(codes, like(codes, len(self._levels) - 1)))]
        if lanes == 16:
            return _call("llvm.x86.avx512.permvar.sf.512", self._table[ramp(0, 16)], codes)
        low, high = (_call("llvm.x86.avx2.permps", self._table[ramp(at, 8)], codes) for at in (0, 8))
        return vm.select(tirx.bitwise_and(codes, like(codes, 8)) > like(codes, 0), high, low)


def _call(name: str, table: "tirx.PrimExpr", codes: "tirx.PrimExpr") -> "tirx.PrimExpr":
    return T.call_llvm_pure_intrin(f"float32x{vm.lanes_of(codes)}", name, table, codes)
