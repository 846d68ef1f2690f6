"""Kernels beside plain C loops that move the same bytes: in one process, on the same memory, threads and clock."""

import ctypes
import subprocess
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

import numpy as np

from benchmarks.peers import PeerError
from planish.errors import BuildError
from planish.runtime.blocks import Block
from planish.runtime.bound import BoundCall

if TYPE_CHECKING:
    from planish.api import CompiledModel

_SOURCE = Path(__file__).with_name("moves.c")
_ROUNDS = 12
_BURST_SECONDS = 2e-3
_REST_SECONDS = 4e-3  # the threads of one pool spin for a millisecond after a run, in the way of the other's
_WARM = 3
_LINE_BYTES = 64


@dataclass(frozen=True, slots=True)
class Moves:
    """Median seconds of the kernels of a call, and of the faster of two loops that read and write as much.

    The loops store as usual and past the caches. All are called in bursts, from C, in turns.
    """

    kernels: float
    loop: float


def in_huge_pages(array: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """A copy in memory like that which calls use for their results and what lies between."""
    copy: np.ndarray[Any, Any] = np.frombuffer(Block(array.nbytes).memory, array.dtype).reshape(array.shape)
    copy[...] = array
    return copy


def time_moves(model: "CompiledModel", inputs: Sequence[np.ndarray[Any, Any]], threads: int) -> Moves:
    """Time the kernels of a call on one or two f32 arrays, whose only result has their size.

    Raises PeerError where the model is anything else, BuildError or BackendMissing where the loops do not compile.
    """
    main = model.executable.main
    bound = main.bind(inputs)
    if not isinstance(bound, BoundCall) or len(bound.calls) != 1 or len(inputs) > 2:
        raise PeerError("only a model of kernels alone that reads one or two arrays can be compared with a loop")
    loops = library()
    with bound.arenas.borrow(bound.arena_bytes) as arena:
        calls = {
            "kernels": _kernels(loops, bound, arena, len(main.plan.calls)),
            "loop": _loop(loops, inputs, bound.results[0], threads, past=False),
        }
        if bound.results[0].ctypes.data % _LINE_BYTES == 0:  # such stores are of whole lines
            calls["past"] = _loop(loops, inputs, bound.results[0], threads, past=True)
        seconds = _in_turns(calls)
    return Moves(seconds["kernels"], min(seconds["loop"], seconds.get("past", seconds["loop"])))


_Burst = Callable[[int], np.ndarray[Any, Any]]


def _in_turns(bursts: dict[str, _Burst]) -> dict[str, float]:
    repeats = {name: max(3, min(500, int(_BURST_SECONDS / median(burst(5))))) for name, burst in bursts.items()}
    times: dict[str, list[float]] = {name: [] for name in bursts}
    for _ in range(_ROUNDS):
        for name, burst in bursts.items():
            time.sleep(_REST_SECONDS)
            times[name] += burst(repeats[name]).tolist()
    return {name: median(seconds) for name, seconds in times.items()}


def _kernels(loops: ctypes.CDLL, bound: BoundCall, arena: int, kernels: int) -> _Burst:
    (call,) = bound.calls
    entry = ctypes.cast(call.run, ctypes.c_void_p)  # type: ignore[arg-type]

    def burst(repeats: int) -> np.ndarray[Any, Any]:
        seconds = np.zeros(repeats)
        code = loops.moves_time_kernels(
            *(entry, call.inputs, call.outputs, call.sizes, ctypes.c_void_p(call.weights), ctypes.c_void_p(arena)),
            *(call.threads, kernels, _WARM, repeats, ctypes.c_void_p(seconds.ctypes.data)),
        )
        if code:
            raise PeerError(f"{call.entry} failed with code {code}")
        return seconds

    return burst


def _loop(
    loops: ctypes.CDLL, inputs: Sequence[np.ndarray[Any, Any]], out: np.ndarray[Any, Any], threads: int, *, past: bool
) -> _Burst:
    addresses = [ctypes.c_void_p(array.ctypes.data) for array in (out, *inputs)] + [ctypes.c_void_p(None)]

    def burst(repeats: int) -> np.ndarray[Any, Any]:
        seconds = np.zeros(repeats)
        loops.moves_time_loop(
            *(*addresses[:3], ctypes.c_int64(out.nbytes), past),
            *(threads, _WARM, repeats, ctypes.c_void_p(seconds.ctypes.data)),
        )
        return seconds

    return burst


@lru_cache(maxsize=1)
def library() -> ctypes.CDLL:
    """The compiled moves.c: `moves_time_kernels` and `moves_time_loop`."""
    import planish.codegen
    from planish.codegen.tvm.build import c_compiler
    from planish.codegen.tvm.isa import AVX2

    native = Path(planish.codegen.__file__).parent / "native"
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "moves.so")
        command = [*c_compiler(AVX2), "-O2", "-std=gnu11", "-march=native", "-shared", "-fPIC", f"-I{native}"]
        command += [str(_SOURCE), str(native / "pool.c"), "-o", str(path), "-lpthread"]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise BuildError(f"moves.c does not compile: {done.stderr.strip()[-2000:]}")
        return ctypes.CDLL(str(path))
