"""plan.json: what a compiled program's functions take, which steps they run and what each kernel is.

The steps of a function name values by reference: an input, an output, a value that crosses steps, or a
weight. Inside one native step the generated code keeps its own buffers in the arena.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import TypeAlias, cast

from planish.errors import ArtifactError, ParseError
from planish.runtime.dims import Dimension, SizeRange, SizeSolver
from planish.runtime.dtypes import ITEMSIZE, DTypeName, read_dtype
from planish.runtime.fields import Field, Json
from planish.runtime.launches import DeviceStep, KernelSpec, read_dimension
from planish.runtime.signature import Signature
from planish.runtime.torch_arguments import check_argument, references
from planish.runtime.tree import Tree
from planish.runtime.values import ValueId


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """A dtype and a shape whose dimensions are integers or expressions over the function's sizes."""

    dtype: DTypeName
    shape: tuple[Dimension, ...]

    @classmethod
    def of(cls, dtype: DTypeName, shape: Iterable[int | str]) -> "TensorSpec":
        return cls(dtype, tuple(Dimension.parse(dimension) for dimension in shape))

    @property
    def itemsize(self) -> int:
        return ITEMSIZE[self.dtype]

    @property
    def fixed_shape(self) -> tuple[int, ...]:
        """The shape where no size is involved."""
        return tuple(dimension.evaluate({}) for dimension in self.shape)

    def to_json(self) -> dict[str, Json]:
        shape = [d.text if d.constant is None else d.constant for d in self.shape]
        return {"dtype": self.dtype, "shape": cast(Json, shape)}

    @classmethod
    def from_json(cls, field: Field) -> "TensorSpec":
        members = field.object("dtype", "shape")
        return cls(read_dtype(members["dtype"]), members["shape"].each(read_dimension))

    def __str__(self) -> str:
        return f"{self.dtype}[{', '.join(map(str, self.shape))}]"


@dataclass(frozen=True, slots=True)
class InputSpec:
    """An input tensor: the name that errors use, and its type."""

    name: str
    type: TensorSpec

    def to_json(self) -> Json:
        return {"name": self.name, **self.type.to_json()}

    @classmethod
    def from_json(cls, field: Field) -> "InputSpec":
        members = field.object("name", "dtype", "shape")
        spec = TensorSpec(read_dtype(members["dtype"]), members["shape"].each(read_dimension))
        return cls(members["name"].text(), spec)


@dataclass(frozen=True, slots=True)
class NativeStep:
    """One call of the library's function `entry` (the ABI is in planish.h)."""

    entry: str
    inputs: tuple[ValueId, ...]
    outputs: tuple[ValueId, ...]

    def reads(self) -> tuple[ValueId, ...]:
        return self.inputs

    def writes(self) -> tuple[ValueId, ...]:
        return self.outputs

    def to_json(self) -> Json:
        return {"kind": "native", "entry": self.entry, "inputs": _ids(self.inputs), "outputs": _ids(self.outputs)}


@dataclass(frozen=True, slots=True)
class TorchStep:
    """One aten op without a kernel of ours, run by torch.

    `target` is an overload such as `aten.topk.default`; `arguments` and `keywords` are as in
    `torch_arguments`. An output is None where the op's result is not used.
    """

    target: str
    arguments: tuple[Json, ...]
    outputs: tuple[ValueId | None, ...]
    keywords: Mapping[str, Json]
    scope: str = ""

    def reads(self) -> tuple[ValueId, ...]:
        found = references([*self.arguments, *self.keywords.values()])
        return tuple(ValueId.from_json(Field(value, self.target)) for value in found)

    def writes(self) -> tuple[ValueId, ...]:
        return tuple(output for output in self.outputs if output is not None)

    @property
    def refusal(self) -> str | None:
        """Why the op must not run: only functional ops of aten do, and none that opens files."""
        if not re.fullmatch(r"aten\.[A-Za-z0-9_]+\.[A-Za-z0-9_]+", self.target):
            return f"'{self.target}' is no op of aten, and an artifact may run no other"
        return f"'{self.target}' opens files" if self.target.startswith("aten.from_file.") else None

    def to_json(self) -> Json:
        return {
            "kind": "torch",
            "target": self.target,
            "arguments": list(self.arguments),
            "keywords": dict(self.keywords),
            "outputs": [None if output is None else output.to_json() for output in self.outputs],
            "scope": self.scope,
        }


Step: TypeAlias = NativeStep | DeviceStep | TorchStep


@dataclass(frozen=True, slots=True)
class CallSpec:
    """One kernel, for profiles: `segment` is the index of the step that runs it.

    The entry of a native step writes one time for each of the calls of its segment, in their order.
    """

    label: str
    template: str
    op: str
    scope: str
    segment: int

    def to_json(self) -> Json:
        return {name: getattr(self, name) for name in self.__slots__}

    @classmethod
    def from_json(cls, field: Field) -> "CallSpec":
        members = field.object("label", "template", "op", "scope", "segment")
        label, template, op, scope = (members[name].text() for name in ("label", "template", "op", "scope"))
        return cls(label, template, op, scope, members["segment"].integer())


@dataclass(frozen=True, slots=True)
class FunctionPlan:
    """One entry function; `signature` has one tensor for each of `inputs`, `result` one for each of `outputs`.

    `donated` pairs a result with the input in whose memory it is computed, by their indices.
    """

    sizes: tuple[SizeRange, ...]
    inputs: tuple[InputSpec, ...]
    outputs: tuple[TensorSpec, ...]
    signature: Signature
    result: Tree
    values: tuple[TensorSpec, ...]
    steps: tuple[Step, ...]
    calls: tuple[CallSpec, ...] = ()
    donated: tuple[tuple[int, int], ...] = ()

    def solver(self) -> SizeSolver:
        """What finds the sizes of a call; raises ParseError when the inputs do not determine them."""
        return SizeSolver(self.sizes, [i.name for i in self.inputs], [i.type.shape for i in self.inputs])

    def dtype(self, value: ValueId) -> DTypeName | None:
        """The dtype of an input, an output or a value between steps; None for a weight."""
        match value.kind:
            case "input":
                return self.inputs[int(value.key)].type.dtype
            case "output":
                return self.outputs[int(value.key)].dtype
            case "value":
                return self.values[int(value.key)].dtype
        return None

    def to_json(self) -> Json:
        return {
            "sizes": [{name: getattr(size, name) for name in size.__slots__} for size in self.sizes],
            "inputs": [spec.to_json() for spec in self.inputs],
            "outputs": [spec.to_json() for spec in self.outputs],
            "input_tree": self.signature.to_json(),
            "output_tree": self.result.to_json(),
            "values": [spec.to_json() for spec in self.values],
            "steps": [step.to_json() for step in self.steps],
            "calls": [call.to_json() for call in self.calls],
            "donated": [list(pair) for pair in self.donated],
        }

    @classmethod
    def from_json(cls, field: Field) -> "FunctionPlan":
        members = field.object(
            *("sizes", "inputs", "outputs", "input_tree", "output_tree", "values", "steps", "calls", "donated")
        )
        return cls(
            members["sizes"].each(_read_size),
            members["inputs"].each(InputSpec.from_json),
            members["outputs"].each(TensorSpec.from_json),
            Signature.from_json(members["input_tree"]),
            Tree.from_json(members["output_tree"]),
            members["values"].each(TensorSpec.from_json),
            members["steps"].each(_read_step),
            members["calls"].each(CallSpec.from_json),
            members["donated"].each(_read_pair),
        )


@dataclass(frozen=True, slots=True)
class Plan:
    """The whole of plan.json.

    `library` is the path of the shared library in the artifact, or None where no step is native. `weights`
    gives the types of the weights that steps name; those that only kernels read need no entry. `kernels` are what the
    launches of device steps name.
    """

    library: str | None
    functions: Mapping[str, FunctionPlan]
    weights: Mapping[str, TensorSpec]
    kernels: Mapping[str, KernelSpec] = field(default_factory=dict)

    def to_json(self) -> dict[str, Json]:
        return {
            "library": self.library,
            "weights": {name: spec.to_json() for name, spec in self.weights.items()},
            "functions": {name: function.to_json() for name, function in self.functions.items()},
            "kernels": {name: kernel.to_json() for name, kernel in self.kernels.items()},
        }

    @classmethod
    def from_json(cls, data: Json, *, where: str = "plan.json") -> "Plan":
        """The checked plan; raises ArtifactError with the path of the first thing that is wrong."""
        members = Field(data, where).object("library", "weights", "functions", "kernels")
        library = members["library"]
        plan = cls(
            None if library.value is None else library.text(),
            {name: FunctionPlan.from_json(function) for name, function in members["functions"].members().items()},
            {name: TensorSpec.from_json(spec) for name, spec in members["weights"].members().items()},
            {name: KernelSpec.from_json(kernel) for name, kernel in members["kernels"].members().items()},
        )
        check_plan(plan, where)
        return plan


def check_plan(plan: Plan, where: str = "plan.json") -> None:
    """Raise ArtifactError where the parts of a plan do not fit together."""
    if not plan.functions:
        raise ArtifactError(f"{where}: a plan needs at least one function")
    for name, spec in plan.weights.items():
        if any(dimension.names for dimension in spec.shape):
            raise ArtifactError(f"{where}: weights.{name} should have a shape of integers, not {spec}")
    for name, function in plan.functions.items():
        path = f"{where}: functions.{name}"
        _check_types(function, path)
        _check_steps(function, plan, path)


def _check_types(function: FunctionPlan, path: str) -> None:
    try:
        function.solver()
    except ParseError as error:
        raise ArtifactError(f"{path}: {error}") from error
    known = {size.name for size in function.sizes}
    if len(known) != len(function.sizes):
        raise ArtifactError(f"{path}.sizes has two sizes of one name")
    for spec in (*function.outputs, *function.values):
        for dimension in spec.shape:
            if extra := dimension.names - known:
                raise ArtifactError(f"{path}: {spec} uses the size {min(extra)}, which is not declared")
    _check_donated(function, path)
    for word, tensors, specs in (
        ("input_tree", function.signature.count, function.inputs),
        ("output_tree", function.result.count, function.outputs),
    ):
        if tensors != len(specs):
            raise ArtifactError(f"{path}.{word} has {tensors} tensors for {len(specs)} declared")


def _check_donated(function: FunctionPlan, path: str) -> None:
    taken: set[int] = set()
    for result, given in function.donated:
        known = result < len(function.outputs) and given < len(function.inputs)
        if not known or given in taken or function.outputs[result] != function.inputs[given].type:
            raise ArtifactError(f"{path}.donated: result {result} cannot take the memory of input {given}")
        taken.add(given)


def _check_steps(function: FunctionPlan, plan: Plan, path: str) -> None:
    ready = {ValueId("input", i) for i in range(len(function.inputs))}
    ready |= {ValueId("weight", name) for name in plan.weights}
    outputs = {ValueId("output", i) for i in range(len(function.outputs))}
    pending = outputs | {ValueId("value", i) for i in range(len(function.values))}
    for i, step in enumerate(function.steps):
        if isinstance(step, NativeStep) and plan.library is None:
            raise ArtifactError(f"{path}.steps[{i}] is native, but the plan names no library")
        if isinstance(step, DeviceStep) and (missing := sorted(step.kernels() - plan.kernels.keys())):
            raise ArtifactError(f"{path}.steps[{i}] launches '{missing[0]}', which the plan does not hold")
        if isinstance(step, TorchStep) and (why := step.refusal):
            raise ArtifactError(f"{path}.steps[{i}]: {why}")
        for value in step.reads():
            if value not in ready:
                raise ArtifactError(f"{path}.steps[{i}] reads {value}, which nothing before it writes")
        for value in step.writes():
            if value not in pending:
                raise ArtifactError(f"{path}.steps[{i}] writes {value}, which is unknown or already written")
            pending.remove(value)
            ready.add(value)
    if unwritten := sorted(outputs & pending, key=str):
        raise ArtifactError(f"{path}: no step writes {unwritten[0]}")
    _check_calls(function, path)


def _check_calls(function: FunctionPlan, path: str) -> None:
    for i, call in enumerate(function.calls):
        if call.segment >= len(function.steps) or (i and call.segment < function.calls[i - 1].segment):
            raise ArtifactError(f"{path}.calls[{i}].segment {call.segment} is no step, or out of order")
        repeated = i and call.segment == function.calls[i - 1].segment
        if repeated and isinstance(function.steps[call.segment], TorchStep):
            raise ArtifactError(f"{path}.calls[{i}] is the second call of a torch step, which is one")


def _read_size(field: Field) -> SizeRange:
    members = field.object("name", "low", "high", "hint")
    low, high, hint = (members[name].integer() for name in ("low", "high", "hint"))
    try:
        return SizeRange(members["name"].text(), low, high, hint)
    except ParseError as error:
        raise field.error(f"a size ({error})") from error


def _read_pair(field: Field) -> tuple[int, int]:
    pair = field.each(Field.integer)
    if len(pair) != 2 or min(pair) < 0:
        raise field.error("a pair of a result and an input")
    return pair[0], pair[1]


def _read_step(field: Field) -> Step:
    if field.members().get("kind", field).value == "native":
        members = field.object("kind", "entry", "inputs", "outputs")
        reads, writes = (members[name].each(ValueId.from_json) for name in ("inputs", "outputs"))
        return NativeStep(members["entry"].text(), reads, writes)
    if field.members().get("kind", field).value == "device":
        return DeviceStep.from_json(field)
    members = field.object("kind", "target", "arguments", "keywords", "outputs", "scope")
    members["kind"].text("native", "device", "torch")
    arguments = members["arguments"].each(check_argument)
    keywords = {name: check_argument(value) for name, value in members["keywords"].members().items()}
    outputs = members["outputs"].each(lambda item: None if item.value is None else ValueId.from_json(item))
    return TorchStep(members["target"].text(), arguments, outputs, keywords, members["scope"].text())


def _ids(values: tuple[ValueId, ...]) -> Json:
    return [value.to_json() for value in values]
