"""Hardware profiles: what a target can do, read from a TOML or measured on the machine at hand."""

from importlib import import_module
from typing import TYPE_CHECKING

from planish.hardware_profiles.host import Host, host_supports, read_host

if TYPE_CHECKING:
    from planish.hardware_profiles.detection import detect
    from planish.hardware_profiles.load import load_profile, profile_names
    from planish.hardware_profiles.measure import measure_peak, measure_stream, measured_dtypes
    from planish.hardware_profiles.profile import (
        Cpu,
        Dram,
        Energy,
        Fpga,
        Gpu,
        MemoryLevel,
        Profile,
        Rates,
        parse_profile,
    )
    from planish.hardware_profiles.roofline import Roofline, energy_mj, limit, time_ms

__all__ = [
    "Cpu",
    "Dram",
    "Energy",
    "Fpga",
    "Gpu",
    "Host",
    "MemoryLevel",
    "Profile",
    "Rates",
    "Roofline",
    "detect",
    "energy_mj",
    "host_supports",
    "limit",
    "load_profile",
    "measure_peak",
    "measure_stream",
    "measured_dtypes",
    "parse_profile",
    "profile_names",
    "read_host",
    "time_ms",
]

_HOMES = {
    "detection": ("detect",),
    "load": ("load_profile", "profile_names"),
    "measure": ("measure_peak", "measure_stream", "measured_dtypes"),
    "profile": ("Cpu", "Dram", "Energy", "Fpga", "Gpu", "MemoryLevel", "Profile", "Rates", "parse_profile"),
    "roofline": ("Roofline", "energy_mj", "limit", "time_ms"),
}


def __getattr__(name: str) -> object:
    """Imports pydantic's part of the package when it is first asked for: the runtime loads without it."""
    for home, names in _HOMES.items():
        if name in names:
            return getattr(import_module(f"{__name__}.{home}"), name)
    raise AttributeError(f"module '{__name__}' has no attribute '{name}'")
