"""The static model of a launch: roofline of its blocks with the occupancy and the waves that the device gives them."""

import math
from collections.abc import Mapping

from planish.codegen.triton.compile import Binary
from planish.codegen.triton.device import Device
from planish.codegen.triton.kernel import Variant
from planish.compiler.types import evaluate_dim

_LAUNCH_SECONDS = 2e-6
_BLOCKS = 16  # that a multiprocessor holds at most, whatever they take


def refuse_resources(binary: Binary, device: Device) -> str | None:
    """Why a compiled kernel cannot run on the device, or None."""
    if binary.shared_bytes > device.shared_memory_bytes:
        return (
            f"a block takes {binary.shared_bytes} bytes of shared memory, the device has {device.shared_memory_bytes}"
        )
    threads = binary.num_warps * device.warp_size
    if binary.registers * threads > device.registers:
        return f"a block takes {binary.registers * threads} registers, a multiprocessor has {device.registers}"
    return None


def blocks_at_once(variant: Variant, device: Device, binary: Binary | None) -> int:
    """How many blocks one multiprocessor runs at a time."""
    if binary is None:
        return 2
    threads = variant.num_warps * device.warp_size
    by_registers = device.registers // max(1, binary.registers * threads)
    by_shared = device.shared_memory_bytes // max(1, binary.shared_bytes)
    return max(1, min(_BLOCKS, by_registers, by_shared))


def predicted_seconds(variant: Variant, device: Device, sizes: Mapping[str, int], binary: Binary | None) -> float:
    """The time of one launch: the slower of computing and of memory, over the waves of blocks that it takes."""
    work = variant.work(sizes)
    count = math.prod(evaluate_dim(d, sizes) for d in variant.grid)
    waves = math.ceil(count / (device.multiprocessors * blocks_at_once(variant, device, binary)))
    filled = count / (waves * device.multiprocessors * blocks_at_once(variant, device, binary))
    peak = 1e9 * device.profile.peak_gflops(work.dtype.value)
    bandwidth = 1e9 * device.profile.dram_gbs()
    computing = count * work.flops / peak / filled
    moving = count * (work.unique_read_bytes + work.write_bytes) / bandwidth / min(1.0, 2 * filled)
    spilling = 2.0 if binary is not None and binary.spilled_bytes else 1.0
    return _LAUNCH_SECONDS + spilling * max(computing, moving)
