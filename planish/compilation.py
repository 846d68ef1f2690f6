"""The whole compilation of one model: import, passes, code, recorded result, artifact."""

import ctypes
import gc
import platform
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

import planish
from planish.codegen.build import Built, build
from planish.codegen.function_plan import Interface
from planish.compilation_generation import (
    check_end,
    check_generation,
    context_notes,
    interfaces,
    language,
    saying_what_can_generate,
    with_greedy_tokens,
    with_sizes,
    with_split,
)
from planish.compile_report import CompileReport, kernel_rows, torch_notes
from planish.compiler.importers import Imported, import_onnx, import_torch
from planish.compiler.ir import Graph, Program, Workload
from planish.compiler.pass_ import Context, Pass
from planish.compiler.pipeline import Pipeline
from planish.compiler.recipe import parse_pass, pass_text
from planish.errors import InputError, PassError, nearest
from planish.passes import ALL, EXACT
from planish.passes.compute_bf16 import ComputeBf16
from planish.recording import record
from planish.runtime.artifact import Contents, Language, write
from planish.runtime.golden import Golden
from planish.targets import isa_of_profile, manifest_target, profile_of, refuse_measuring

if TYPE_CHECKING:
    from planish.generation import Generation
    from planish.hardware_profiles import Profile


_CodeGenerator = Callable[[Program, Mapping[str, Interface], Path, Callable[[str], None]], Built]


@dataclass(frozen=True, slots=True, eq=False)
class Compiled:
    """An artifact that was written, with what only this process knows of it."""

    artifact: Path
    report: CompileReport
    imported: Imported


@dataclass(slots=True)
class _Clock:
    """Seconds by stage, and the caller's progress callback."""

    say: Callable[[str], None]
    seconds: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        self.say(name)
        start = time.perf_counter()
        yield
        self.seconds[name] = time.perf_counter() - start


def run(
    model: nn.Module | str | Path,
    target: "str | Path | Profile",
    inputs: Any,
    dynamic: Any,
    workload: Workload | Mapping[str, int] | None,
    passes: Sequence[Pass | str] | None,
    folder: Path,
    say: Callable[[str], None],
    generate: "Generation | None" = None,
    precision: str = "f32",
    tune: int | None = None,
) -> Compiled:
    """Compile into `folder`; see `planish.compile` for the arguments and errors."""
    clock = _Clock(say)
    args, kwargs = arguments(inputs)
    if generate is not None:
        kwargs, dynamic = with_sizes(model, args, kwargs, dynamic, generate)
    pipeline = Pipeline(_with_precision(_chosen_passes(passes, generate), precision))
    profile = profile_of(target)
    if generate is not None:
        check_generation(generate, profile)
    tuning: list[str] = []
    on_host: tuple[str, ...] = ()
    generate_code = _code_generator(profile, tune, tuning)
    with clock.stage("importing the model"), saying_what_can_generate(model, generate):
        imported = _import(model, args, kwargs, dynamic)
        program = with_workload(imported.program, workload)
    with clock.stage("running passes"):
        program, passed = pipeline.run(program, Context(profile, dict(program.main.hints())))
        if generate is not None:
            check_end(generate, program)
        if generate is not None and profile.backend == "triton":
            program, on_host = _with_token_functions(program, profile)
        elif generate is not None:
            program = with_greedy_tokens(program)
    with clock.stage("generating code"):
        (folder / "build").mkdir()
        built = generate_code(program, _interfaces(imported, program, generate), folder / "build", say)
    _return_memory()
    with clock.stage("recording a result"):
        recorded = _record(model, imported, program, generate, args, kwargs)
        _trim()
    unserved = torch_notes(built.selections, profile.name)
    context = context_notes(model, generate)
    found = {"torch": unserved, "sampling": on_host, "tuning": tuple(tuning), "context": context}
    notes = {**program.notes, **{topic: lines for topic, lines in found.items() if lines}}
    rows = kernel_rows(built.selections)
    report = CompileReport(passed, rows, dict(clock.seconds), notes, built.variants)
    with clock.stage("writing the artifact"):
        write(folder / "artifact", _contents(program, built, profile, recorded, report, pipeline))
    imported = replace(imported, program=imported.program.with_weights({}))
    del program, built
    _return_memory()
    return Compiled(folder / "artifact", report, imported)


def _code_generator(profile: "Profile", tune: int | None, notes: list[str]) -> _CodeGenerator:
    """What makes the files of an artifact for the profile, and adds to the notes of the report.

    Raises ProfileError for a profile without code generation, InputError where `tune` asks for what cannot be.
    """
    if tune is not None and (type(tune) is not int or tune < 0):
        raise InputError(f"compile: tune is a number of variants from 0 on, not {tune!r}")
    if profile.backend == "triton":
        return _device_generator(profile, tune, notes)
    isa = isa_of_profile(profile)
    if tune is not None:
        raise InputError(f"compile: tune is for GPUs; kernels for '{profile.name}' are chosen without measuring")
    return lambda program, interfaces, folder, say: build(program, interfaces, isa, folder, progress=say)


def _device_generator(profile: "Profile", tune: int | None, notes: list[str]) -> _CodeGenerator:
    from planish.autotune.tuner import measuring, recorded
    from planish.codegen.triton.build import Library, build_for_device
    from planish.codegen.triton.choose import COMPILED
    from planish.codegen.triton.device import device_of

    device = device_of(profile)
    why = None if tune == 0 else refuse_measuring(profile)
    if tune and why is not None:
        raise InputError(f"compile: tune={tune} measures on the device, but {why}; leave tune out")
    tuner = measuring(device) if tune != 0 and why is None else recorded(device)

    def generate(program: Program, interfaces: Mapping[str, Interface], _: Path, say: Callable[[str], None]) -> Built:
        library = Library(device, tuner=tuner, most=tune or COMPILED)
        built = build_for_device(program, interfaces, device, progress=say, library=library)
        notes.extend(tuner.notes)
        return built

    return generate


def _with_token_functions(program: Program, profile: "Profile") -> tuple[Program, tuple[str, ...]]:
    from planish.codegen.triton.device import device_of
    from planish.codegen.triton.token_functions import with_token_functions

    return with_token_functions(program, device_of(profile))


def _interfaces(imported: Imported, program: Program, generate: "Generation | None") -> Mapping[str, Interface]:
    if generate is None:
        return {"main": Interface(imported.signature, imported.output_tree)}
    return interfaces(program)


def _record(
    model: Any, imported: Imported, program: Program, generate: "Generation | None", args: Any, kwargs: Any
) -> Golden | Language:
    if generate is None:
        return record(model, imported, program, args, kwargs)
    return language(model, imported, program, generate, args, kwargs)


def _chosen_passes(passes: Sequence[Pass | str] | None, generate: "Generation | None") -> tuple[Pass, ...]:
    if isinstance(passes, str):
        raise PassError(f"passes is a sequence such as ['{passes}'], not a text")
    chosen = tuple(parse_pass(p, ALL) if isinstance(p, str) else p for p in (EXACT if passes is None else passes))
    for given in chosen:
        if isinstance(given, type) or not hasattr(given, "apply"):
            raise PassError(f"passes holds {given!r}; a pass is a text such as 'fold-constants' or FoldConstants()")
    return chosen if generate is None else with_split(chosen, generate)


def _with_precision(chosen: tuple[Pass, ...], precision: str) -> tuple[Pass, ...]:
    """The passes with the one that computes in `precision` behind them."""
    if precision not in _PRECISIONS:
        raise InputError(f"compile: precision is {' or '.join(map(repr, _PRECISIONS))}, not {precision!r}")
    present = {type(each) for each in chosen}
    return (*chosen, *(each for each in _PRECISIONS[precision] if type(each) not in present))


_PRECISIONS: Mapping[str, tuple[Pass, ...]] = {"f32": (), "bf16": (ComputeBf16(),)}


def arguments(inputs: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Example inputs as positional and keyword arguments."""
    if inputs is None:
        return (), {}
    if isinstance(inputs, Mapping):
        return (), dict(inputs)
    if isinstance(inputs, tuple | list):
        return tuple(inputs), {}
    return (inputs,), {}


def _import(model: Any, args: tuple[Any, ...], kwargs: dict[str, Any], dynamic: Any) -> Imported:
    if isinstance(model, nn.Module):
        if not args and not kwargs:
            raise InputError("compile needs example inputs: inputs=(tensor, ...) or inputs={'name': tensor}")
        return import_torch(model, args, kwargs, dynamic=dynamic)
    if isinstance(model, str | Path) and str(model).endswith(".onnx"):
        return import_onnx(model, kwargs or args or None, dynamic=dynamic)
    given = repr(str(model)) if isinstance(model, str | Path) else f"a {type(model).__name__}"
    raise InputError(f"compile takes an nn.Module or the path of an .onnx file, not {given}")


def with_workload(program: Program, workload: Workload | Mapping[str, int] | None) -> Program:
    """The program with the workload's sizes as hints; raises InputError on an unknown or impossible size."""
    wanted = workload.sizes if isinstance(workload, Workload) else workload or {}
    if not isinstance(wanted, Mapping):
        raise InputError(f"workload is a dict of sizes such as {{'batch': 8}}, not {wanted!r}")
    graph = program.main
    known = {size.name: size for size in graph.sizes}
    for name, value in wanted.items():
        if name not in known:
            raise InputError(f"workload: the model has no size '{name}'{nearest(name, known)}")
        if type(value) is not int:
            raise InputError(f"workload: {name} = {value!r}; a size is an integer")
        if not known[name].low <= value <= known[name].high:
            size = known[name]
            raise InputError(f"workload: {name} = {value} is outside the declared {size.low}..{size.high}")
    sizes = tuple(s if s.name not in wanted else type(s)(s.name, s.low, s.high, wanted[s.name]) for s in graph.sizes)
    return program.with_function(Graph(graph.name, graph.inputs, graph.outputs, sizes))


def _contents(
    program: Program,
    built: Built,
    profile: "Profile",
    recorded: Golden | Language,
    report: CompileReport,
    pipeline: Pipeline,
) -> Contents:
    return Contents(
        plan=built.plan,
        target=manifest_target(profile),
        weights=built.weights,
        library=built.library,
        planish=planish.__version__,
        program=str(program),
        sources=built.sources,
        declarations=built.declarations,
        recipe=tuple(pass_text(p) for p in pipeline.passes),
        created_with={"torch": torch.__version__, "python": platform.python_version()},
        golden={"main": recorded} if isinstance(recorded, Golden) else {},
        language=recorded if isinstance(recorded, Language) else None,
        report=report.to_json(),
        report_text=str(report),
        binaries=built.binaries,
    )


def _return_memory() -> None:
    """Give freed memory back, also that of the importer's cycles."""
    gc.collect()
    _trim()


def _trim() -> None:
    """Give back what glibc keeps of freed memory."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)
