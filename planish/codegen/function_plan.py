"""The plan of a function: its types and its steps, from what was selected and scheduled."""

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

import numpy

from planish.codegen.donation import donations
from planish.codegen.schedule import Kernels, Schedule, Storage
from planish.codegen.select import Selection, TorchCall
from planish.compiler.ir import Node, Program, Value
from planish.compiler.ops.structure import FROM_TORCH
from planish.compiler.types import Dim, Shape, dim_text
from planish.compiler.weights import Weights
from planish.runtime.dims import SizeRange
from planish.runtime.fields import Json
from planish.runtime.plan import CallSpec, FunctionPlan, InputSpec, Step, TensorSpec, TorchStep
from planish.runtime.signature import Signature
from planish.runtime.tree import Tree
from planish.runtime.values import ValueId

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, slots=True)
class Interface:
    """How a function is called and what it returns."""

    signature: Signature
    result: Tree


def function_plan(
    selection: Selection, plan: Schedule, interface: Interface, step_of: Callable[[int, Kernels], Step]
) -> FunctionPlan:
    """The plan of a function whose `i`-th step, where it runs kernels of ours, is `step_of(i, kernels)`."""
    graph = selection.graph
    return FunctionPlan(
        sizes=tuple(SizeRange(s.name, s.low, s.high, s.hint) for s in graph.sizes),
        inputs=tuple(InputSpec(str(v.node.attrs["name"]), spec_of(v)) for v in graph.inputs),
        outputs=tuple(spec_of(v) for v in graph.outputs),
        signature=interface.signature,
        result=interface.result,
        values=tuple(spec_of(v) for v in plan.crossing),
        steps=tuple(
            step_of(i, step) if isinstance(step, Kernels) else _torch_step(step, plan.storage)
            for i, step in enumerate(plan.steps)
        ),
        calls=tuple(_calls(plan)),
        donated=donations(selection),
    )


def spec_of(value: Value) -> TensorSpec:
    """The value's type as the plan writes it."""
    return TensorSpec.of(value.dtype.value, _plain(value.shape))


def _plain(shape: Shape) -> tuple[int | str, ...]:
    return tuple(d if isinstance(d, int) else dim_text(d) for d in shape)


def value_id(value: Value, storage: Mapping[Value, Storage]) -> ValueId:
    """How the plan names the value."""
    place = storage[value]
    return ValueId(place.kind, place.key)  # type: ignore[arg-type]


def _torch_step(step: TorchCall, storage: Mapping[Value, Storage]) -> TorchStep:
    node = step.node
    arguments = json.loads(str(node.attrs["arguments"]))
    ids = [value_id(step.roots[v], storage).to_json() for v in node.operands]
    return TorchStep(
        target=str(node.attrs["target"]),
        arguments=tuple(_tagged(a, ids, node) for a in arguments["args"]),
        outputs=tuple(value_id(v, storage) if v in storage else None for v in node.values),
        keywords={k: _tagged(a, ids, node) for k, a in arguments["kwargs"].items()},
        scope=node.scope,
    )


def _tagged(tree: Json, ids: Sequence[Json], node: Node) -> Json:
    """The JSON of an opaque op's arguments with operands named as the plan names values."""
    if isinstance(tree, list):
        return [_tagged(item, ids, node) for item in tree]
    if isinstance(tree, dict) and "input" in tree:
        return {"value": ids[int(str(tree["input"]))]}
    if isinstance(tree, dict) and "int" in tree:
        number = node.operands[int(str(tree["int"]))].node.attrs["value"]
        return number if isinstance(number, int) else {"dim": dim_text(cast(Dim, number))}
    return tree


def _calls(plan: Schedule) -> Iterable[CallSpec]:
    for i, step in enumerate(plan.steps):
        if isinstance(step, Kernels):
            for choice in step.calls:
                yield CallSpec(
                    choice.call.label, choice.template.name, choice.call.anchor.op.name, choice.call.scope, i
                )


def torch_weights(program: Program, schedules: Iterable[Schedule]) -> Mapping[str, TensorSpec]:
    """The types of the weights that torch reads."""
    found = {}
    weights = Weights(program.weights)
    for plan in schedules:
        for step in plan.steps:
            if isinstance(step, TorchCall):
                for root in step.roots.values():
                    if root.node.op.name == "weight":
                        name = str(root.node.attrs["name"])
                        tensor = weights.like(name)
                        found[name] = TensorSpec.of(FROM_TORCH[tensor.dtype].value, tuple(tensor.shape))
    return found


def as_array(tensor: "torch.Tensor") -> numpy.ndarray:
    """The tensor's memory as numpy; bf16 as uint16 bits, f8 as uint8 bits."""
    import torch

    tensor = tensor.detach().cpu().contiguous()
    if tensor.dtype is torch.bfloat16:
        return tensor.view(torch.int16).numpy().view(numpy.uint16)
    return (tensor.view(torch.uint8) if tensor.dtype is torch.float8_e4m3fn else tensor).numpy()
