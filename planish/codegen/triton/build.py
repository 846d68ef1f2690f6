"""A program to the files of an artifact for a GPU: plan, compiled kernels, packed weights and readable sources."""

import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from planish.codegen.build import Built
from planish.codegen.emit import step_inputs, step_outputs
from planish.codegen.fallback import as_torch
from planish.codegen.function_plan import Interface, as_array, function_plan, torch_weights, value_id
from planish.codegen.schedule import Kernels, Schedule, schedule, slot_size
from planish.codegen.select import Choice, Fallback, TorchCall, select
from planish.codegen.template import Template
from planish.codegen.triton.arguments import addresses, dimension
from planish.codegen.triton.choose import COMPILED, UNTUNED, Chosen, Tuner, choose
from planish.codegen.triton.compile import Binary, Compiler, check_backend, compile_all
from planish.codegen.triton.device import Device
from planish.codegen.triton.kernel import Kernel, Launch, Packing, Variant
from planish.codegen.triton.request import passed
from planish.codegen.triton.sources import Generated
from planish.codegen.variants import VariantRow
from planish.compiler.ir import Graph, Program, Value
from planish.compiler.weights import Weights
from planish.runtime.launches import DeviceCall, DeviceStep, KernelSpec, LaunchChoice, LaunchSpec
from planish.runtime.plan import Plan
from planish.runtime.tensors import Weight, weight_offsets


def build_for_device(
    program: Program,
    interfaces: Mapping[str, Interface],
    device: Device,
    *,
    progress: Callable[[str], None] = lambda stage: None,
    library: "Library | None" = None,
) -> Built:
    """Compile the program for `device`, which need not be there, into `library` where one is given.

    Raises TemplateError where an op has neither a kernel nor a form in torch, BuildError where Triton fails,
    BackendMissing without Triton.
    """
    check_backend(device)
    templates = _templates()
    progress("choosing kernels")
    selections = {name: select(graph, templates, device, _fallback(graph)) for name, graph in program.functions.items()}
    schedules = {name: schedule(selection, by_image=False) for name, selection in selections.items()}
    library = Library(device) if library is None else library
    _fill(library, program, schedules.values(), progress)
    weights = _weights(program, library, schedules.values())
    offsets = weight_offsets(weights)
    functions = {
        name: function_plan(
            selection, schedules[name], interfaces[name], _device_steps(schedules[name], library, offsets)
        )
        for name, selection in selections.items()
    }
    plan = Plan(None, functions, torch_weights(program, schedules.values()), library.specs())
    return Built(plan, weights, selections, None, library.sources(), "", library.files(), library.rows())


def _fill(library: "Library", program: Program, schedules: Iterable[Schedule], progress: Callable[[str], None]) -> None:
    """Compile the kernels of all calls; variants are judged at the hints of the program's sizes."""
    for choice in _choices(schedules):
        library.add(choice)
    hints = {size.name: size.hint for graph in program.functions.values() for size in graph.sizes}
    library.compile(hints, progress)


def _fallback(graph: Graph) -> Fallback:
    """How nodes of the graph that no template takes run all the same."""
    sizes = {size.name: size for size in graph.sizes}
    return lambda node: as_torch(node, sizes)


def _templates() -> Sequence[Template[Device, Kernel]]:
    from planish.codegen.triton.templates import TEMPLATES

    return TEMPLATES


def _choices(schedules: Iterable[Schedule]) -> Iterable[Choice]:
    for plan in schedules:
        for step in plan.steps:
            if isinstance(step, Kernels):
                yield from step.calls


@dataclass(slots=True)
class Library:
    """The kernels of a program, each built and compiled once for all calls that it serves.

    Where `tuner` has a kernel's time, it counts instead of the predicted one. At most `most` variants of each regime of
    sizes are compiled.
    """

    device: Device
    compiler: Compiler = compile_all
    tuner: Tuner = UNTUNED
    most: int = COMPILED
    names: dict[str, str] = field(default_factory=dict)
    built: dict[str, Kernel] = field(default_factory=dict)
    first: dict[str, Choice] = field(default_factory=dict)
    uses: dict[int, str] = field(default_factory=dict)
    chosen: dict[str, tuple[tuple[Chosen, ...], ...]] = field(default_factory=dict)

    def add(self, choice: Choice) -> None:
        """Build the kernel of a call, unless one with the same key is there."""
        key = f"{choice.template.name}\n{choice.call.key()}"
        if key not in self.names:
            name = f"k{len(self.names)}_{choice.template.name.replace('-', '_')}_{choice.call.anchor.op.name}"
            self.names[key] = name
            self.built[name] = choice.template.build(choice.call, self.device)
            self.first[name] = choice
        self.uses[id(choice)] = self.names[key]

    def compile(self, hints: Mapping[str, int], progress: Callable[[str], None]) -> None:
        """Compile the candidates of every launch and choose one for each regime."""
        calls = {name: (self.first[name].call, kernel) for name, kernel in self.built.items()}
        self.chosen = choose(calls, self.device, hints, progress, self.compiler, self.tuner, self.most)

    def kernel(self, choice: Choice) -> Kernel:
        return self.built[self.uses[id(choice)]]

    def packings(self, choice: Choice) -> Mapping[Value, Packing]:
        """The packings of the kernel for this call's own weights: calls of one key have their inputs in one order."""
        first = self.first[self.uses[id(choice)]].call.inputs
        own = dict(zip(first, choice.call.inputs, strict=True))
        return {own[value]: packing for value, packing in self.kernel(choice).packings.items()}

    def launches(self, choice: Choice) -> Iterable[tuple[Launch, tuple[LaunchChoice, ...]]]:
        """The launches of a call with the chosen kernel of each regime."""
        name = self.uses[id(choice)]
        for i, launch in enumerate(self.built[name].launches):
            yield (
                launch,
                tuple(
                    LaunchChoice(c.most, _binary_name(name, i, j), tuple(map(dimension, c.variant.grid)))  # type: ignore[arg-type]
                    for j, c in enumerate(self.chosen[name][i])
                ),
            )

    def variants(self) -> Mapping[str, tuple[Launch, Variant]]:
        """Of each binary the launch that it serves and the variant that it was compiled as."""
        return {
            _binary_name(name, i, j): (self.built[name].launches[i], chosen.variant)
            for name, launches in self.chosen.items()
            for i, regimes in enumerate(launches)
            for j, chosen in enumerate(regimes)
        }

    def binaries(self) -> Iterable[tuple[str, Binary]]:
        for name, launches in self.chosen.items():
            for i, regimes in enumerate(launches):
                for j, chosen in enumerate(regimes):
                    yield _binary_name(name, i, j), chosen.binary

    def rows(self) -> tuple[VariantRow, ...]:
        """What the model or a measurement said of each variant that was compiled."""
        every = (chosen for launches in self.chosen.values() for regimes in launches for chosen in regimes)
        return tuple(row for chosen in every for row in chosen.rows)

    def specs(self) -> Mapping[str, KernelSpec]:
        return {
            name: KernelSpec(self._path(name), b.symbol, b.num_warps, b.shared_bytes, b.registers, b.spilled_bytes)
            for name, b in self.binaries()
        }

    def files(self) -> Mapping[str, bytes]:
        """The code of each binary by its path in the artifact."""
        return {self._path(name): binary.code for name, binary in self.binaries()}

    def sources(self) -> Mapping[str, str]:
        """What each kernel was compiled from, and the assembly that it became."""
        found = {
            f"{name}.{'ptx' if self.device.backend == 'cuda' else 'amdgcn'}": b.assembly for name, b in self.binaries()
        }
        for name, kernel in self.built.items():
            for i, launch in enumerate(kernel.launches):
                found[f"{name}_{i}.py"] = source_text(launch, self.chosen[name][i])
        return found

    def _path(self, name: str) -> str:
        return f"kernels/{name}.{'cubin' if self.device.backend == 'cuda' else 'hsaco'}"


def source_text(launch: Launch, chosen: Sequence[Chosen]) -> str:
    """A launch as readable text: the functions written for it, the kernel, and the constants of each regime."""
    written = [c.text for c in launch.constants.values() if isinstance(c, Generated)]
    plain = {k: v for k, v in launch.constants.items() if not isinstance(v, Generated)}
    regimes = [
        f"# size up to {c.most or 'any'}: {dict(c.variant.constants)}, {c.variant.num_warps} warps, "
        f"{c.variant.num_stages} stages"
        for c in chosen
    ]
    return "\n\n".join([*written, inspect.getsource(launch.function.fn), f"# {plain}", "\n".join(regimes)]) + "\n"


def _binary_name(kernel: str, launch: int, regime: int) -> str:
    return f"{kernel}_{launch}_{regime}"


def _entry_name(weight: str, packing: Packing | None) -> str:
    return weight if packing is None else f"{weight}:{packing.layout}"


def _weights(program: Program, library: Library, schedules: Iterable[Schedule]) -> Mapping[str, Weight]:
    found: dict[str, Weight] = {}
    weights = Weights(program.weights)
    for plan in schedules:
        for step in plan.steps:
            for root, packing in _weight_uses(step, library):
                name = str(root.node.attrs["name"])
                entry = _entry_name(name, packing)
                if entry not in found:
                    array = as_array(weights[name])
                    found[entry] = array if packing is None else packing.pack(array)
    return found


def _weight_uses(step: Kernels | TorchCall, library: Library) -> Iterable[tuple[Value, Packing | None]]:
    for work in step.calls if isinstance(step, Kernels) else (step,):
        packings = library.packings(work) if isinstance(work, Choice) else {}
        for value, root in work.roots.items():
            if root.node.op.name == "weight":
                yield root, packings.get(value)


def _device_steps(plan: Schedule, library: Library, offsets: Mapping[str, int]) -> Callable[[int, Kernels], DeviceStep]:
    def step_of(_: int, step: Kernels) -> DeviceStep:
        calls = tuple(_device_call(choice, plan, library, offsets) for choice in step.calls)
        ins, outs = (
            tuple(value_id(v, plan.storage) for v in f(step, plan.storage)) for f in (step_inputs, step_outputs)
        )
        return DeviceStep(calls, tuple(dimension(slot_size(slot)) for slot in step.slots), ins, outs)

    return step_of


def _device_call(choice: Choice, plan: Schedule, library: Library, offsets: Mapping[str, int]) -> DeviceCall:
    packings = library.packings(choice)
    weights = {
        value: offsets[_entry_name(str(root.node.attrs["name"]), packings.get(value))]
        for value, root in choice.roots.items()
        if root.node.op.name == "weight"
    }
    given = addresses(choice, plan.storage, weights)
    launches = tuple(
        LaunchSpec(dimension(launch.size), choices, tuple(map(given, passed(launch))))
        for launch, choices in library.launches(choice)
    )
    return DeviceCall(launches, dimension(library.kernel(choice).scratch_bytes))
