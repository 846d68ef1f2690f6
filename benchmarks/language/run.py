"""The language suite: peers take turns in every case, each in a process of its own; a run that was killed goes on."""

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path

import numpy as np

from benchmarks.language.grid import Preset, Sitting
from benchmarks.language.peers import EAGER, Generated, LanguagePeer, Setting
from benchmarks.language.results import Effort, LanguageSuite, PeerResult, Rates, Turns, load, save
from benchmarks.language.source import SMOLLM2, Ids
from benchmarks.language.worker import PREPARE_SECONDS, Worker, prepared
from benchmarks.memory import available_bytes
from benchmarks.peers import PeerError
from benchmarks.run import Say, code_digest, machine
from benchmarks.timing import Usage
from planish.errors import InputError
from planish.hardware_profiles import measure_peak, measure_stream, measured_dtypes

# Peers are prepared for this many tokens whatever the case, so that one artifact serves all cases.
CONTEXT = 2176
_TEXT = "The capital of France is Paris, and the capital of Italy is"
_COMPARED = 16
_SETTLE_SECONDS = 0.1
_MEASURE_SECONDS = 0.2
_BOUNDS = ("f32", "bf16", "i8")
_SPARE_BYTES = 1 << 30


@dataclass(frozen=True, slots=True)
class Run:
    """What to measure and how: `minutes` after its start no sitting is begun any more.

    `group` peers are alive at once, in turns; 0 is as many as the memory holds.
    """

    preset: Preset
    threads: int = 2
    group: int = 0
    minutes: float | None = None


def run_language(run: Run, name: str, path: Path, say: Say, *, fresh: bool = False) -> LanguageSuite:
    """Measures what `path` does not hold yet, all of it where `fresh`; the file is brought up to date after every case.

    Raises InputError where the file is of another machine, another effort or other sources of planish.
    """
    suite, start, expected = _begun(run, name, path, fresh=fresh), time.monotonic(), _Expected(run.threads, say)
    for sitting, peers in _work(run):
        prompts, lacking = _missing(suite, sitting, peers)
        if not prompts:
            continue
        if run.minutes is not None and time.monotonic() - start > 60 * run.minutes:
            break
        say(f"{sitting}")
        for prompt, turns in _measure(run, replace(sitting, prompts=prompts), lacking, expected, say):
            suite = suite.with_turns(sitting.key(prompt), turns)
            save(suite, path)
    return suite


def left(run: Run, suite: LanguageSuite) -> list[str]:
    """The cases that the suite still lacks, in words."""
    return [
        f"{sitting}, {prompt} tokens"
        for sitting in run.preset.sittings()
        for prompt in sitting.prompts
        if suite.missing(sitting.key(prompt), [peer.name for peer in run.preset.peers])
    ]


def measure_rates(threads: int) -> Rates:
    """The machine's rates now."""
    known = [dtype for dtype in _BOUNDS if dtype in measured_dtypes()]
    peaks = {dtype: measure_peak(dtype, _MEASURE_SECONDS, threads=threads) for dtype in known}
    return Rates(measure_stream(_MEASURE_SECONDS, threads=threads), peaks)


def _begun(run: Run, name: str, path: Path, *, fresh: bool) -> LanguageSuite:
    created = datetime.now(UTC).isoformat(timespec="seconds")
    versions = {peer.name: _version(peer) for peer in run.preset.peers}
    new = LanguageSuite(name, created, machine(run.threads), versions, code_digest(), run.preset.effort)
    if fresh or not path.exists():
        return new
    old = load(path)
    known, wanted = _conditions(old), _conditions(new)
    if differing := [what for what in known if known[what] != wanted[what]]:
        raise InputError(
            f"'{path}' was measured with another {differing[0]}; give --fresh to measure all of it again, or --name"
        )
    return replace(old, peers={**old.peers, **versions})


def _conditions(suite: LanguageSuite) -> dict[str, object]:
    return {
        "processor": suite.machine.processor,
        "number of threads": suite.machine.threads,
        "state of planish's sources": suite.code,
        "effort (--tokens, --rounds, --limit)": suite.effort,
    }


def _version(peer: LanguagePeer) -> str:
    try:
        return peer.version()
    except PeerError as error:
        return str(error)


def _work(run: Run) -> Iterator[tuple[Sitting, list[LanguagePeer]]]:
    """Every sitting with peers that are alive together."""
    for sitting in run.preset.sittings():
        group: list[LanguagePeer] = []
        room = available_bytes() - _SPARE_BYTES
        for peer in run.preset.peers:
            taken = sum(_resident_bytes(other, sitting) for other in (*group, peer))
            if group and (len(group) == run.group or (run.group == 0 and taken > room)):
                yield sitting, group
                group = []
            group.append(peer)
        yield sitting, group


def _resident_bytes(peer: LanguagePeer, sitting: Sitting) -> float:
    """About what the process of a peer holds: weights with packed copies of some, caches, libraries."""
    if sitting.kind not in peer.formats:
        return 0.0
    return 1.4 * peer.formats[sitting.kind].token_bytes(sitting.source.shape, CONTEXT, sitting.batch) + (600 << 20)


def _missing(
    suite: LanguageSuite, sitting: Sitting, peers: Sequence[LanguagePeer]
) -> tuple[tuple[int, ...], list[LanguagePeer]]:
    """The prompts after which one of the peers is still to be measured, and those peers."""
    names = [peer.name for peer in peers]
    lacking = {prompt: suite.missing(sitting.key(prompt), names) for prompt in sitting.prompts}
    wanted = {name for missing in lacking.values() for name in missing}
    return tuple(prompt for prompt in lacking if lacking[prompt]), [peer for peer in peers if peer.name in wanted]


class _Expected:
    """The greedy tokens of eager in f32 after a text, made when they are first needed."""

    def __init__(self, threads: int, say: Say) -> None:
        self._threads, self._say = threads, say
        self._tokens: tuple[int, ...] | None = None

    def tokens(self, sitting: Sitting) -> tuple[int, ...] | None:
        """None for a model whose text means nothing."""
        if sitting.source is SMOLLM2 and self._tokens is None:
            self._say("eager's greedy tokens")
            worker = Worker(EAGER, SMOLLM2, "f32", Setting(1, CONTEXT, self._threads))
            self._tokens = worker.generate(_text(1), _COMPARED, PREPARE_SECONDS).tokens[0]
            worker.close()
        return self._tokens if sitting.source is SMOLLM2 else None


def _text(rows: int) -> Ids:
    from benchmarks.zoo.smollm2 import encode

    return np.repeat(np.array([encode(_TEXT)], np.int64), rows, axis=0)


@dataclass(slots=True)
class _Seat:
    """A peer at work: its process, how many greedy tokens are eager's, what a generation took last, why it left."""

    peer: LanguagePeer
    worker: Worker | None = None
    same: int | None = None
    last: tuple[int, Generated] | None = None
    failure: str | None = None
    taken: list[Generated] = field(default_factory=list)

    def leave(self, error: PeerError) -> None:
        """The process ends; `error` is the reason why there are no more numbers."""
        self.failure = str(error)
        if self.worker is not None:
            self.worker.close()
            self.worker = None

    @property
    def spent_seconds(self) -> float:
        """What the generations of this case took."""
        return sum(_milliseconds(generated) for generated in self.taken) / 1e3


def _measure(
    run: Run, sitting: Sitting, peers: Sequence[LanguagePeer], expected: _Expected, say: Say
) -> Iterator[tuple[int, Turns]]:
    """The turns of these peers after each of the prompts."""
    seats = [_seated(run, sitting, peer, expected, say) for peer in peers]
    try:
        for prompt in sitting.prompts:
            rates, usage = measure_rates(run.threads), Usage()
            _take_turns(run.preset.effort, sitting, prompt, seats, say)
            others = usage.other_cores()
            results = tuple(_result(seat, sitting, prompt, run.preset.effort) for seat in seats)
            yield prompt, Turns((rates, measure_rates(run.threads)), others, results)
    finally:
        for seat in seats:
            if seat.worker is not None:
                seat.worker.close()


def _seated(run: Run, sitting: Sitting, peer: LanguagePeer, expected: _Expected, say: Say) -> _Seat:
    seat = _Seat(peer)
    try:
        peer.check(sitting.kind)
        wanted = expected.tokens(sitting)
        say(f"{sitting}: preparing {peer.name}")
        setting = Setting(sitting.batch, CONTEXT, run.threads)
        seat.worker = prepared(peer, sitting.source, sitting.kind, setting)
        seat.same = None if wanted is None else _agreement(seat.worker, sitting.batch, wanted)
    except PeerError as error:
        seat.leave(error)
    return seat


def _agreement(worker: Worker, rows: int, expected: tuple[int, ...]) -> int:
    """How many of the first greedy tokens after a text, in the row that agrees least, are `expected`."""
    found = worker.generate(_text(rows), len(expected), PREPARE_SECONDS).tokens
    return min(
        next((i for i, (a, b) in enumerate(zip(row, expected, strict=True)) if a != b), len(row)) for row in found
    )


def _take_turns(effort: Effort, sitting: Sitting, prompt: int, seats: Sequence[_Seat], say: Say) -> None:
    """A generation that does not count for each seat, then rounds of those that count, each begun by the next seat."""
    count = effort.tokens if prompt in sitting.decoded else 1
    for seat in seats:
        seat.taken = []
    for round_ in range(effort.rounds + 1):
        say(f"{sitting}: {prompt} tokens, round {round_} of {effort.rounds}")
        for i in range(len(seats)):
            seat = seats[(i + round_) % len(seats)]
            if seat.worker is not None and not _over(seat, prompt, effort.limit_seconds):
                prompts = sitting.source.prompts(sitting.batch, prompt, 1 + round_)
                _generate(seat, prompts, count if round_ else min(2, count), effort.limit_seconds, warm=round_ == 0)


def _generate(seat: _Seat, prompts: Ids, count: int, limit_seconds: float, *, warm: bool) -> None:
    assert seat.worker is not None
    # The threads of the one before, which wait by spinning, go to sleep meanwhile.
    time.sleep(_SETTLE_SECONDS)
    try:
        # Whoever compiles for a new length does it in the first generation.
        made = seat.worker.generate(prompts, count, PREPARE_SECONDS if warm else limit_seconds)
    except PeerError as error:
        seat.leave(error)
        return
    if not warm:
        seat.taken.append(made)
        seat.last = prompts.shape[1], made


def _over(seat: _Seat, prompt: int, limit_seconds: float) -> bool:
    """Whether the seat has used up its time in this case, or one generation would, by the last and shorter one."""
    return seat.spent_seconds >= limit_seconds or _expected_seconds(seat, prompt) > limit_seconds


def _expected_seconds(seat: _Seat, prompt: int) -> float:
    if seat.last is None:
        return 0.0
    before, made = seat.last
    return (made.first_ms * prompt / before + sum(made.token_ms)) / 1e3


def _milliseconds(generated: Generated) -> float:
    return generated.first_ms + sum(generated.token_ms)


def _result(seat: _Seat, sitting: Sitting, prompt: int, effort: Effort) -> PeerResult:
    taken, limit = seat.taken, f"the limit of {effort.limit_seconds:g} s"
    if not taken:
        would = f"{seat.peer.name} would take about {round(_expected_seconds(seat, prompt), 3):g} s, over {limit}"
        return PeerResult(seat.peer.name, failure=seat.failure or would)
    storage, shape = seat.peer.formats[sitting.kind], sitting.source.shape
    ready = seat.worker.ready if seat.worker else None
    middle = prompt + len(taken[0].token_ms) // 2
    note = "" if len(taken) == effort.rounds else f"{len(taken)} of {effort.rounds} generations within {limit}"
    return PeerResult(
        seat.peer.name,
        note=seat.failure or note,
        detail=storage.detail,
        compute=storage.compute,
        prepare_seconds=round(ready.seconds, 1) if ready else None,
        peak_mib=ready.peak_mib if ready else None,
        same_tokens=seat.same,
        first_ms=tuple(round(run.first_ms, 3) for run in taken),
        token_ms=tuple(round(value, 4) for run in taken for value in run.token_ms),
        token_bytes=storage.token_bytes(shape, middle, sitting.batch),
        prefill_flops=shape.flops(prompt) * sitting.batch,
    )
