"""The schema of a hardware profile; every table that holds a number also holds the source of it."""

import hashlib
import json
import tomllib
from pathlib import Path
from typing import Annotated, Literal, Self, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from planish.errors import ProfileError
from planish.hardware_profiles.problems import describe
from planish.hardware_profiles.toml import emit_toml

_Count = Annotated[int, Field(gt=0)]
_Real = Annotated[float, Field(gt=0, allow_inf_nan=False)]
_Text = Annotated[str, Field(min_length=1)]


class _Table(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class _Sourced(_Table):
    """A table of numbers; `source` is the data sheet, manual or measurement that they are from."""

    source: Annotated[str, Field(min_length=8)]


class Cpu(_Sourced):
    """A general processor: what LLVM must know, its widest vector, its cores and their clock.

    `cores` counts physical cores; `clock_ghz` is the clock that the rates are given at.
    """

    triple: Annotated[str, Field(pattern=r"^(x86_64|aarch64)-linux-gnu$")]
    cpu: _Text
    features: Annotated[tuple[_Text, ...], Field(strict=False)]
    vector_bits: Literal[128, 256, 512]
    cores: _Count
    clock_ghz: _Real


class Gpu(_Sourced):
    """A graphics processor. `registers` counts the 32-bit registers of one multiprocessor; `warps_per_multiprocessor`
    and `blocks_per_multiprocessor` bound what it runs at once."""

    arch: Annotated[str, Field(pattern=r"^(sm_\d+[a-z]?|gfx[0-9a-f]+)$")]
    warp_size: Literal[32, 64]
    multiprocessors: _Count
    shared_memory_bytes_per_block: _Count
    shared_memory_bytes_per_multiprocessor: _Count
    warps_per_multiprocessor: _Count
    blocks_per_multiprocessor: _Count
    registers: _Count
    clock_ghz: _Real


class Fpga(_Sourced):
    """A programmable chip. `clock_ghz` is the clock of the design: measured or assumed, as the source says."""

    part: _Text
    luts: _Count
    dsps: _Count
    block_rams: _Count
    block_ram_bits: _Count
    ultra_rams: Annotated[int, Field(ge=0)] = 0
    ultra_ram_bits: Annotated[int, Field(ge=0)] = 0
    clock_ghz: _Real


_Kind = TypeVar("_Kind", Cpu, Gpu, Fpga)


class Rates(_Sourced):
    """Peak rates by dtype of the operands: GFLOP/s, Gop/s for integers; dense; a multiply-add is two.

    `bf16`, `f16` and `f8` accumulate in f32, `i8` and `i4` in i32.
    """

    f64: _Real | None = None
    f32: _Real | None = None
    tf32: _Real | None = None
    f16: _Real | None = None
    bf16: _Real | None = None
    f8: _Real | None = None
    i8: _Real | None = None
    i4: _Real | None = None

    @model_validator(mode="after")
    def _holds_a_rate(self) -> Self:
        if not self.given():
            raise ValueError("no rate; give at least one of f64, f32, tf32, f16, bf16, f8, i8, i4")
        return self

    def given(self) -> dict[str, float]:
        """The rates that the table holds, by dtype."""
        return {name: rate for name, rate in self if isinstance(rate, float)}


class MemoryLevel(_Sourced):
    """One cache or buffer, `count` of which the device has, each of `bytes` and `bandwidth_gbs` (10^9 B/s, read).

    `per` says who reaches one: a single core (or multiprocessor), or several; `core_bandwidth_gbs` is
    what one of several reaches alone.
    """

    name: _Text
    bytes: _Count
    bandwidth_gbs: _Real | None = None
    core_bandwidth_gbs: _Real | None = None
    per: Literal["core", "shared"]
    count: _Count


class Dram(_Sourced):
    """Main memory: bytes, bandwidth of the whole device and of one core alone (10^9 B/s, read)."""

    bytes: _Count
    bandwidth_gbs: _Real
    core_bandwidth_gbs: _Real | None = None


class Energy(_Sourced):
    """Power at full load, in watts, as the vendor bounds it."""

    tdp_watts: _Real


class Profile(_Table):
    """One target. Build it with `Profile.from_toml`, `load_profile` or `detect`.

    `rates` are the whole device's, `core_rates` one core's working alone.
    """

    name: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9.-]*$")]
    description: _Text
    backend: Literal["tvm", "triton", "fpga"]
    processor: Cpu | Gpu | Fpga
    rates: Rates
    core_rates: Rates | None = None
    memory: Annotated[tuple[MemoryLevel, ...], Field(strict=False)] = ()
    dram: Dram
    energy: Energy | None = None

    @model_validator(mode="after")
    def _memory_names_differ(self) -> Self:
        names = [level.name for level in self.memory]
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise ValueError(f"memory: '{twice[0]}' names two levels; give each its own name")
        return self

    @classmethod
    def from_toml(cls, path: str | Path) -> "Profile":
        """The profile in the file at `path`; ProfileError lists everything that is wrong with it."""
        path = Path(path)
        try:
            text = path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise ProfileError(f"profile '{path}' cannot be read: {error}; give the path of a TOML file") from error
        return parse_profile(text, origin=str(path))

    def to_toml(self) -> str:
        """The text that `from_toml` reads back as an equal profile."""
        return emit_toml(self.model_dump(mode="json", exclude_none=True))

    @property
    def fingerprint(self) -> str:
        """SHA-256 (hex) of the canonical JSON of the profile."""
        facts = self.model_dump(mode="json", exclude_none=True)
        text = json.dumps(facts, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
        return hashlib.sha256(text.encode()).hexdigest()

    @property
    def cpu(self) -> Cpu:
        """The processor of a CPU profile; ProfileError for another kind."""
        return self._processor(Cpu, "a CPU")

    @property
    def gpu(self) -> Gpu:
        """The processor of a GPU profile; ProfileError for another kind."""
        return self._processor(Gpu, "a GPU")

    @property
    def fpga(self) -> Fpga:
        """The chip of an FPGA profile; ProfileError for another kind."""
        return self._processor(Fpga, "an FPGA")

    def peak_gflops(self, dtype: str, *, cores: int | None = None) -> float:
        """GFLOP/s (Gop/s) of `dtype` on the whole device, or on the first `cores` cores of a CPU.

        A dtype that has no rate runs at the rate of the next wider one that has: i4 as i8, bf16 as f32.
        """
        rate = _rate(self.rates, dtype, self.name)
        if cores is None:
            return rate
        one = _rate(self.core_rates, dtype, self.name) if self.core_rates else rate / self.cpu.cores
        return min(rate, one * cores)

    def dram_gbs(self, *, cores: int | None = None) -> float:
        """Main memory bandwidth in 10^9 B/s of the whole device, or as far as `cores` cores can draw it."""
        one = self.dram.core_bandwidth_gbs
        if cores is None or one is None:
            return self.dram.bandwidth_gbs
        return min(self.dram.bandwidth_gbs, one * cores)

    def level(self, name: str) -> MemoryLevel | None:
        """The memory level called `name`, if the profile has one."""
        return next((level for level in self.memory if level.name == name), None)

    def _processor(self, kind: type[_Kind], words: str) -> _Kind:
        if isinstance(self.processor, kind):
            return self.processor
        raise ProfileError(f"profile '{self.name}' has backend '{self.backend}', which is not for {words}")


class CpuProfile(Profile):
    """A target of backend `tvm`."""

    backend: Literal["tvm"]
    processor: Cpu


class GpuProfile(Profile):
    """A target of backend `triton`."""

    backend: Literal["triton"]
    processor: Gpu


class FpgaProfile(Profile):
    """A target of backend `fpga`."""

    backend: Literal["fpga"]
    processor: Fpga


_KINDS: dict[object, type[Profile]] = {"tvm": CpuProfile, "triton": GpuProfile, "fpga": FpgaProfile}
_WIDER = {"i4": "i8", "i8": "f32", "f8": "f16", "bf16": "f32", "f16": "f32", "tf32": "f32", "f32": "f64"}


def parse_profile(text: str, *, origin: str) -> Profile:
    """The profile in TOML `text`; `origin` is what errors call it. ProfileError lists every problem."""
    try:
        facts = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ProfileError(f"profile '{origin}' is not TOML: {error}") from error
    backend = facts.get("backend")
    kind = _KINDS.get(backend) if isinstance(backend, str) else None
    try:
        profile = (kind or Profile).model_validate(facts)
    except ValidationError as error:
        problems = describe(error, kind or Profile)
        count = "1 problem" if len(problems) == 1 else f"{len(problems)} problems"
        raise ProfileError("\n  ".join([f"profile '{origin}' has {count}:", *problems])) from error
    return profile


def _rate(rates: Rates, dtype: str, name: str) -> float:
    given = rates.given()
    wanted: str | None = dtype
    while wanted is not None and wanted not in given:
        wanted = _WIDER.get(wanted)
    if wanted is None:
        raise ProfileError(f"profile '{name}' has no rate for {dtype}; it has {', '.join(given)}")
    return given[wanted]
