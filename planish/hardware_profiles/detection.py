"""The profile of the CPU at hand: what it is from the system, what it can do from measuring it once."""

import contextlib
import hashlib
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from planish.errors import ProfileError
from planish.hardware_profiles.host import Host, read_host
from planish.hardware_profiles.measure import (
    SOURCE,
    cache_folder,
    measure_clock,
    measure_peak,
    measure_stream,
    measured_dtypes,
)
from planish.hardware_profiles.processors import compute_features, llvm_cpu, vector_bits
from planish.hardware_profiles.profile import Profile, parse_profile
from planish.hardware_profiles.toml import Plain, emit_toml
from planish.hardware_profiles.topology import Cache, caches, dram_bytes, physical_cores

_RATE_SECONDS = 0.12
_CACHE_SECONDS = 0.1
_DRAM_SECONDS = 0.4


@dataclass(frozen=True, slots=True)
class _Machine:
    host: Host
    cores: int
    caches: tuple[Cache, ...]
    dram_bytes: int

    @property
    def fingerprint(self) -> str:
        facts = (
            self.host.arch,
            self.host.model_name,
            sorted(self.host.features),
            self.cores,
            self.caches,
            self.dram_bytes,
        )
        return hashlib.sha256(repr(facts).encode() + SOURCE.read_bytes()).hexdigest()[:32]


def detect(refresh: bool = False) -> Profile:
    """The profile of this machine, measured in about 3 s the first time and then read from the cache.

    The cache is `planish/<fingerprint>.toml` under $XDG_CACHE_HOME or ~/.cache; `refresh` measures anew, as does
    a damaged file. Where the folder cannot be written nothing is kept. Raises BackendMissing without a C compiler.
    """
    machine = _Machine(read_host(), physical_cores(), caches(), dram_bytes())
    path = cache_folder() / f"{machine.fingerprint}.toml"
    kept = None if refresh else _kept(path)
    return kept or _measured(machine, path)


def _kept(path: Path) -> Profile | None:
    try:
        return Profile.from_toml(path)
    except ProfileError:
        return None


def _measured(machine: _Machine, path: Path) -> Profile:
    text = emit_toml(_facts(machine))
    profile = parse_profile(text, origin=str(path))
    with contextlib.suppress(OSError):
        _store(path, text)
    return profile


def _store(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile("w", encoding="utf-8", dir=path.parent, suffix=".part", delete=False) as part:
        part.write(text)
    Path(part.name).replace(path)


def _facts(machine: _Machine) -> dict[str, Plain]:
    host, today = machine.host, datetime.now(UTC).date().isoformat()
    measured = f"measured on {today} with measure.c of planish: tenth percentile of short repeated runs"
    name = llvm_cpu(host)
    return {
        "name": f"cpu-{name}",
        "description": f"this machine: {host.model_name}, {machine.cores} cores",
        "backend": "tvm",
        "processor": {
            "source": f"/proc/cpuinfo and /sys/devices/system/cpu on {today}; clock_ghz {measured}",
            "triple": host.triple,
            "cpu": name,
            "features": list(compute_features(host)),
            "vector_bits": vector_bits(host),
            "cores": machine.cores,
            "clock_ghz": _round(measure_clock()),
        },
        "rates": {"source": f"{measured}, all cores at once", **_rates(machine.cores, host)},
        "core_rates": {"source": f"{measured}, one core", **_rates(1, host)},
        "dram": _dram(machine, measured),
        "memory": [_level(cache, machine.cores, measured) for cache in machine.caches],
    }


def _rates(cores: int, host: Host) -> Mapping[str, Plain]:
    return {dtype: _round(measure_peak(dtype, _RATE_SECONDS, threads=cores)) for dtype in measured_dtypes(host)}


def _dram(machine: _Machine, measured: str) -> dict[str, Plain]:
    one = _round(measure_stream(_DRAM_SECONDS, threads=1))
    every = _round(measure_stream(_DRAM_SECONDS, threads=machine.cores))
    return {
        "source": f"bytes: /proc/meminfo; bandwidths: {measured}, reading over {machine.cores} cores and over one",
        "bytes": machine.dram_bytes,
        # All cores draw at least what one does; a busy machine may measure less.
        "bandwidth_gbs": max(one, every),
        "core_bandwidth_gbs": one,
    }


def _level(cache: Cache, cores: int, measured: str) -> dict[str, Plain]:
    one = measure_stream(_CACHE_SECONDS, threads=1, read_bytes=cache.bytes // 2)
    level: dict[str, Plain] = {
        "name": cache.name,
        "source": f"bytes and count: /sys/devices/system/cpu; bandwidths: {measured}, reading half of it",
        "bytes": cache.bytes,
        "bandwidth_gbs": _round(one),
        "per": "core",
        "count": cache.count,
    }
    if cache.count < cores:
        every = measure_stream(_CACHE_SECONDS, threads=cores, read_bytes=cache.bytes * cache.count // 2)
        level |= {"bandwidth_gbs": _round(every / cache.count), "core_bandwidth_gbs": _round(one), "per": "shared"}
    return level


def _round(value: float) -> float:
    return float(f"{value:.4g}")
