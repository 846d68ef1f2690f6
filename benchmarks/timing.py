"""Times callables in turns, so that whatever else the machine does meets all of them alike."""

import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import median

_STAT = Path("/proc/stat")


@dataclass(frozen=True, slots=True)
class Timing:
    """Milliseconds of every timed call, in the order they were made."""

    calls_ms: tuple[float, ...]

    @property
    def median_ms(self) -> float:
        return median(self.calls_ms)

    @property
    def p10_ms(self) -> float:
        """The tenth percentile by the nearest rank: what the callable does when little disturbs it."""
        return sorted(self.calls_ms)[(len(self.calls_ms) - 1) // 10]


@dataclass(frozen=True, slots=True)
class Turns:
    """The timings of one run, with the cores that other processes used meanwhile (None where it is unknown)."""

    timings: Mapping[str, Timing]
    other_cores: float | None


class Usage:
    """How many cores the processes that are not ours use from the making of this object on.

    Ours are this one and its children that have ended and were waited for.
    """

    def __init__(self) -> None:
        self._busy, self._own, self._start = _busy_seconds(), _own_seconds(), time.perf_counter()

    def other_cores(self) -> float | None:
        """The mean number of cores so far; None where the system does not tell."""
        now = _busy_seconds()
        if self._busy is None or now is None:
            return None
        others = (now - self._busy) - (_own_seconds() - self._own)
        return max(0.0, others) / (time.perf_counter() - self._start)


@dataclass(frozen=True, slots=True)
class Effort:
    """How long to measure: at least `least` rounds, then until `seconds` have passed, at most `most` rounds.

    In a round each callable has its turn: the process rests for `rest_ms`, so that other libraries' threads, which
    wait for work by spinning, have gone to sleep; one call that does not count brings caches and threads back; then
    `burst` calls are timed.
    """

    seconds: float = 20.0
    warm: int = 2
    least: int = 5
    most: int = 300
    rest_ms: float = 60.0
    burst: int = 4


def take_turns(calls: Mapping[str, Callable[[], object]], effort: Effort) -> Turns:
    """Calls each of `calls` in turns, starting each round with the next one, and times every call."""
    names = list(calls)
    for _ in range(effort.warm):
        for name in names:
            calls[name]()
    times: dict[str, list[float]] = {name: [] for name in names}
    usage, start = Usage(), time.perf_counter()
    for index in range(effort.most):
        if index >= effort.least and time.perf_counter() - start > effort.seconds:
            break
        for name in _rotated(names, index):
            time.sleep(effort.rest_ms / 1e3)
            calls[name]()
            times[name] += [_timed_ms(calls[name]) for _ in range(effort.burst)]
    return Turns({name: Timing(tuple(values)) for name, values in times.items()}, usage.other_cores())


def _rotated(names: list[str], index: int) -> list[str]:
    start = index % len(names) if names else 0
    return names[start:] + names[:start]


def _timed_ms(call: Callable[[], object]) -> float:
    start = time.perf_counter_ns()
    call()
    return (time.perf_counter_ns() - start) / 1e6


def _busy_seconds() -> float | None:
    """Seconds that all cores together have worked since boot, from Linux; None on other systems."""
    if not _STAT.exists():
        return None
    user, nice, system, _idle, _waiting, *rest = map(int, _STAT.read_text().splitlines()[0].split()[1:9])
    return (user + nice + system + sum(rest)) / os.sysconf("SC_CLK_TCK")


def _own_seconds() -> float:
    spent = os.times()
    return spent.user + spent.system + spent.children_user + spent.children_system
