"""Compares one kernel with torch: values are built by a function of graph inputs, which tensors then stand for."""

from collections.abc import Callable, Mapping

import torch

from planish.codegen.template import Template
from planish.codegen.tvm.isa import Isa
from planish.codegen.view import View
from planish.compiler import ops
from planish.compiler.evaluate import evaluate
from planish.compiler.ir import Graph, Op, Value
from planish.compiler.ops.structure import FROM_TORCH
from planish.compiler.types import Shape, Size
from tests.codegen.harness import call_of, run_call


def check(
    template: Template,
    build: Callable[..., Value],
    *tensors: torch.Tensor,
    sizes: Mapping[str, int] | None = None,
    shapes: tuple[Shape, ...] | None = None,
    anchor: Op | None = None,
    out: View | None = None,
    isa: Isa | None = None,
    tasks: int = 2,
    rtol: float = 3e-6,
    atol: float = 1e-6,
) -> None:
    """Run the kernel of `build(*leaves)` and compare it with the references of its ops.

    Tensors that are views of larger ones are read in place. `shapes` gives symbolic shapes with their `sizes`;
    `anchor` is the output's op unless given.
    """
    shapes = shapes or tuple(tuple(t.shape) for t in tensors)
    leaves = [leaf(f"x{i}", t, s) for i, (t, s) in enumerate(zip(tensors, shapes, strict=True))]
    output = build(*leaves)
    graph = Graph("main", tuple(leaves), (output,), tuple(Size(n, hint=h) for n, h in (sizes or {}).items()))
    views = {f"x{i}": _view(t) for i, t in enumerate(tensors) if not t.is_contiguous() or t.storage_offset()}
    call = call_of(graph, anchor or output.node.op, views, out)
    buffers = {f"x{i}": _memory(t) for i, t in enumerate(tensors)}
    found = run_call(template, call, buffers, sizes=sizes, isa=isa, tasks=tasks)
    (wanted,) = evaluate(graph, tensors, {})
    torch.testing.assert_close(found, wanted, rtol=rtol, atol=atol, equal_nan=True)


def leaf(name: str, tensor: torch.Tensor, shape: Shape | None = None) -> Value:
    """A graph input that the tensor can stand for."""
    return ops.input_(name=name, shape=shape or tuple(tensor.shape), dtype=FROM_TORCH[tensor.dtype])


def _view(tensor: torch.Tensor) -> View:
    return View(tuple(tensor.shape), tensor.stride(), int(tensor.storage_offset()), FROM_TORCH[tensor.dtype])


def _memory(tensor: torch.Tensor) -> torch.Tensor:
    return torch.as_strided(tensor, (tensor.untyped_storage().nbytes() // tensor.itemsize,), (1,), 0)


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    """Reproducible normal numbers."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def integers(
    *shape: int, low: int = -9, high: int = 9, dtype: torch.dtype = torch.int64, seed: int = 0
) -> torch.Tensor:
    """Reproducible integers in `low..high - 1`."""
    return torch.randint(low, high, shape, generator=torch.Generator().manual_seed(seed)).to(dtype)
