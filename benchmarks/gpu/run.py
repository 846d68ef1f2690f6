"""The GPU benchmark: case after case in a process of its own; a run that was killed goes on with the same command."""

import importlib
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TypeAlias

from benchmarks.gpu.cases import CASES, GpuCase
from benchmarks.gpu.llama import CACHES, DECODES, MODELS, DecodeCase
from benchmarks.gpu.results import Asked, GpuResult, GpuSuite, Measure, resumed, save
from benchmarks.run import Say, code_digest
from planish.autotune.child import Child, ChildError, ChildUnavailable
from planish.errors import InputError

Case: TypeAlias = GpuCase | DecodeCase
# what is worth most comes first
ALL: tuple[Case, ...] = (CASES[0], CASES[3], *DECODES, *MODELS[:2], *CASES[1:3], *CASES[4:], *MODELS[2:], *CACHES)
_LEAST_SECONDS = 20.0  # in less nothing is compiled and measured


@dataclass(frozen=True, slots=True)
class GpuRun:
    """What to measure: `seconds` a size, until `minutes` are over; `tune` is that of `planish.compile`."""

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
    copy_gbs = Cuda().copy_gbs()
    torch.cuda.empty_cache()  # this process holds no memory while others measure
    return GpuSuite(torch.cuda.get_device_name(), created, {**versions, "planish": code_digest()}, copy_gbs)


def run_gpu(run: GpuRun, begun: GpuSuite, path: Path, say: Say, *, measure: Measure, fresh: bool = False) -> GpuSuite:
    """Measures what the file at `path` does not hold yet, all of it where `fresh`; each result is written at once.

    Raises InputError where the file is of another GPU or other versions, or cannot be written.
    """
    kept = _Kept(begun if fresh else resumed(path, begun), path)
    kept.add(())
    end, child = time.monotonic() + 60 * run.minutes, Child[Asked, GpuResult](measure, parent=True)
    try:
        for case, sizes, seconds in _lacking(run, kept.suite, end):
            say(case.name)
            try:
                for result in child.each(Asked(case.name, sizes, run.seconds, run.tune), timeout=seconds):
                    kept.add((result,))
                    say(_line(result))
            except ChildError as error:
                kept.add(_failed(case, sizes, kept.suite, str(error)))
                if isinstance(error, ChildUnavailable):
                    break
    finally:
        child.end()
    return kept.suite


@dataclass(slots=True)
class _Kept:
    """The results and their file."""

    suite: GpuSuite
    path: Path

    def add(self, results: Iterable[GpuResult]) -> None:
        """Put them in the place of older ones of the same measurement."""
        self.suite = self.suite.with_results(results)
        try:
            save(self.suite, self.path)
        except OSError as error:
            raise InputError(f"'{self.path}' cannot be written: {error}; name another folder with --out") from error


def _lacking(run: GpuRun, suite: GpuSuite, end: float) -> Iterator[tuple[Case, tuple[int, ...], float]]:
    """The cases of which the suite lacks sizes, with these and the seconds that they may take until `end`.

    What failed once comes last. What would hardly end is not begun, but for the first.
    """
    first = True
    for case in sorted(run.cases, key=lambda case: suite.failed(case.name)):
        sizes = tuple(size for size in case.sizes if not suite.measured(case.name, size))
        left = end - time.monotonic()
        if sizes and left >= (_LEAST_SECONDS if first else case.timeout_seconds / 2):
            first = False
            yield case, sizes, min(case.timeout_seconds, left)


def _failed(case: Case, sizes: tuple[int, ...], suite: GpuSuite, why: str) -> Iterator[GpuResult]:
    """The sizes for which nothing was told, and the others with a note, which may lack a peer."""
    told = {r.size: r for r in suite.results if r.case == case.name and r.failure is None}
    for size in sizes:
        if size in told:
            yield replace(told[size], notes={**told[size].notes, "further times": why})
        else:
            yield GpuResult(case.name, case.group, size, failure=why)


def _line(result: GpuResult) -> str:
    times = ", ".join(f"{name} {1e3 * ms:.1f} us" for name, ms in result.median_ms.items())
    return f"{result.case}, size {result.size}: {times}{'' if result.correct else '; NOT CORRECT'}"


def left(run: GpuRun, suite: GpuSuite) -> list[str]:
    """The cases of the run of which the suite lacks a size."""
    return [c.name for c in run.cases if not all(suite.measured(c.name, size) for size in c.sizes)]


def measure_named(asked: Asked) -> Iterator[GpuResult]:
    """Measure the case of that name on the GPU at hand; a later result of a size stands for an earlier one."""
    from benchmarks.gpu.decode import decode
    from benchmarks.gpu.hardware import Cuda
    from benchmarks.gpu.measure import measure

    case = next(case for case in ALL if case.name == asked.case)
    if isinstance(case, DecodeCase):
        return decode(case, asked.sizes, Cuda(), seconds=asked.seconds, tune=asked.tune)
    return measure(case, asked.sizes, Cuda(), seconds=asked.seconds, tune=asked.tune)


def ship_records(folder: Path | None = None) -> str:
    """Write what was measured of the GPU at hand to the records that planish brings along, or to a folder; says how
    many and where."""
    from planish.autotune.store import SHIPPED, Store, default_path, ship, shipped
    from planish.autotune.tuner import triton_version
    from planish.targets import profile_of

    profile = profile_of("gpu")
    key = (profile.fingerprint, triton_version())
    found = {(r.kernel, r.sizes): r for r in (*shipped(*key), *Store(default_path()).records(*key))}
    path = (folder or SHIPPED) / f"{profile.name}-triton-{key[1]}.jsonl"
    try:
        ship(found.values(), path)
    except OSError as error:
        raise InputError(f"'{path}' cannot be written: {error}; name another folder with --out") from error
    return f"wrote {len(found)} records to {path}"
