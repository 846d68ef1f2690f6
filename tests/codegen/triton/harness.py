"""Runs one GPU kernel in Triton's interpreter: a graph becomes one call, whose launches run on torch tensors."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import numpy
import torch

from planish.codegen.call import Call
from planish.codegen.function_plan import as_array
from planish.codegen.template import Template
from planish.codegen.triton.device import Device, device_of
from planish.codegen.triton.kernel import Argument, Input, Kernel, Launch, Number, Output, Real, Scratch, Variant
from planish.codegen.triton.sources import resolved
from planish.codegen.view import View
from planish.compiler import ops
from planish.compiler.evaluate import evaluate
from planish.compiler.ir import Graph, Op, Value
from planish.compiler.ops.structure import FROM_TORCH, TORCH_DTYPE
from planish.compiler.types import Shape, Size, evaluate_dim, evaluate_shape
from planish.hardware_profiles import load_profile
from tests.codegen.harness import call_of
from tests.codegen.triton.interpreter import look_once

look_once()


def device(name: str = "h200") -> Device:
    """The device of a built-in profile."""
    return device_of(load_profile(name))


def small(name: str = "h200") -> Device:
    """The device with so few multiprocessors that few programs fill it: keys are split in 8 parts at most."""
    return replace(device(name), multiprocessors=4)


def check(
    template: Template,
    build: Callable[..., Value],
    *tensors: torch.Tensor,
    sizes: Mapping[str, int] | None = None,
    shapes: tuple[Shape, ...] | None = None,
    anchor: Op | None = None,
    out: View | None = None,
    on: str | Device = "h200",
    rtol: float = 3e-6,
    atol: float = 1e-6,
) -> None:
    """Run every variant of the kernel of `build(*leaves)` that serves these sizes against the references of its ops.

    Tensors that are views of larger ones are read in place. `shapes` gives symbolic shapes with their `sizes`;
    `anchor` is the output's op unless given. The references compute in f64 from the same operands, so that
    tolerances are of the kernel alone.
    """
    shapes = shapes or tuple(tuple(t.shape) for t in tensors)
    leaves = [
        ops.input_(name=f"x{i}", shape=s, dtype=FROM_TORCH[t.dtype])
        for i, (t, s) in enumerate(zip(tensors, shapes, strict=True))
    ]
    output = build(*leaves)
    graph = Graph("main", tuple(leaves), (output,), tuple(Size(n, hint=h) for n, h in (sizes or {}).items()))
    views = {f"x{i}": _view(t) for i, t in enumerate(tensors) if not t.is_contiguous() or t.storage_offset()}
    call = call_of(graph, anchor or output.node.op, views, out)
    buffers = {f"x{i}": _memory(t) for i, t in enumerate(tensors)}
    (wanted,) = evaluate(graph, tensors, {})
    for found in run_call(template, call, buffers, sizes=sizes, on=on):
        torch.testing.assert_close(found, wanted, rtol=rtol, atol=atol, equal_nan=True)


def run_call(
    template: Template,
    call: Call,
    buffers: Mapping[str, torch.Tensor],
    *,
    sizes: Mapping[str, int] | None = None,
    on: str | Device = "h200",
    before: torch.Tensor | None = None,
) -> list[torch.Tensor]:
    """The output of the call in its logical shape, once for each variant of the regime of the sizes."""
    given = () if before is None else (before,)
    return [found[0] for found in run_results(template, call, buffers, sizes=sizes, on=on, before=given)]


def run_results(
    template: Template,
    call: Call,
    buffers: Mapping[str, torch.Tensor],
    *,
    sizes: Mapping[str, int] | None = None,
    on: str | Device = "h200",
    before: Sequence[torch.Tensor] = (),
) -> list[list[torch.Tensor]]:
    """All results of the call, once for each variant; `before` is what lies in their memory at first."""
    sizes = dict(sizes or {})
    gpu = on if isinstance(on, Device) else device(on)
    assert (why := template.refuse(call, gpu)) is None, why
    kernel: Kernel = template.build(call, gpu)
    regimes = [_regime(launch, sizes) for launch in kernel.launches]
    return [
        _run(call, kernel, [variants[min(i, len(variants) - 1)] for variants in regimes], buffers, sizes, before)
        for i in range(max(map(len, regimes)))
    ]


def _regime(launch: Launch, sizes: Mapping[str, int]) -> tuple[Variant, ...]:
    size = evaluate_dim(launch.size, sizes)
    return next(r.variants for r in launch.regimes if r.most is None or size <= r.most)


def _run(
    call: Call,
    kernel: Kernel,
    variants: list[Variant],
    buffers: Mapping[str, torch.Tensor],
    sizes: Mapping[str, int],
    before: Sequence[torch.Tensor],
) -> list[torch.Tensor]:
    views = list(call.results.values())
    outs = [torch.zeros(evaluate_dim(v.extent, sizes), dtype=TORCH_DTYPE[v.dtype]) for v in views]
    for out, given in zip(outs, before, strict=False):
        out[:] = given.flatten()
    scratch = torch.zeros(evaluate_dim(kernel.scratch_bytes, sizes) + 16, dtype=torch.uint8)
    inputs = [_packed(value, kernel, buffers) for value in call.inputs]
    for launch, variant in zip(kernel.launches, variants, strict=True):
        memory = _Memory(inputs, outs, scratch, sizes)
        arguments = {
            name: tuple(map(memory.of, a)) if isinstance(a, tuple) else memory.of(a)
            for name, a in launch.arguments.items()
        }
        constants = {**launch.constants, **variant.constants}
        known = resolved(constants)
        grid = tuple(evaluate_dim(d, sizes) for d in variant.grid)
        with numpy.errstate(all="ignore"):  # the interpreter computes masked lanes, and infinities, with numpy
            launch.function[grid](**arguments, **known)
    return [_seen(out, view, sizes) for out, view in zip(outs, views, strict=True)]


def _seen(memory: torch.Tensor, view: View, sizes: Mapping[str, int]) -> torch.Tensor:
    shape, strides = evaluate_shape(view.shape, sizes), evaluate_shape(view.strides, sizes)
    return torch.as_strided(memory, shape, strides, evaluate_dim(view.offset, sizes))


class _Memory:
    """What the arguments of a launch stand for."""

    def __init__(
        self, inputs: list[torch.Tensor], outs: list[torch.Tensor], scratch: torch.Tensor, sizes: Mapping[str, int]
    ) -> None:
        self.inputs, self.outs, self.scratch, self.sizes = inputs, outs, scratch, sizes

    def of(self, argument: Argument) -> object:
        match argument:
            case Input(index):
                return _plain(self.inputs[index])
            case Output(index):
                return _plain(self.outs[index])
            case Scratch(offset, dtype):
                return self.scratch[evaluate_dim(offset, self.sizes) :].view(TORCH_DTYPE[dtype])
            case Number(value):
                return evaluate_dim(value, self.sizes)
            case Real(value):
                return value


def _packed(value: Value, kernel: Kernel, buffers: Mapping[str, torch.Tensor]) -> torch.Tensor:
    tensor = buffers[str(value.node.attrs["name"])]
    packing = kernel.packings.get(value)
    return tensor if packing is None else torch.from_numpy(packing.pack(as_array(tensor)))


def _plain(tensor: torch.Tensor) -> torch.Tensor:
    """A bool lies in memory as a byte, and f8 as its bits."""
    return tensor.view(torch.uint8) if tensor.dtype in (torch.bool, torch.float8_e4m3fn) else tensor


def _view(tensor: torch.Tensor) -> View:
    return View(tuple(tensor.shape), tensor.stride(), int(tensor.storage_offset()), FROM_TORCH[tensor.dtype])


def _memory(tensor: torch.Tensor) -> torch.Tensor:
    return torch.as_strided(tensor, (tensor.untyped_storage().nbytes() // tensor.itemsize,), (1,), 0)
