"""Tensors at the edge of compiled code: numpy arrays and torch tensors as pointers, and back."""

import ctypes
import sys
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np

from planish.errors import InputError
from planish.runtime.buffers import LENT_BYTES, OutputPool
from planish.runtime.dtypes import ITEMSIZE, NUMPY, TORCH, DTypeName
from planish.runtime.plan import InputSpec

_NUMPY_TYPES = {name: np.dtype(word) for name, word in NUMPY.items()}
_NAME_OF_NUMPY = {word: name for name, word in NUMPY.items() if name not in ("bf16", "f8")} | {"bfloat16": "bf16"}


@dataclass(frozen=True, slots=True)
class Operand:
    """Contiguous row-major memory: its address, its shape and the array or tensor that keeps it alive."""

    address: int
    shape: tuple[int, ...]
    owner: Any


def loaded_torch() -> Any | None:
    """torch where this process has imported it, which it has if a caller holds a tensor."""
    return sys.modules.get("torch")


def is_torch(value: Any) -> bool:
    torch = loaded_torch()
    return torch is not None and isinstance(value, torch.Tensor)


def take(spec: InputSpec, given: Any) -> Operand:
    """The operand of an input; copies only what is not contiguous.

    Raises InputError with the name, the expected type and what was given. A bf16 input is a torch tensor,
    an array of ml_dtypes.bfloat16, or its bits as uint16. Shapes are for the caller to check.
    """
    if is_torch(given):
        return _take_torch(spec, given)
    if not isinstance(given, np.ndarray | np.generic):
        raise InputError(
            f"input '{spec.name}' takes {spec.type} as a torch tensor or a numpy array, "
            f"was given a {type(given).__name__}"
        )
    array = np.asarray(given)
    dtype = spec.type.dtype
    if array.dtype != _NUMPY_TYPES[dtype] and not (dtype == "bf16" and array.dtype.name == "bfloat16"):
        wanted = "ml_dtypes.bfloat16" if dtype == "bf16" else f"'{NUMPY[dtype]}'"
        raise _wrong_dtype(spec, _numpy_name(array), array.shape, f".astype({wanted})")
    if array.flags.c_contiguous and array.flags.aligned:
        return of_array(array)
    return of_array(np.require(array, requirements=["C", "A"]))


def of_array(array: np.ndarray[Any, Any]) -> Operand:
    return Operand(array.__array_interface__["data"][0], array.shape, array)


def check_writable(spec: InputSpec, operand: Operand) -> None:
    """Raise InputError for an input whose memory a result is to take, but which is read-only."""
    if isinstance(operand.owner, np.ndarray) and not operand.owner.flags.writeable:
        raise InputError(f"input '{spec.name}' is updated in place, but the array is read-only: pass a copy")


def empty(dtype: DTypeName, shape: tuple[int, ...], torch: Any | None, pool: OutputPool) -> Operand:
    """Uninitialised memory: a torch tensor where `torch` is given, a numpy array otherwise; large ones from `pool`."""
    size = prod(shape) * ITEMSIZE[dtype]
    if torch is None:
        if size < LENT_BYTES:
            return of_array(np.empty(shape, _NUMPY_TYPES[dtype]))
        return of_array(np.ndarray(shape, _NUMPY_TYPES[dtype], pool.array(size)))
    torch_dtype = getattr(torch, TORCH[dtype])
    if size < LENT_BYTES:
        tensor = torch.empty(shape, dtype=torch_dtype, device="cpu")
    else:
        tensor = torch.empty(0, dtype=torch_dtype, device="cpu").set_(pool.storage(size, torch), 0, shape)
    return Operand(tensor.data_ptr(), shape, tensor)


def as_torch(operand: Operand, dtype: DTypeName, torch: Any) -> Any:
    """A tensor over the operand's memory, valid while the operand lives; only to be read where that is."""
    if isinstance(operand.owner, torch.Tensor):
        return operand.owner
    size = prod(operand.shape) * ITEMSIZE[dtype]
    torch_dtype = getattr(torch, TORCH[dtype])
    if size == 0:
        return torch.empty(operand.shape, dtype=torch_dtype)
    # torch warns about read-only numpy arrays; a ctypes view of the same memory passes for writable.
    memory = (ctypes.c_uint8 * size).from_address(operand.address)
    return torch.frombuffer(memory, dtype=torch_dtype).reshape(operand.shape)


def give(operand: Operand, dtype: DTypeName) -> Any:
    """The array or tensor for the caller; numpy has no bf16, so that one widens to float32."""
    if dtype == "bf16" and isinstance(operand.owner, np.ndarray):
        return widen(operand.owner)
    return operand.owner


def widen(bits: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """bf16 bits (uint16) as the float32 numbers that they are."""
    wide: np.ndarray[Any, Any] = bits.astype(np.uint32) << np.uint32(16)
    return wide.view(np.float32)


def _take_torch(spec: InputSpec, given: Any) -> Operand:
    if given.device.type != "cpu":
        raise InputError(
            f"input '{spec.name}' is on device {given.device}; this artifact runs on the cpu: move it there"
        )
    word = str(given.dtype).removeprefix("torch.")
    wanted = TORCH[spec.type.dtype]
    if word != wanted:
        raise _wrong_dtype(spec, _NAME_OF_NUMPY.get(word, word), tuple(given.shape), f".to(torch.{wanted})")
    if given.layout != sys.modules["torch"].strided:
        raise InputError(f"input '{spec.name}' has layout {given.layout}; give a dense tensor: .to_dense()")
    dense = given.detach().resolve_neg().contiguous()
    return Operand(dense.data_ptr(), tuple(dense.shape), dense)


def _numpy_name(array: np.ndarray[Any, Any]) -> str:
    return _NAME_OF_NUMPY.get(array.dtype.name, array.dtype.name) if array.dtype.isnative else f"{array.dtype.str}"


def _wrong_dtype(spec: InputSpec, dtype: str, shape: tuple[int, ...], remedy: str) -> InputError:
    given = f"{dtype}[{', '.join(map(str, shape))}]"
    return InputError(f"input '{spec.name}' takes {spec.type}, was given {given}; convert it with {remedy}")
