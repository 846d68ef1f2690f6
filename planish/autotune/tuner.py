"""What the choice of kernels is told: times that are on record, and where the device is at hand those measured now."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Protocol

from planish.autotune.child import Child, ChildError, ChildUnavailable
from planish.autotune.compare import minority
from planish.autotune.keys import kernel_key, sizes_key
from planish.autotune.measure import answer, prepare
from planish.autotune.operands import trial_of
from planish.autotune.store import Machine, Record, Store, default_path, new_record, shipped
from planish.autotune.trial import Dropped, Outcome, Skipped, Times, Trial
from planish.codegen.triton.choose import Candidate, Contest, variant_text
from planish.codegen.triton.compile import Request
from planish.codegen.triton.device import Device
from planish.errors import InputError
from planish.runtime.device.driver import INTERFACES, Driver

_TRIAL_SECONDS = 20.0  # after which a variant counts as hung


class Asked(Protocol):
    """A process that runs trials."""

    def run(self, asked: Trial, *, timeout: float) -> Outcome: ...


class Recorded:
    """The times on record for a device that need not be here; where one was measured more than once the latest counts.

    What this user measured stands above what planish brings along.
    """

    def __init__(self, device: Device, store: Store) -> None:
        self.notes: list[str] = []
        self._device, self._triton = device, triton_version()
        profile = device.profile.fingerprint
        self._known = _table((*shipped(profile, self._triton), *store.records(profile, self._triton)))

    def known(self, request: Request, sizes: Mapping[str, int]) -> float | str | None:
        """Seconds of a launch, why the device would not run it, or None."""
        return self._known.get((kernel_key(request), sizes_key(sizes))) if self._known else None

    def measure(self, contests: Sequence[Contest], progress: Callable[[str], None]) -> None:
        """Measures nothing."""


class Measuring(Recorded):
    """The times on record, and those of the device at hand, which are added to the store one by one.

    `notes` says what could not be measured or kept, and why.
    """

    def __init__(self, device: Device, store: Store, machine: Machine, child: Asked) -> None:
        super().__init__(device, store)
        self._store, self._machine, self._child = store, machine, child

    def measure(self, contests: Sequence[Contest], progress: Callable[[str], None]) -> None:
        """Times each variant of which nothing is known, and drops those that compute something else than torch; where
        torch cannot say, than another of the contest that ran before, or than most of them."""
        missing = [contest for contest in contests if self._missing(contest)]
        try:
            for done, contest in enumerate(missing):
                progress(f"measuring {contest.candidates[0].kernel} ({done + 1} of {len(missing)})")
                name = contest.candidates[0].kernel
                self._measure(contest, [c for c in contests if c.candidates and c.candidates[0].kernel == name])
        except ChildUnavailable as error:
            self._note(f"nothing more was measured, times are predicted: {error}")

    def _missing(self, contest: Contest) -> list[int]:
        return [i for i, c in enumerate(contest.candidates) if self.known(c.request, c.sizes) is None]

    def _measure(self, contest: Contest, kernel: Sequence[Contest]) -> None:
        """Keep what comes of each variant; what is wrong or undecided waits for the others."""
        waiting: dict[int, Times | Dropped] = {}
        for index in self._missing(contest):
            outcome = self._tried(contest, index, kernel)
            if isinstance(outcome, Skipped):
                self._skip(contest.candidates[index], outcome)
            elif (isinstance(outcome, Dropped) and outcome.wrong) or (isinstance(outcome, Times) and outcome.samples):
                waiting[index] = outcome
            else:
                self._keep(contest.candidates[index], outcome)
        if waiting and all(isinstance(o, Dropped) for o in waiting.values()) and not self._right(contest):
            waiting = self._compared(contest, kernel, waiting)
        self._decide(contest, waiting)

    def _compared(
        self, contest: Contest, kernel: Sequence[Contest], wrong: Mapping[int, Times | Dropped]
    ) -> dict[int, Times | Dropped]:
        """What comes of variants that are all wrong, compared with each other: the recorded result judges them then."""
        first = next(outcome.reason for outcome in wrong.values() if isinstance(outcome, Dropped))
        name = contest.candidates[0].kernel
        self._note(f"{name}: no variant was found right, they were compared with each other: {first}")
        found = {index: self._tried(contest, index, kernel, judged=False) for index in wrong}
        return {index: outcome for index, outcome in found.items() if not isinstance(outcome, Skipped)}

    def _decide(self, contest: Contest, waiting: Mapping[int, Times | Dropped]) -> None:
        """Keep of those with samples what most have."""
        undecided = {index: outcome.samples for index, outcome in waiting.items() if isinstance(outcome, Times)}
        places = list(undecided)
        wrong = {places[i]: Dropped(why, wrong=True) for i, why in minority(list(undecided.values())).items()}
        for index, outcome in waiting.items():
            self._keep(contest.candidates[index], wrong.get(index, outcome))
        if wrong and 2 * len(wrong) >= len(undecided):
            kernel = contest.candidates[0].kernel
            self._note(f"{kernel}: no more than half of its variants agree, and torch cannot say which are right")

    def _right(self, contest: Contest) -> bool:
        """Whether a variant of the contest is known to be right."""
        return any(isinstance(self.known(c.request, c.sizes), float) for c in contest.candidates)

    def _skip(self, candidate: Candidate, outcome: Skipped) -> None:
        self._note(f"{candidate.kernel} {variant_text(candidate.variant)} was not measured: {outcome.reason}")

    def _keep(self, candidate: Candidate, outcome: Times | Dropped) -> None:
        times = (outcome.median_seconds, outcome.p10_seconds) if isinstance(outcome, Times) else None
        failure = outcome.reason if isinstance(outcome, Dropped) else None
        facts = (self._machine, candidate.request, candidate.sizes)
        self._add(new_record(*facts, variant=variant_text(candidate.variant), times=times, failure=failure))

    def _tried(self, contest: Contest, index: int, kernel: Sequence[Contest], *, judged: bool = True) -> Outcome:
        """What comes of a variant. Wrong results may be another launch's fault: then it is tried with other variants of
        that."""
        known = [self.known(c.request, c.sizes) for c in contest.candidates]
        reference = next((i for i, found in enumerate(known) if isinstance(found, float)), index)
        launch, first = contest.candidates[index].launch, None
        others = [len(c.candidates) for c in kernel if c.candidates[0].launch != launch]
        for other in range(max(others, default=1)):
            trial = trial_of(contest, index, reference, kernel, self._device, other)
            outcome = self._run(trial if judged else replace(trial, meaning=None))
            if not (isinstance(outcome, Dropped) and outcome.wrong):
                return outcome
            first = first or outcome
        assert first is not None
        return first

    def _run(self, trial: Trial) -> Outcome:
        try:
            return self._child.run(trial, timeout=_TRIAL_SECONDS)
        except ChildUnavailable:
            raise
        except ChildError as error:
            return Dropped(f"on the device: {error}")

    def _add(self, record: Record) -> None:
        self._known[record.kernel, record.sizes] = record.known
        try:
            self._store.add(record)
        except InputError as error:
            self._note(f"times are not kept: {error}")

    def _note(self, text: str) -> None:
        if text not in self.notes:
            self.notes.append(text)


def recorded(device: Device, path: Path | None = None) -> Recorded:
    """The times on record of the store at `path`, by default this user's."""
    return Recorded(device, Store(path or default_path()))


def measuring(device: Device, path: Path | None = None) -> Measuring:
    """A tuner for the device, which must be the one at hand; see `refuse_measuring`."""
    return Measuring(device, Store(path or default_path()), machine_at_hand(device), _CHILD)


def machine_at_hand(device: Device) -> Machine:
    """What times measured here are of."""
    import torch

    driver = Driver(INTERFACES[device.backend])
    fingerprint = device.profile.fingerprint
    return Machine(torch.cuda.get_device_name(), fingerprint, triton_version(), str(driver.version))


def triton_version() -> str:
    """Of the Triton that is installed; an empty text where none is."""
    try:
        return version("triton")
    except PackageNotFoundError:
        return ""


def _table(records: Iterable[Record]) -> dict[tuple[str, str], float | str]:
    return {(record.kernel, record.sizes): record.known for record in records}


# one process for all compilations of this one: it takes seconds to start
_CHILD: Child[Trial, Outcome] = Child(answer, prepare)
