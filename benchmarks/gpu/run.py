"""The GPU benchmark: case after case in a process of its own; a run that was killed goes on with the same command."""

import importlib
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TypeAlias

from benchmarks.gpu.cases import CASES, GpuCase
from benchmarks.gpu.llama import CACHES, DECODES, MODELS, DecodeCase
from benchmarks.gpu.results import Asked, GpuResult, GpuSuite, Measure, resumed, save
from benchmarks.run import Say, code_digest
from planish.autotune.child import Child, ChildError
from planish.errors import InputError

Case: TypeAlias = GpuCase | DecodeCase
# what is worth most comes first
ALL: tuple[Case, ...] = (CASES[0], CASES[3], *DECODES, *MODELS[:2], *CASES[1:3], *CASES[4:], *MODELS[2:], *CACHES)


@dataclass(frozen=True, slots=True)
class GpuRun:
    """What to measure: `seconds` a size, and no case is begun after `minutes`; `tune` is that of `planish.compile`."""

    cases: tuple[Case, ...] = ALL
    seconds: float = 0.15
    minutes: float = 8.0
    tune: int = 3


def begin() -> GpuSuite:
    """An empty suite of the GPU at hand; raises InputError where there is none."""
    import torch

    from benchmarks.gpu.hardware import Cuda

    if not torch.cuda.is_available():
        raise InputError("this machine has no GPU that torch can use; run the benchmark where one is")
    triton = importlib.import_module("triton")
    runtime = torch.version.hip or torch.version.cuda
    versions = {"torch": torch.__version__, "triton": triton.__version__, "runtime": str(runtime)}
    created = datetime.now(UTC).isoformat(timespec="seconds")
    return GpuSuite(torch.cuda.get_device_name(), created, {**versions, "planish": code_digest()}, Cuda().copy_gbs())


def run_gpu(run: GpuRun, begun: GpuSuite, path: Path, say: Say, *, measure: Measure, fresh: bool = False) -> GpuSuite:
    """Measures what the file at `path` does not hold yet, all of it where `fresh`; the file is kept up to date.

    Raises InputError where the file is of another GPU or other versions.
    """
    suite = begun if fresh else resumed(path, begun)
    start, child = time.monotonic(), Child(measure, parent=True)
    try:
        for case in run.cases:
            missing = tuple(size for size in case.sizes if not suite.measured(case.name, size))
            if not missing:
                continue
            if time.monotonic() - start > 60 * run.minutes:
                break
            say(case.name)
            suite = suite.with_results(_of_case(child, case, missing, run))
            save(suite, path)
    finally:
        child.end()
    return suite


def left(run: GpuRun, suite: GpuSuite) -> list[str]:
    """The cases of the run of which the suite lacks a size."""
    return [c.name for c in run.cases if not all(suite.measured(c.name, size) for size in c.sizes)]


def measure_named(asked: Asked) -> Sequence[GpuResult]:
    """Measure the case of that name on the GPU at hand."""
    from benchmarks.gpu.decode import decode
    from benchmarks.gpu.hardware import Cuda
    from benchmarks.gpu.measure import measure

    case = next(case for case in ALL if case.name == asked.case)
    if isinstance(case, DecodeCase):
        return list(decode(case, asked.sizes, Cuda(), seconds=asked.seconds, tune=asked.tune))
    return list(measure(case, asked.sizes, Cuda(), seconds=asked.seconds, tune=asked.tune))


def ship_records() -> str:
    """Write what was measured of the GPU at hand to the records that planish brings along; says how many and where."""
    from planish.autotune.store import SHIPPED, Store, default_path, ship, shipped
    from planish.autotune.tuner import triton_version
    from planish.targets import profile_of

    profile = profile_of("gpu")
    key = (profile.fingerprint, triton_version())
    found = {(r.kernel, r.sizes): r for r in (*shipped(*key), *Store(default_path()).records(*key))}
    path = SHIPPED / f"{profile.name}-triton-{key[1]}.jsonl"
    ship(found.values(), path)
    return f"wrote {len(found)} records to {path}"


def _of_case(
    child: Child[Asked, Sequence[GpuResult]], case: Case, sizes: tuple[int, ...], run: GpuRun
) -> Sequence[GpuResult]:
    try:
        return child.run(Asked(case.name, sizes, run.seconds, run.tune), timeout=case.timeout_seconds)
    except ChildError as error:
        return [GpuResult(case.name, case.group, size, failure=str(error)) for size in sizes]
