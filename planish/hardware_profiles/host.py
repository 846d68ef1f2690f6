"""The processor at hand as /proc/cpuinfo tells it, and whether code built for another one runs here."""

import platform
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

CPUINFO = Path("/proc/cpuinfo")

_ARCH_ALIASES = {"amd64": "x86_64", "x86-64": "x86_64", "arm64": "aarch64"}

_X86_NAMES = {
    "pni": "sse3",
    "sse4_1": "sse4.1",
    "sse4_2": "sse4.2",
    "abm": "lzcnt",
    "bmi1": "bmi",
    "pclmulqdq": "pclmul",
    "rdrand": "rdrnd",
    "sha_ni": "sha",
    "lahf_lm": "sahf",
    "avx_vnni": "avxvnni",
    "avx_ifma": "avxifma",
    "avx_vnni_int8": "avxvnniint8",
    "avx_vnni_int16": "avxvnniint16",
    "avx_ne_convert": "avxneconvert",
    "avx512_bf16": "avx512bf16",
    "avx512_fp16": "avx512fp16",
    "avx512_vnni": "avx512vnni",
    "avx512_vbmi2": "avx512vbmi2",
    "avx512_bitalg": "avx512bitalg",
    "avx512_vpopcntdq": "avx512vpopcntdq",
    "avx512_vp2intersect": "avx512vp2intersect",
    "amx_tile": "amx-tile",
    "amx_int8": "amx-int8",
    "amx_bf16": "amx-bf16",
    "amx_fp16": "amx-fp16",
    "amx_complex": "amx-complex",
}
_ARM_NAMES = {
    "fp": "fp-armv8",
    "asimd": "neon",
    "asimdhp": "fullfp16",
    "asimddp": "dotprod",
    "asimdfhm": "fp16fml",
    "asimdrdm": "rdm",
    "atomics": "lse",
    "crc32": "crc",
    "dcpodp": "ccdp",
    "dcpop": "ccpp",
    "fcma": "complxnum",
    "flagm2": "altnzcv",
    "frint": "fptoint",
    "ilrcpc": "rcpc-immo",
    "jscvt": "jsconv",
    "lrcpc": "rcpc",
    "paca": "pauth",
    "rng": "rand",
    "svebitperm": "sve-bitperm",
    "uscat": "lse2",
}


@dataclass(frozen=True, slots=True)
class Host:
    """A processor by its own account.

    `arch` is `x86_64`, `aarch64` or what the system says; `features` are LLVM's names for what the
    operating system lets programs use; `family` and `model` are AMD's and Intel's numbers, or the
    implementer and the part of Arm.
    """

    arch: str
    model_name: str
    vendor: str
    family: int
    model: int
    features: frozenset[str]

    @property
    def triple(self) -> str:
        return f"{self.arch}-linux-gnu"


def read_host(cpuinfo: Path | None = None, *, machine: str | None = None) -> Host:
    """The first processor listed in `cpuinfo` (default: /proc/cpuinfo; an absent file gives no features)."""
    arch = _arch(machine or platform.machine())
    facts = _first_block(cpuinfo or CPUINFO)
    if arch == "aarch64":
        return _arm(arch, facts)
    names = {_X86_NAMES.get(flag, flag) for flag in facts.get("flags", "").split()}
    return Host(
        arch=arch,
        model_name=facts.get("model name", "unknown"),
        vendor=facts.get("vendor_id", "unknown"),
        family=int(facts.get("cpu family", "0")),
        model=int(facts.get("model", "0")),
        features=frozenset(names),
    )


def host_supports(triple: str, features: Iterable[str], *, host: Host | None = None) -> str | None:
    """Why code for `triple` that uses the LLVM `features` cannot run here; None if it can.

    Reads the head of /proc/cpuinfo only. `host` replaces the machine at hand.
    """
    host = host or read_host()
    arch, *rest = triple.split("-")
    if _arch(arch) != host.arch:
        return f"it is built for {_arch(arch)} and this machine is {host.arch}"
    if rest and "linux" not in rest:
        return f"it is built for '{triple}' and this machine runs linux"
    missing = sorted(set(features) - host.features)
    if not missing:
        return None
    return f"it needs {', '.join(missing)}, which this machine's processor ({host.model_name}) does not offer"


def _arch(name: str) -> str:
    return _ARCH_ALIASES.get(name.lower(), name.lower())


def _first_block(cpuinfo: Path) -> dict[str, str]:
    facts: dict[str, str] = {}
    try:
        with cpuinfo.open(encoding="utf-8", errors="replace") as lines:
            for line in lines:
                key, colon, value = line.partition(":")
                if not colon:
                    break
                facts[key.strip()] = value.strip()
    except OSError:
        return {}
    return facts


def _arm(arch: str, facts: dict[str, str]) -> Host:
    implementer, part = facts.get("CPU implementer", "0"), facts.get("CPU part", "0")
    return Host(
        arch=arch,
        model_name=facts.get("model name", f"implementer {implementer}, part {part}"),
        vendor=implementer,
        family=int(implementer, 0),
        model=int(part, 0),
        features=frozenset(_ARM_NAMES.get(flag, flag) for flag in facts.get("Features", "").split()),
    )
