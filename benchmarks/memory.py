"""The memory of this process, as Linux tells it."""

from pathlib import Path


def memory_bytes(key: str) -> int:
    """Resident memory of this process: `VmRSS` now, `VmHWM` at its highest (proc(5); ru_maxrss outlives an exec)."""
    return _kibibytes("/proc/self/status", key) << 10


def available_bytes() -> int:
    """What the machine can give without swapping."""
    return _kibibytes("/proc/meminfo", "MemAvailable") << 10


def _kibibytes(file: str, key: str) -> int:
    lines = Path(file).read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{key}:"))
