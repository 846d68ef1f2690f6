"""From what a user calls a target to its profile and instruction set."""

from pathlib import Path
from typing import TYPE_CHECKING

from planish.errors import ProfileError
from planish.hardware_profiles import Profile, load_profile, profile_names
from planish.runtime.manifest import Target

if TYPE_CHECKING:
    from planish.codegen.tvm.isa import Isa


def profile_of(target: "str | Path | Profile") -> Profile:
    """The profile that a target names: `"cpu"` for the machine at hand, a built-in name, a TOML's path, or itself.

    "gpu" is the GPU at hand. Raises ProfileError for an unknown name, with the nearest known one.
    """
    if target == "gpu":
        return _gpu_at_hand()
    return target if isinstance(target, Profile) else load_profile(target)


def manifest_target(profile: Profile) -> Target:
    """What an artifact for the profile says of the hardware that it needs."""
    if profile.backend == "triton":
        from planish.codegen.triton.device import device_of

        device = device_of(profile)
        return Target(profile.name, "", (), profile.fingerprint, f"{device.backend}:{device.arch}")
    cpu = profile.cpu
    return Target(profile.name, cpu.triple, tuple(cpu.features), profile.fingerprint)


def refuse_measuring(profile: Profile) -> str | None:
    """Why kernels for a GPU profile cannot be measured on this machine, or None. Imports torch."""
    from planish.runtime.device.load import device_absent

    wanted = manifest_target(profile)
    if (why := device_absent(wanted.device)) is not None:
        return why
    found = _profile_at_hand()
    if found is not None and profile.name in profile_names() and found.name != profile.name:
        return f"the GPU here is of the profile {found.name}"
    return None


def _gpu_at_hand() -> Profile:
    import torch

    if not torch.cuda.is_available():
        raise ProfileError("target 'gpu' is the GPU of this machine, which has none that torch can use; name a profile")
    if (found := _profile_at_hand()) is not None:
        return found
    names = ", ".join(name for name in profile_names() if load_profile(name).backend == "triton")
    raise ProfileError(f"no profile is for the {torch.cuda.get_device_name()} here; name the nearest of {names}")


def _profile_at_hand() -> Profile | None:
    """The built-in profile all of whose words are in the name of torch's device."""
    import torch

    words = set(torch.cuda.get_device_name().lower().replace("-", " ").split())
    known = (p for p in map(load_profile, profile_names()) if p.backend == "triton")
    return next((profile for profile in known if set(profile.name.split("-")) <= words), None)


def isa_of_profile(profile: Profile) -> "Isa":
    """The instruction set of a CPU profile; raises ProfileError for a target that planish cannot generate code for."""
    if profile.backend != "tvm":
        raise ProfileError(
            f"'{profile.name}' has the {profile.backend} backend, which cannot be compiled for yet; use a CPU or GPU "
            "profile such as 'cpu', 'zen5', 'neoverse-v2' or 'h200'"
        )
    from planish.codegen.tvm.isa import isa_of

    return isa_of(profile.cpu.triple, profile.cpu.cpu, profile.cpu.features, profile.cpu.vector_bits)
