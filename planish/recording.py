"""The result that an artifact records: what the model itself gives for the example inputs, cut where it is large."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy
import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from planish.codegen.function_plan import as_array
from planish.compiler.evaluate import Run, bind_sizes, evaluate, run_node
from planish.compiler.importers import Imported
from planish.compiler.ir import Graph, Node, Program, Value
from planish.compiler.ops.structure import TORCH_DTYPE
from planish.compiler.types import DType, elements, evaluate_dim, evaluate_shape
from planish.errors import InputError
from planish.runtime.golden import Golden
from planish.runtime.manifest import Tolerance

LARGEST = 8 << 20  # bytes of recorded outputs above which the example is cut
F32_TOLERANCE = 1e-4  # of the largest output: the promise for f32 results on a CPU
# Programs that round activations or caches to 8 bits, or to bf16, round some of them to the neighbouring number where
# sums are in another order; those with codes of weights only compute the same numbers from them.
_CODES, _ROUNDED = 1e-3, 3e-2
# What sums in another order change of a number is a tenth of the nudge; two evaluations differ by up to half. The nudge
# of f16 is what rounding at another place changes.
_NUDGES, _TURNS, _MARGIN = {torch.float32: 2.0**-17, torch.float16: 2.0**-11}, 2, 2.0
# In 8 and 11 bits of significand PyTorch and a fused kernel round at different places: sixteen units of the last place.
_NARROW = {DType.f8: 2.0**-4, DType.bf16: 16 * 2.0**-8, DType.f16: 16 * 2.0**-11}


@torch.no_grad()
def record(model: Any, imported: Imported, program: Program, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Golden:
    """The example inputs and what the model gives for them.

    For ONNX that is the imported program's reference, and where `program`, what was compiled, computes with codes or
    narrower numbers, the reference of that, since the artifact is to compute what those say.
    Where the outputs would be over `LARGEST` bytes, the inputs are cut along their dynamic axes until they are not.
    """
    graph = imported.program.main
    given = imported.leaves(args, kwargs) if args or kwargs else _examples(graph)
    leaves = [torch.as_tensor(leaf) for leaf in given]
    sizes = bind_sizes(graph, leaves)
    small = smaller_sizes(graph, sizes)
    if small != sizes:
        cut = [_cut(leaf, value.shape, small) for leaf, value in zip(leaves, graph.inputs, strict=True)]
        args, kwargs = _replaced((args, kwargs), dict(zip(map(id, leaves), cut, strict=True)))
        leaves = cut
    narrower = is_narrower(program, imported.program)

    def run(how: Run) -> tuple[Tensor, ...]:
        return evaluate(program.main, leaves, program.weights, run=how)

    if narrower:
        results = run(run_node)
    elif isinstance(model, nn.Module):
        results = tuple(map(torch.as_tensor, imported.result_leaves(_called(model, args, kwargs))))
    else:
        results = evaluate(graph, leaves, imported.program.weights)
    inputs, outputs = (tuple(numpy.array(as_array(t)) for t in group) for group in (leaves, results))
    tolerance = codes_tolerance(program, results, run) if narrower else model_tolerance(graph, results)
    return Golden(inputs, outputs, tolerance)


def holds_codes(program: Program) -> bool:
    """Whether weights, activations or caches are quantized."""
    return bool({"quantize", "dequantize", "pack_groups"} & _ops(program))


def is_narrower(program: Program, source: Program) -> bool:
    """Whether a program computes with codes, or multiplies in bf16 where the one that it was made of does not."""
    return holds_codes(program) or DType.bf16 in _multiplied(program) - _multiplied(source)


def _multiplied(program: Program) -> set[DType]:
    """The dtypes of the operands of products."""
    nodes = (node for graph in program.functions.values() for node in graph.nodes())
    return {node.operands[0].dtype for node in nodes if "contraction" in node.op.traits}


def codes_tolerance(
    program: Program, results: tuple[Tensor, ...], run: Callable[[Run], tuple[Tensor, ...]]
) -> Tolerance:
    """How far kernels may be from the reference evaluator of a program with codes, narrow caches or narrow products.

    `run` gives the results once more, with nodes computed by what it is given. Which code a number between two becomes
    depends on the order of the sums before it, and each one that becomes another moves the numbers of later layers. How
    far that goes depends on the weights and the depth, so that it is measured: with numbers that are nudged everywhere.
    """
    rounds = bool({"quantize", "pack_groups"} & _ops(program))
    multiplied = _multiplied(program)
    relative = _ROUNDED if rounds or DType.bf16 in multiplied else _CODES
    if DType.f16 in multiplied:
        relative = max(relative, _NARROW[DType.f16])
    moved = max(_moved(results, run(_nudging(seed))) for seed in range(_TURNS)) if rounds else 0.0
    return Tolerance(rtol=relative, atol=max(relative * _scale(results), _MARGIN * moved))


def _moved(results: tuple[Tensor, ...], others: tuple[Tensor, ...]) -> float:
    """The largest finite distance of float results from others, and at least 0."""
    pairs = ((a.double(), b.double()) for a, b in zip(results, others, strict=True) if a.is_floating_point())
    distances = ((a - b).abs() for a, b in pairs)
    return max([0.0, *(float(d[d.isfinite()].max()) for d in distances if bool(d.isfinite().any()))])


def _nudging(seed: int) -> Run:
    """Runs nodes and moves each float result by a random part of itself, as far as `_NUDGES` say."""
    random = torch.Generator().manual_seed(seed)

    def run(node: Node, values: Mapping[Value, Tensor], sizes: Mapping[str, int]) -> tuple[Tensor, ...]:
        return tuple(map(nudged, run_node(node, values, sizes)))

    def nudged(x: Tensor) -> Tensor:
        if x.dtype not in _NUDGES:
            return x
        return (x * (1 + _NUDGES[x.dtype] * (2 * torch.rand(x.shape, generator=random) - 1))).to(x.dtype)

    return run


def _ops(program: Program) -> set[str]:
    return {node.op.name for graph in program.functions.values() for node in graph.nodes()}


def _called(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    try:
        with _every_position():
            return model(*args, **kwargs)
    except Exception as error:
        what = str(error).strip().partition("\n")[0] or type(error).__name__
        raise InputError(f"{type(model).__name__} itself fails on the example inputs: {what}; mend them") from error


@contextmanager
def _every_position() -> Iterator[None]:
    """Without torch's kernel for nn.TransformerEncoder, which gives zeros for padded positions, or none at the end."""
    switch = torch.backends.mha
    before = switch.get_fastpath_enabled()
    switch.set_fastpath_enabled(False)
    try:
        yield
    finally:
        switch.set_fastpath_enabled(before)


def smaller_sizes(graph: Graph, sizes: Mapping[str, int]) -> Mapping[str, int]:
    """`sizes` with the largest halved until the outputs are small, or nothing can be halved within its range."""
    while sum(v.dtype.itemsize * evaluate_dim(elements(v.shape), sizes) for v in graph.outputs) > LARGEST:
        able = [size.name for size in graph.sizes if sizes[size.name] // 2 >= max(2, size.low)]
        if not able:
            break
        largest = max(able, key=lambda name: sizes[name])
        sizes = {**sizes, largest: sizes[largest] // 2}
    return sizes


def _cut(leaf: Tensor, shape: tuple[Any, ...], sizes: Mapping[str, int]) -> Tensor:
    return leaf[tuple(slice(evaluate_dim(dim, sizes)) for dim in shape)]


def _replaced(tree: Any, tensors: Mapping[int, Tensor]) -> Any:
    return pytree.tree_map(lambda leaf: tensors.get(id(leaf), leaf), tree)


def _examples(graph: Graph) -> tuple[Tensor, ...]:
    """Inputs of the expected sizes where none were given: normal floats, ones for integers and bools."""
    generator, sizes = torch.Generator().manual_seed(0), graph.hints()
    shapes = [evaluate_shape(value.shape, sizes) for value in graph.inputs]
    pairs = zip(graph.inputs, shapes, strict=True)
    return tuple(
        (torch.randn(shape, generator=generator) if value.dtype.is_float else torch.ones(shape)).to(
            TORCH_DTYPE[value.dtype]
        )
        for value, shape in pairs
    )


def model_tolerance(graph: Graph, results: tuple[Tensor, ...]) -> Tolerance:
    """By the narrowest float of the graph, relative to the largest output and at least 1."""
    dtypes = {value.dtype for node in graph.nodes() for value in node.values}
    relative = max((_NARROW.get(dtype, F32_TOLERANCE) for dtype in dtypes), default=F32_TOLERANCE)
    return Tolerance(rtol=relative, atol=relative * _scale(results))


def _scale(results: tuple[Tensor, ...]) -> float:
    """The largest finite result, and at least 1."""
    finite = (r[r.isfinite()] for r in results if r.is_floating_point())
    return max([1.0, *(float(r.abs().max()) for r in finite if r.numel())])
