"""Runs one kernel on real tensors: a graph becomes one call, is built for the machine at hand and run through ctypes."""

import ctypes
import itertools
import mmap
import tempfile
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch

from planish.codegen.call import Call
from planish.codegen.template import Template
from planish.codegen.tvm.isa import AVX2, AVX512, Isa
from planish.codegen.view import View
from planish.compiler.ir import Graph, Node, Op, Value
from planish.compiler.ops.structure import TORCH_DTYPE
from planish.compiler.types import evaluate_dim, evaluate_shape


def host_isa() -> Isa:
    """An instruction set that this x86-64 machine has."""
    flags = Path("/proc/cpuinfo").read_text()
    if "avx512_bf16" in flags and "avx512_vnni" in flags:
        return Isa("x86_64-linux-gnu", "x86-64-v4", 16, 32, True, True, ("+avx512bf16", "+avx512vnni"))
    return AVX512 if "avx512f" in flags else AVX2


def on_both(cases: Sequence[object], narrow: Collection[object]) -> list[Any]:
    """The cases on this machine and on AVX2, as parameters; those outside of `narrow` are slow there."""
    slow = [[] if case in narrow else [pytest.mark.slow] for case in cases]
    avx2 = [pytest.param(case, AVX2, id=f"{case}-avx2", marks=marks) for case, marks in zip(cases, slow, strict=True)]
    return [*(pytest.param(case, host_isa(), id=f"{case}-host") for case in cases), *avx2]


def call_of(graph: Graph, anchor: Op, views: Mapping[str, View] | None = None, out: View | None = None) -> Call:
    """The whole graph as one call. `views` places named inputs at other strides than contiguous ones."""
    nodes = tuple(n for n in graph.nodes() if "leaf" not in n.op.traits)
    leaves = [n for n in graph.nodes() if "leaf" in n.op.traits]
    inputs = {n.values[0]: (views or {}).get(str(n.attrs["name"]), View.contiguous(n.types[0])) for n in leaves}
    (output,) = graph.outputs
    found: Node = next(n for n in nodes if n.op is anchor)
    return Call(found, nodes, inputs, output, out or View.contiguous(output.type))


def run_call(
    template: Template,
    call: Call,
    buffers: Mapping[str, torch.Tensor],
    *,
    sizes: Mapping[str, int] | None = None,
    isa: Isa | None = None,
    tasks: int = 2,
    shift: int = 0,
    before: torch.Tensor | None = None,
) -> torch.Tensor:
    """The output of `run_results`, whose memory holds `before` where that is given."""
    options = {"sizes": sizes, "isa": isa, "tasks": tasks, "shift": shift, "before": before}
    return run_results(template, call, buffers, **options)[call.output]  # type: ignore[arg-type]


def run_results(
    template: Template,
    call: Call,
    buffers: Mapping[str, torch.Tensor],
    *,
    sizes: Mapping[str, int] | None = None,
    isa: Isa | None = None,
    tasks: int = 2,
    shift: int = 0,
    before: torch.Tensor | None = None,
) -> Mapping[Value, torch.Tensor]:
    """Build the call, run its tasks (then those of its merge that want it) and return the results in logical shapes.

    `buffers` holds, by input or weight name, the flat memory that the views of the call refer to. The memory of results
    begins `shift` bytes past a multiple of 64; that of the output holds `before` where it is given. Operands of even
    tasks begin where a page without access ends, those of odd tasks end where one begins, so that a kernel which reads
    outside of them crashes.
    """
    isa, sizes = isa or host_isa(), dict(sizes or {})
    assert (why := template.refuse(call, isa)) is None, why
    built = template.build(call, isa)
    functions = built.functions("kernel_under_test")
    library = _library(template, call, isa, functions)
    arrays = [_memory(value, built.packings, buffers) for value in call.inputs]
    guarded = [
        [
            _guarded(a, after, 64 if v in built.packings else a.itemsize)
            for a, v in zip(arrays, call.inputs, strict=True)
        ]
        for after in (False, True)
    ]
    outs = {value: _room(view, sizes, shift) for value, view in call.results.items()}
    if before is not None:
        outs[call.output][:] = before.contiguous().flatten().view(torch.uint8).numpy()
    scratch_bytes = evaluate_dim(built.scratch_bytes, sizes) * (1 if built.merge is None else tasks)
    scratch = numpy.zeros(scratch_bytes + 64, numpy.uint8)
    aligned = scratch.ctypes.data + (-scratch.ctypes.data) % 64
    for symbol, task in itertools.product(functions, range(tasks)):
        own = aligned - scratch.ctypes.data + task * scratch_bytes // tasks
        if symbol != "kernel_under_test" and not scratch[own : own + 4].any():
            continue
        pointers = [*(a.ctypes.data for a in (*guarded[task % 2], *outs.values())), aligned]
        arguments: Sequence[object] = [
            *map(ctypes.c_void_p, pointers),
            *(ctypes.c_int64(sizes[name]) for name in call.sizes(built.scratch_bytes)),
            ctypes.c_int32(task),
            ctypes.c_int32(tasks),
        ]
        assert library[symbol](*arguments) == 0
    return {value: _seen(outs[value], view, sizes) for value, view in call.results.items()}


def _room(view: View, sizes: Mapping[str, int], shift: int) -> numpy.ndarray:
    """The memory of a result, `shift` bytes past a multiple of 64."""
    size = evaluate_dim(view.extent, sizes) * view.dtype.itemsize
    room = numpy.zeros(size + 128, numpy.uint8)
    start = -room.ctypes.data % 64 + shift
    return room[start : start + size]


def _seen(memory: numpy.ndarray, view: View, sizes: Mapping[str, int]) -> torch.Tensor:
    shape, strides = (evaluate_shape(dims, sizes) for dims in (view.shape, view.strides))
    flat = torch.from_numpy(memory).view(TORCH_DTYPE[view.dtype])
    return torch.as_strided(flat, shape, strides, evaluate_dim(view.offset, sizes))


_LIBRARIES: dict[tuple[object, str, Isa], ctypes.CDLL] = {}


def _library(template: Template, call: Call, isa: Isa, functions: Mapping[str, object]) -> ctypes.CDLL:
    """The code of the kernel, compiled once for all calls that it serves."""
    # tests of GPU kernels, which have no TVM, import this file
    from planish.codegen.tvm.build import build_object, link

    key = (template, call.key(), isa)
    if key not in _LIBRARIES:
        with tempfile.TemporaryDirectory() as folder:
            build_object(functions, isa, Path(folder, "k.o"))
            link([], [Path(folder, "k.o")], isa, Path(folder, "k.so"))
            _LIBRARIES[key] = ctypes.CDLL(str(Path(folder, "k.so")))
    return _LIBRARIES[key]


def _leaf(value: Value) -> str:
    """The name of the input or weight that holds a value, which may be a view of it."""
    return str(value.node.attrs["name"]) if "leaf" in value.node.op.traits else _leaf(value.node.operands[0])


def _memory(value: Value, packings: Mapping[Value, object], buffers: Mapping[str, torch.Tensor]) -> numpy.ndarray:
    tensor = buffers[_leaf(value)]
    array = tensor.contiguous().view(torch.int16).numpy().view(numpy.uint16) if tensor.dtype is torch.bfloat16 else None
    array = tensor.contiguous().numpy() if array is None else array
    packing = packings.get(value)
    return numpy.ascontiguousarray(packing.pack(array)) if packing else array  # type: ignore[attr-defined]


def _guarded(array: numpy.ndarray, after: bool, alignment: int) -> numpy.ndarray:
    """A copy of the array that begins behind a page without access, or with `after` ends in front of one."""
    page = mmap.PAGESIZE
    size = -(-array.nbytes // page) * page
    memory = numpy.frombuffer(mmap.mmap(-1, size + 2 * page), numpy.uint8)
    place = page + (size - -(-array.nbytes // alignment) * alignment if after else 0)
    copy = memory[place : place + array.nbytes].view(array.dtype)
    copy[:] = array.reshape(-1)
    for edge in (0, page + size):
        assert ctypes.CDLL(None).mprotect(ctypes.c_void_p(memory.ctypes.data + edge), page, 0) == 0
    return copy
