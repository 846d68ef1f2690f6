"""From the files of an artifact to kernels and weights on the device at hand."""

import ctypes
from collections.abc import Mapping
from typing import Any, Final

from planish.errors import ArtifactError
from planish.runtime.device.driver import INTERFACES, Driver
from planish.runtime.device.executor import DeviceExecutable
from planish.runtime.device.frame import Weights
from planish.runtime.device.generation import DeviceLanguageExecutable
from planish.runtime.device.launcher import DriverLauncher
from planish.runtime.generation.settings import Settings
from planish.runtime.generation.tokenizer import Tokenizer
from planish.runtime.plan import Plan
from planish.runtime.tensors import TensorFile

_CHUNK_BYTES: Final = 64 << 20  # of weights that are copied at once, through pinned memory


def device_absent(wanted: str) -> str | None:
    """Why a device such as "cuda:90" is not here, or None. Imports torch."""
    backend, _, arch = wanted.partition(":")
    try:
        import torch
    except ImportError:
        return "running on a GPU needs torch: pip install torch"
    if not torch.cuda.is_available():
        return "this machine has no GPU that torch can use"
    if backend != _backend(torch):
        return f"this torch is built for {_backend(torch)} devices"
    found = _arch(torch, backend)
    if found != arch:
        return f"the GPU here is {torch.cuda.get_device_name()} ({backend}:{found})"
    return None


def on_device(
    target: str,
    plan: Plan,
    code: Mapping[str, bytes],
    weights: TensorFile,
    settings: Settings | None = None,
    tokenizer: Tokenizer | None = None,
) -> DeviceExecutable:
    """The plan ready to run on the current device of torch; with `settings` it is that of a language model.

    Raises ArtifactError where its memory cannot hold the weights, with both numbers, or the driver refuses a kernel.
    """
    import torch

    backend = target.partition(":")[0]
    device = torch.device("cuda", torch.cuda.current_device())
    check_room(device, weights.data.nbytes, "the weights")
    launcher = DriverLauncher(Driver(INTERFACES[backend]), device, plan.kernels, code, 64 if backend == "hip" else 32)
    memory = _copied(weights, device)
    named = {name: _tensor(weights, name, spec.dtype, spec.fixed_shape, device) for name, spec in plan.weights.items()}
    if settings is None:
        return DeviceExecutable(plan, launcher, Weights(memory, named))
    return DeviceLanguageExecutable(plan, launcher, Weights(memory, named), settings, tokenizer)


def check_room(device: Any, needed: int, what: str) -> None:
    """Raise ArtifactError where the device has fewer free bytes than are needed."""
    import torch

    free, _ = torch.cuda.mem_get_info(device)
    free += torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    if needed > free:
        name = torch.cuda.get_device_name(device)
        raise ArtifactError(
            f"{what} take {needed} bytes on the {name}, which has {free} free; free some there, or compile with "
            "smaller sizes or fewer bits"
        )


def _backend(torch: Any) -> str:
    return "hip" if torch.version.hip else "cuda"


def _arch(torch: Any, backend: str) -> str:
    if backend == "hip":
        return str(torch.cuda.get_device_properties(0).gcnArchName).partition(":")[0]
    major, minor = torch.cuda.get_device_capability()
    return f"{major}{minor}"


def _copied(weights: TensorFile, device: Any) -> Any:
    """All weights on the device: copied in turns through two pinned buffers, so that reading and sending overlap."""
    import torch

    total = weights.data.nbytes
    there = torch.empty(total, dtype=torch.uint8, device=device)
    here = _readable(weights, torch)
    pinned = [torch.empty(min(total, _CHUNK_BYTES), dtype=torch.uint8, pin_memory=True) for _ in range(2)]
    sent: list[Any] = [torch.cuda.Event() for _ in pinned]  # type: ignore[no-untyped-call]
    for turn, start in enumerate(range(0, total, _CHUNK_BYTES)):
        buffer, event = pinned[turn % 2], sent[turn % 2]
        event.synchronize()
        part = here[start : start + _CHUNK_BYTES]
        buffer[: len(part)].copy_(part)
        there[start : start + len(part)].copy_(buffer[: len(part)], non_blocking=True)
        event.record()
    torch.cuda.current_stream(device).synchronize()
    return there


def _readable(weights: TensorFile, torch: Any) -> Any:
    """The bytes of the file as a tensor; torch warns about read-only arrays, a ctypes view passes for writable."""
    count = weights.data.nbytes
    return torch.frombuffer((ctypes.c_uint8 * count).from_address(weights.address), dtype=torch.uint8)


def _tensor(weights: TensorFile, name: str, dtype: Any, shape: tuple[int, ...], device: Any) -> Any:
    import torch

    array = weights.array(name, dtype, shape)
    tensor = torch.from_numpy(array.copy())
    return (tensor.view(torch.bfloat16) if dtype == "bf16" else tensor).to(device)
