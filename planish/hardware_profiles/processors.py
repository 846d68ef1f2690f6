"""Which LLVM processor a host is, from its family, model and features, and how wide its vectors are.

Families and models: LLVM, llvm/lib/TargetParser/Host.cpp (x86) and the Arm MIDR part numbers there.
"""

from planish.hardware_profiles.host import Host

_LEVELS = (
    ("x86-64-v2", frozenset({"cx16", "sahf", "popcnt", "sse3", "sse4.1", "sse4.2", "ssse3"})),
    ("x86-64-v3", frozenset({"avx", "avx2", "bmi", "bmi2", "f16c", "fma", "lzcnt", "movbe"})),
    ("x86-64-v4", frozenset({"avx512f", "avx512bw", "avx512cd", "avx512dq", "avx512vl"})),
)
_V3 = _LEVELS[0][1] | _LEVELS[1][1]
_V4 = _V3 | _LEVELS[2][1]
_ICELAKE = _V4 | {
    "avx512bitalg",
    "avx512ifma",
    "avx512vbmi",
    "avx512vbmi2",
    "avx512vnni",
    "avx512vpopcntdq",
    "gfni",
    "vaes",
    "vpclmulqdq",
}
_ZEN4 = _ICELAKE | {"avx512bf16"}
_SAPPHIRE_RAPIDS = _ZEN4 | {"amx-bf16", "amx-int8", "amx-tile", "avx512fp16", "avxvnni"}

# What LLVM may emit for a processor and a hypervisor may hide: without it the name is not used.
_NEEDS = {
    "znver1": _V3,
    "znver2": _V3,
    "znver3": _V3,
    "znver4": _ZEN4,
    "znver5": _ZEN4 | {"avx512vp2intersect", "avxvnni"},
    "haswell": _V3,
    "broadwell": _V3,
    "skylake": _V3,
    "alderlake": _V3 | {"avxvnni"},
    "skylake-avx512": _V4,
    "cascadelake": _V4 | {"avx512vnni"},
    "cooperlake": _V4 | {"avx512vnni", "avx512bf16"},
    "icelake-client": _ICELAKE,
    "icelake-server": _ICELAKE,
    "tigerlake": _ICELAKE | {"avx512vp2intersect"},
    "sapphirerapids": _SAPPHIRE_RAPIDS,
    "emeraldrapids": _SAPPHIRE_RAPIDS,
    "graniterapids": _SAPPHIRE_RAPIDS | {"amx-fp16"},
    "neoverse-n1": frozenset({"neon", "dotprod", "fullfp16", "lse"}),
    "neoverse-v1": frozenset({"neon", "dotprod", "fullfp16", "lse", "sve", "bf16", "i8mm"}),
    "neoverse-n2": frozenset({"neon", "dotprod", "fullfp16", "lse", "sve2", "bf16", "i8mm"}),
    "neoverse-v2": frozenset({"neon", "dotprod", "fullfp16", "lse", "sve2", "bf16", "i8mm"}),
    "neoverse-n3": frozenset({"neon", "dotprod", "fullfp16", "lse", "sve2", "bf16", "i8mm"}),
    "neoverse-v3": frozenset({"neon", "dotprod", "fullfp16", "lse", "sve2", "bf16", "i8mm"}),
    "cortex-a72": frozenset({"neon"}),
    "cortex-a76": frozenset({"neon", "dotprod", "fullfp16", "lse"}),
}
_INTEL = {
    0x3C: "haswell",
    0x3F: "haswell",
    0x45: "haswell",
    0x46: "haswell",
    0x3D: "broadwell",
    0x47: "broadwell",
    0x4F: "broadwell",
    0x56: "broadwell",
    0x4E: "skylake",
    0x5E: "skylake",
    0x8E: "skylake",
    0x9E: "skylake",
    0xA5: "skylake",
    0xA6: "skylake",
    0x6A: "icelake-server",
    0x6C: "icelake-server",
    0x7D: "icelake-client",
    0x7E: "icelake-client",
    0x8C: "tigerlake",
    0x8D: "tigerlake",
    0x97: "alderlake",
    0x9A: "alderlake",
    0xB7: "alderlake",
    0xBA: "alderlake",
    0xBF: "alderlake",
    0x8F: "sapphirerapids",
    0xCF: "emeraldrapids",
    0xAD: "graniterapids",
    0xAE: "graniterapids",
}
_ARM = {
    0xD08: "cortex-a72",
    0xD0B: "cortex-a76",
    0xD0C: "neoverse-n1",
    0xD40: "neoverse-v1",
    0xD49: "neoverse-n2",
    0xD4F: "neoverse-v2",
    0xD84: "neoverse-v3",
    0xD8E: "neoverse-n3",
}

_X86_COMPUTE = (
    _SAPPHIRE_RAPIDS
    | {"amx-fp16", "amx-complex", "aes", "pclmul", "sse", "sse2", "sse4a", "adx", "avx512vp2intersect", "avxifma"}
    | {"avxvnniint8", "avxvnniint16", "avxneconvert"}
)
_ARM_COMPUTE = frozenset(
    {"neon", "fp-armv8", "dotprod", "fullfp16", "fp16fml", "bf16", "i8mm", "sve", "sve2", "sve-bitperm"}
    | {"lse", "rdm", "crc", "complxnum", "jsconv", "rcpc", "aes", "sha2", "sha3", "fptoint"}
)


def llvm_cpu(host: Host) -> str:
    """LLVM's name for the processor, or the best x86-64 level (on Arm `generic`) that its features fill."""
    name = _named(host)
    if name is not None and _NEEDS[name] <= host.features:
        return name
    if host.arch != "x86_64":
        return "generic"
    best = "x86-64"
    for level, needs in _LEVELS:
        if not needs <= host.features:
            break
        best = level
    return best


def compute_features(host: Host) -> tuple[str, ...]:
    """The features of the host that generated code may use, sorted, in LLVM's names."""
    known = _X86_COMPUTE if host.arch == "x86_64" else _ARM_COMPUTE
    return tuple(sorted(host.features & known))


def vector_bits(host: Host) -> int:
    """Bits of the widest vector register: 512, 256 or 128; scalable vectors of Arm count as 128."""
    if _LEVELS[2][1] <= host.features:
        return 512
    return 256 if "avx2" in host.features else 128


def _named(host: Host) -> str | None:
    match host.vendor:
        case "AuthenticAMD":
            return _amd(host.family, host.model)
        case "GenuineIntel" if host.family == 6:
            return _skylake_server(host) if host.model == 0x55 else _INTEL.get(host.model)
        case "0x41":
            return _ARM.get(host.model)
    return None


def _amd(family: int, model: int) -> str | None:
    if family == 0x17:
        return "znver2" if model >= 0x30 else "znver1"
    if family == 0x19:
        return "znver4" if 0x10 <= model <= 0x1F or model >= 0x60 else "znver3"
    return "znver5" if family == 0x1A else None


def _skylake_server(host: Host) -> str:
    if "avx512bf16" in host.features:
        return "cooperlake"
    return "cascadelake" if "avx512vnni" in host.features else "skylake-avx512"
