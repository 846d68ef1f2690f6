"""The driver of a GPU through ctypes: compiled kernels become functions, and functions are launched on a stream.

Sources: CUDA Driver API reference (modules, execution control); HIP runtime API reference (modules).
"""

import ctypes
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from planish.errors import ArtifactError, BackendMissing

_DYNAMIC_SHARED_MEMORY: Final = 8  # CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES
_MUCH_SHARED_MEMORY: Final = 48 << 10  # above which the cache gives way, so that several blocks have room, as in Triton
_PREFER_SHARED: Final = 1  # CU_FUNC_CACHE_PREFER_SHARED


@dataclass(frozen=True, slots=True)
class Interface:
    """The names of one driver: its library and the functions that are used of it."""

    name: str
    libraries: tuple[str, ...]
    initialize: str
    version: str
    load: str
    unload: str
    function: str
    launch: str
    error_name: str
    shared: tuple[str, str] | None
    context: tuple[str, str] | None


CUDA: Final = Interface(
    "cuda",
    ("libcuda.so.1",),
    *("cuInit", "cuDriverGetVersion", "cuModuleLoadData", "cuModuleUnload", "cuModuleGetFunction", "cuLaunchKernel"),
    "cuGetErrorName",
    ("cuFuncSetAttribute", "cuFuncSetCacheConfig"),
    ("cuCtxGetCurrent", "cuCtxSetCurrent"),
)
HIP: Final = Interface(
    "hip",
    ("libamdhip64.so.7", "libamdhip64.so.6", "libamdhip64.so"),
    *("hipInit", "hipDriverGetVersion", "hipModuleLoadData", "hipModuleUnload", "hipModuleGetFunction"),
    "hipModuleLaunchKernel",
    "hipDrvGetErrorName",
    None,
    None,  # HIP follows the thread's device, which torch sets
)
INTERFACES: Final[Mapping[str, Interface]] = {"cuda": CUDA, "hip": HIP}

# what the driver says, and what the user can do
_MEANING: Final = {
    1: "the grid or an argument is over what the device takes; call with smaller sizes",
    200: "the kernel is damaged; save or download the artifact again",
    209: "the kernel is for another GPU; compile the model for this one",
    218: "the kernel needs a newer driver",
    222: "the kernel needs a newer driver than the one installed; update it",
    701: "a block takes more than this GPU has; compile the model for it",
    719: "a kernel read or wrote outside of its memory; report this",
}


@dataclass(frozen=True, slots=True)
class Function:
    """A kernel in the driver's hands. `module` keeps its code loaded."""

    name: str
    handle: int
    module: int
    threads: int
    shared_bytes: int


class Driver:
    """The driver of the GPUs of this machine; raises BackendMissing where there is none."""

    def __init__(self, interface: Interface, libraries: Sequence[str] | None = None) -> None:
        self._names = interface
        self._library = _opened(interface, libraries or (*_loaded(interface.libraries[-1]), *interface.libraries))
        self._check(self._call(interface.initialize, ctypes.c_uint(0)), "the driver does not start")
        self._context: int | None = None

    @property
    def version(self) -> int:
        """The driver's version as it numbers itself: 12080 is CUDA 12.8."""
        found = ctypes.c_int()
        self._check(self._call(self._names.version, ctypes.byref(found)), "the driver does not tell its version")
        return found.value

    def enter(self) -> None:
        """Make the context in which kernels were loaded current in this thread, where none is.

        A thread that has called only torch may have none: torch sets it when it first allocates.
        """
        if self._names.context is None:
            return
        found, (get, put) = ctypes.c_void_p(), self._names.context
        self._check(self._call(get, ctypes.byref(found)), "the driver does not tell its context")
        if found.value is None and self._context is not None:
            self._check(self._call(put, ctypes.c_void_p(self._context)), "the context of the GPU cannot be entered")
        self._context = self._context or found.value

    def function(self, name: str, code: bytes, symbol: str, *, threads: int, shared_bytes: int) -> Function:
        """The kernel `symbol` of a compiled module, ready for blocks of `threads`.

        Raises ArtifactError where the driver refuses the code, with what to do.
        """
        module, handle = ctypes.c_void_p(), ctypes.c_void_p()
        loaded = self._call(self._names.load, ctypes.byref(module), code)
        self._check(loaded, f"kernel '{name}' cannot be loaded", self._too_old(code) if loaded else None)
        found = self._call(self._names.function, ctypes.byref(handle), module, symbol.encode())
        self._check(found, f"kernel '{name}' has no '{symbol}'")
        if self._names.shared is not None:
            self._allow(name, handle, shared_bytes, *self._names.shared)
        return Function(name, handle.value or 0, module.value or 0, threads, shared_bytes)

    def launch(
        self,
        function: Function,
        grid: tuple[int, int, int],
        stream: int,
        arguments: Sequence["ctypes._SimpleCData[Any]"],
    ) -> None:
        """Put one launch on the stream; a grid without blocks launches nothing."""
        if 0 in grid:
            return
        pointers = (ctypes.c_void_p * max(1, len(arguments)))(*(ctypes.addressof(a) for a in arguments))
        done = self._call(
            self._names.launch,
            ctypes.c_void_p(function.handle),
            *map(ctypes.c_uint, grid),
            *map(ctypes.c_uint, (function.threads, 1, 1)),
            ctypes.c_uint(function.shared_bytes),
            ctypes.c_void_p(stream),
            pointers,
            None,
        )
        self._check(done, f"kernel '{function.name}' does not start with grid {list(grid)}")

    def unload(self, function: Function) -> None:
        """Give the module's memory back."""
        self._call(self._names.unload, ctypes.c_void_p(function.module))

    def _allow(self, name: str, kernel: ctypes.c_void_p, shared_bytes: int, attribute: str, cache: str) -> None:
        """Let blocks of the kernel have this much dynamic shared memory.

        Unasked they have 48 KiB less what is static: code for sm_90 has 1 KiB of that, as cuobjdump reads it.
        """
        if shared_bytes > _MUCH_SHARED_MEMORY:
            self._call(cache, kernel, _PREFER_SHARED)
        allowed = self._call(attribute, kernel, _DYNAMIC_SHARED_MEMORY, ctypes.c_int(shared_bytes))
        self._check(allowed, f"kernel '{name}' takes {shared_bytes} bytes of shared memory")

    def _call(self, name: str, *arguments: Any) -> int:
        result: int = getattr(self._library, name)(*arguments)
        return result

    def _too_old(self, code: bytes) -> str | None:
        """What to do where the code was assembled by a later version of CUDA than the driver's.

        Within one major version any driver loads the code; source: CUDA Compatibility, "Minor Version Compatibility".
        """
        made = re.search(rb"Cuda compilation tools, release (\d+)\.(\d+)", code)
        if made is None or self.version // 1000 >= int(made[1]):
            return None
        return (
            f"it was assembled by CUDA {int(made[1])}.{int(made[2])} and the driver is of CUDA {self.version // 1000}."
            f"{self.version % 1000 // 10}; install a driver of CUDA {int(made[1])}.0 or newer"
        )

    def _check(self, code: int, what: str, meaning: str | None = None) -> None:
        if code:
            meaning = meaning or _MEANING.get(code, "see the driver's documentation")
            raise ArtifactError(f"{what}: {self._error(code)} ({code}): {meaning}")

    def _error(self, code: int) -> str:
        text = ctypes.c_char_p()
        self._call(self._names.error_name, ctypes.c_int(code), ctypes.byref(text))
        return (text.value or b"unknown error").decode()


def _opened(interface: Interface, libraries: Sequence[str]) -> ctypes.CDLL:
    for library in libraries:
        try:
            return ctypes.CDLL(library)
        except OSError:
            continue
    kind = {"cuda": "an NVIDIA", "hip": "an AMD"}[interface.name]
    raise BackendMissing(
        f"this machine has no driver of {kind} GPU ({', '.join(libraries)} cannot be opened); run the artifact "
        "where the GPU is, or compile the model for 'cpu'"
    )


def _loaded(name: str, maps: Path = Path("/proc/self/maps")) -> list[str]:
    """The paths of a library that this process has loaded: torch for AMD brings a runtime of its own, and streams of
    one runtime are nothing to another."""
    paths = dict.fromkeys(line.split(maxsplit=5)[5] for line in maps.read_text().splitlines() if line.count("/"))
    return [path for path in paths if Path(path).name.startswith(name)]
