"""Artifacts: one folder, or its zip, with all that a compiled model needs to run elsewhere."""

import json
import shutil
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TypeAlias

from planish.errors import ArtifactError
from planish.runtime.device.executor import DeviceExecutable
from planish.runtime.device.load import on_device, placed
from planish.runtime.device.upload import uploading
from planish.runtime.executor import Executable
from planish.runtime.fields import Json, parse_json
from planish.runtime.generation.generator import LanguageExecutable
from planish.runtime.generation.settings import Settings
from planish.runtime.generation.tokenizer import Tokenizer
from planish.runtime.golden import LANGUAGE, Golden, LanguageGolden, check_golden, write_golden
from planish.runtime.intake import Intake
from planish.runtime.library import NativeLibrary
from planish.runtime.manifest import NAME, WEIGHTS, Manifest, Target
from planish.runtime.plan import Plan, check_plan
from planish.runtime.storage import (
    check_files,
    check_target,
    describe_files,
    opened,
    pack,
    publish,
    read_manifest,
    staging,
)
from planish.runtime.tensors import TensorFile, Weight, write_weights

PLAN, PROGRAM, GOLDEN = "plan.json", "program.txt", "golden.safetensors"
REPORT, REPORT_TEXT, HEADER = "report.json", "report.txt", "planish.h"
Loaded: TypeAlias = Executable | DeviceExecutable
TOKENIZER, CHAT_TEMPLATE = "tokenizer.json", "chat_template.jinja"


@dataclass(frozen=True, slots=True)
class Language:
    """What the artifact of a language model has beside its functions `prefill` and `decode`."""

    settings: Settings
    tokenizer: Tokenizer | None = None
    golden: LanguageGolden | None = None


@dataclass(frozen=True, slots=True)
class Contents:
    """What `write` makes an artifact of.

    `weights` are as the kernels read them, in the order of their offsets (`tensors.weight_offsets`). `library`
    is the built library's file, or None where the plan has no native step. `sources` are texts by their path
    under kernels/sources, `binaries` a device's kernels by their path in the artifact. `declarations` are the C
    declarations of the entries, appended to planish.h.
    """

    plan: Plan
    target: Target
    weights: Mapping[str, Weight]
    library: Path | None
    planish: str
    program: str = ""
    sources: Mapping[str, str] = field(default_factory=dict)
    declarations: str = ""
    recipe: tuple[str, ...] = ()
    created_with: Mapping[str, str] = field(default_factory=dict)
    golden: Mapping[str, Golden] = field(default_factory=dict)
    language: Language | None = None
    report: Json = None
    report_text: str = ""
    binaries: Mapping[str, bytes] = field(default_factory=dict)


def write(path: str | Path, contents: Contents, *, overwrite: bool = False) -> None:
    """Write an artifact to a folder, or to a zip where `path` ends in .zip, all at once or not at all.

    An artifact that is there already is replaced; anything else only with `overwrite`. Raises ArtifactError
    when the parts do not fit together or the disk cannot be written.
    """
    check_plan(contents.plan)
    target = Path(path).absolute()
    check_target(target, overwrite=overwrite)
    with staging(target) as stage:
        folder = stage / "artifact"
        folder.mkdir()
        _fill(folder, contents)
        _finish(stage, folder, target, overwrite=overwrite)


def copy(source: str | Path, path: str | Path, *, overwrite: bool = False) -> None:
    """Write the artifact at `source` to another place, checked, as `write` does; folder or zip on either side."""
    target = Path(path).absolute()
    check_target(target, overwrite=overwrite)
    with opened(Path(source)) as folder, staging(target) as stage:
        check_files(folder, read_manifest(folder).files, contents=True)
        _finish(stage, Path(shutil.copytree(folder, stage / "artifact")), target, overwrite=overwrite)


def assembled(
    folder: Path,
    manifest: Manifest,
    intake: Intake,
    memory: memoryview | None,
    threads: int | None,
    *,
    verify: bool,
    fresh: bool,
) -> Loaded:
    """What the checked files of a folder are the parts of; raises ArtifactError where one does not fit the others.

    `memory` holds the weights where they were read; `intake` reads them for a device. With `verify` it has given the
    recorded outputs for the recorded inputs; of what is `fresh` that keeps little in memory.
    """
    weights = TensorFile(folder / _listed(manifest, WEIGHTS), aligned=True, memory=memory)
    if manifest.target.device:
        executable: Loaded = _on_device(folder, manifest, weights, intake)
    else:
        executable = _on_host(folder, manifest, weights, threads)
    if verify and manifest.golden:
        with weights.sparing() if fresh else nullcontext():
            check_golden(executable, folder / _listed(manifest, GOLDEN), manifest.golden)
    return executable


def _fill(folder: Path, contents: Contents) -> None:
    plan = contents.plan
    (folder / "kernels" / "sources").mkdir(parents=True)
    if (plan.library is None) != (contents.library is None):
        raise ArtifactError(f"the plan names the library {plan.library}, the contents give {contents.library}")
    if plan.library is not None and contents.library is not None:
        shutil.copyfile(contents.library, _place(folder, plan.library))
    for name, code in contents.binaries.items():
        _place(folder, name).write_bytes(code)
    for name, text in contents.sources.items():
        _place(folder, f"kernels/sources/{name}").write_text(text)
    (folder / PLAN).write_text(json.dumps(plan.to_json(), indent=1) + "\n")
    (folder / PROGRAM).write_text(contents.program)
    (folder / HEADER).write_text(_header(contents.declarations))
    (folder / REPORT).write_text(json.dumps(contents.report, indent=1) + "\n")
    (folder / REPORT_TEXT).write_text(contents.report_text)
    write_weights(folder / WEIGHTS, contents.weights)
    language = contents.language
    write_golden(folder / GOLDEN, plan, contents.golden, language.golden if language else None)
    if language and language.tokenizer:
        (folder / TOKENIZER).write_text(language.tokenizer.definition, encoding="utf-8")
        if language.tokenizer.template:
            (folder / CHAT_TEMPLATE).write_text(language.tokenizer.template, encoding="utf-8")
    # The manifest comes last: without it nothing in the folder is an artifact.
    (folder / NAME).write_bytes(_manifest(folder, contents).to_bytes())


def _finish(stage: Path, folder: Path, target: Path, *, overwrite: bool) -> None:
    if target.suffix == ".zip":
        pack(folder, stage / "artifact.zip")
        publish(stage / "artifact.zip", target, overwrite=overwrite)
    else:
        publish(folder, target, overwrite=overwrite)


def _manifest(folder: Path, contents: Contents) -> Manifest:
    signatures = {
        name: f"({', '.join(f'{spec.name}: {spec.type}' for spec in function.inputs)}) -> "
        f"({', '.join(str(spec) for spec in function.outputs)})"
        for name, function in contents.plan.functions.items()
    }
    language = contents.language
    golden = {name: recorded.tolerance for name, recorded in contents.golden.items()}
    if language and language.golden:
        golden[LANGUAGE] = language.golden.tolerance
    return Manifest(
        planish=contents.planish,
        target=contents.target,
        functions=signatures,
        recipe=contents.recipe,
        created_with=contents.created_with,
        files=describe_files(folder),
        golden=golden,
        generation=language.settings if language else None,
    )


def _on_host(folder: Path, manifest: Manifest, weights: TensorFile, threads: int | None) -> Executable:
    plan = _plan(folder, manifest)
    library = NativeLibrary(folder / _listed(manifest, plan.library)) if plan.library is not None else None
    if manifest.generation is None:
        return Executable(plan, library, weights, threads=threads)
    tokenizer = _tokenizer(folder, manifest, manifest.generation)
    return LanguageExecutable(plan, library, weights, manifest.generation, tokenizer=tokenizer, threads=threads)


def _on_device(folder: Path, manifest: Manifest, weights: TensorFile, intake: Intake) -> DeviceExecutable:
    with uploading(weights, partial(intake.read, WEIGHTS)) as memory:  # while plan and kernels are read
        plan = _plan(folder, manifest)
        code = {name: (folder / _listed(manifest, k.file)).read_bytes() for name, k in plan.kernels.items()}
        settings = manifest.generation
        tokenizer = None if settings is None else _tokenizer(folder, manifest, settings)
        held = placed(weights, memory, plan.weights)
        return on_device(manifest.target.device, plan, code, held, settings, tokenizer)


def _plan(folder: Path, manifest: Manifest) -> Plan:
    return Plan.from_json(parse_json((folder / _listed(manifest, PLAN)).read_bytes(), PLAN))


def _tokenizer(folder: Path, manifest: Manifest, settings: Settings) -> Tokenizer | None:
    if TOKENIZER not in manifest.files:
        return None
    template = (folder / CHAT_TEMPLATE).read_text(encoding="utf-8") if CHAT_TEMPLATE in manifest.files else ""
    return Tokenizer((folder / TOKENIZER).read_text(encoding="utf-8"), template, settings.special)


def _listed(manifest: Manifest, name: str) -> str:
    if name not in manifest.files:
        raise ArtifactError(f"'{name}' is missing from the artifact's manifest; save or download it again")
    return name


def _place(folder: Path, name: str) -> Path:
    target = folder / name
    if not target.resolve().is_relative_to(folder.resolve()):
        raise ArtifactError(f"'{name}' would be written outside the artifact")
    target.parent.mkdir(parents=True, exist_ok=True)
    return target


def _header(declarations: str) -> str:
    common = Path(__file__).with_name("native").joinpath(HEADER).read_text()
    return common.replace("/* @entries@ */", declarations)
