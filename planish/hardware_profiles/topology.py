"""The cores, caches and memory that this process may use, as /sys and /proc tell them."""

import os
import re
from dataclasses import dataclass
from pathlib import Path

_CPUS = Path("/sys/devices/system/cpu")
_MEMINFO = Path("/proc/meminfo")
_UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30}
_UNKNOWN_DRAM = 2**32


@dataclass(frozen=True, slots=True)
class Cache:
    """One level of data cache: its name (`L1`), the bytes of one and how many of it serve this process."""

    name: str
    bytes: int
    count: int


def usable_cpus() -> tuple[int, ...]:
    """The numbers of the logical processors that this process may run on."""
    return tuple(sorted(os.sched_getaffinity(0)))


def core_cpus(root: Path = _CPUS) -> tuple[int, ...]:
    """One logical processor of each physical core that this process may run on."""
    first: dict[str, int] = {}
    for cpu in usable_cpus():
        first.setdefault(_text(root / f"cpu{cpu}/topology/thread_siblings_list") or str(cpu), cpu)
    return tuple(first.values())


def physical_cores() -> int:
    """How many physical cores this process may run on: threads of one core count once."""
    return len(core_cpus())


def caches(root: Path = _CPUS) -> tuple[Cache, ...]:
    """The data and unified caches of this process' processors, nearest first; empty where /sys does not tell."""
    shared: dict[tuple[str, int], set[str]] = {}
    for cpu in usable_cpus():
        for index in sorted((root / f"cpu{cpu}/cache").glob("index*")):
            if _text(index / "type") not in ("Data", "Unified"):
                continue
            key = (f"L{_text(index / 'level')}", _bytes(_text(index / "size")))
            shared.setdefault(key, set()).add(_text(index / "shared_cpu_list") or str(cpu))
    found = [Cache(name, size, len(groups)) for (name, size), groups in shared.items() if size]
    largest = {cache.name: cache for cache in sorted(found, key=lambda cache: cache.bytes)}
    return tuple(largest[name] for name in sorted(largest))


def last_level_bytes() -> int:
    """Bytes of all caches of the last level together; 0 where /sys does not tell."""
    levels = caches()
    return levels[-1].bytes * levels[-1].count if levels else 0


def dram_bytes(meminfo: Path = _MEMINFO) -> int:
    """Bytes of main memory; 4 GiB where /proc does not tell."""
    match = re.search(r"^MemTotal:\s+(\d+) kB", _text(meminfo), re.MULTILINE)
    return int(match[1]) * 1024 if match else _UNKNOWN_DRAM


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8").strip()
    except OSError:
        return ""


def _bytes(size: str) -> int:
    match = re.fullmatch(r"(\d+)([KMG]?)", size)
    return int(match[1]) * _UNITS[match[2]] if match else 0
