"""Sums of four products of 8-bit integers a lane: the instruction of each CPU, or what stands in for it.

Every one takes sums [lanes] of i32, weights and x, each four bytes a lane, and gives the sums with the four products
added. x is signed; weights are unsigned on x86 (`unsigned`), where the instruction wants them so, and signed elsewhere.
"""

from collections.abc import Callable
from typing import TypeAlias

from tvm import tirx
from tvm.script.ir_builder import tirx as T  # noqa: N812 - TVM's own name for its script namespace

from planish.codegen.tvm.isa import Isa

Dot: TypeAlias = "Callable[[tirx.PrimExpr, tirx.PrimExpr, tirx.PrimExpr], tirx.PrimExpr]"


def unsigned(isa: Isa) -> bool:
    """Whether `dot_for` takes unsigned weights."""
    return isa.triple.startswith("x86")


def dot_for(isa: Isa) -> Dot:
    """The four-way product for vectors of `isa.lanes`."""
    if not unsigned(isa):
        known = {"+dotprod", "+asimddp"} & set(isa.features) or isa.cpu.startswith("neoverse")
        return _sdot if known and isa.lanes == 4 else _signed
    return _dpbusd if isa.int8_dot or "+avxvnni" in isa.features else _pairs


def _dpbusd(sums: "tirx.PrimExpr", weights: "tirx.PrimExpr", x: "tirx.PrimExpr") -> "tirx.PrimExpr":
    """AVX-512 VNNI or AVX-VNNI."""
    lanes = _lanes(sums)
    name = f"llvm.x86.avx512.vpdpbusd.{lanes * 32}"
    return T.call_llvm_pure_intrin(f"int32x{lanes}", name, sums, _bytes(weights), _bytes(x))


def _pairs(sums: "tirx.PrimExpr", weights: "tirx.PrimExpr", x: "tirx.PrimExpr") -> "tirx.PrimExpr":
    """AVX2 and AVX-512: even and odd bytes as 16-bit numbers, two products an instruction."""
    lanes = _lanes(sums)
    name = "llvm.x86.avx512.pmaddw.d.512" if lanes == 16 else "llvm.x86.avx2.pmadd.wd"
    low = T.broadcast(T.int32(0x00FF00FF), lanes)
    eight = T.broadcast(T.int16(8), 2 * lanes)

    def product(half: "tirx.PrimExpr", factor: "tirx.PrimExpr") -> "tirx.PrimExpr":
        return T.call_llvm_pure_intrin(f"int32x{lanes}", name, _shorts(half), factor)

    even = product(tirx.bitwise_and(weights, low), (_shorts(x) << eight) >> eight)
    odd = product(tirx.bitwise_and(weights >> T.broadcast(T.int32(8), lanes), low), _shorts(x) >> eight)
    return sums + (even + odd)


def _sdot(sums: "tirx.PrimExpr", weights: "tirx.PrimExpr", x: "tirx.PrimExpr") -> "tirx.PrimExpr":
    """The dot product of Armv8.2."""
    return T.call_llvm_pure_intrin("int32x4", "llvm.aarch64.neon.sdot", sums, _bytes(weights), _bytes(x))


def _signed(sums: "tirx.PrimExpr", weights: "tirx.PrimExpr", x: "tirx.PrimExpr") -> "tirx.PrimExpr":
    for byte in range(4):
        sums = sums + signed_byte(weights, byte) * signed_byte(x, byte)
    return sums


def signed_byte(units: "tirx.PrimExpr", byte: int) -> "tirx.PrimExpr":
    """Byte `byte` of every 32-bit lane as a signed number."""
    lanes = _lanes(units)

    def places(count: int) -> "tirx.PrimExpr":
        return T.int32(count) if lanes == 1 else T.broadcast(T.int32(count), lanes)

    return (units << places(24 - 8 * byte)) >> places(24)


def _lanes(value: "tirx.PrimExpr") -> int:
    return int(value.ty.dtype.lanes)


def _bytes(value: "tirx.PrimExpr") -> "tirx.PrimExpr":
    return T.reinterpret(f"int8x{4 * _lanes(value)}", value)


def _shorts(value: "tirx.PrimExpr") -> "tirx.PrimExpr":
    return T.reinterpret(f"int16x{2 * _lanes(value)}", value)
