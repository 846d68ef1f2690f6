"""The driver through ctypes, against a library that records what it is asked."""

import ctypes
import gc
import os
import shutil
import subprocess
import threading
import weakref
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from planish.errors import ArtifactError, BackendMissing
from planish.runtime.device.driver import CUDA, Driver, _loaded
from planish.runtime.device.launcher import DriverLauncher, Whole, packed
from planish.runtime.launches import KernelSpec

SOURCE = r"""
#include <string.h>
#include <stdint.h>
unsigned seen[8]; unsigned char passed[64]; int shared, cache, load_code, unloaded;
_Thread_local void *context; void *entered;
int cuCtxGetCurrent(void **found) { *found = context; return 0; }
int cuCtxSetCurrent(void *given) { context = entered = given; return 0; }
int cuInit(unsigned flags) { return 0; }
int cuDriverGetVersion(int *version) { *version = 12080; return 0; }
int cuModuleLoadData(void **module, const void *image) { *module = (void *)image; return load_code; }
int cuModuleUnload(void *module) { unloaded++; return 0; }
int cuModuleGetFunction(void **f, void *module, const char *name) { *f = (void *)7; return strcmp(name, "gemm") ? 500 : 0; }
int cuFuncSetAttribute(void *f, int attribute, int value) { if (attribute == 8) shared = value; return 0; }
int cuFuncSetCacheConfig(void *f, int config) { cache = config; return 0; }
int cuGetErrorName(int code, const char **text) { *text = code == 222 ? "CUDA_ERROR_UNSUPPORTED_PTX_VERSION" : "CUDA_ERROR"; return 0; }
int cuLaunchKernel(void *f, unsigned x, unsigned y, unsigned z, unsigned bx, unsigned by, unsigned bz, unsigned bytes,
                   void *stream, void **arguments, void **extra) {
  unsigned now[8] = {x, y, z, bx, by, bz, bytes, (unsigned)(uintptr_t)stream};
  memcpy(seen, now, sizeof now);
  memcpy(passed, arguments[0], 8); memcpy(passed + 8, arguments[1], 4); memcpy(passed + 12, arguments[2], 8);
  memcpy(passed + 20, arguments[3], 4); memcpy(passed + 24, arguments[4], 8); memcpy(passed + 32, arguments[5], 8);
  return (uintptr_t)f == 7 ? 0 : 1;
}
"""


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("driver")
    (folder / "driver.c").write_text(SOURCE)
    compiler = shutil.which("cc") or shutil.which("gcc")
    assert compiler, "the tests need a C compiler"
    subprocess.run([compiler, "-shared", "-fPIC", "-o", folder / "libdriver.so", folder / "driver.c"], check=True)
    return str(folder / "libdriver.so")


def test_a_launch_passes_sizes_addresses_and_numbers(library: str) -> None:
    driver, x = Driver(CUDA, [library]), torch.zeros(4)
    function = driver.function("k0", b"code", "gemm", threads=128, shared_bytes=1000)
    driver.launch(function, (3, 2, 1), 9, packed([x, Whole(-5, 4), Whole(2**40, 8), 1.5]))
    seen = (ctypes.c_uint * 8).in_dll(ctypes.CDLL(library), "seen")
    passed = bytes((ctypes.c_ubyte * 64).in_dll(ctypes.CDLL(library), "passed"))
    assert list(seen) == [3, 2, 1, 128, 1, 1, 1000, 9]
    assert int.from_bytes(passed[:8], "little") == x.data_ptr()
    assert int.from_bytes(passed[8:12], "little", signed=True) == -5
    assert int.from_bytes(passed[12:20], "little") == 2**40
    assert ctypes.c_float.from_buffer_copy(passed[20:24]).value == 1.5
    assert passed[24:40] == bytes(16)  # the scratch pointers that Triton appends


def test_an_integer_over_its_32_bits_is_refused() -> None:
    with pytest.raises(ArtifactError, match="counts up to 2147483648, over its 32 bits; call with smaller sizes"):
        packed([Whole(2**31, 4)])


@pytest.mark.parametrize(("wanted", "preferred"), [(49_152, 0), (100_000, 1)])
def test_shared_memory_is_asked_for_and_much_of_it_before_cache(library: str, wanted: int, preferred: int) -> None:
    shared, cache = (ctypes.c_int.in_dll(ctypes.CDLL(library), name) for name in ("shared", "cache"))
    shared.value = cache.value = 0
    Driver(CUDA, [library]).function("k0", b"code", "gemm", threads=128, shared_bytes=wanted)
    assert (shared.value, cache.value) == (wanted, preferred)


def test_the_runtime_that_torch_for_amd_has_loaded_is_taken(tmp_path: Path) -> None:
    maps = tmp_path / "maps"
    lines = ("7f00-7f01 r--p 00000000 08:01 17 /opt/x y/torch/lib/libamdhip64.so.6.4", "7f01-7f02 rw-p 0 00:00 0")
    maps.write_text("\n".join((*lines, *lines, "7f03-7f04 r--p 00000000 08:01 18 /usr/lib/libhsa.so")))
    assert _loaded("libamdhip64.so", maps) == ["/opt/x y/torch/lib/libamdhip64.so.6.4"]


def test_a_library_of_this_process_is_found_where_it_lies() -> None:
    (path,) = _loaded("libc.so")
    assert ctypes.CDLL(path).getpid() == os.getpid()


def test_an_empty_grid_launches_nothing(library: str) -> None:
    driver = Driver(CUDA, [library])
    function = driver.function("k0", b"code", "gemm", threads=32, shared_bytes=0)
    seen = (ctypes.c_uint * 8).in_dll(ctypes.CDLL(library), "seen")
    seen[0] = 77
    driver.launch(function, (0, 1, 1), 0, packed([torch.zeros(1)]))
    assert seen[0] == 77


def test_an_old_driver_is_named_with_what_to_do(library: str) -> None:
    code = ctypes.c_int.in_dll(ctypes.CDLL(library), "load_code")
    code.value = 222
    with pytest.raises(
        ArtifactError,
        match=r"kernel 'k0' cannot be loaded: CUDA_ERROR_UNSUPPORTED_PTX_VERSION \(222\): the kernel needs a newer driver",
    ):
        Driver(CUDA, [library]).function("k0", b"code", "gemm", threads=32, shared_bytes=0)
    code.value = 0


def test_code_of_a_later_cuda_than_the_drivers_says_which_driver_it_needs(library: str) -> None:
    code = ctypes.c_int.in_dll(ctypes.CDLL(library), "load_code")
    code.value = 200
    made = b"\x7fELF..Cuda compilation tools, release 13.4, V13.4.59.."
    words = r"assembled by CUDA 13.4 and the driver is of CUDA 12.8; install a driver of CUDA 13.0 or newer"
    with pytest.raises(ArtifactError, match=words):
        Driver(CUDA, [library]).function("k0", made, "gemm", threads=32, shared_bytes=0)
    with pytest.raises(ArtifactError, match="the kernel is damaged"):
        Driver(CUDA, [library]).function("k0", made.replace(b"13.", b"12."), "gemm", threads=32, shared_bytes=0)
    code.value = 0


def test_a_new_thread_enters_the_context_that_holds_the_kernels(library: str) -> None:
    driver, loaded = Driver(CUDA, [library]), ctypes.CDLL(library)
    loaded.cuCtxSetCurrent(ctypes.c_void_p(5))
    driver.enter()
    entered = ctypes.c_void_p.in_dll(loaded, "entered")
    entered.value = 0
    driver.enter()
    assert entered.value is None  # this thread was there already
    thread = threading.Thread(target=driver.enter)
    thread.start()
    thread.join()
    assert entered.value == 5


def test_a_machine_without_a_driver_is_refused() -> None:
    with pytest.raises(BackendMissing, match=r"this machine has no driver of an NVIDIA GPU \(libnothing.so cannot be"):
        Driver(CUDA, ["libnothing.so"])


def test_the_version_is_the_drivers(library: str) -> None:
    assert Driver(CUDA, [library]).version == 12080


class _Graph:
    def __init__(self, noted: list[object]) -> None:
        self.noted = noted

    def replay(self) -> None:
        self.noted.append("replay")

    def reset(self) -> None:
        self.noted.append("reset")


class _Cuda:
    """What the launcher asks of torch.cuda, noted in order."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.noted: list[object] = []
        self.stream = SimpleNamespace(cuda_stream=11, synchronize=lambda: self.noted.append("wait"))
        own = SimpleNamespace(cuda_stream=99)
        self.graphs: list[Any] = []
        self.capturing = False
        properties = SimpleNamespace(shared_memory_per_block_optin=232_448)
        for name, value in {
            "device": lambda device: nullcontext(),
            "current_stream": lambda device=None: self.stream,
            "Stream": lambda device: own,
            "CUDAGraph": self._made,
            "is_initialized": lambda: True,
            "is_current_stream_capturing": lambda: self.capturing,
            "synchronize": lambda device: self.noted.append("wait for all"),
            "graph": self._graph,
            "get_device_name": lambda device: "NVIDIA H200",
            "get_device_properties": lambda device: properties,
            "mem_get_info": lambda device: (1000, 5000),
            "memory_reserved": lambda device: 700,
            "memory_allocated": lambda device: 300,
        }.items():
            monkeypatch.setattr(torch.cuda, name, value)

    def _made(self) -> Any:
        found = _Graph(self.noted)
        self.graphs.append(weakref.ref(found))
        return found

    @contextmanager
    def _graph(self, graph: object, *, stream: Any, capture_error_mode: str) -> Iterator[None]:
        self.noted.append(capture_error_mode)
        outer, self.stream = self.stream, stream
        yield
        self.stream = outer


def _launcher(library: str, *symbols: str) -> DriverLauncher:
    kernels = {
        f"k{i}": KernelSpec(f"kernels/k{i}.cubin", s, 4, 1000, 32, 0) for i, s in enumerate(symbols or ("gemm",))
    }
    code = dict.fromkeys(kernels, b"code")
    return DriverLauncher(Driver(CUDA, [library]), torch.device("cuda", 0), kernels, code, 32)


def test_kernels_run_on_the_stream_of_the_caller_and_recordings_on_one_of_their_own(
    library: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    cuda = _Cuda(monkeypatch)
    launcher, seen = _launcher(library), (ctypes.c_uint * 8).in_dll(ctypes.CDLL(library), "seen")
    given = (torch.zeros(4), Whole(1, 4), Whole(2, 8), 1.0)
    with launcher.entered():
        launcher.launch("k0", (2, 1, 1), given)
        assert (seen[0], seen[3], seen[7]) == (2, 128, 11)
        repeat = launcher.recorded(lambda: launcher.launch("k0", (3, 1, 1), given))
        assert (seen[0], seen[7]) == (3, 99)
        repeat()
    assert cuda.noted == ["wait", "thread_local", "replay"]
    assert launcher.lane() == 11


def test_memory_that_torch_keeps_for_later_counts_as_free(library: str, monkeypatch: pytest.MonkeyPatch) -> None:
    _Cuda(monkeypatch)
    assert _launcher(library).free_bytes() == 1400


def test_two_threads_do_not_record_at_once(library: str, monkeypatch: pytest.MonkeyPatch) -> None:
    cuda = _Cuda(monkeypatch)
    launcher, begun, done = _launcher(library), threading.Event(), threading.Event()

    def slow() -> None:
        begun.set()
        assert done.wait(10)
        cuda.noted.append("recorded")

    first = threading.Thread(target=lambda: launcher.recorded(slow))
    first.start()
    assert begun.wait(10)
    second = threading.Thread(target=lambda: launcher.recorded(lambda: None))
    second.start()
    second.join(0.05)
    assert second.is_alive()
    done.set()
    first.join()
    second.join()
    assert cuda.noted == ["wait", "thread_local", "recorded", "thread_local"]


@pytest.fixture
def unloaded(library: str) -> Iterator[ctypes.c_int]:
    """How many modules were unloaded."""
    gc.collect()
    count = ctypes.c_int.in_dll(ctypes.CDLL(library), "unloaded")
    count.value = 0
    yield count
    gc.collect()


def test_kernels_are_unloaded_with_their_launcher_when_the_device_is_done(
    library: str, monkeypatch: pytest.MonkeyPatch, unloaded: ctypes.c_int
) -> None:
    cuda = _Cuda(monkeypatch)
    launcher = _launcher(library, "gemm", "gemm")
    assert (cuda.noted, unloaded.value) == (["wait"], 0)
    del launcher
    assert (cuda.noted, unloaded.value) == (["wait", "wait for all"], 2)


def test_a_recording_holds_its_kernels(library: str, monkeypatch: pytest.MonkeyPatch, unloaded: ctypes.c_int) -> None:
    _Cuda(monkeypatch)
    launcher = _launcher(library)
    repeat = launcher.recorded(lambda: None)
    del launcher
    gc.collect()
    repeat()
    assert unloaded.value == 0
    del repeat
    assert unloaded.value == 1


def test_a_recording_that_is_dropped_is_freed_before_its_launcher(
    library: str, monkeypatch: pytest.MonkeyPatch, unloaded: ctypes.c_int
) -> None:
    cuda = _Cuda(monkeypatch)
    launcher = _launcher(library)
    launcher.recorded(lambda: None)
    assert [graph() for graph in cuda.graphs] == [None]
    assert unloaded.value == 0


def test_recordings_that_end_together_with_their_launcher_end_before_its_kernels(
    library: str, monkeypatch: pytest.MonkeyPatch, unloaded: ctypes.c_int
) -> None:
    cuda = _Cuda(monkeypatch)
    cycle: list[Any] = []
    cycle += [cycle, _launcher(library)]
    cycle.append(cycle[1].recorded(lambda: None))
    del cycle
    gc.collect()
    assert unloaded.value == 1
    assert cuda.noted in (["wait", "thread_local", "wait for all", "reset"], ["wait", "thread_local", "wait for all"])
    assert cuda.graphs[0]() is None


def test_a_launcher_that_ends_in_the_middle_of_a_recording_is_unloaded_after_it(
    library: str, monkeypatch: pytest.MonkeyPatch, unloaded: ctypes.c_int
) -> None:
    _Cuda(monkeypatch)
    launcher, old, seen = _launcher(library), [_launcher(library)], []

    def body() -> None:
        old.clear()
        seen.append(unloaded.value)

    launcher.recorded(body)
    assert (seen, unloaded.value) == ([0], 1)


def test_nothing_is_unloaded_while_somebody_else_records_on_this_stream(
    library: str, monkeypatch: pytest.MonkeyPatch, unloaded: ctypes.c_int
) -> None:
    cuda = _Cuda(monkeypatch)
    launcher, cuda.capturing = _launcher(library), True
    del launcher
    assert unloaded.value == 0
    cuda.capturing = False
    _launcher(library)
    assert unloaded.value == 2


def test_a_forked_process_unloads_nothing(
    library: str, monkeypatch: pytest.MonkeyPatch, unloaded: ctypes.c_int
) -> None:
    _Cuda(monkeypatch)
    launcher, process = _launcher(library), os.getpid()
    monkeypatch.setattr(os, "getpid", lambda: process + 1)
    del launcher
    assert unloaded.value == 0


def test_a_device_that_was_lost_is_left_alone(
    library: str, monkeypatch: pytest.MonkeyPatch, unloaded: ctypes.c_int
) -> None:
    _Cuda(monkeypatch)
    launcher = _launcher(library)

    def lost(device: object) -> None:
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    monkeypatch.setattr(torch.cuda, "synchronize", lost)
    del launcher
    assert unloaded.value == 0


def test_kernels_before_one_that_cannot_be_loaded_are_unloaded(
    library: str, monkeypatch: pytest.MonkeyPatch, unloaded: ctypes.c_int
) -> None:
    _Cuda(monkeypatch)
    with pytest.raises(ArtifactError, match="kernel 'k1' has no 'other'"):
        _launcher(library, "gemm", "other")
    gc.collect()
    assert unloaded.value == 1


def test_nothing_is_unloaded_when_the_interpreter_ends(library: str, monkeypatch: pytest.MonkeyPatch) -> None:
    _Cuda(monkeypatch)
    launcher = _launcher(library)
    repeat = launcher.recorded(lambda: None)
    ours = [f for f in weakref.finalize._registry if (f.peek() or (None,))[0] in (launcher, repeat)]  # type: ignore[attr-defined]
    assert len(ours) == 2
    assert not any(each.atexit for each in ours)
