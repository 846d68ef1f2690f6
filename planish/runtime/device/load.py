"""From the files of an artifact to kernels and weights on the device at hand."""

from collections.abc import Mapping
from typing import Any

from planish.runtime.device.driver import INTERFACES, Driver
from planish.runtime.device.executor import DeviceExecutable
from planish.runtime.device.frame import Weights
from planish.runtime.device.generation import DeviceLanguageExecutable
from planish.runtime.device.launcher import DriverLauncher
from planish.runtime.dtypes import TORCH
from planish.runtime.generation.settings import Settings
from planish.runtime.generation.tokenizer import Tokenizer
from planish.runtime.plan import Plan, TensorSpec
from planish.runtime.tensors import TensorFile


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
    weights: Weights,
    settings: Settings | None = None,
    tokenizer: Tokenizer | None = None,
) -> DeviceExecutable:
    """The plan ready to run on the current device of torch; with `settings` it is that of a language model.

    Raises ArtifactError where the driver refuses a kernel.
    """
    import torch

    backend = target.partition(":")[0]
    device = torch.device("cuda", torch.cuda.current_device())
    launcher = DriverLauncher(Driver(INTERFACES[backend]), device, plan.kernels, code, 64 if backend == "hip" else 32)
    if settings is None:
        return DeviceExecutable(plan, launcher, weights)
    return DeviceLanguageExecutable(plan, launcher, weights, settings, tokenizer)


def placed(weights: TensorFile, memory: Any, named: Mapping[str, TensorSpec]) -> Weights:
    """The weights of a file whose bytes lie in `memory`; those that torch reads are views of it."""
    import torch

    found = {}
    for name, spec in named.items():
        array = weights.array(name, spec.dtype, spec.fixed_shape)
        start = array.ctypes.data - weights.address
        part = memory[start : start + array.nbytes]
        found[name] = part.view(getattr(torch, TORCH[spec.dtype])).reshape(spec.fixed_shape)
    return Weights(memory, found)


def _backend(torch: Any) -> str:
    return "hip" if torch.version.hip else "cuda"


def _arch(torch: Any, backend: str) -> str:
    if backend == "hip":
        return str(torch.cuda.get_device_properties(0).gcnArchName).partition(":")[0]
    major, minor = torch.cuda.get_device_capability()
    return f"{major}{minor}"
