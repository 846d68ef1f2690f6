"""The values of one call: where inputs, outputs, weights and what crosses steps lie in memory."""

import ctypes
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from planish.errors import ArtifactError
from planish.runtime import operands
from planish.runtime.buffers import ArenaPool, OutputPool
from planish.runtime.dtypes import TORCH
from planish.runtime.fields import Field, Json
from planish.runtime.operands import Operand
from planish.runtime.plan import FunctionPlan, TensorSpec, TorchStep
from planish.runtime.tensors import TensorFile
from planish.runtime.torch_step import import_torch, run_torch_step
from planish.runtime.values import ValueId


@dataclass(frozen=True, slots=True)
class Sized:
    """What follows from one set of input shapes."""

    sizes: Mapping[str, int]
    array: ctypes.Array[ctypes.c_int64]
    outputs: tuple[tuple[int, ...], ...]
    values: tuple[tuple[int, ...], ...]
    arena_bytes: int


class Memory:
    """What all functions share: the weights and the pools of arenas and outputs."""

    def __init__(self, weights: TensorFile, types: Mapping[str, TensorSpec]) -> None:
        self.arenas, self.outputs = ArenaPool(), OutputPool()
        self.weights_address = weights.address
        self._weights = weights
        self.named = {
            name: operands.of_array(weights.array(name, spec.dtype, spec.fixed_shape)) for name, spec in types.items()
        }
        self.types = types


class Frame:
    """The values of one call."""

    def __init__(
        self, plan: FunctionPlan, sized: Sized, inputs: Sequence[Operand], memory: Memory, torch: Any | None
    ) -> None:
        self.sized = sized
        self._plan, self._memory, self._torch = plan, memory, torch
        self._values = {ValueId("input", i): operand for i, operand in enumerate(inputs)}
        self._donated = {ValueId("output", o): ValueId("input", i) for o, i in plan.donated}
        for _, i in plan.donated:
            operands.check_writable(plan.inputs[i], inputs[i])

    def get(self, value: ValueId) -> Operand:
        """The operand of a value; outputs and crossing values are allocated when first asked for."""
        if value.kind == "weight":
            return self._memory.named[str(value.key)]
        if value not in self._values:
            given = self._donated.get(value)
            if given is not None:
                return self._values[given]
            spec, shape = self._spec(value), self._shape(value)
            self._values[value] = operands.empty(spec.dtype, shape, self._torch, self._memory.outputs)
        return self._values[value]

    def run_torch(self, step: TorchStep) -> None:
        torch = import_torch(step)
        results = run_torch_step(step, lambda identity: self._tensor(identity, torch), self.sized.sizes, torch)
        for value, result in zip(step.outputs, results, strict=True):
            if value is not None:
                self._put(step, value, result, torch)

    def _tensor(self, identity: Json, torch: Any) -> Any:
        value = ValueId.from_json(Field(identity, "plan.json"))
        return operands.as_torch(self.get(value), self._spec(value).dtype, torch)

    def _put(self, step: TorchStep, value: ValueId, result: Any, torch: Any) -> None:
        spec, shape = self._spec(value), self._shape(value)
        given = "None" if result is None else f"{str(result.dtype).removeprefix('torch.')}{list(result.shape)}"
        if result is None or tuple(result.shape) != shape or given.split("[")[0] != TORCH[spec.dtype]:
            raise ArtifactError(f"{step.target} in '{step.scope}' gave {given}, the plan says {spec} = {list(shape)}")
        if value.kind == "value":
            kept = result.contiguous()
            self._values[value] = Operand(kept.data_ptr(), shape, kept)
        else:
            operands.as_torch(self.get(value), spec.dtype, torch).copy_(result)

    def _spec(self, value: ValueId) -> TensorSpec:
        match value.kind:
            case "input":
                return self._plan.inputs[int(value.key)].type
            case "output":
                return self._plan.outputs[int(value.key)]
            case "value":
                return self._plan.values[int(value.key)]
        return self._memory.types[str(value.key)]

    def _shape(self, value: ValueId) -> tuple[int, ...]:
        shapes = self.sized.outputs if value.kind == "output" else self.sized.values
        return shapes[int(value.key)]
