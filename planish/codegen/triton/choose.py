"""The variant of each regime: the static model ranks them, the best few are compiled, their resources decide.

Where times were measured on the device, they count instead of the model's.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final, Protocol

from planish.codegen.call import Call
from planish.codegen.triton.compile import Binary, Compiler, Request, compile_all
from planish.codegen.triton.cost import predict, predicted_seconds, refuse_resources
from planish.codegen.triton.device import Device
from planish.codegen.triton.judge import judged_sizes, reached
from planish.codegen.triton.kernel import Kernel, Launch, Regime, Variant
from planish.codegen.triton.request import request_of
from planish.codegen.variants import VariantRow
from planish.compiler.types import evaluate_dim
from planish.errors import TemplateError

COMPILED = 3  # of a regime's variants: the ranking without registers is right about the first few or nearly
_HOPELESS = 2.0  # times the best prediction, beyond which registers will not change the order


@dataclass(frozen=True, slots=True)
class Chosen:
    """The variant that serves sizes up to `most`, compiled, with its time and that of the others, the best first."""

    most: int | None
    variant: Variant
    binary: Binary
    seconds: float
    rows: tuple[VariantRow, ...] = ()


@dataclass(frozen=True, slots=True)
class Candidate:
    """A variant that is worth compiling, and the sizes at which it is judged; `size` is the launch's then."""

    kernel: str
    launch: int
    regime: Regime
    variant: Variant
    request: Request
    sizes: Mapping[str, int]
    size: int

    @property
    def key(self) -> str:
        """A text that is equal for equal compilations."""
        return repr(self.request)


@dataclass(frozen=True, slots=True)
class Contest:
    """The compiled variants of one regime of one launch that fit the device, the best by the model first."""

    call: Call
    kernel: Kernel
    candidates: tuple[Candidate, ...]
    binaries: tuple[Binary, ...]


class Tuner(Protocol):
    """Measurements on the device.

    `known` gives the seconds that a kernel took for these named sizes, or why the device would not run it, or None
    where nobody has measured; `measure` fills in what is not known of the contests.
    """

    def known(self, request: Request, sizes: Mapping[str, int]) -> float | str | None: ...

    def measure(self, contests: Sequence[Contest], progress: Callable[[str], None]) -> None: ...


class Untuned:
    """Nothing is measured."""

    def known(self, request: Request, sizes: Mapping[str, int]) -> None:
        """Nothing."""

    def measure(self, contests: Sequence[Contest], progress: Callable[[str], None]) -> None:
        """Does nothing."""


UNTUNED: Final[Tuner] = Untuned()


def choose(
    calls: Mapping[str, tuple[Call, Kernel]],
    device: Device,
    hints: Mapping[str, int],
    progress: Callable[[str], None],
    compiler: Compiler = compile_all,
    tuner: Tuner = UNTUNED,
    most: int = COMPILED,
) -> dict[str, tuple[tuple[Chosen, ...], ...]]:
    """For each kernel by name, for each of its launches, the chosen variant of each regime.

    Of each regime `most` variants are compiled, the best by the model, and the best of those whose time is known.

    Raises TemplateError where no variant of a regime fits the device.
    """
    found = {name: candidates(name, call, kernel, device, hints, most, tuner) for name, (call, kernel) in calls.items()}
    requests = {c.key: c.request for launches in found.values() for regimes in launches for r in regimes for c in r}
    progress(f"compiling {len(requests)} kernels")
    binaries = dict(zip(requests, compiler(list(requests.values()), device), strict=True))
    contests = [
        _contest(*calls[name], regime, binaries, device)
        for name, launches in found.items()
        for regimes in launches
        for regime in regimes
    ]
    tuner.measure(contests, progress)
    return {
        name: tuple(tuple(_best(regime, binaries, device, tuner) for regime in regimes) for regimes in launches)
        for name, launches in found.items()
    }


def candidates(
    name: str,
    call: Call,
    kernel: Kernel,
    device: Device,
    hints: Mapping[str, int],
    most: int = COMPILED,
    tuner: Tuner = UNTUNED,
) -> tuple[tuple[tuple[Candidate, ...], ...], ...]:
    """For each launch of a kernel and each of its regimes, at most so many variants, the best by the model first; with
    the fastest of those whose time is known."""
    return tuple(
        tuple(_kept(_ranked(name, i, call, launch, at, device, hints), most, device, tuner) for at in reached(launch))
        for i, launch in enumerate(kernel.launches)
    )


def _ranked(
    name: str, index: int, call: Call, launch: Launch, at: int, device: Device, hints: Mapping[str, int]
) -> tuple[Candidate, ...]:
    """All variants of a regime, the best by the model first."""
    regime, judged = launch.regimes[at], judged_sizes(launch, at, hints)
    sizes = {name: judged[name] for name in call.sizes(launch.size)}
    size = evaluate_dim(launch.size, sizes)
    variants = sorted(regime.variants, key=lambda v: predicted_seconds(v, device, sizes, None))
    return tuple(Candidate(name, index, regime, v, request_of(call, launch, v), sizes, size) for v in variants)


def _kept(ranked: tuple[Candidate, ...], most: int, device: Device, tuner: Tuner) -> tuple[Candidate, ...]:
    seconds = [predicted_seconds(c.variant, device, c.sizes, None) for c in ranked]
    hopeless = _HOPELESS * seconds[0] if most <= COMPILED else math.inf  # who asks for more does not trust the model
    kept = [c for c, s in zip(ranked[:most], seconds, strict=False) if s <= hopeless]
    times = [(time, i) for i, c in enumerate(ranked) if isinstance(time := tuner.known(c.request, c.sizes), float)]
    fastest = ranked[min(times)[1]] if times else kept[0]
    return tuple(kept) if fastest in kept else (*kept, fastest)


def _contest(
    call: Call, kernel: Kernel, found: tuple[Candidate, ...], binaries: Mapping[str, Binary], device: Device
) -> Contest:
    pairs = [(c, b) for c in found if refuse_resources(b := binaries[c.key], device) is None]
    return Contest(call, kernel, tuple(c for c, _ in pairs), tuple(b for _, b in pairs))


def _best(found: tuple[Candidate, ...], binaries: Mapping[str, Binary], device: Device, tuner: Tuner) -> Chosen:
    rows = [(_row(c, binaries[c.key], device, tuner), c) for c in found]
    fitting = [(row, c) for row, c in rows if row.refused is None]
    if not fitting:
        raise TemplateError(f"{found[0].kernel} does not fit {device.profile.name}: {rows[0][0].refused}")
    known = [pair for pair in fitting if pair[0].basis == "measured"] or fitting
    taken, best = min(known, key=lambda pair: pair[0].seconds)
    others = sorted((row for row, c in rows if c is not best), key=lambda row: row.seconds)
    return Chosen(
        best.regime.most, best.variant, binaries[best.key], taken.seconds, (replace(taken, chosen=True), *others)
    )


def _row(candidate: Candidate, binary: Binary, device: Device, tuner: Tuner) -> VariantRow:
    prediction = predict(candidate.variant, device, candidate.sizes, binary)
    found = tuner.known(candidate.request, candidate.sizes)
    seconds = None if isinstance(found, str) else found
    return VariantRow(
        kernel=candidate.kernel,
        launch=candidate.launch,
        most=candidate.regime.most,
        size=candidate.size,
        variant=variant_text(candidate.variant),
        seconds=prediction.seconds if seconds is None else seconds,
        basis="predicted" if seconds is None else "measured",
        bound=prediction.bound,
        chosen=False,
        refused=found if isinstance(found, str) else refuse_resources(binary, device),
        predicted_seconds=prediction.seconds,
    )


def variant_text(variant: Variant) -> str:
    """The constants of a variant that are numbers, its warps and its stages, as one line."""
    numbers = [f"{k}={v}" for k, v in variant.constants.items() if isinstance(v, int) and not isinstance(v, bool)]
    return " ".join([*numbers, f"warps={variant.num_warps}", f"stages={variant.num_stages}"])
