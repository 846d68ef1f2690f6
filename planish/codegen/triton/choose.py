"""The variant of each regime: the static model ranks them, the best few are compiled, their resources decide."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from planish.codegen.call import Call
from planish.codegen.triton.compile import Binary, Compiler, Request, compile_all
from planish.codegen.triton.cost import predicted_seconds, refuse_resources
from planish.codegen.triton.device import Device
from planish.codegen.triton.kernel import Kernel, Launch, Regime, Variant
from planish.codegen.triton.request import request_of
from planish.errors import TemplateError

_COMPILED = 2  # of a regime's variants: the ranking without registers is right about the first two or nearly


@dataclass(frozen=True, slots=True)
class Chosen:
    """The variant that serves sizes up to `most`, compiled, and the time that the model predicts for it."""

    most: int | None
    variant: Variant
    binary: Binary
    seconds: float


@dataclass(frozen=True, slots=True)
class _Candidate:
    kernel: str
    launch: int
    regime: Regime
    variant: Variant
    request: Request
    sizes: Mapping[str, int]


def choose(
    calls: Mapping[str, tuple[Call, Kernel]],
    device: Device,
    hints: Mapping[str, int],
    progress: Callable[[str], None],
    compiler: Compiler = compile_all,
) -> dict[str, tuple[tuple[Chosen, ...], ...]]:
    """For each kernel by name, for each of its launches, the chosen variant of each regime.

    Raises TemplateError where no variant of a regime fits the device.
    """
    candidates = [
        candidate
        for name, (call, kernel) in calls.items()
        for i, launch in enumerate(kernel.launches)
        for regime in launch.regimes
        for candidate in _candidates(name, i, call, launch, regime, device, hints)
    ]
    requests = list(dict.fromkeys(_key(c.request) for c in candidates))
    by_key = {_key(c.request): c.request for c in candidates}
    progress(f"compiling {len(requests)} kernels")
    binaries = dict(zip(requests, compile_all([by_key[k] for k in requests], device), strict=True))
    return {
        name: tuple(
            tuple(
                _best(
                    [c for c in candidates if (c.kernel, c.launch) == (name, i) and c.regime is regime],
                    binaries,
                    device,
                )
                for regime in launch.regimes
            )
            for i, launch in enumerate(kernel.launches)
        )
        for name, (_, kernel) in calls.items()
    }


def _key(request: Request) -> str:
    return repr(request)


def _candidates(
    name: str, launch_index: int, call: Call, launch: Launch, regime: Regime, device: Device, hints: Mapping[str, int]
) -> list[_Candidate]:
    sizes = _sizes_in(regime, launch, hints)
    ranked = sorted(regime.variants, key=lambda v: predicted_seconds(v, device, sizes, None))
    return [_Candidate(name, launch_index, regime, v, request_of(call, launch, v), sizes) for v in ranked[:_COMPILED]]


def _sizes_in(regime: Regime, launch: Launch, hints: Mapping[str, int]) -> Mapping[str, int]:
    """Values of the named sizes for which the regime is chosen; the hints, where they are."""
    return hints


def _best(candidates: list[_Candidate], binaries: Mapping[str, Binary], device: Device) -> Chosen:
    fitting = [c for c in candidates if refuse_resources(binaries[_key(c.request)], device) is None]
    if not fitting:
        first = candidates[0]
        why = refuse_resources(binaries[_key(first.request)], device)
        raise TemplateError(f"{first.kernel} does not fit {device.profile.name}: {why}")
    timed = [(predicted_seconds(c.variant, device, c.sizes, binaries[_key(c.request)]), c) for c in fitting]
    seconds, best = min(timed, key=lambda pair: pair[0])
    return Chosen(best.regime.most, best.variant, binaries[_key(best.request)], seconds)
