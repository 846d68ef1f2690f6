"""One call on a device: its values, its arena, and the steps that run over them."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from planish.errors import ArtifactError
from planish.runtime.device.launcher import Launcher, Part, Passed, Whole
from planish.runtime.device.memory import Sized
from planish.runtime.device.operands import ALIGNMENT
from planish.runtime.dtypes import TORCH, DTypeName
from planish.runtime.fields import Field, Json
from planish.runtime.launches import Address, Argument, DeviceCall, DeviceStep, Float, Integer
from planish.runtime.plan import FunctionPlan, TensorSpec, TorchStep
from planish.runtime.torch_step import run_torch_step
from planish.runtime.values import ValueId


@dataclass(frozen=True, slots=True)
class Weights:
    """The weights on the device: one block of bytes, and by name those that torch reads as tensors."""

    memory: Any
    named: Mapping[str, Any]


class Frame:
    """The values of one call. `memory` is the arena and the scratch memory: bytes that nothing else uses now."""

    def __init__(
        self,
        plan: FunctionPlan,
        sized: Sized,
        inputs: Sequence[Any],
        weights: Weights,
        launcher: Launcher,
        memory: tuple[Any, Any],
    ) -> None:
        import torch

        self._plan, self._sized, self._weights, self._launcher = plan, sized, weights, launcher
        self._torch, (self._arena, self._scratch) = torch, memory
        self._values = {ValueId("input", i): tensor for i, tensor in enumerate(inputs)}
        self._donated = {ValueId("output", o): ValueId("input", i) for o, i in plan.donated}

    def run_all(self) -> None:
        """Run all steps of the plan; values between them are let go of when no later step reads them."""
        for i, ended in enumerate(self._sized.ended):
            self.run(i)
            for value in ended:
                self._values.pop(value, None)

    def run(self, *places: int) -> None:
        """Run the steps at these places of the plan."""
        for index in places:
            step = self._plan.steps[index]
            if isinstance(step, DeviceStep):
                for call in step.calls:
                    self.launch(index, call)
            elif isinstance(step, TorchStep):
                self._run_torch(step)
            else:
                raise ArtifactError(f"step {index} of the plan is native code, which no device runs; compile again")

    def outputs(self) -> list[Any]:
        """The tensors of the results."""
        return [self.get(ValueId("output", i)) for i in range(len(self._plan.outputs))]

    def launch(self, index: int, call: DeviceCall) -> None:
        """Put the launches of one kernel of the step at `index` on the device."""
        sizes = self._sized.sizes
        for launch in call.launches:
            choice = launch.choice(sizes)
            x, y, z = (dimension.evaluate(sizes) for dimension in choice.grid)
            self._launcher.launch(choice.kernel, (x, y, z), [self._passed(index, a) for a in launch.arguments])

    def settled(self, index: int, step: TorchStep) -> Callable[[], None]:
        """Run the step now, and again with each call of what is given; its results stay where they are."""
        self.run(index)
        for value in step.writes():
            if value.kind == "value":
                self._values[value] = self._values[value].clone(memory_format=self._torch.contiguous_format)
        return partial(self.run, index)

    def get(self, value: ValueId) -> Any:
        """The tensor of a value; outputs and crossing values are allocated when first asked for."""
        if value.kind == "weight":
            return self._weights.named[str(value.key)]
        if value not in self._values:
            given = self._donated.get(value)
            self._values[value] = self._empty(value) if given is None else self._values[given]
        return self._values[value]

    def _passed(self, index: int, argument: Argument) -> Passed:
        sizes = self._sized.sizes
        match argument:
            case Integer(value, size):
                return Whole(value.evaluate(sizes), size)
            case Float(value):
                return value
            case Address(place, key, offset, dtype):
                start = offset.evaluate(sizes)
                if place == "value":
                    assert isinstance(key, ValueId)
                    return self._aligned(key)
                if place == "slot":
                    assert isinstance(key, int)
                    return self._part(self._arena, self._sized.slots[index][key] + start, dtype)
                return self._part(self._scratch if place == "scratch" else self._weights.memory, start, dtype)

    def _part(self, memory: Any, start: int, dtype: DTypeName) -> Part:
        return Part(memory, start, getattr(self._torch, TORCH[dtype]))

    def _empty(self, value: ValueId) -> Any:
        spec = self._spec(value)
        dtype = getattr(self._torch, TORCH[spec.dtype])
        return self._torch.empty(self._shape(spec), dtype=dtype, device=self._launcher.device)

    def _shape(self, spec: TensorSpec) -> tuple[int, ...]:
        return tuple(dimension.evaluate(self._sized.sizes) for dimension in spec.shape)

    def _run_torch(self, step: TorchStep) -> None:
        # only a view needs the strides that the program was traced with; convolutions take channels in any place
        tensor = self._contiguous if step.target.startswith("aten.view.") else self.get
        found = partial(self._named, tensor)
        results = run_torch_step(step, found, self._sized.sizes, self._torch, self._launcher.device)
        for value, result in zip(step.outputs, results, strict=True):
            if value is not None:
                self._put(step, value, result)

    def _named(self, tensor: Callable[[ValueId], Any], identity: Json) -> Any:
        return tensor(ValueId.from_json(Field(identity, "plan.json")))

    def _contiguous(self, value: ValueId) -> Any:
        """The tensor of a value that torch may have left in other strides, row-major from now on."""
        tensor = self.get(value)
        if not tensor.is_contiguous():
            tensor = self._values[value] = tensor.contiguous()
        return tensor

    def _aligned(self, value: ValueId) -> Any:
        """The tensor of a value as kernels read it: torch may have left a view that starts anywhere."""
        tensor = self._contiguous(value)
        if tensor.data_ptr() % ALIGNMENT:
            tensor = self._values[value] = tensor.clone()
        return tensor

    def _put(self, step: TorchStep, value: ValueId, result: Any) -> None:
        spec = self._spec(value)
        wanted = (self._shape(spec), getattr(self._torch, TORCH[spec.dtype]))
        given = None if result is None else (tuple(result.shape), result.dtype)
        if given != wanted:
            raise ArtifactError(f"{step.target} in '{step.scope}' gave {given}, the plan says {spec}")
        # an output may be a view of an input; what is there already is the memory that a repeated step is to fill
        if value.kind == "output" or value in self._values:
            self.get(value).copy_(result)
        else:
            self._values[value] = result

    def _spec(self, value: ValueId) -> TensorSpec:
        specs = {"output": self._plan.outputs, "value": self._plan.values}[value.kind]
        return specs[int(value.key)]
