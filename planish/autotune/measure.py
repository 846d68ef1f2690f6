"""Times a variant on the device at hand: by the device's own clock, in turns over more memory than the L2 holds.

The launches go through the launcher that runs artifacts, recorded as a graph: the speed of Python does not count.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any, Protocol

from planish.autotune.compare import differences, sampled
from planish.autotune.oracle import expected, seen_in
from planish.autotune.trial import (
    CANDIDATE,
    REFERENCE,
    Block,
    Dropped,
    Given,
    Outcome,
    Place,
    Sample,
    Seen,
    Skipped,
    Stage,
    Times,
    Trial,
)
from planish.runtime.device.driver import INTERFACES, Driver
from planish.runtime.device.launcher import DriverLauncher, Launcher, Part, Passed
from planish.runtime.dtypes import TORCH, DTypeName


class Clock(Protocol):
    """Seconds that the device takes for what `body` puts on the current stream."""

    def seconds(self, body: Callable[[], None]) -> float: ...


class EventClock:
    """The device's clock, read by events before and after."""

    def seconds(self, body: Callable[[], None]) -> float:
        """Seconds between the two events, waited for."""
        import torch

        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
        start.record()
        body()
        end.record()
        end.synchronize()
        milliseconds: float = start.elapsed_time(end)
        return 1e-3 * milliseconds


@dataclass(frozen=True, slots=True)
class Effort:
    """How long one variant is timed: `warm` repetitions that do not count, then `least`, then more until `seconds` are
    over or `most` are made. A repetition is a series of launches that takes about `series_seconds` and visits every
    set of memory, of which there are at most `sets`."""

    warm: int = 2
    least: int = 9
    most: int = 50
    seconds: float = 0.05
    series_seconds: float = 1e-3
    sets: int = 64


def answer(trial: Trial) -> Outcome:
    """Measure on the current device of torch. Raises what the driver and torch raise."""
    import torch

    device = torch.device("cuda", torch.cuda.current_device())
    kernels = trial.kernels().items()
    driver, warp_size = Driver(INTERFACES[trial.backend]), 64 if trial.backend == "hip" else 32
    specs, code = {name: k.spec for name, k in kernels}, {name: k.code for name, k in kernels}
    launcher = DriverLauncher(driver, device, specs, code, warp_size)
    try:
        with launcher.entered():
            return measure(trial, launcher, EventClock(), Effort())
    except torch.OutOfMemoryError:
        needed = sum(block.size for block in trial.blocks)
        return Skipped(f"the device has no room for the {needed} bytes of a launch")
    finally:
        torch.cuda.empty_cache()


def prepare() -> None:
    """Make the device ready, and its library of products, which is large; raises RuntimeError where there is none."""
    import torch

    torch.cuda.synchronize()
    torch.ones((16, 16), device="cuda").mm(torch.ones((16, 16), device="cuda"))


def measure(trial: Trial, launcher: Launcher, clock: Clock, effort: Effort) -> Outcome:
    """Compare what the kernel computes with what it should, then time the candidate's launch.

    `launcher` knows the kernels of the trial by their names.
    """
    needed = sum(block.size for block in trial.blocks)
    count = max(1, min(effort.sets, math.ceil(trial.rotated_bytes / needed)))
    sets = [[_filled(block, launcher.device) for block in trial.blocks] for _ in range(count)]
    judged = _judged(trial, sets[0], launcher) if trial.results else ()
    if isinstance(judged, str):
        return Dropped(judged, wrong=True)
    for blocks in sets:
        _launch_all("before", trial.before, blocks, launcher)
    samples = sorted(_samples(trial, sets, launcher, clock, effort))
    return Times(median(samples), samples[(len(samples) - 1) // 10], judged)


def _judged(trial: Trial, blocks: Sequence[Any], launcher: Launcher) -> str | tuple[Sample, ...]:
    """Why the candidate's results are wrong; where nothing says what is right, samples of them."""
    before = _continued(trial, blocks)
    wanted, whose = expected(trial, blocks, launcher.device), "what torch computes"
    found = _results(trial, CANDIDATE, blocks, launcher)
    if wanted is None and trial.candidate != trial.reference:
        wanted, whose = _results(trial, REFERENCE, blocks, launcher), "that of another variant"
    if wanted is None:
        return sampled(trial, found)
    return differences(trial, wanted, found, before, whose) or ()


def _continued(trial: Trial, blocks: Sequence[Any]) -> list[Any | None]:
    """For each result the operand whose memory it is when the kernel runs in a program, if any."""
    if trial.meaning is None:
        return [None] * len(trial.results)
    held = [None if place is None else trial.meaning.operands[place] for place in trial.meaning.continues]
    return [seen_in(blocks, operand) if isinstance(operand, Seen) else None for operand in held]


def _samples(
    trial: Trial, sets: Sequence[Sequence[Any]], launcher: Launcher, clock: Clock, effort: Effort
) -> list[float]:
    passed = [_passed(trial.arguments, blocks) for blocks in sets]

    def launch(turn: int) -> None:
        launcher.launch(CANDIDATE, trial.candidate.grid, passed[turn % len(passed)])

    launch(0)
    launcher.wait()
    once = clock.seconds(lambda: launch(1))
    turns = max(len(sets), min(effort.sets, math.ceil(effort.series_seconds / max(once, 1e-9))))

    def series() -> None:
        for turn in range(turns):
            launch(turn)

    repeat = launcher.recorded(series)
    for _ in range(effort.warm):
        clock.seconds(repeat)
    samples: list[float] = []
    while len(samples) < effort.least or (len(samples) < effort.most and sum(samples) * turns < effort.seconds):
        samples.append(clock.seconds(repeat) / turns)
    return samples


def _results(trial: Trial, name: str, blocks: Sequence[Any], launcher: Launcher) -> list[Any]:
    """What the whole kernel leaves in its results, when this one serves the launch of the trial."""
    for memory, block in zip(blocks, trial.blocks, strict=True):
        if not block.pattern:  # what launches write
            _fill(memory, block)
    for seen, old in zip(trial.results, _continued(trial, blocks), strict=True):
        if old is not None:
            seen_in(blocks, seen).copy_(old)
    _launch_all("before", trial.before, blocks, launcher)
    launcher.launch(name, trial.kernels()[name].grid, _passed(trial.arguments, blocks))
    _launch_all("after", trial.after, blocks, launcher)
    launcher.wait()
    return [seen_in(blocks, seen).clone() for seen in trial.results]


def _launch_all(word: str, stages: Sequence[Stage], blocks: Sequence[Any], launcher: Launcher) -> None:
    for i, stage in enumerate(stages):
        launcher.launch(f"{word}{i}", stage.kernel.grid, _passed(stage.arguments, blocks))


def _passed(arguments: Sequence[Given], blocks: Sequence[Any]) -> list[Passed]:
    return [_part(blocks[a.block], a.start, a.dtype) if isinstance(a, Place) else a for a in arguments]


def _part(memory: Any, start: int, dtype: DTypeName) -> Part:
    import torch

    return Part(memory, start, getattr(torch, TORCH[dtype]))


def _filled(block: Block, device: Any) -> Any:
    import torch

    memory = torch.empty(block.size, dtype=torch.uint8, device=device)
    _fill(memory, block)
    return memory


def _fill(memory: Any, block: Block) -> None:
    import torch

    length = len(block.pattern)
    if not length:
        memory.zero_()
        return
    pattern = torch.frombuffer(bytearray(block.pattern), dtype=torch.uint8).to(memory.device)
    whole = block.size // length
    memory[: whole * length].view(whole, length).copy_(pattern.expand(whole, length))
    memory[whole * length :].copy_(pattern[: block.size - whole * length])
