"""The judge of kernels: what a call means, computed by torch in f32 on the device from the memory of a launch."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, Final

import torch
from torch import Tensor

from planish.autotune.trial import Drawn, Meaning, Seen, Trial
from planish.codegen.call import Call
from planish.codegen.triton.device import Device
from planish.compiler import ops
from planish.compiler.evaluate import concrete, evaluate, run_node
from planish.compiler.ir import Graph, Node, Value
from planish.compiler.ops.structure import TORCH_DTYPE
from planish.compiler.text import graph_text, parse
from planish.compiler.types import DType, evaluate_shape
from planish.errors import PlanishError, TypeRuleError
from planish.runtime.dtypes import TORCH

_NARROW: Final = (DType.f16, DType.bf16)
# Half a unit in the last place; of f32 what the fast functions of a device are off, and angles of some thousand.
_ROUNDING: Final[Mapping[DType, float]] = {
    DType.f64: 2.0**-36, DType.f32: 2.0**-16, DType.f16: 2.0**-11, DType.bf16: 2.0**-8,
}  # fmt: skip
_ROUNDED: Final = 8  # times half a unit: the result's own rounding, and that of what it is computed from
_SUMMED: Final = 4  # times what a sum of rounded numbers is off on average
_SUM: Final = 2.0**-24  # of sums in f32
_SUM_F8: Final = 2.0**-14  # of f8 in the matrix units of sm_90; source: arXiv 2412.19437


def meaning_of(
    call: Call, held: Sequence[Seen | Drawn | None], device: Device, sizes: Mapping[str, int]
) -> Meaning | None:
    """What the call computes from what its inputs hold, at these sizes; None where that cannot be told."""
    operands = [each for each in held if each is not None]
    if len(operands) < len(held):
        return None
    try:
        graph = _graph(call, sizes)
    except TypeRuleError:  # a rule that knows no numbers for some of the sizes
        return None
    places = {value: i for i, value in enumerate(call.inputs)}
    continues = [
        places.get(part.anchor.operands[0]) if "state" in part.anchor.op.traits else None for part in call.parts
    ]
    allowed = tuple(_allowed(value.dtype, graph, device) for value in graph.outputs)
    return Meaning(graph_text(graph), tuple(operands), allowed, tuple(continues))


def expected(trial: Trial, blocks: Sequence[Any], device: torch.device) -> list[Tensor] | None:
    """What the results of the trial should be, in f32 where they are narrower floats; None where nothing says so, the
    device has no room for it, or torch cannot do it there."""
    if trial.meaning is None:
        return None
    try:
        with torch.device(device):
            operands = [_operand(each, blocks) for each in trial.meaning.operands]
            found = list(evaluate(parse(trial.meaning.graph), operands, {}, run=_wide))
    except (RuntimeError, PlanishError, ArithmeticError, LookupError, TypeError, ValueError):
        torch.cuda.empty_cache()  # no reference takes all that may be drawn
        return None
    return found if [tuple(t.shape) for t in found] == [seen.shape for seen in trial.results] else None


def seen_in(blocks: Sequence[Any], seen: Seen) -> Tensor:
    """The elements of a block as a tensor that shares its memory."""
    dtype: torch.dtype = getattr(torch, TORCH[seen.dtype])
    memory = blocks[seen.block]
    whole = memory[: memory.numel() // dtype.itemsize * dtype.itemsize].view(dtype)
    found: Tensor = whole.as_strided(seen.shape, seen.strides, seen.offset)
    return found


def _graph(call: Call, sizes: Mapping[str, int]) -> Graph:
    """The call as a graph over its inputs, with numbers in the place of named sizes."""
    built: dict[Value, Value] = {
        value: ops.input_(name=f"x{i}", shape=evaluate_shape(value.shape, sizes), dtype=value.dtype)
        for i, value in enumerate(call.inputs)
    }
    inputs = tuple(built.values())
    return Graph("call", inputs, tuple(_rebuilt(part.output, built, sizes) for part in call.parts))


def _rebuilt(value: Value, built: dict[Value, Value], sizes: Mapping[str, int]) -> Value:
    if value not in built:
        node = value.node
        if "leaf" in node.op.traits:
            raise TypeRuleError(f"{node.op.name} is not among what the call reads")
        operands = tuple(None if v is None else _rebuilt(v, built, sizes) for v in node.inputs)
        attrs = {name: concrete(attr, sizes) for name, attr in node.attrs.items()}
        built.update(zip(node.values, node.op.node(operands, attrs).values, strict=True))
    return built[value]


def _operand(held: Seen | Drawn, blocks: Sequence[Any]) -> Tensor:
    if isinstance(held, Seen):
        return seen_in(blocks, held)
    dtype: torch.dtype = getattr(torch, TORCH[held.dtype])
    array = torch.frombuffer(bytearray(held.data), dtype=torch.uint8).to(blocks[0].device).view(dtype)
    if not held.rows:
        return array.reshape(held.shape)
    rows = torch.frombuffer(bytearray(held.rows), dtype=torch.int32).to(array.device)
    return array.view(torch.uint8).reshape(-1, held.shape[-1] * dtype.itemsize)[rows].view(dtype).reshape(held.shape)


def _wide(node: Node, values: Mapping[Value, Tensor], sizes: Mapping[str, int]) -> tuple[Tensor, ...]:
    """The results of one node with f32 in the place of narrower floats; indices are clamped, as kernels do."""
    operands = {v: _widened(values[v]) for v in node.operands}
    if node.op in (ops.embedding, ops.gather, ops.index_select):
        table, index = node.operands
        axis = int(str(node.attrs.get("axis", 0)))
        operands[index] = operands[index].clamp(0, table.type.shape[axis] - 1)
    attrs = {k: DType.f32 if a in _NARROW else a for k, a in node.attrs.items()}
    return run_node(Node(node.op, node.inputs, attrs, node.types, node.scope), operands, sizes)


def _widened(tensor: Tensor) -> Tensor:
    return tensor.float() if tensor.dtype in [TORCH_DTYPE[dtype] for dtype in _NARROW] else tensor


def _allowed(dtype: DType, graph: Graph, device: Device) -> float:
    """By how much of its largest magnitude a result of the dtype may be off: what is rounded on the way to it, and sums
    of random signs, whose error grows with the root of their length."""
    dtypes = {v.dtype for node in graph.nodes() for v in node.values}
    narrowest = max((_ROUNDING[d] for d in dtypes | {dtype} if d in _ROUNDING), default=0.0)
    short = DType.f8 in dtypes and device.arch == 90
    return _ROUNDED * narrowest + _SUMMED * math.sqrt(_longest(graph)) * (_SUM_F8 if short else _SUM)


def _longest(graph: Graph) -> int:
    """A bound of the numbers that are summed to one: the longest axis, or how many times more go into a node than come
    out."""
    found = 1
    for node in graph.nodes():
        shapes = [evaluate_shape(value.shape, {}) for value in (*node.operands, *node.values)]
        counts = [max(1, math.prod(shape)) for shape in shapes]
        found = max(found, max(counts) // counts[-1], *(d for shape in shapes for d in shape))
    return found
