"""The trial of a variant: the memory of its launch, its arguments, and the launches before and after it."""

from collections.abc import Mapping, Sequence
from typing import Final

from planish.autotune.contents import content, seen
from planish.autotune.oracle import meaning_of
from planish.autotune.trial import Block, Given, Loaded, Place, Seen, Stage, Trial
from planish.codegen.call import Call
from planish.codegen.triton.choose import Candidate, Contest
from planish.codegen.triton.compile import Binary
from planish.codegen.triton.device import Device
from planish.codegen.triton.kernel import Argument, Input, Launch, Number, Output, Real, Scratch
from planish.codegen.triton.request import passed
from planish.compiler.types import evaluate_dim
from planish.runtime.device.launcher import Whole
from planish.runtime.launches import KernelSpec

_DEFAULT_L2_BYTES: Final = 64 << 20
_ROTATED: Final = 2  # times the L2
_SCRATCH_END: Final = 16  # bytes behind the scratch memory


def trial_of(
    contest: Contest, candidate: int, reference: int, kernel: Sequence[Contest], device: Device, other: int = 0
) -> Trial:
    """The trial of one variant of a contest, by its place, beside another one.

    `kernel` are the contests of the same kernel, from which its other launches are taken: their variant number `other`
    where they have so many, else the last.
    """
    call, chosen = contest.call, contest.candidates[candidate]
    launches, at, sizes = contest.kernel.launches, chosen.launch, chosen.sizes
    stages = {i: _stage(contest, i, kernel, sizes, other) for i in range(len(launches)) if i != at}
    before, after = (tuple(s for i, s in stages.items() if s and (i < at) is early) for early in (True, False))
    read = [content(call, i, contest.kernel, sizes) for i in range(len(call.inputs))]
    written = [evaluate_dim(view.extent, sizes) * view.dtype.itemsize for view in call.results.values()]
    scratch = evaluate_dim(contest.kernel.scratch_bytes, sizes) + _SCRATCH_END
    return Trial(
        backend=device.backend,
        blocks=(*(block for block, _ in read), *map(Block, (*written, scratch))),
        arguments=_arguments(launches[at], call, sizes),
        reference=_loaded(contest.candidates[reference], contest.binaries[reference], sizes),
        candidate=_loaded(chosen, contest.binaries[candidate], sizes),
        before=before,
        after=after,
        results=_results(call, sizes) if all(stages.values()) else (),
        rotated_bytes=_ROTATED * _l2_bytes(device),
        meaning=meaning_of(call, [held for _, held in read], device, sizes),
    )


def _results(call: Call, sizes: Mapping[str, int]) -> tuple[Seen, ...]:
    return tuple(seen(i, view, sizes) for i, view in enumerate(call.results.values(), len(call.inputs)))


def _stage(
    contest: Contest, launch: int, kernel: Sequence[Contest], sizes: Mapping[str, int], number: int
) -> Stage | None:
    """Another launch of the kernel at these sizes, its first variant as the model would run it; None where nothing of
    it was compiled."""
    given = contest.kernel.launches[launch]
    size = evaluate_dim(given.size, sizes)
    most = next(regime.most for regime in given.regimes if regime.most is None or size <= regime.most)
    for other in kernel:
        if other.candidates and (other.candidates[0].launch, other.candidates[0].regime.most) == (launch, most):
            place = min(number, len(other.candidates) - 1)
            loaded = _loaded(other.candidates[place], other.binaries[place], sizes)
            return Stage(loaded, _arguments(given, contest.call, sizes))
    return None


def _arguments(launch: Launch, call: Call, sizes: Mapping[str, int]) -> tuple[Given, ...]:
    return tuple(_given(argument, call, sizes) for argument in passed(launch))


def _given(argument: Argument, call: Call, sizes: Mapping[str, int]) -> Given:
    inputs, results = list(call.inputs.values()), list(call.results.values())
    match argument:
        case Input(index):
            return Place(index, 0, inputs[index].dtype.value)
        case Output(index):
            return Place(len(inputs) + index, 0, results[index].dtype.value)
        case Scratch(offset, dtype):
            return Place(len(inputs) + len(results), evaluate_dim(offset, sizes), dtype.value)
        case Number(value, wide):
            return Whole(evaluate_dim(value, sizes), 8 if wide else 4)
        case Real(value):
            return value


def _loaded(candidate: Candidate, binary: Binary, sizes: Mapping[str, int]) -> Loaded:
    x, y, z = (evaluate_dim(d, sizes) for d in candidate.variant.grid)
    spec = KernelSpec("", binary.symbol, binary.num_warps, binary.shared_bytes, binary.registers, binary.spilled_bytes)
    return Loaded(spec, binary.code, (x, y, z))


def _l2_bytes(device: Device) -> int:
    level = device.profile.level("L2")
    return _DEFAULT_L2_BYTES if level is None else level.bytes * level.count
