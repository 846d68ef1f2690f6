"""Stands for measurements of the GPU benchmark; imports little, since a process of its own starts with it."""

import os
import time
from collections.abc import Iterator

from benchmarks.gpu.results import Asked, GpuResult


def fake(asked: Asked) -> Iterator[GpuResult]:
    """Stands for the measurement; the name of the case says what happens."""
    if asked.case == "dies":
        os._exit(7)
    if asked.case == "hangs":
        time.sleep(60)
    if asked.case == "raises":
        raise RuntimeError("CUDA error:\n an illegal memory access")
    times = {"planish": 0.5, "torch": 1.0}
    for size in asked.sizes:
        yield GpuResult(asked.case, "g", size, times, times, limit_ms=0.25, error=1e-3, tolerance=2e-3)
        if asked.case == "hangs later":
            time.sleep(60)
        if asked.case == "dies later":
            os._exit(7)
