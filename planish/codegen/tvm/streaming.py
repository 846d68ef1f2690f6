"""Stores that pass the caches by, for outputs too large to be found there again."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from tvm import tirx
from tvm.script.ir_builder import tirx as T  # noqa: N812 - TVM's own name for its script namespace

from planish.codegen.tvm import vector_math as vm
from planish.codegen.tvm.isa import Isa
from planish.codegen.tvm.kernel import KernelBuilder, bind
from planish.codegen.view import View
from planish.compiler.types import DType, elements

# On a Zen 4 with 32 MiB of last cache, writing and reading again is level at 16 to 24 MiB and faster beyond.
STREAM_BYTES = 20 << 20

# TVM knows neither stores past the caches nor the addresses of buffers. x86 wants a fence after such stores: they are
# not ordered with the store that tells other tasks of them.
_LLVM = """
define linkonce_odr void @{store}(ptr %p, {vector} %v) alwaysinline {{
  store {vector} %v, ptr %p, align {bytes}, !nontemporal !0
  ret void
}}
define linkonce_odr i64 @planish_address(ptr %p) alwaysinline {{
  %a = ptrtoint ptr %p to i64
  ret i64 %a
}}
define linkonce_odr void @planish_fence() alwaysinline {{
  call void @llvm.x86.sse.sfence()
  ret void
}}
declare void @llvm.x86.sse.sfence()
!0 = !{{i32 1}}
"""
_ELEMENTS = {1: "i8", 2: "i16", 4: "i32", 8: "i64"}


class Stream:
    """Stores of whole vectors to a kernel's output that pass the caches by where `condition` holds at run time."""

    def __init__(self, k: KernelBuilder, condition: "tirx.PrimExpr") -> None:
        self.k, self.condition = k, condition

    def choose(self, store: Callable[[], None], at: "tirx.PrimExpr", value: "tirx.PrimExpr") -> None:
        """Store `value`, as memory has it, at the element `at` of the output: past the caches, or by `store`."""
        lanes, dtype = self.k.isa.lanes, self.k.call.view.dtype
        if vm.lanes_of(value) != lanes:
            store()
            return
        with T.If(self.condition):
            with T.Then():
                raw = vm.bits(value, f"int{8 * dtype.itemsize}")
                T.evaluate(T.call_extern("void", _symbol(lanes, dtype), T.address_of(self.k.output[at]), raw))
            with T.Else():
                store()


def refuse_stream(view: View, isa: Isa) -> str | None:
    """Why an output at `view` is not to be written past the caches, or None where its size decides at run time."""
    if not isa.triple.startswith("x86_64"):
        return "stores past the caches are measured on x86-64 alone"
    if not view.shape or not view.is_contiguous:
        return "the output does not lie in one piece"
    size, width = elements(view.shape), view.shape[-1]
    if isinstance(size, int) and size * view.dtype.itemsize < STREAM_BYTES:
        return "the output fits in the caches"
    if isinstance(width, int) and width % isa.lanes:
        return "rows do not end with a vector"
    return None


@contextmanager
def streaming(k: KernelBuilder, view: View) -> Iterator[Stream | None]:
    """Open the stores to the output as it is seen at `view`: a Stream, or None where the caches serve better."""
    if refuse_stream(view, k.isa) is not None:
        yield None
        return
    with T.attr(tirx.const(0, "int32"), "pragma_import_llvm", _source(k.isa.lanes, view.dtype)):
        size, lanes = k.dim(elements(view.shape)), tirx.const(k.isa.lanes, "int64")
        large = size * view.dtype.itemsize >= STREAM_BYTES
        address = T.call_extern("int64", "planish_address", T.address_of(k.output[tirx.const(0, "int64")]))
        odd = tirx.bitwise_or(
            tirx.bitwise_and(bind(address), tirx.const(63, "int64")), T.truncmod(k.dim(view.shape[-1]), lanes)
        )
        yield Stream(k, bind(tirx.bitwise_and(large, vm.equal(odd, tirx.const(0, "int64")))))
        T.evaluate(T.call_extern("void", "planish_fence"))


def _source(lanes: int, dtype: DType) -> str:
    vector = f"<{lanes} x {_ELEMENTS[dtype.itemsize]}>"
    return _LLVM.format(store=_symbol(lanes, dtype), vector=vector, bytes=lanes * dtype.itemsize)


def _symbol(lanes: int, dtype: DType) -> str:
    return f"planish_stream_{lanes}x{dtype.itemsize}"
