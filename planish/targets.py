"""From what a user calls a target to its profile and instruction set."""

from pathlib import Path
from typing import TYPE_CHECKING

from planish.errors import ProfileError
from planish.hardware_profiles import Profile, load_profile

if TYPE_CHECKING:
    from planish.codegen.tvm.isa import Isa


def profile_of(target: "str | Path | Profile") -> Profile:
    """The profile that a target names: `"cpu"` for the machine at hand, a built-in name, a TOML's path, or itself.

    Raises ProfileError for an unknown name, with the nearest known one.
    """
    return target if isinstance(target, Profile) else load_profile(target)


def isa_of_profile(profile: Profile) -> "Isa":
    """The instruction set of a CPU profile; raises ProfileError for a target that planish cannot generate code for."""
    if profile.backend != "tvm":
        raise ProfileError(
            f"'{profile.name}' has the {profile.backend} backend, which cannot be compiled for yet; use a CPU profile "
            "such as 'cpu', 'zen5', 'sapphire-rapids' or 'neoverse-v2'"
        )
    from planish.codegen.tvm.isa import isa_of

    return isa_of(profile.cpu.triple, profile.cpu.cpu, profile.cpu.features, profile.cpu.vector_bits)
