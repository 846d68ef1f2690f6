"""The suite: every model at every batch, all peers in turns, each result beside eager and the machine's limit."""

import gc
import hashlib
import platform
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path

import torch
from torch import Tensor, nn

import planish
from benchmarks.peers import Peer, PeerError
from benchmarks.results import Case, Machine, Result, Score, Suite, save
from benchmarks.timing import Effort, Timing, Turns, take_turns
from benchmarks.work import flops, limit, measure_rates, moved_bytes
from benchmarks.zoo import Call, Inputs, ZooModel, tensors
from planish.hardware_profiles import detect, read_host

Say = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Choice:
    """What to run: models, peers, batches, threads a peer, how long to measure, and whether to measure quality.

    `precision` is that of the peak rate that limits are for.
    """

    models: tuple[ZooModel, ...]
    peers: tuple[Peer, ...]
    batches: tuple[int, ...] = (1, 8)
    threads: int = 2
    effort: Effort = field(default_factory=Effort)
    quality: bool = False
    precision: str = "f32"


@dataclass(frozen=True, slots=True)
class _Ready:
    peer: Peer
    call: Call
    seconds: float
    error: float


def run(choice: Choice, name: str, path: Path, say: Say) -> Suite:
    """Measures everything chosen; the file at `path` is brought up to date after every case."""
    torch.set_num_threads(choice.threads)
    suite = Suite(name, datetime.now(UTC).isoformat(timespec="seconds"), machine(choice.threads), _versions(choice))
    for model in choice.models:
        module = model.load()
        for batch in choice.batches:
            say(f"{model.name}, batch {batch}")
            case, scores = _measure(choice, model, module, batch, say)
            suite = replace(suite, cases=(*suite.cases, case), scores=(*suite.scores, *scores))
            save(suite, path)
        del module
        gc.collect()
    return suite


def machine(threads: int) -> Machine:
    """The machine at hand with its measured profile."""
    profile = detect().model_dump(mode="json", exclude_none=True)
    return Machine(read_host().model_name, threads, platform.python_version(), profile)


def code_digest() -> str:
    """A hash of all sources of planish: artifacts and results of different ones are kept apart."""
    found = hashlib.sha256()
    for path in sorted(Path(planish.__file__).parent.rglob("*.[pch]*")):
        if path.suffix in (".py", ".c", ".h"):
            found.update(path.read_bytes())
    return found.hexdigest()[:16]


def _versions(choice: Choice) -> dict[str, str]:
    return {peer.name: _version(peer) for peer in choice.peers}


def _version(peer: Peer) -> str:
    try:
        return peer.version()
    except PeerError as error:
        return str(error)


def _measure(
    choice: Choice, model: ZooModel, module: nn.Module, batch: int, say: Say
) -> tuple[Case, tuple[Score, ...]]:
    inputs = model.inputs(batch, model.length)
    with torch.inference_mode():
        expected = module(**inputs)
    work = flops(module, inputs), moved_bytes(module, inputs, expected)
    ready, failed = _prepare(choice, model, module, inputs, expected, say)
    before = measure_rates(choice.threads, work[1], choice.precision)
    turns = take_turns({entry.peer.name: _bound(entry.call, inputs) for entry in ready}, choice.effort)
    bound = limit(work, (before, measure_rates(choice.threads, work[1], choice.precision)))
    results = tuple(_result(entry, turns) for entry in ready) + failed
    case = Case(model.name, batch, model.length, bound, turns.other_cores, results)
    first = choice.quality and batch == choice.batches[0]
    return case, _scores(model, ready, say) if first else ()


def _prepare(
    choice: Choice, model: ZooModel, module: nn.Module, inputs: Inputs, expected: object, say: Say
) -> tuple[list[_Ready], tuple[Result, ...]]:
    ready: list[_Ready] = []
    failed: list[Result] = []
    for peer in choice.peers:
        say(f"{model.name}: preparing {peer.name}")
        start = time.perf_counter()
        try:
            call = peer.prepare(model, module, inputs, choice.threads)
            seconds = time.perf_counter() - start
            ready.append(_Ready(peer, call, seconds, max_abs_error(call(*inputs.values()), expected)))
        except PeerError as error:
            failed.append(Result(peer.name, failure=str(error)))
    return ready, tuple(failed)


def max_abs_error(outputs: object, expected: object) -> float:
    """The largest absolute difference over all outputs; PeerError where their count or shapes differ."""
    return max((a.float() - b.float()).abs().max().item() for a, b in paired(outputs, expected))


def paired(outputs: object, expected: object) -> tuple[tuple[Tensor, Tensor], ...]:
    """Each output beside what is expected of it; PeerError where their count or shapes differ."""
    ours, theirs = tensors(outputs), tensors(expected)
    shapes = [[tuple(value.shape) for value in values] for values in (ours, theirs)]
    if shapes[0] != shapes[1]:
        raise PeerError(f"outputs have shapes {shapes[0]}, eager's have {shapes[1]}")
    return tuple(zip(ours, theirs, strict=True))


def _bound(call: Call, inputs: Inputs) -> Callable[[], object]:
    values = tuple(inputs.values())
    return lambda: call(*values)


def _result(entry: _Ready, turns: Turns) -> Result:
    timing: Timing = turns.timings[entry.peer.name]
    return Result(
        peer=entry.peer.name,
        shapes=entry.peer.shapes,
        median_ms=timing.median_ms,
        p10_ms=timing.p10_ms,
        calls_ms=tuple(round(value, 4) for value in timing.calls_ms),
        max_abs_error=entry.error,
        prepare_seconds=round(entry.seconds, 3),
    )


def _scores(model: ZooModel, ready: list[_Ready], say: Say) -> tuple[Score, ...]:
    """Quality of the peers that take any size; one made for the sizes of the timing cannot run the metric."""
    scores = []
    for entry in ready:
        if entry.peer.shapes == "dynamic":
            say(f"{model.name}: quality of {entry.peer.name}")
            found = model.quality(entry.call)
            scores.append(
                Score(model.name, entry.peer.name, found.metric, found.value, found.higher_is_better, found.samples)
            )
    return tuple(scores)
