"""The instructions of bf16: dot products of pairs, and rounding."""

from contextlib import AbstractContextManager, nullcontext

from tvm import tirx
from tvm.script.ir_builder import tirx as T  # noqa: N812 - TVM's own name for its script namespace

from planish.codegen.call import Call
from planish.codegen.tvm.isa import Isa
from planish.compiler.types import DType

# TVM rewrites bfloat16 values before code generation, so instructions are wrapped in LLVM IR over integers.
_BF16 = """
declare <16 x bfloat> @llvm.x86.avx512bf16.cvtneps2bf16.512(<16 x float>)
define linkonce_odr <16 x i16> @planish_round_bf16_16(<16 x float> %x) alwaysinline {
  %y = call <16 x bfloat> @llvm.x86.avx512bf16.cvtneps2bf16.512(<16 x float> %x)
  %r = bitcast <16 x bfloat> %y to <16 x i16>
  ret <16 x i16> %r
}
declare <16 x float> @llvm.x86.avx512bf16.dpbf16ps.512(<16 x float>, <32 x bfloat>, <32 x bfloat>)
define linkonce_odr <16 x float> @planish_dot_bf16_16(<16 x float> %c, <16 x i32> %a, <16 x i32> %b) alwaysinline {
  %x = bitcast <16 x i32> %a to <32 x bfloat>
  %y = bitcast <16 x i32> %b to <32 x bfloat>
  %r = call <16 x float> @llvm.x86.avx512bf16.dpbf16ps.512(<16 x float> %c, <32 x bfloat> %x, <32 x bfloat> %y)
  ret <16 x float> %r
}
declare <8 x bfloat> @llvm.x86.avx512bf16.cvtneps2bf16.256(<8 x float>)
define linkonce_odr <8 x i16> @planish_round_bf16_8(<8 x float> %x) alwaysinline {
  %y = call <8 x bfloat> @llvm.x86.avx512bf16.cvtneps2bf16.256(<8 x float> %x)
  %r = bitcast <8 x bfloat> %y to <8 x i16>
  ret <8 x i16> %r
}
declare <8 x float> @llvm.x86.avx512bf16.dpbf16ps.256(<8 x float>, <16 x bfloat>, <16 x bfloat>)
define linkonce_odr <8 x float> @planish_dot_bf16_8(<8 x float> %c, <8 x i32> %a, <8 x i32> %b) alwaysinline {
  %x = bitcast <8 x i32> %a to <16 x bfloat>
  %y = bitcast <8 x i32> %b to <16 x bfloat>
  %r = call <8 x float> @llvm.x86.avx512bf16.dpbf16ps.256(<8 x float> %c, <16 x bfloat> %x, <16 x bfloat> %y)
  ret <8 x float> %r
}
"""


def instructions(call: Call, isa: Isa) -> "AbstractContextManager[object]":
    """The scope, inside the open prim_func, in which the instructions are known, where there are any and it is used."""
    dtypes = {of.dtype for node in call.nodes for of in node.types} | {view.dtype for view in call.inputs.values()}
    used = isa.bf16_dot and DType.bf16 in dtypes
    return T.attr(T.int32(0), "pragma_import_llvm", _BF16) if used else nullcontext()


def rounds_at_once(isa: Isa, lanes: int) -> bool:
    """Whether `rounded` serves vectors of so many f32."""
    return isa.bf16_dot and lanes in (8, 16)


def rounded(value: "tirx.PrimExpr", lanes: int) -> "tirx.PrimExpr":
    """The bits of 8 or 16 f32 rounded to bf16 in one instruction, inside `instructions`; denormals become 0."""
    return T.call_extern(f"uint16x{lanes}", f"planish_round_bf16_{lanes}", value)


def dot(total: "tirx.PrimExpr", x: "tirx.PrimExpr", y: "tirx.PrimExpr") -> "tirx.PrimExpr":
    """Sums in 8 or 16 lanes of f32 plus the products of two bf16 a lane of 32 bits, inside `instructions`."""
    lanes = int(total.ty.dtype.lanes)
    return T.call_extern(f"float32x{lanes}", f"planish_dot_bf16_{lanes}", total, x, y)
