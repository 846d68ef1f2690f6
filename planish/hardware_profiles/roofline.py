"""The least time and the most energy that a profile allows for so much arithmetic and so many bytes.

time = max(sum over dtypes of flops / peak rate, bytes / bandwidth)   (Williams et al., "Roofline", CACM 52(4), 2009)
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from planish.hardware_profiles.profile import Profile


@dataclass(frozen=True, slots=True)
class Roofline:
    """A lower bound on time: `compute_ms` for the arithmetic, `memory_ms` for the bytes, both at once."""

    compute_ms: float
    memory_ms: float

    @property
    def ms(self) -> float:
        """The larger of the two, in milliseconds."""
        return max(self.compute_ms, self.memory_ms)

    @property
    def bound(self) -> Literal["compute", "memory"]:
        """Which of the two is the larger; a tie is compute's."""
        return "compute" if self.compute_ms >= self.memory_ms else "memory"


def limit(
    profile: Profile, flops: float, moved_bytes: float, dtype: str = "f32", *, cores: int | None = None
) -> Roofline:
    """The bound for `flops` operations on operands of `dtype` and `moved_bytes` to and from main memory.

    A multiply-add is two operations. `cores` limits a CPU to its first cores; by default the whole device works.
    Raises ProfileError where the profile has no rate for `dtype`.
    """
    return _limit(profile, {dtype: flops}, moved_bytes, cores)


def time_ms(
    profile: Profile, flops_by_dtype: Mapping[str, float], moved_bytes: float, *, cores: int | None = None
) -> float:
    """The bound in milliseconds for arithmetic of several dtypes, one after another, beside `moved_bytes`."""
    return _limit(profile, flops_by_dtype, moved_bytes, cores).ms


def energy_mj(profile: Profile, flops_by_dtype: Mapping[str, float], moved_bytes: float) -> float | None:
    """Millijoules at the vendor's power bound over the roofline's time; None where the profile has no power.

    A bound on what work at the roofline can draw, no measurement.
    """
    if profile.energy is None:
        return None
    return profile.energy.tdp_watts * time_ms(profile, flops_by_dtype, moved_bytes)


def _limit(profile: Profile, flops_by_dtype: Mapping[str, float], moved_bytes: float, cores: int | None) -> Roofline:
    # 1 GFLOP/s is 1e6 operations a millisecond, 1 GB/s 1e6 bytes a millisecond.
    compute = sum(flops / profile.peak_gflops(dtype, cores=cores) for dtype, flops in flops_by_dtype.items()) / 1e6
    return Roofline(compute_ms=compute, memory_ms=moved_bytes / profile.dram_gbs(cores=cores) / 1e6)
