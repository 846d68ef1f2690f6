"""Builds and runs the small C program that measures this machine's arithmetic and its memory."""

import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path

from planish.errors import BackendMissing, BuildError, InputError
from planish.hardware_profiles.host import Host, read_host
from planish.hardware_profiles.processors import compute_features
from planish.hardware_profiles.topology import core_cpus, dram_bytes, last_level_bytes

SOURCE = Path(__file__).with_name("measure.c")

_REFUSED = 3

# By dtype of the operands: the feature that a kernel needs and its name in measure.c, fastest first.
_KERNELS = {
    "x86_64": {
        "f32": (("avx512f", "f32_avx512"), ("fma", "f32_avx2"), ("sse2", "f32_sse2")),
        "f16": (("avx512fp16", "f16_avx512"),),
        "bf16": (("amx-bf16", "bf16_amx"), ("avx512bf16", "bf16_avx512")),
        "i8": (("amx-int8", "i8_amx"), ("avx512vnni", "i8_avx512"), ("avxvnni", "i8_avxvnni"), ("avx2", "i8_avx2")),
    },
    "aarch64": {
        "f32": (("neon", "f32_neon"),),
        "f16": (("fullfp16", "f16_neon"),),
        "bf16": (("bf16", "bf16_neon"),),
        "i8": (("i8mm", "i8_i8mm"), ("dotprod", "i8_dotprod")),
    },
}


def measured_dtypes(host: Host | None = None) -> tuple[str, ...]:
    """The dtypes whose peak rate can be measured here: those that the processor has instructions for."""
    host = host or read_host()
    return tuple(dtype for dtype in _KERNELS.get(host.arch, {}) if _kernels(dtype, host))


def measure_peak(dtype: str, seconds: float = 0.15, *, threads: int | None = None) -> float:
    """GFLOP/s (Gop/s for i8) of multiply-adds on registers, now, on `threads` threads at once (default: all cores).

    Takes about `seconds`. Raises InputError for a dtype without instructions here, BackendMissing without a C compiler.
    """
    kernels = _kernels(dtype, read_host())
    if not kernels:
        raise InputError(f"this machine has no instructions for {dtype}; measure one of {', '.join(measured_dtypes())}")
    for kernel in kernels:
        rate = _run("rate", kernel, _cpus(threads), str(seconds))
        if rate is not None:
            return rate
    raise BuildError(f"the system refused the matrix registers that {dtype} needs; ask for another dtype")


def measure_stream(seconds: float = 0.3, *, threads: int | None = None, read_bytes: int | None = None) -> float:
    """10^9 B/s of reading `read_bytes`, split over `threads` threads (default: all cores), now, over and over.

    By default `read_bytes` is four times the last cache, so that main memory is read. Takes about `seconds`
    and the time to fill the buffer. Raises BackendMissing without a C compiler.
    """
    size = read_bytes or min(max(4 * last_level_bytes(), 2**28), dram_bytes() // 4)
    return _number("read", str(size), _cpus(threads), str(seconds))


def measure_clock(seconds: float = 0.05) -> float:
    """The clock of one busy core, in GHz, from a chain of dependent one-cycle instructions."""
    return _number("clock", _cpus(1), str(seconds))


def cache_folder() -> Path:
    """Where measurements are kept: `planish` under $XDG_CACHE_HOME, or under ~/.cache."""
    root = os.environ.get("XDG_CACHE_HOME")
    return (Path(root) if root else Path.home() / ".cache") / "planish"


def _kernels(dtype: str, host: Host) -> tuple[str, ...]:
    choices = _KERNELS.get(host.arch, {}).get(dtype, ())
    return tuple(kernel for feature, kernel in choices if feature in host.features)


def _cpus(threads: int | None) -> str:
    cpus = core_cpus()
    if threads is not None and not 1 <= threads <= len(cpus):
        raise InputError(
            f"cannot measure on {threads} threads; this process has {len(cpus)} cores: give 1 to {len(cpus)}"
        )
    return ",".join(map(str, cpus[:threads]))


def _number(*words: str) -> float:
    number = _run(*words)
    if number is None:
        raise BuildError(f"measure.c refused to measure {' '.join(words)}; report this machine's /proc/cpuinfo")
    return number


def _run(*words: str) -> float | None:
    try:
        done = subprocess.run([_program(), *words], capture_output=True, text=True, check=False)
    except OSError:
        # A program that another version or a full disk left unusable is built once more.
        _program().unlink(missing_ok=True)
        _program.cache_clear()
        done = subprocess.run([_program(), *words], capture_output=True, text=True, check=False)
    if done.returncode == _REFUSED:
        return None
    if done.returncode:
        raise BuildError(
            f"measuring {' '.join(words)} ended with status {done.returncode}; try again on an idle machine"
        )
    return float(done.stdout)


@lru_cache(maxsize=1)
def _program() -> Path:
    host = read_host()
    defines = [f"-DHAS_{name.upper().replace('-', '_')}" for name in compute_features(host) if "." not in name]
    facts = (SOURCE.read_bytes(), repr(defines).encode(), host.model_name.encode())
    name = f"measure-{hashlib.sha256(b'|'.join(facts)).hexdigest()[:16]}"
    for folder in (cache_folder(), Path(tempfile.gettempdir()) / f"planish-{os.getuid()}"):
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            usable = os.access(folder, os.W_OK | os.X_OK) and folder.stat().st_uid == os.getuid()
        except OSError:
            continue
        if usable:
            return _built(folder / name, defines, host.arch)
    raise BuildError(
        f"neither {cache_folder()} nor a temporary folder can be written; set XDG_CACHE_HOME to one that can"
    )


def _built(program: Path, defines: list[str], arch: str) -> Path:
    if program.exists():
        return program
    with tempfile.TemporaryDirectory(dir=program.parent) as scratch:
        output = Path(scratch) / "measure"
        reasons = []
        for compiler in _compilers():
            native = "-mcpu=native" if arch == "aarch64" or "ziglang" in compiler else "-march=native"
            command = [*compiler, "-O2", "-std=gnu11", native, *defines, str(SOURCE), "-o", str(output), "-lpthread"]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            if done.returncode == 0:
                output.replace(program)
                return program
            reasons.append(f"{' '.join(compiler)}: {done.stderr.strip()[:500]}")
    raise BuildError(
        "measure.c does not compile; install a newer compiler (pip install ziglang)\n" + "\n".join(reasons)
    )


def _compilers() -> list[list[str]]:
    found = [[path] for name in ("cc", "gcc", "clang") if (path := shutil.which(name))]
    if find_spec("ziglang"):
        found.append([sys.executable, "-m", "ziglang", "cc"])
    if not found:
        raise BackendMissing(
            "measuring this machine needs a C compiler: install gcc or clang, or run pip install ziglang"
        )
    return found
