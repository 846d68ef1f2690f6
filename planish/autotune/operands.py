"""What a launch is given when it is timed: memory of the right sizes with plausible contents."""

import math
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from typing import Final

import torch

from planish.autotune.trial import Block, Given, Loaded, Place, Stage, Trial
from planish.codegen.attributes import integer_of
from planish.codegen.call import Call
from planish.codegen.function_plan import as_array
from planish.codegen.triton.choose import Candidate, Contest
from planish.codegen.triton.compile import Binary
from planish.codegen.triton.device import Device
from planish.codegen.triton.kernel import Argument, Input, Kernel, Launch, Number, Output, Packing, Real, Scratch
from planish.codegen.triton.request import passed
from planish.codegen.view import View
from planish.compiler import ops
from planish.compiler.ir import Value
from planish.compiler.ops.structure import TORCH_DTYPE
from planish.compiler.types import DType, evaluate_dim, evaluate_shape
from planish.runtime.device.launcher import Whole
from planish.runtime.launches import KernelSpec

_PATTERN: Final = 65521  # elements that are drawn: a prime, so that no two rows of a matrix are alike
_PACKED_ROWS: Final = 256  # of a weight, that are packed and repeated
_LARGEST_INDEX: Final = 1 << 15
_DEFAULT_L2_BYTES: Final = 64 << 20
_ROTATED: Final = 2  # times the L2
_SCRATCH_END: Final = 16  # bytes behind the scratch memory
_SPREAD: Final = 0.25  # of random numbers: sums over long rows stay within f16


def trial_of(contest: Contest, candidate: int, reference: int, kernel: Sequence[Contest], device: Device) -> Trial:
    """The trial of one variant of a contest, by its place, against another one.

    `kernel` are the contests of the same kernel, from which its other launches are taken.
    """
    call, chosen = contest.call, contest.candidates[candidate]
    launches, at, sizes = contest.kernel.launches, chosen.launch, chosen.sizes
    others = {i: _stage(contest, i, kernel, sizes) for i in range(len(launches)) if i != at}
    before, after = (tuple(s for i, s in others.items() if s and (i < at) is early) for early in (True, False))
    return Trial(
        backend=device.backend,
        blocks=tuple(_blocks(call, contest.kernel, sizes)),
        arguments=_arguments(launches[at], call, sizes),
        reference=_loaded(contest.candidates[reference], contest.binaries[reference], sizes),
        candidate=_loaded(chosen, contest.binaries[candidate], sizes),
        before=before,
        after=after,
        results=_results(call) if all(others.values()) else (),
        rotated_bytes=_ROTATED * _l2_bytes(device),
    )


def _results(call: Call) -> tuple[Place, ...]:
    return tuple(Place(i, 0, view.dtype.value) for i, view in enumerate(call.results.values(), len(call.inputs)))


def _stage(contest: Contest, launch: int, kernel: Sequence[Contest], sizes: Mapping[str, int]) -> Stage | None:
    """Another launch of the kernel at these sizes, as the model would run it; None where nothing of it was compiled."""
    given = contest.kernel.launches[launch]
    size = evaluate_dim(given.size, sizes)
    most = next(regime.most for regime in given.regimes if regime.most is None or size <= regime.most)
    for other in kernel:
        if other.candidates and (other.candidates[0].launch, other.candidates[0].regime.most) == (launch, most):
            loaded = _loaded(other.candidates[0], other.binaries[0], sizes)
            return Stage(loaded, _arguments(given, contest.call, sizes))
    return None


def _blocks(call: Call, kernel: Kernel, sizes: Mapping[str, int]) -> Iterator[Block]:
    """A block for each input, for each result, and for the scratch memory."""
    for value, view in call.inputs.items():
        packing = kernel.packings.get(value)
        yield _plain(call, value, view, sizes) if packing is None else _packed(view, packing)
    for view in call.results.values():
        yield Block(evaluate_dim(view.extent, sizes) * view.dtype.itemsize)
    yield Block(evaluate_dim(kernel.scratch_bytes, sizes) + _SCRATCH_END)


def _plain(call: Call, value: Value, view: View, sizes: Mapping[str, int]) -> Block:
    count = evaluate_dim(view.extent, sizes)
    size = count * view.dtype.itemsize
    if view.dtype in (DType.i64, DType.i32):
        return Block(size, _integers(view.dtype, _position(call, value, sizes), _most(call, sizes)))
    return Block(size, _random(view.dtype, min(count, _PATTERN)))


@cache
def _packed(view: View, packing: Packing) -> Block:
    """A weight as the kernel reads it: some rows of one matrix, as often as there are such rows."""
    shape = evaluate_shape(view.shape, {})
    sample = (*(1 for _ in shape[:-2]), *(min(rows, _PACKED_ROWS) for rows in shape[-2:-1]), *shape[-1:])
    packed = packing.pack(as_array(_drawn(view.dtype, sample))).tobytes()
    return Block(len(packed) * math.prod(-(-a // b) for a, b in zip(shape, sample, strict=True)), packed)


def _position(call: Call, value: Value, sizes: Mapping[str, int]) -> int | None:
    """For what says how full a cache is, almost all of it; None for other integers."""
    operands, anchor = call.anchor.operands, call.anchor.op
    if anchor not in (ops.attention, ops.cache_update) or len(value.shape) > 1:
        return None
    queries, cache = (operands[0], operands[1]) if anchor is ops.attention else (operands[1], operands[0])
    tokens, slots = (evaluate_dim(each.shape[2], sizes) for each in (queries, cache))
    return max(0, slots - tokens)


def _most(call: Call, sizes: Mapping[str, int]) -> int:
    """How many different indices there are: of experts their number, of blocks of keys those that there are."""
    anchor = call.anchor
    if anchor.op is ops.grouped_linear:
        return evaluate_dim(anchor.operands[1].shape[0], sizes)
    if anchor.op is ops.block_attention:
        return -(-evaluate_dim(anchor.operands[1].shape[2], sizes) // integer_of(anchor, "key_block"))
    return _LARGEST_INDEX


def _integers(dtype: DType, position: int | None, most: int) -> bytes:
    drawn = torch.randint(most, (_PATTERN,), generator=_generator()) if position is None else torch.tensor([position])
    return drawn.to(TORCH_DTYPE[dtype]).numpy().tobytes()


@cache
def _random(dtype: DType, count: int) -> bytes:
    return as_array(_drawn(dtype, (count,))).tobytes()


def _drawn(dtype: DType, shape: tuple[int, ...]) -> torch.Tensor:
    if dtype is DType.bool:
        return torch.ones(shape, dtype=torch.bool)
    if dtype.is_float:
        return (_SPREAD * torch.randn(shape, generator=_generator())).to(TORCH_DTYPE[dtype])
    low, high = (0, 256) if dtype is DType.u8 else (-128, 128)
    return torch.randint(low, high, shape, generator=_generator()).to(TORCH_DTYPE[dtype])


def _generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


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
