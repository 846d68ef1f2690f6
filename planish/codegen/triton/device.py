"""What kernels must know of a GPU: its architecture, its memories and the instructions that it has."""

from dataclasses import dataclass

from planish.hardware_profiles import Profile


@dataclass(frozen=True, slots=True)
class Device:
    """A GPU as code generation sees it.

    `backend` is Triton's name of the compiler: "cuda" or "hip". `arch` is a compute capability as an integer (90) or an
    AMD architecture ("gfx942"). `registers` counts 32-bit registers of one multiprocessor, `shared_memory_bytes` what
    one block may have.
    """

    profile: Profile
    backend: str
    arch: int | str
    warp_size: int
    multiprocessors: int
    registers: int
    shared_memory_bytes: int

    @property
    def has_f8(self) -> bool:
        """Whether the matrix units take f8 operands."""
        return self.profile.rates.f8 is not None

    @property
    def has_wgmma(self) -> bool:
        """Whether the matrix units read operands from shared memory themselves."""
        return self.backend == "cuda" and isinstance(self.arch, int) and 90 <= self.arch < 100

    @property
    def has_bf16(self) -> bool:
        """Whether the matrix units take bf16 operands."""
        return self.profile.rates.bf16 is not None


def device_of(profile: Profile) -> Device:
    """The device of a GPU profile; raises ProfileError for a profile of another kind."""
    gpu = profile.gpu
    nvidia = gpu.arch.startswith("sm_")
    return Device(
        profile=profile,
        backend="cuda" if nvidia else "hip",
        arch=int(gpu.arch.removeprefix("sm_").rstrip("a")) if nvidia else gpu.arch,
        warp_size=gpu.warp_size,
        multiprocessors=gpu.multiprocessors,
        registers=gpu.registers,
        shared_memory_bytes=gpu.shared_memory_bytes_per_block,
    )
