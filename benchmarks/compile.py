"""Compiling the models of the zoo: seconds by stage and the peak memory, each model in a process of its own."""

import multiprocessing
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Mapping
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy
import torch
from pydantic import TypeAdapter
from torch import nn

import planish
from benchmarks.memory import memory_bytes
from benchmarks.peers import PeerError
from benchmarks.results import Machine, write
from benchmarks.run import Say, machine
from benchmarks.zoo import ZOO, ZooModel

_STARTS = 7


@dataclass(frozen=True, slots=True)
class CompileResult:
    """One model compiled with its dynamic sizes at batch 1.

    `stages_s` are seconds from each progress message to the next, `compile_s` their sum. Memory is resident memory of
    the whole process, with PyTorch and the model: `imported_bytes` before the model is loaded, `loaded_bytes` before
    it is compiled, `peak_bytes` the most until the compiled model is ready. `weight_bytes` counts each weight once.
    `first_result_s` is the median time of fresh processes without torch, from their start to the end of the first call.
    """

    model: str
    weight_bytes: int
    load_s: float
    compile_s: float
    stages_s: dict[str, float]
    imported_bytes: int
    loaded_bytes: int
    peak_bytes: int
    artifact_bytes: int
    first_result_s: float


@dataclass(frozen=True, slots=True)
class CompileSuite:
    """One run over models; `threads` of the machine is how many PyTorch may use meanwhile."""

    name: str
    created: str
    machine: Machine
    results: tuple[CompileResult, ...] = ()


@dataclass(slots=True)
class Stages:
    """The seconds between progress messages."""

    seconds: dict[str, float] = field(default_factory=dict)
    _last: str | None = None
    _since: float = 0.0

    def next(self, name: str | None) -> None:
        """The stage `name` begins; None ends the last."""
        now = time.perf_counter()
        if self._last is not None:
            self.seconds[self._last] = round(self.seconds.get(self._last, 0.0) + now - self._since, 3)
        self._last, self._since = name, now


def run_compile(models: Iterable[ZooModel], name: str, path: Path, *, threads: int, say: Say) -> CompileSuite:
    """Compiles every model in a fresh process and writes the results to `path`.

    Raises PeerError where a process dies, for example for lack of memory.
    """
    results = []
    for model in models:
        say(f"compiling {model.name}")
        results.append(_in_own_process(model.name, threads))
    created = datetime.now(UTC).isoformat(timespec="seconds")
    suite = CompileSuite(name, created, machine(threads), tuple(results))
    write(TypeAdapter(CompileSuite).dump_json(suite, indent=1), path)
    return suite


def _in_own_process(name: str, threads: int) -> CompileResult:
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        try:
            return pool.submit(measure_compile, name, threads).result()
        except BrokenProcessPool as error:
            raise PeerError(f"the process that compiled {name} died; is there memory enough?") from error


def measure_compile(name: str, threads: int) -> CompileResult:
    """Load and compile the model called `name`; the peak is this process's own since it started."""
    import transformers  # noqa: F401 - part of what is there before a model is loaded

    torch.set_num_threads(threads)
    model = next(model for model in ZOO if model.name == name)
    imported, start = memory_bytes("VmRSS"), time.perf_counter()
    module = model.load()
    load_s = time.perf_counter() - start
    inputs, loaded, stages = model.inputs(1, model.length), memory_bytes("VmRSS"), Stages()
    dynamic = {key: {axis: (n, *model.sizes[n]) for axis, n in axes.items()} for key, axes in model.dynamic.items()}
    compiled = planish.compile(module, inputs=inputs, dynamic=dynamic, threads=threads, progress=stages.next)
    stages.next(None)
    peak = memory_bytes("VmHWM")
    artifact_bytes, first_result_s = _saved(compiled, inputs)
    return CompileResult(
        model=name,
        weight_bytes=weight_bytes(module),
        load_s=round(load_s, 3),
        compile_s=round(sum(stages.seconds.values()), 3),
        stages_s=stages.seconds,
        imported_bytes=imported,
        loaded_bytes=loaded,
        peak_bytes=peak,
        artifact_bytes=artifact_bytes,
        first_result_s=round(first_result_s, 3),
    )


_FIRST_RESULT = """
import sys
import numpy
import planish
inputs = numpy.load(sys.argv[2])
planish.load(sys.argv[1])(**inputs)
assert "torch" not in sys.modules
"""


def _saved(compiled: planish.CompiledModel, inputs: Mapping[str, torch.Tensor]) -> tuple[int, float]:
    """The bytes of the saved artifact, and the seconds until a fresh process has its first result."""
    with tempfile.TemporaryDirectory(prefix="planish-") as folder:
        artifact, arrays = Path(folder, "artifact"), Path(folder, "inputs.npz")
        compiled.save(artifact)
        given: dict[str, Any] = {name: tensor.numpy() for name, tensor in inputs.items()}
        numpy.savez(arrays, **given)
        seconds = []
        for _ in range(_STARTS):
            start = time.perf_counter()
            subprocess.run([sys.executable, "-c", _FIRST_RESULT, str(artifact), str(arrays)], check=True)
            seconds.append(time.perf_counter() - start)
        size = sum(file.stat().st_size for file in artifact.rglob("*") if file.is_file())
        return size, statistics.median(seconds)


def weight_bytes(module: nn.Module) -> int:
    """The bytes of all parameters and buffers; those that share memory count once."""
    storages = [t.untyped_storage() for t in (*module.parameters(), *module.buffers())]
    return sum({storage.data_ptr(): storage.nbytes() for storage in storages}.values())


def compile_markdown(suite: CompileSuite) -> str:
    """One line a model: time, and memory in multiples of the weights."""
    head = "| model | weights MiB | load s | compile s | loaded | peak | peak MiB | artifact | first result s |"
    return "\n".join([head, f"|---|{'--:|' * 8}", *map(_row, suite.results)])


def _row(result: CompileResult) -> str:
    loaded, peak, artifact = (
        f"{size / result.weight_bytes:.2f}x" for size in (result.loaded_bytes, result.peak_bytes, result.artifact_bytes)
    )
    return (
        f"| {result.model} | {result.weight_bytes / 2**20:.0f} | {result.load_s:.1f} | {result.compile_s:.1f} "
        f"| {loaded} | {peak} | {result.peak_bytes / 2**20:.0f} | {artifact} "
        f"| {result.first_result_s:.2f} |"
    )
