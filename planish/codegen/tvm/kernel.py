"""Kernels as TIR: the builder that every template writes its loops with.

A kernel is a C function over raw pointers:

    int32_t NAME(inputs..., outputs..., scratch, sizes..., int32_t task, int32_t tasks)

`inputs` follow `Call.inputs`, `outputs` follow `Call.results`, `scratch` is this task's own memory (that of all tasks
for a kernel with a merge), `sizes` are the named sizes that the call uses in alphabetical order (int64). A kernel does
the part of its work that belongs to `task` of `tasks` and returns 0; its tasks write disjoint parts of the outputs and
need no order among themselves.
"""

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy
import sympy
import tvm
from tvm import tirx
from tvm.script.ir_builder import IRBuilder
from tvm.script.ir_builder import tirx as T  # noqa: N812 - TVM's own name for its script namespace

from planish.codegen.call import Call
from planish.codegen.tvm.bf16 import instructions
from planish.codegen.tvm.isa import Isa
from planish.codegen.view import View
from planish.compiler.ir import Value
from planish.compiler.types import Dim, DType

TVM_DTYPE = {
    DType.f64: "float64",
    DType.f32: "float32",
    DType.f16: "float16",
    DType.bf16: "uint16",  # TVM rewrites bfloat16 buffers before code generation; kernels move the bits themselves
    DType.i64: "int64",
    DType.i32: "int32",
    DType.i16: "int16",
    DType.i8: "int8",
    DType.u8: "uint8",
    DType.bool: "uint8",
}

_INDEX = tvm.ir.PrimType("int64")


def _same_size(shape: tuple[int, ...], dtype: numpy.dtype) -> tuple[int, numpy.dtype]:
    return math.prod(shape), dtype


@dataclass(frozen=True, slots=True)
class Packing:
    """How a weight is laid out for a kernel: `pack` turns its array into a flat one; equal `layout` texts share it.

    `packed` gives the number and dtype of the result's elements from the shape and dtype of the array. Where `rows` is
    not 0, each multiple of so many rows may be packed by itself: the results, joined, are that of all rows. bf16
    weights reach `pack` as uint16 bits.
    """

    layout: str
    pack: Callable[[numpy.ndarray], numpy.ndarray] = field(compare=False)
    packed: Callable[[tuple[int, ...], numpy.dtype], tuple[int, numpy.dtype]] = field(default=_same_size, compare=False)
    rows: int = field(default=0, compare=False)


@dataclass(frozen=True, slots=True, eq=False)
class Kernel:
    """A built kernel. `packings` maps inputs of the call to the layout that the kernel reads them in.

    With `merge`, tasks may leave results for each other: `scratch` is then the memory of all tasks, `scratch_bytes` of
    each in a row, and the first i32 of it says whether there is something to merge, which all tasks agree on. Then they
    call `merge` with the same arguments after a barrier.
    """

    function: "tirx.PrimFunc"
    scratch_bytes: Dim
    packings: Mapping[Value, Packing] = field(default_factory=dict)
    merge: "tirx.PrimFunc | None" = None

    def functions(self, symbol: str) -> Mapping[str, "tirx.PrimFunc"]:
        """What is to be compiled, by C symbol."""
        return {symbol: self.function, **({} if self.merge is None else {merge_symbol(symbol): self.merge})}


def merge_symbol(symbol: str) -> str:
    """The C symbol of the `merge` of a kernel."""
    return f"{symbol}_merge"


class KernelBuilder:
    """The open kernel: its buffers, sizes and task, as TIR.

    `buffers[value]` is the flat buffer of an input of the call, `outputs[value]` that of a result, `output` that of the
    call's own. `dim` turns a dimension into TIR. Sizes and indices are int64.
    """

    def __init__(self, call: Call, isa: Isa, scratch: Dim = 0) -> None:
        self.call = call
        self.isa = isa
        self._names = call.sizes(scratch)
        self.sizes: dict[str, tirx.Var] = {}
        self.buffers: dict[Value, tirx.Buffer] = {}
        self.outputs: dict[Value, tirx.Buffer] = {}

    def declare(self) -> None:
        """Declare the parameters; called once, inside the open prim_func."""
        pointers = {v: T.arg(f"input{i}", _pointer(view)) for i, (v, view) in enumerate(self.call.inputs.items())}
        results = self.call.results
        out = {v: T.arg(f"output{i or ''}", _pointer(view)) for i, (v, view) in enumerate(results.items())}
        scratch = T.arg("scratch", T.handle("uint8"))
        self.sizes = {name: T.arg(name, T.int64()) for name in self._names}
        self.task, self.tasks = T.arg("task", T.int32()), T.arg("tasks", T.int32())
        T.func_attr({"tirx.noalias": True})
        for value, pointer in pointers.items():
            self.buffers[value] = self._flat(pointer, self.call.inputs[value])
        self.outputs = {value: self._flat(pointer, results[value]) for value, pointer in out.items()}
        self.output = self.outputs[self.call.output]
        self.scratch = scratch

    def _flat(self, pointer: "tirx.Var", view: View) -> "tirx.Buffer":
        return T.decl_buffer((self.dim(view.extent),), TVM_DTYPE[view.dtype], data=pointer)

    def scratch_buffer(self, count: "Dim | tirx.PrimExpr", dtype: DType, byte_offset: Dim = 0) -> "tirx.Buffer":
        """`count` elements of this task's scratch memory, from a byte offset that is a multiple of 64."""
        name = TVM_DTYPE[dtype]
        pointer = tvm.ir.PointerType(tvm.ir.PrimType(name))
        data = T.bind(tvm.ir.Call("tirx.reinterpret", [self.scratch], ret_ty=pointer), pointer)
        return T.decl_buffer((self.dim(count),), name, data=data, elem_offset=self.dim(byte_offset) // dtype.itemsize)

    def seen(self, value: Value, dtype: str, count: int) -> "tirx.Buffer":
        """An input's memory as a flat buffer of `count` elements of another dtype, as a packing leaves it."""
        pointer = tvm.ir.PointerType(tvm.ir.PrimType(dtype))
        data = T.bind(tvm.ir.Call("tirx.reinterpret", [self.buffers[value].data], ret_ty=pointer), pointer)
        return T.decl_buffer((self.dim(count),), dtype, data=data)

    def dim(self, dim: "Dim | tirx.PrimExpr") -> "tirx.PrimExpr":
        """A dimension as an int64 TIR expression over the kernel's sizes."""
        if isinstance(dim, int):
            return tirx.const(dim, "int64")
        if isinstance(dim, sympy.Basic):
            return _to_tir(dim, self.sizes)
        return dim

    def address(self, view: View, index: "tuple[tirx.PrimExpr | int, ...]") -> "tirx.PrimExpr":
        """The flat element index of `view[index]`."""
        place = self.dim(view.offset)
        for i, stride in zip(index, view.strides, strict=True):
            if not (isinstance(stride, int) and stride == 0):
                place = place + self.dim(stride) * i
        return place

    def share(self, count: "tirx.PrimExpr") -> "tuple[tirx.PrimExpr, tirx.PrimExpr]":
        """This task's `(first, last + 1)` of `count` units of work, bound to variables."""
        task, tasks = self.task.astype("int64"), self.tasks.astype("int64")
        # floor division of TVM becomes a tree of signs that its code generator simplifies for tens of milliseconds
        return bind(T.truncdiv(count * task, tasks)), bind(T.truncdiv(count * (task + 1), tasks))


@contextmanager
def kernel(call: Call, isa: Isa, scratch: Dim = 0) -> Iterator[tuple[KernelBuilder, list["tirx.PrimFunc"]]]:
    """Open a kernel: `with kernel(call, isa) as (k, done): ...`; afterwards `done[0]` is the PrimFunc."""
    builder = KernelBuilder(call, isa, scratch)
    done: list[tirx.PrimFunc] = []
    with IRBuilder() as ir, T.prim_func(private=True, s_tir=True):
        T.func_name("kernel")
        builder.declare()
        with instructions(call, isa):
            yield builder, done
    done.append(ir.get())


def bind(expr: "tirx.PrimExpr") -> "tirx.PrimExpr":
    """The expression as a variable, computed once.

    TVM's simplifiers put the definitions of variables back into every expression, which takes seconds where indices
    build on each other. They do not look into a call with effects, and LLVM removes this one.
    """
    if getattr(expr, "ty", None) == _INDEX:  # a comparison has no type before it is bound
        zero = tirx.const(0, "int64")
        expr = T.call_llvm_intrin("int64", "llvm.fshl", expr, zero, zero)  # a shift by nothing
    return T.bind(expr)


def ramp(base: "tirx.PrimExpr | int", lanes: int) -> "tirx.PrimExpr":
    """`lanes` consecutive indices from `base`; `base` itself for one lane."""
    return base if lanes == 1 else T.ramp(base, 1, lanes)


def _pointer(view: View) -> object:
    return T.handle(TVM_DTYPE[view.dtype])


def _to_tir(expr: sympy.Expr, sizes: Mapping[str, "tirx.Var"]) -> "tirx.PrimExpr":
    if expr.is_Integer:
        return tirx.const(int(expr), "int64")
    if expr.is_Symbol:
        return sizes[expr.name]
    if isinstance(expr, sympy.floor):
        top, bottom = sympy.fraction(sympy.together(expr.args[0]))
        return tirx.floordiv(_to_tir(top, sizes), _to_tir(bottom, sizes))
    args = [_to_tir(a, sizes) for a in expr.args]
    result = args[0]
    if isinstance(expr, sympy.Pow):
        for _ in range(int(expr.exp) - 1):
            result = result * args[0]
        return result
    combine = {
        sympy.Add: lambda a, b: a + b,
        sympy.Mul: lambda a, b: a * b,
        sympy.Mod: tirx.floormod,
        sympy.Max: tirx.max,
        sympy.Min: tirx.min,
    }[type(expr)]
    for arg in args[1:]:
        result = combine(result, arg)
    return result


def ir_module(functions: Mapping[str, "tirx.PrimFunc"]) -> "tvm.IRModule":
    """One module of named kernels."""
    return tvm.IRModule({tvm.ir.GlobalVar(name): function for name, function in functions.items()})
