"""Ahead-of-time compilation of kernels for a device, in processes of their own, without the device."""

import importlib
import multiprocessing
import os
import re
import subprocess
import tempfile
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, TypeAlias

from planish.codegen.triton.device import Device
from planish.codegen.triton.parameters import refuse_parameters
from planish.codegen.triton.sources import resolved
from planish.errors import BackendMissing, BuildError
from planish.runtime.orphans import end_with_parent

Type: TypeAlias = "str | tuple[str, ...]"


@dataclass(frozen=True, slots=True)
class Request:
    """A kernel to be compiled: `module` and `name` of its function, Triton's types by parameter (a tuple for a
    parameter that holds several), its constants, and the parameters, with the place inside a tuple, that are multiples
    of 16."""

    module: str
    name: str
    types: Mapping[str, Type]
    constants: Mapping[str, object]
    aligned: tuple[tuple[int, ...], ...]
    num_warps: int
    num_stages: int


@dataclass(frozen=True, slots=True)
class Binary:
    """A compiled kernel: `code` as the driver loads it, and what a block of it takes.

    `shared_bytes` is dynamic shared memory; `registers` and `spilled_bytes` are those of one thread.
    """

    symbol: str
    code: bytes
    assembly: str
    num_warps: int
    shared_bytes: int
    registers: int
    spilled_bytes: int
    seconds: float


Compiler: TypeAlias = Callable[[Sequence[Request], Device], tuple[Binary, ...]]


def compile_all(requests: Sequence[Request], device: Device) -> tuple[Binary, ...]:
    """The binaries of the requests, in order; raises BuildError with the kernel that Triton cannot compile."""
    check_backend(device)
    target = (device.backend, device.arch, device.warp_size)
    try:
        return tuple(_workers().map(_compile, requests, [target] * len(requests)))
    except BrokenProcessPool as error:
        _workers.cache_clear()
        raise BuildError(
            "a process that compiled kernels ended; is there memory enough? A script that compiles needs "
            "`if __name__ == '__main__':` around what it does, since these processes import it"
        ) from error


def check_backend(device: Device) -> None:
    """Raise BackendMissing where Triton, or its backend for the device, is not installed."""
    try:
        backends = importlib.import_module("triton.backends").backends
    except ImportError as error:
        raise BackendMissing("a GPU target needs Triton: pip install 'planish[gpu]'") from error
    names = {"cuda": "nvidia", "hip": "amd"}
    if names[device.backend] not in backends:
        raise BackendMissing(
            f"{device.profile.name} needs Triton's backend '{names[device.backend]}'; this Triton has "
            f"{', '.join(sorted(backends))}"
        )


@cache
def _workers() -> ProcessPoolExecutor:
    """Processes that compile; they start as they are needed, and stay for the next program."""
    # an interpreting Triton cannot compile, so that tests need other processes as well
    context = multiprocessing.get_context("spawn")
    return ProcessPoolExecutor(os.cpu_count() or 1, mp_context=context, initializer=_prepare_worker)


def _prepare_worker() -> None:
    end_with_parent()
    os.environ["TRITON_INTERPRET"] = "0"
    os.environ.setdefault("TRITON_DISABLE_LINE_INFO", "1")  # lines of kernels are of no use in an artifact
    os.environ.setdefault("TRITON_DEFAULT_FP_FUSION", "1")


def _compile(request: Request, target: tuple[str, Any, int]) -> Binary:
    import time

    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    start = time.perf_counter()
    function = getattr(importlib.import_module(request.module), request.name)
    constants = resolved(request.constants)
    signature = {p: request.types.get(p, "constexpr") for p in function.arg_names}
    attributes = {path: [["tt.divisibility", 16]] for path in request.aligned}
    source = ASTSource(fn=function, signature=signature, constexprs=constants, attrs=attributes)
    options = {"num_warps": request.num_warps, "num_stages": request.num_stages}
    try:
        kernel = triton.compile(source, target=GPUTarget(*target), options=options)
    except Exception as error:
        raise BuildError(f"Triton cannot compile {request.name} for {target[1]}: {error}") from error
    return _binary(kernel, request, target[0], time.perf_counter() - start)


def _binary(kernel: Any, request: Request, backend: str, seconds: float) -> Binary:
    if getattr(kernel.metadata, "global_scratch_size", 0):  # Triton 3.6 has none of it for AMD
        raise BuildError(f"{request.name} needs memory that Triton allocates at a launch, which artifacts do not have")
    code, text = ("cubin", "ptx") if backend == "cuda" else ("hsaco", "amdgcn")
    if (why := refuse_parameters(tuple(request.types.values()), kernel.asm[text], backend)) is not None:
        raise BuildError(f"{request.name}: {why}; use a version of Triton that docs/gpu.md names")
    registers, spilled = _cuda_usage(kernel.asm[code]) if backend == "cuda" else _hip_usage(kernel.asm[text])
    return Binary(
        symbol=kernel.metadata.name,
        code=kernel.asm[code],
        assembly=kernel.asm[text],
        num_warps=kernel.metadata.num_warps,  # with those that warp specialization adds
        shared_bytes=kernel.metadata.shared,
        registers=registers,
        spilled_bytes=spilled,
        seconds=seconds,
    )


def _cuda_usage(cubin: bytes) -> tuple[int, int]:
    """Registers and stack bytes of a thread, as cuobjdump reads them."""
    import triton

    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        found = subprocess.run([tool, "-res-usage", file.name], capture_output=True, text=True, check=True)
    match = re.search(r"REG:(\d+) STACK:(\d+)", found.stdout + found.stderr)
    if match is None:
        raise BuildError(f"cuobjdump does not say what a kernel uses: {found.stdout[-200:]}")
    return int(match[1]), int(match[2])


def _hip_usage(assembly: str) -> tuple[int, int]:
    """Vector registers and private bytes of a thread, from the metadata of the code object."""
    vector = re.search(r"\.vgpr_count:\s+(\d+)", assembly)
    private = re.search(r"\.private_segment_fixed_size:\s+(\d+)", assembly)
    if vector is None or private is None:
        raise BuildError("the code object does not say what a kernel uses")
    return int(vector[1]), int(private[1])
