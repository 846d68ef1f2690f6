"""e to the elements of a row less its largest one: by a table of 32 powers where two registers hold it."""

import math
import struct

from tvm import tirx
from tvm.script.ir_builder import tirx as T  # noqa: N812 - TVM's own name for its script namespace

from planish.codegen.tvm import vector_math as vm
from planish.codegen.tvm.isa import Isa
from planish.codegen.tvm.kernel import bind
from planish.codegen.tvm.vector_math import fast_maximum, fma, keep, like

_POWERS = 32
_STEP = math.log(2.0) / _POWERS
_MAGIC = 12582912.0  # 1.5 * 2^23: a sum with it has the whole part of the other in its low bits

# The minimax parabola of e^r by relative error for |r| <= log(2) / 64 is _SCALE * ((r + _TURN)^2 + _BASE): 5.3e-8.
_SCALE, _TURN, _BASE = 0.4999963431585472, 1.000022005386383, 0.9999706170753804
_LEAST = -86.31  # from here down what is looked up is a denormal number, and a little farther the exponent overflows


def origin(top: "tirx.PrimExpr", isa: Isa) -> "tirx.PrimExpr":
    """What is taken off the elements of a row, f32, before `exponential`: about their largest one."""
    return top - like(top, _TURN) if _has_table(isa) else top


def exponential(x: "tirx.PrimExpr", isa: Isa) -> "tirx.PrimExpr":
    """e^(x - c) of f32 elements less the `origin` of their row, where c is `origin(0)` with its sign changed.

    Within 4e-7 of it, and half a unit in the last place of `x`; 0 or a number below 2^-125 where the result is.

    A multiple of log(2) / 32 is taken off, of which the lower five bits choose from the table and the others go into
    the exponent. The rest is squared with what the parabola turns around, so that one multiply-add and one product are
    left: on a Zen 4, multiply-adds share with stores the way by which they read their third operand.
    """
    if not _has_table(isa):
        return vm.exp_nonpositive(x)
    if vm.lanes_of(x) != isa.lanes:
        return vm.exp_nonpositive(keep(x - like(x, _TURN)))
    x = keep(fast_maximum(like(x, _LEAST), x))
    turned = round(_TURN / _STEP)
    shifted = keep(fma(x, like(x, 1.0 / _STEP), like(x, _MAGIC - turned)))
    rest = keep(fma(keep(shifted - like(x, _MAGIC)), like(x, -_STEP), x))
    count = keep(vm.bits(shifted, "int32"))
    low, high = (_powers(half) for half in range(2))
    power = T.call_llvm_pure_intrin("float32x16", "llvm.x86.avx512.vpermi2var.ps.512", low, count, high)
    scale = vm.bits(vm.bits(keep(power), "int32") + (count << like(count, 18)), "float32")
    return keep(keep(scale) * keep(fma(rest, rest, like(x, _BASE))))


def _has_table(isa: Isa) -> bool:
    return isa.lanes == _POWERS // 2 and isa.triple.startswith("x86_64")


def _powers(half: int) -> "tirx.PrimExpr":
    """Half of the table: 2^(j / 32), less what the bits of j add to it when they are shifted to the exponent."""
    numbers = range(16 * half, 16 * half + 16)
    raw = [_bits_of(_SCALE * 2.0 ** (j / _POWERS)) - (j << 18) for j in numbers]
    vector = tirx.Shuffle([tirx.const(n, "int32") for n in raw], [tirx.IntImm("int32", i) for i in range(16)])
    return vm.bits(bind(vector), "float32")


def _bits_of(value: float) -> int:
    return int.from_bytes(struct.pack("<f", value), "little")
