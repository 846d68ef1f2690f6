"""What SmolLM2 in 4 bits takes before and while it runs: compiling, the start of a process, and memory."""

import json
import multiprocessing
import statistics
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from pydantic import TypeAdapter

from benchmarks.compile import Stages
from benchmarks.language.source import load_smollm2
from benchmarks.memory import memory_bytes
from benchmarks.results import Machine, write
from benchmarks.run import Say, code_digest, machine

FORMAT = 1
SPARE_BYTES = 150_000_000
_PASSES = ("quantize-weights{bits=4, group=128}",)
_CONTEXT = 2048
_PROMPT = 12


@dataclass(frozen=True, slots=True)
class Compiling:
    """`stages_s` are seconds from each progress message to the next, `peak_bytes` the most of the whole process."""

    stages_s: dict[str, float]
    peak_bytes: int

    @property
    def seconds(self) -> float:
        """All stages together."""
        return sum(self.stages_s.values())


@dataclass(frozen=True, slots=True)
class Start:
    """One fresh process without torch: seconds since it was started, by the clock of its parent.

    `interpreter_s` until Python runs the first line, `imported_s` until planish's runtime is there, `loaded_s` until
    the artifact is there and checked, `first_token_s` until the first token after a prompt of 12.
    """

    interpreter_s: float
    imported_s: float
    loaded_s: float
    first_token_s: float


@dataclass(frozen=True, slots=True)
class Memory:
    """Resident memory of a process that reads and writes until its context of 2048 tokens is full.

    `beyond_bytes` is the peak less `interpreter_bytes`, those of Python before the first import. It may be
    `limit_bytes`: the weights, the full caches and 150 MB.
    """

    interpreter_bytes: int
    peak_bytes: int
    weight_bytes: int
    cache_bytes: int

    @property
    def beyond_bytes(self) -> int:
        return self.peak_bytes - self.interpreter_bytes

    @property
    def limit_bytes(self) -> int:
        return self.weight_bytes + self.cache_bytes + SPARE_BYTES


@dataclass(frozen=True, slots=True)
class StartSuite:
    """One run; `code` is a hash of planish's sources."""

    name: str
    created: str
    machine: Machine
    code: str
    model: str
    passes: tuple[str, ...]
    compiling: Compiling
    starts: tuple[Start, ...]
    memory: Memory
    format: int = FORMAT


def run_start(name: str, path: Path, *, runs: int, threads: int, say: Say) -> StartSuite:
    """Compiles in a fresh process, then starts others on the artifact; writes the results to `path`."""
    created = datetime.now(UTC).isoformat(timespec="seconds")
    with tempfile.TemporaryDirectory(prefix="planish-") as folder:
        artifact = Path(folder, "artifact")
        say("compiling SmolLM2 in 4 bits")
        with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
            compiling = pool.submit(compile_to, artifact, threads).result()
        say("starting processes")
        start_once(artifact, threads)
        starts = tuple(start_once(artifact, threads) for _ in range(runs))
        say("filling the context")
        memory = fill_context(artifact, threads)
    suite = StartSuite(name, created, machine(threads), code_digest(), "smollm2", _PASSES, compiling, starts, memory)
    write(TypeAdapter(StartSuite).dump_json(suite, indent=1), path)
    return suite


def compile_to(artifact: Path, threads: int) -> Compiling:
    """Loads and compiles SmolLM2 in this process; the peak is its own since it started."""
    import planish

    torch.set_num_threads(threads)
    module, stages = load_smollm2(), Stages()
    generation = planish.Generation(context=_CONTEXT, cache="f16", end=())
    example = torch.zeros((2, 16), dtype=torch.int64)
    compiled = planish.compile(
        module, inputs=(example,), generate=generation, passes=_PASSES, threads=threads, progress=stages.next
    )
    stages.next("saving")
    compiled.save(artifact)
    stages.next(None)
    return Compiling(stages.seconds, memory_bytes("VmHWM"))


# The script tells moments by the clock that all processes share.
_FIRST_TOKEN = """
import json, sys, time
moments = [time.monotonic()]
from planish.runtime import load
moments.append(time.monotonic())
model = load(sys.argv[1], threads=int(sys.argv[2]))
moments.append(time.monotonic())
next(iter(model.generate([504] * int(sys.argv[3]), max_new_tokens=1)))
moments.append(time.monotonic())
assert "torch" not in sys.modules
print(json.dumps(moments))
"""

_FILL = """
import json, sys
def kibibytes(key):
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith(key))
before = kibibytes("VmRSS:")
from planish.runtime import load
model = load(sys.argv[1], threads=int(sys.argv[2]))
made = model.generator.settings
for token in model.generate([504] * (made.context - int(sys.argv[3])), max_new_tokens=int(sys.argv[3])):
    pass
assert "torch" not in sys.modules
print(json.dumps([before << 10, kibibytes("VmHWM:") << 10, model.generator.session().cache_bytes]))
"""


def start_once(artifact: Path, threads: int) -> Start:
    """A process that makes one token and ends."""
    begun = time.monotonic()
    moments = _told(_FIRST_TOKEN, artifact, threads, _PROMPT)
    return Start(*(round(moment - begun, 4) for moment in moments))


def fill_context(artifact: Path, threads: int) -> Memory:
    """A process that reads a prompt almost as long as the context and fills it with an answer."""
    before, peak, cache = _told(_FILL, artifact, threads, 32)
    return Memory(before, peak, (artifact / "weights.safetensors").stat().st_size, cache)


def _told(script: str, *arguments: object) -> Any:
    command = [sys.executable, "-c", script, *map(str, arguments)]
    return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def start_markdown(suite: StartSuite) -> str:
    """Three lines: compiling, the medians of the starts, and memory."""
    median = {
        name: statistics.median(getattr(start, name) for start in suite.starts)
        for name in ("interpreter_s", "imported_s", "loaded_s", "first_token_s")
    }
    compiling, memory = suite.compiling, suite.memory
    moments = ", ".join(f"{name.removesuffix('_s').replace('_', ' ')} {value:.3f}" for name, value in median.items())
    return (
        f"{suite.model}, {suite.passes[0]}, {suite.machine.processor}, {suite.machine.threads} threads\n\n"
        f"- compile and save: {compiling.seconds:.1f} s, peak {compiling.peak_bytes >> 20} MiB\n"
        f"- seconds since the start of a process, medians of {len(suite.starts)}: {moments}\n"
        f"- memory beyond the interpreter's: {memory.beyond_bytes / 1e6:.0f} MB of {memory.limit_bytes / 1e6:.0f} "
        f"(weights {memory.weight_bytes / 1e6:.0f}, cache {memory.cache_bytes / 1e6:.0f}, 150)\n"
    )
