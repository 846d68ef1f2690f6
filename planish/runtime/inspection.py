"""What an artifact is, read without loading or running any of it."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path

from planish.errors import ArtifactError
from planish.runtime.artifact import PLAN, REPORT_TEXT
from planish.runtime.fields import Json, parse_json
from planish.runtime.generation.settings import Settings
from planish.runtime.manifest import FORMAT, WEIGHTS, Manifest, Target
from planish.runtime.plan import FunctionPlan, Plan, TorchStep
from planish.runtime.storage import read_manifest, read_member


@dataclass(frozen=True, slots=True)
class KernelInfo:
    """A compiled kernel of a GPU: threads of a block in warps, dynamic shared memory of one, registers of a thread and
    the bytes that it keeps in memory for want of registers."""

    num_warps: int
    shared_bytes: int
    registers: int
    spilled_bytes: int

    def __str__(self) -> str:
        spilled = f", {self.spilled_bytes} bytes spilled" if self.spilled_bytes else ""
        return f"{self.num_warps} warps, {self.registers} registers, {self.shared_bytes} bytes shared{spilled}"


@dataclass(frozen=True, slots=True)
class FunctionInfo:
    """One entry function: types as text, sizes as `S in 2..512`, kernels by template, ops that run as torch."""

    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    sizes: tuple[str, ...]
    kernels: Mapping[str, int]
    torch_ops: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class ArtifactInfo:
    """What `inspect` finds; prints as a few lines."""

    path: str
    format: int
    planish: str
    target: Target
    functions: Mapping[str, FunctionInfo]
    recipe: tuple[str, ...]
    created_with: Mapping[str, str]
    files: Mapping[str, int]
    weights_bytes: int
    report_text: str
    generation: Settings | None = None
    device_kernels: Mapping[str, KernelInfo] = field(default_factory=dict)

    @property
    def total_bytes(self) -> int:
        """Bytes of all files but the manifest."""
        return sum(self.files.values())

    def to_json(self) -> dict[str, Json]:
        return {**asdict(self), "total_bytes": self.total_bytes}

    def __str__(self) -> str:
        lines = [
            f"{self.path}: planish {self.planish}, format {self.format}",
            f"target {self.target.profile} ({self.target.triple or self.target.device}), {len(self.files)} files, "
            f"{self.total_bytes / 1e6:.1f} MB, weights {self.weights_bytes / 1e6:.1f} MB",
        ]
        for name, function in self.functions.items():
            kernels = ", ".join(f"{count} {template}" for template, count in function.kernels.items())
            lines += [
                f"{name}({', '.join(function.inputs)}) -> {', '.join(function.outputs)}",
                *(f"  size {size}" for size in function.sizes),
                f"  kernels: {kernels or 'none listed'}",
                *(f"  runs as torch: {op}" for op in function.torch_ops),
            ]
        if made := self.generation:
            ends = ", ".join(map(str, made.end)) or "none"
            lines.append(
                f"generates: context {made.context}, batch {made.batch}, prefill by {made.chunk}, cache {made.cache}, "
                f"vocabulary {made.vocabulary}, end tokens {ends}"
            )
        lines += [f"kernel {name}: {kernel}" for name, kernel in self.device_kernels.items()]
        lines += [f"pass {line}" for line in self.recipe]
        return "\n".join(lines)


def inspect(path: str | Path) -> ArtifactInfo:
    """What the folder or zip at `path` holds; raises ArtifactError where it is no artifact or a part is damaged.

    Only the files that it reads are checked against their hashes: the plan and the report.
    """
    place = Path(path)
    if not place.exists():
        raise ArtifactError(f"there is no artifact at '{path}'")
    manifest = read_manifest(place)
    plan = Plan.from_json(parse_json(_read(place, manifest, PLAN), PLAN))
    sizes = {name: entry.bytes for name, entry in manifest.files.items()}
    return ArtifactInfo(
        path=str(path),
        format=FORMAT,
        planish=manifest.planish,
        target=manifest.target,
        functions={name: _function(function) for name, function in plan.functions.items()},
        recipe=manifest.recipe,
        created_with=manifest.created_with,
        files=sizes,
        weights_bytes=sizes.get(WEIGHTS, 0),
        report_text=_read(place, manifest, REPORT_TEXT).decode(errors="replace"),
        generation=manifest.generation,
        device_kernels={
            name: KernelInfo(k.num_warps, k.shared_bytes, k.registers, k.spilled_bytes)
            for name, k in plan.kernels.items()
        },
    )


def _function(plan: FunctionPlan) -> FunctionInfo:
    return FunctionInfo(
        inputs=tuple(f"{spec.name}: {spec.type}" for spec in plan.inputs),
        outputs=tuple(str(spec) for spec in plan.outputs),
        sizes=tuple(f"{size.name} in {size.low}..{size.high}" for size in plan.sizes),
        kernels=dict(Counter(call.template for call in plan.calls)),
        torch_ops=tuple(f"{s.target} in '{s.scope}'" for s in plan.steps if isinstance(s, TorchStep)),
    )


def _read(path: Path, manifest: Manifest, name: str) -> bytes:
    if name not in manifest.files:
        raise ArtifactError(f"'{name}' is missing from the artifact's manifest; save or download it again")
    return read_member(path, name, manifest.files[name])
