"""What the choice of kernels is told: times that are on record, and where the device is at hand those measured now."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Protocol

from planish.autotune.child import Child, ChildError, ChildUnavailable
from planish.autotune.keys import kernel_key, sizes_key
from planish.autotune.measure import answer, prepare
from planish.autotune.operands import trial_of
from planish.autotune.store import Machine, Record, Store, default_path, new_record, shipped
from planish.autotune.trial import Dropped, Outcome, Skipped, Times, Trial
from planish.codegen.triton.choose import Contest, variant_text
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
        """Times each variant of which nothing is known, against the first of its contest that ran."""
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
        for index in self._missing(contest):
            candidate = contest.candidates[index]
            outcome = self._tried(contest, index, kernel)
            if isinstance(outcome, Skipped):
                self._note(f"{candidate.kernel} {variant_text(candidate.variant)} was not measured: {outcome.reason}")
                continue
            times = (outcome.median_seconds, outcome.p10_seconds) if isinstance(outcome, Times) else None
            failure = outcome.reason if isinstance(outcome, Dropped) else None
            text = variant_text(candidate.variant)
            facts = (self._machine, candidate.request, candidate.sizes)
            self._add(new_record(*facts, variant=text, times=times, failure=failure))

    def _tried(self, contest: Contest, index: int, kernel: Sequence[Contest]) -> Outcome:
        known = [self.known(c.request, c.sizes) for c in contest.candidates]
        reference = next((i for i, found in enumerate(known) if isinstance(found, float)), index)
        try:
            trial = trial_of(contest, index, reference, kernel, self._device)
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
