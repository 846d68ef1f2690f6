"""The static model of a launch: what fits on a multiprocessor at once, and the time of what the blocks do.

Six things take time: matrix units, their operands from shared memory, instructions beside them, what a multiprocessor
draws from the L2, what all draw from it, and main memory. They overlap as far as blocks and pipeline stages allow (Hong
and Kim, "An analytical model for a GPU architecture", ISCA 2009; Williams et al., "Roofline", CACM 52(4), 2009). The
rates are those of the profile; the constants below are of no data sheet and say where they are from.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass

from planish.codegen.triton.compile import Binary
from planish.codegen.triton.device import Device
from planish.codegen.triton.kernel import Variant, Work
from planish.compiler.types import DType, evaluate_dim

_LAUNCH_SECONDS = 2e-6  # from the start of one kernel to that of the next on a stream
_LATENCY_SECONDS = 0.8e-6  # of one read of main memory under load
_DRAM_SHARE = 0.9  # of the data sheet's bandwidth that copies reach
_MATRIX_SHARE = 0.85  # of the data sheet's rate that large products reach before the power limit
_L2_BYTES_A_CYCLE = 48  # for each multiprocessor: that of the A100 (5120 for 108), where the profile has no bandwidth
_DRAWN_BYTES_A_CYCLE = 64  # from the L2 into one multiprocessor
_SHARED_BYTES_A_CYCLE = 128  # of shared memory: 32 banks of 4 bytes
_LANES = 64  # 32-bit integer instructions a cycle and multiprocessor
_FEEDING_WARPS = 4  # one for each part of a multiprocessor
_REGISTER_STEP = 8  # registers of a thread are given out in eights
_GUESSED_REGISTERS = 128  # of a thread, before the kernel is compiled
_BYTES_OF_A_THREAD = 64  # four loads of 16 bytes that it has under way
_SPILL_USES = 16  # how often what a thread spills goes out and comes back
_RESERVED_BYTES = 1024  # of shared memory, which CUDA keeps of each block

_RATED = frozenset({DType.f16, DType.bf16, DType.f32, DType.f64, DType.f8, DType.i8})


@dataclass(frozen=True, slots=True)
class Prediction:
    """Seconds of one launch; `bound` names what takes most of them, `blocks_at_once` is of one multiprocessor."""

    seconds: float
    bound: str
    blocks_at_once: int


def refuse_resources(binary: Binary, device: Device) -> str | None:
    """Why a compiled kernel cannot run on the device, or None."""
    gpu = device.profile.gpu
    if binary.shared_bytes > device.shared_memory_bytes:
        return (
            f"a block takes {binary.shared_bytes} bytes of shared memory, the device has {device.shared_memory_bytes}"
        )
    taken = _registers(binary) * binary.num_warps * device.warp_size
    if taken > device.registers:
        return f"a block takes {taken} registers, a multiprocessor has {device.registers}"
    if binary.num_warps > gpu.warps_per_multiprocessor:
        return f"a block has {binary.num_warps} warps, a multiprocessor runs {gpu.warps_per_multiprocessor}"
    return None


def blocks_at_once(variant: Variant, device: Device, binary: Binary | None) -> int:
    """How many blocks one multiprocessor runs at a time."""
    gpu = device.profile.gpu
    registers = _GUESSED_REGISTERS if binary is None else _registers(binary)
    reserved = _RESERVED_BYTES if device.backend == "cuda" else 0
    shared = reserved + (0 if binary is None else binary.shared_bytes)
    return max(
        1,
        min(
            gpu.blocks_per_multiprocessor,
            gpu.warps_per_multiprocessor // variant.num_warps,
            device.registers // (registers * variant.num_warps * device.warp_size),
            gpu.shared_memory_bytes_per_multiprocessor // max(1, shared),
        ),
    )


def predicted_seconds(variant: Variant, device: Device, sizes: Mapping[str, int], binary: Binary | None) -> float:
    """The time of one launch; see `predict`."""
    return predict(variant, device, sizes, binary).seconds


def predict(variant: Variant, device: Device, sizes: Mapping[str, int], binary: Binary | None) -> Prediction:
    """The time of one launch for these sizes: before compilation with a guess of its registers, after it with them."""
    work = variant.work(sizes)
    count = max(1, math.prod(evaluate_dim(d, sizes) for d in variant.grid))
    resident = blocks_at_once(variant, device, binary)
    parts = _parts(variant, work, count, resident, device, binary)
    bound = max(parts, key=lambda name: parts[name])
    most, every = parts[bound], sum(parts.values())
    # what runs beside it hides all but the share that one stage of one block waits for
    body = most + (every - most) / (1 + max(1, variant.num_stages - 1) * resident)
    waves = math.ceil(count / (device.multiprocessors * resident))
    starting = _LATENCY_SECONDS * (1 + (waves - 1) / resident)
    fixed = _LAUNCH_SECONDS + starting
    return Prediction(fixed + body, bound if body > fixed else "latency", resident)


def _parts(
    variant: Variant, work: Work, count: int, resident: int, device: Device, binary: Binary | None
) -> dict[str, float]:
    """Seconds that each unit would take alone; those of one multiprocessor are of the one with the most blocks."""
    blocks = _blocks_of_busiest(count, resident, device)
    cycles = 1e9 * device.profile.gpu.clock_ghz
    peak = 1e9 * device.profile.peak_gflops((work.dtype if work.dtype in _RATED else DType.f32).value)
    fed = min(1.0, min(blocks, resident) * variant.num_warps / _FEEDING_WARPS)
    loaded = work.read_bytes + work.write_bytes + _spilled(variant, device, binary)
    moved = count * (work.unique_read_bytes + work.write_bytes)
    return {
        "matrix units": blocks * work.flops * device.multiprocessors / (peak * _MATRIX_SHARE * fed),
        "shared memory": blocks * work.operand_bytes / (_SHARED_BYTES_A_CYCLE * cycles),
        "instructions": blocks * work.instructions / (_LANES * cycles),
        "loads": blocks * loaded / (_DRAWN_BYTES_A_CYCLE * cycles),
        "L2": count * loaded / _l2_bandwidth(device),
        "main memory": moved / _dram_bandwidth(variant, work, min(count, resident * device.multiprocessors), device),
    }


def _blocks_of_busiest(count: int, resident: int, device: Device) -> int:
    """Blocks that the multiprocessor with the most of them runs, in whole waves and a last one spread over all."""
    waves, last = divmod(count, device.multiprocessors * resident)
    return waves * resident + math.ceil(last / device.multiprocessors)


def _registers(binary: Binary) -> int:
    return -(-max(1, binary.registers) // _REGISTER_STEP) * _REGISTER_STEP


def _spilled(variant: Variant, device: Device, binary: Binary | None) -> float:
    spilled = 0 if binary is None else binary.spilled_bytes
    return 2.0 * _SPILL_USES * spilled * variant.num_warps * device.warp_size


def _l2_bandwidth(device: Device) -> float:
    level = device.profile.level("L2")
    if level is not None and level.bandwidth_gbs is not None:
        return 1e9 * level.bandwidth_gbs * level.count
    return 1e9 * device.profile.gpu.clock_ghz * _L2_BYTES_A_CYCLE * device.multiprocessors


def _dram_bandwidth(variant: Variant, work: Work, running: int, device: Device) -> float:
    """What so many blocks draw: as much as they have under way in the time of one read (Little's law)."""
    threads = variant.num_warps * device.warp_size
    ahead = _BYTES_OF_A_THREAD * threads * max(1, variant.num_stages - 1)
    most = _DRAM_SHARE * 1e9 * device.profile.dram_gbs()
    return min(most, max(1.0, running * min(work.read_bytes + work.write_bytes, ahead) / _LATENCY_SECONDS))
