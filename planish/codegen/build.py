"""A program to the files of an artifact: plan, library, packed weights and readable sources."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING

import numpy
import torch

from planish.codegen.emit import Entry, KernelUse, declarations, program_source, step_inputs, step_outputs
from planish.codegen.function_plan import Interface, as_array, function_plan, torch_weights, value_id
from planish.codegen.schedule import Kernels, Schedule, schedule
from planish.codegen.select import Choice, Selection, TorchCall, select
from planish.codegen.template import AnyTemplate
from planish.codegen.variants import VariantRow
from planish.compiler.ir import Graph, Program, Value
from planish.compiler.types import DType
from planish.compiler.weights import Weights
from planish.errors import BackendMissing, TemplateError
from planish.runtime.plan import NativeStep, Plan
from planish.runtime.tensors import Deferred, Weight, weight_offsets

if TYPE_CHECKING:
    from tvm import tirx

    from planish.codegen.tvm.isa import Isa
    from planish.codegen.tvm.kernel import Kernel, Packing

LIBRARY = "kernels/model.so"
_PART_BYTES = 4 << 20  # of a weight that are packed at once: small beside any model, long enough for numpy
_NATIVE = Path(__file__).parent / "native"


@dataclass(frozen=True, slots=True, eq=False)
class Built:
    """What `build` made: the plan, the weights by entry name, packed as they are written, the selection of each
    function, the library or the device's kernels by their path in the artifact, readable sources by file name, the C
    declarations of a library's entries, and what was known of the variants of a device's kernels."""

    plan: Plan
    weights: Mapping[str, Weight]
    selections: Mapping[str, Selection]
    library: Path | None
    sources: Mapping[str, str]
    declarations: str
    binaries: Mapping[str, bytes] = field(default_factory=dict)
    variants: tuple[VariantRow, ...] = ()


def build(
    program: Program,
    interfaces: Mapping[str, Interface],
    isa: "Isa",
    folder: Path,
    *,
    progress: Callable[[str], None] = lambda stage: None,
) -> Built:
    """Compile the program for `isa` into `folder`: the library and its sources. Weights are returned, not written.

    Raises TemplateError where an op has no kernel, BuildError where the C compiler fails, BackendMissing without TVM.
    """
    templates = _templates()
    _check_dtypes(program)
    progress("choosing kernels")
    selections = {name: select(graph, templates, isa) for name, graph in program.functions.items()}
    schedules = {name: schedule(selection) for name, selection in selections.items()}
    library = _Library(isa)
    progress("building kernels")
    for choice in (c for s in schedules.values() for step in s.steps if isinstance(step, Kernels) for c in step.calls):
        library.add(choice)
    weights = _weights(program, library, schedules.values())
    offsets = weight_offsets(weights)
    entries = [
        entry
        for name, scheduled in schedules.items()
        for entry in _entries(name, scheduled, selections[name].graph, library, offsets, weights)
    ]
    progress(f"compiling {len(library.built)} kernels")
    sources = library.sources(program_source(entries))
    compiled = library.compile(sources, folder) if entries else None
    functions = {
        name: function_plan(selection, schedules[name], interfaces[name], _native_steps(name, schedules[name]))
        for name, selection in selections.items()
    }
    plan = Plan(LIBRARY if entries else None, functions, torch_weights(program, schedules.values()))
    return Built(plan, weights, selections, compiled, sources if entries else {}, declarations(entries))


def _check_dtypes(program: Program) -> None:
    narrow = (v for graph in program.functions.values() for n in graph.nodes() for v in n.values if v.dtype is DType.f8)
    if (value := next(narrow, None)) is not None:
        raise TemplateError(
            f"{value.node.op.name} in '{value.node.scope}' is {value.type}: CPUs have no kernels for f8; cast it to f32"
        )


def _templates() -> Sequence[AnyTemplate]:
    try:
        from planish.codegen.tvm.templates import TEMPLATES
    except ImportError as error:
        raise BackendMissing("the CPU target needs TVM: pip install 'planish[cpu]'") from error
    templates: Sequence[AnyTemplate] = TEMPLATES
    return templates


@dataclass(slots=True)
class _Library:
    """The kernels of a program, each built once for all calls that it serves."""

    isa: "Isa"
    symbols: dict[str, str] = field(default_factory=dict)
    built: dict[str, "Kernel"] = field(default_factory=dict)
    first: dict[str, Choice] = field(default_factory=dict)
    uses: dict[int, str] = field(default_factory=dict)

    def add(self, choice: Choice) -> None:
        """Build the kernel of a call, unless one with the same key is there."""
        key = f"{choice.template.name}\n{choice.call.key()}"
        if key not in self.symbols:
            name = choice.template.name.replace("-", "_")
            symbol = f"planish_k{len(self.symbols)}_{name}_{choice.call.anchor.op.name}"
            self.symbols[key] = symbol
            self.built[symbol] = choice.template.build(choice.call, self.isa)
            self.first[symbol] = choice
        self.uses[id(choice)] = self.symbols[key]

    def kernel(self, choice: Choice) -> "Kernel":
        """The kernel of a call that was added."""
        return self.built[self.uses[id(choice)]]

    def packings(self, choice: Choice) -> Mapping[Value, "Packing"]:
        """The packings of the kernel for this call's own weights: calls of one key have their inputs in one order."""
        first = self.first[self.uses[id(choice)]].call.inputs
        own = dict(zip(first, choice.call.inputs, strict=True))
        return {own[value]: packing for value, packing in self.kernel(choice).packings.items()}

    def functions(self) -> Mapping[str, "tirx.PrimFunc"]:
        """What is to be compiled, by C symbol."""
        return {name: f for symbol, kernel in self.built.items() for name, f in kernel.functions(symbol).items()}

    def sources(self, program: str) -> Mapping[str, str]:
        """The readable sources by file name."""
        shipped = {name: (_NATIVE / name).read_text() for name in ("pool.c", "pool.h")}
        kernels = {f"{symbol}.py": function.script() + "\n" for symbol, function in self.functions().items()}
        return {"program.c": program, **shipped, **kernels}

    def compile(self, sources: Mapping[str, str], folder: Path) -> Path:
        """Compile and link everything to one library in `folder`."""
        from planish.codegen.tvm.build import build_object, link

        for name in ("program.c", "pool.c", "pool.h"):
            (folder / name).write_text(sources[name])
        build_object(self.functions(), self.isa, folder / "kernels.o")
        link([folder / "program.c", folder / "pool.c"], [folder / "kernels.o"], self.isa, folder / "model.so")
        return folder / "model.so"


def entry_name(weight: str, packing: "Packing | None") -> str:
    """The name of a weight in the artifact: with its layout where it is packed."""
    return weight if packing is None else f"{weight}:{packing.layout}"


def _weight_uses(schedules: Iterable[Schedule], library: _Library) -> Iterable[tuple[str, "Packing | None"]]:
    for plan in schedules:
        for step in plan.steps:
            if isinstance(step, TorchCall):
                yield from (
                    (str(v.node.attrs["name"]), None) for v in step.roots.values() if v.node.op.name == "weight"
                )
                continue
            for choice in step.calls:
                for value, root in choice.roots.items():
                    if root.node.op.name == "weight":
                        yield str(root.node.attrs["name"]), library.packings(choice).get(value)


def _weights(program: Program, library: _Library, schedules: Iterable[Schedule]) -> Mapping[str, Weight]:
    found: dict[str, Weight] = {}
    for name, packing in _weight_uses(schedules, library):
        entry = entry_name(name, packing)
        if entry not in found:
            found[entry] = _packed(Weights(program.weights), name, packing)
    return found


def _packed(weights: Weights, name: str, packing: "Packing | None") -> Weight:
    """The weight as its kernels read it, computed and packed when it is written."""
    if packing is None and not weights.is_recipe(name):
        return as_array(weights[name])
    shape = tuple(weights.like(name).shape)
    dtype = as_array(torch.empty(0, dtype=weights.like(name).dtype)).dtype
    if packing is None:
        return Deferred(dtype, prod(shape), lambda: (as_array(weights[name]),))
    size, packed = packing.packed(shape, dtype)
    return Deferred(packed, size, lambda: _parts(as_array(weights[name]), packing))


def _parts(array: numpy.ndarray, packing: "Packing") -> Iterator[numpy.ndarray]:
    row_bytes = max(1, array.nbytes // max(1, len(array)))
    step = packing.rows * max(1, _PART_BYTES // (row_bytes * packing.rows)) if packing.rows else max(1, len(array))
    for i in range(0, len(array), step):
        yield packing.pack(array[i : i + step])


def _entries(
    name: str,
    plan: Schedule,
    graph: Graph,
    library: _Library,
    offsets: Mapping[str, int],
    weights: Mapping[str, Weight],
) -> Iterable[Entry]:
    for i, step in enumerate(plan.steps):
        if isinstance(step, Kernels):
            uses = tuple(_use(choice, library, offsets, weights) for choice in step.calls)
            ins, outs = step_inputs(step, plan.storage), step_outputs(step, plan.storage)
            yield Entry(_entry_symbol(name, i), step, uses, graph.sizes, plan.storage, ins, outs)


def _use(choice: Choice, library: _Library, offsets: Mapping[str, int], weights: Mapping[str, Weight]) -> KernelUse:
    from planish.codegen.tvm.kernel import merge_symbol

    packings, kernel, symbol = library.packings(choice), library.kernel(choice), library.uses[id(choice)]
    names = {
        value: entry_name(str(root.node.attrs["name"]), packings.get(value))
        for value, root in choice.roots.items()
        if root.node.op.name == "weight"
    }
    return KernelUse(
        symbol=symbol,
        sizes=choice.call.sizes(kernel.scratch_bytes),
        scratch_bytes=kernel.scratch_bytes,
        weight_offsets={value: offsets[name] for value, name in names.items()},
        weight_bytes={value: weights[name].nbytes for value, name in names.items()},
        merge=None if kernel.merge is None else merge_symbol(symbol),
    )


def _entry_symbol(function: str, step: int) -> str:
    return f"planish_{function}_{step}"


def _native_steps(name: str, plan: Schedule) -> Callable[[int, Kernels], NativeStep]:
    storage = plan.storage

    def step_of(i: int, step: Kernels) -> NativeStep:
        ins, outs = (tuple(value_id(v, storage) for v in f(step, storage)) for f in (step_inputs, step_outputs))
        return NativeStep(_entry_symbol(name, i), ins, outs)

    return step_of
