"""The language suite: every model and format, all peers in turns, each in a process of its own."""

import time
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path

import numpy as np

from benchmarks.language.peers import EAGER, Generated, LanguagePeer, Setting
from benchmarks.language.results import LanguageCase, LanguageSuite, PeerResult, Point, Rates, save
from benchmarks.language.source import SMOLLM2, Ids, Source
from benchmarks.language.worker import Worker
from benchmarks.peers import PeerError
from benchmarks.run import Say, machine
from benchmarks.timing import Usage
from planish.hardware_profiles import measure_peak, measure_stream, measured_dtypes

_TEXT = "The capital of France is Paris, and the capital of Italy is"
_COMPARED = 16
_SETTLE_SECONDS = 0.1
_MEASURE_SECONDS = 0.2
_BOUNDS = ("f32", "bf16", "i8")


@dataclass(frozen=True, slots=True)
class Grid:
    """What to run: a case for each of `cases`, at each of `batches`, after prompts of each of `contexts` tokens.

    `rounds` generations of `tokens` tokens are made at each context, every one after a prompt never seen before.
    `group` peers are alive at once, in turns; 0 is all of them, 1 spares memory and lets the machine's drift in.
    """

    cases: tuple[tuple[Source, str], ...]
    peers: tuple[LanguagePeer, ...]
    contexts: tuple[int, ...] = (16, 128, 512, 2048)
    batches: tuple[int, ...] = (1,)
    threads: int = 2
    tokens: int = 33
    rounds: int = 3
    group: int = 0


@dataclass(slots=True)
class _Seat:
    """A peer at work, with the times it has taken so far by context."""

    peer: LanguagePeer
    worker: Worker
    same: int | None
    taken: dict[int, list[Generated]] = field(default_factory=dict)


def run_language(grids: tuple[Grid, ...], name: str, path: Path, say: Say) -> LanguageSuite:
    """Measures everything chosen; the file at `path` is brought up to date after every case."""
    created = datetime.now(UTC).isoformat(timespec="seconds")
    versions = {peer.name: _version(peer) for grid in grids for peer in grid.peers}
    suite = LanguageSuite(name, created, machine(grids[0].threads), versions)
    setting = Setting(1, max(grids[0].contexts), grids[0].threads)
    known = any(source is SMOLLM2 for grid in grids for source, _ in grid.cases)
    expected = _expected(setting, say) if known else None
    for grid, (source, kind), batch in ((g, case, batch) for g in grids for case in g.cases for batch in g.batches):
        say(f"{source.name} {kind}, batch {batch}")
        suite = replace(suite, cases=(*suite.cases, _measure(grid, source, kind, batch, expected, say)))
        save(suite, path)
    return suite


def measure_rates(threads: int) -> Rates:
    """The machine's rates now."""
    known = [dtype for dtype in _BOUNDS if dtype in measured_dtypes()]
    peaks = {dtype: measure_peak(dtype, _MEASURE_SECONDS, threads=threads) for dtype in known}
    return Rates(measure_stream(_MEASURE_SECONDS, threads=threads), peaks)


def _version(peer: LanguagePeer) -> str:
    try:
        return peer.version()
    except PeerError as error:
        return str(error)


def _measure(
    grid: Grid, source: Source, kind: str, batch: int, expected: tuple[int, ...] | None, say: Say
) -> LanguageCase:
    setting = Setting(batch, max(grid.contexts) + 2 * grid.tokens, grid.threads)
    size = grid.group or len(grid.peers)
    rates, results, usage = [measure_rates(grid.threads)], [], Usage()
    for start in range(0, len(grid.peers), size):
        group = grid.peers[start : start + size]
        seats, failed = _seats(group, source, kind, setting, expected if source is SMOLLM2 else None, say)
        try:
            failed += _take_turns(grid, source, batch, seats, say)
        finally:
            for seat in seats:
                seat.worker.close()
        rates.append(measure_rates(grid.threads))
        done = [_result(seat, source, kind, batch) for seat in seats if seat.taken]
        results += sorted([*done, *failed], key=lambda result: [p.name for p in group].index(result.peer))
    return LanguageCase(source.name, kind, batch, tuple(rates), usage.other_cores(), tuple(results))


def _expected(setting: Setting, say: Say) -> tuple[int, ...]:
    """The greedy tokens of eager in f32 after a text."""
    say("eager's greedy tokens")
    worker = Worker(EAGER, SMOLLM2, "f32", setting)
    tokens = worker.generate(_text(1), _COMPARED).tokens[0]
    worker.close()
    return tokens


def _text(rows: int) -> Ids:
    from benchmarks.zoo.smollm2 import encode

    return np.repeat(np.array([encode(_TEXT)], np.int64), rows, axis=0)


def _seats(
    peers: Iterable[LanguagePeer],
    source: Source,
    kind: str,
    setting: Setting,
    expected: tuple[int, ...] | None,
    say: Say,
) -> tuple[list[_Seat], list[PeerResult]]:
    seats: list[_Seat] = []
    failed: list[PeerResult] = []
    for peer in peers:
        say(f"{source.name} {kind}: preparing {peer.name}")
        try:
            worker = Worker(peer, source, kind, setting)
            seats.append(_Seat(peer, worker, _agreement(worker, setting.batch, expected)))
        except PeerError as error:
            failed.append(PeerResult(peer.name, failure=str(error)))
    return seats, failed


def _agreement(worker: Worker, rows: int, expected: tuple[int, ...] | None) -> int | None:
    """How many of the first greedy tokens after a text, in the row that agrees least, are `expected`."""
    if expected is None:
        return None
    found = worker.generate(_text(rows), len(expected)).tokens
    return min(
        next((i for i, (a, b) in enumerate(zip(row, expected, strict=True)) if a != b), len(row)) for row in found
    )


def _take_turns(grid: Grid, source: Source, batch: int, seats: list[_Seat], say: Say) -> list[PeerResult]:
    """Times every seat in turns, starting each round with the next; one that fails leaves, with its reason."""
    failed: list[PeerResult] = []
    for round_ in range(grid.rounds + 1):
        for context in grid.contexts:
            say(f"{source.name}, batch {batch}: round {round_} of {grid.rounds}, {context} tokens")
            for seat in seats[round_ % max(1, len(seats)) :] + seats[: round_ % max(1, len(seats))]:
                prompts = source.prompts(batch, context, 1 + round_)
                # The threads of the one before, which wait by spinning, go to sleep meanwhile.
                time.sleep(_SETTLE_SECONDS)
                try:
                    generated = seat.worker.generate(prompts, grid.tokens if round_ else 2)
                except PeerError as error:
                    failed.append(PeerResult(seat.peer.name, failure=str(error)))
                    seats.remove(seat)
                    continue
                if round_:
                    seat.taken.setdefault(context, []).append(generated)
    return failed


def _result(seat: _Seat, source: Source, kind: str, batch: int) -> PeerResult:
    storage = seat.peer.formats[kind]
    points = []
    for context, runs in seat.taken.items():
        middle = context + len(runs[0].token_ms) // 2
        points.append(
            Point(
                context,
                tuple(round(run.first_ms, 3) for run in runs),
                tuple(round(value, 4) for run in runs for value in run.token_ms),
                storage.token_bytes(source.shape, middle, batch),
                source.shape.flops(context) * batch,
            )
        )
    ready = seat.worker.ready
    return PeerResult(
        seat.peer.name,
        detail=storage.detail,
        compute=storage.compute,
        prepare_seconds=round(ready.seconds, 1),
        peak_mib=ready.peak_mib,
        same_tokens=seat.same,
        points=tuple(points),
    )
