"""Tensors at the edge of a device: taken there from numpy and torch, and given back to where they came from."""

from collections.abc import Sequence
from typing import Any, Final

import numpy as np

from planish.errors import InputError
from planish.runtime import operands
from planish.runtime.dtypes import TORCH
from planish.runtime.plan import InputSpec

ALIGNMENT: Final = 16  # bytes that kernels expect addresses to be multiples of


def take(spec: InputSpec, given: Any, device: Any) -> Any:
    """The input as a contiguous, aligned tensor on the device; itself where it is one already.

    Raises InputError with the name, the expected type and what was given. Shapes are for the caller to check.
    """
    import torch

    if not isinstance(given, torch.Tensor):
        operand = operands.take(spec, given)
        return operands.as_torch(operand, spec.type.dtype, torch).to(device)
    if given.device.type != "cpu" and given.device != device:
        raise InputError(f"input '{spec.name}' is on {given.device}; this artifact runs on {device}: move it there")
    if given.device.type == "cpu":
        given = operands.take(spec, given).owner
    elif given.dtype is not getattr(torch, TORCH[spec.type.dtype]):
        word = f".to(torch.{TORCH[spec.type.dtype]})"
        raise InputError(f"input '{spec.name}' takes {spec.type}, was given {given.dtype}; convert it with {word}")
    there = given.detach().contiguous().to(device)
    return there if there.data_ptr() % ALIGNMENT == 0 else there.clone()


def give(results: Sequence[Any], leaves: Sequence[Any]) -> list[Any]:
    """The results where the first tensor among the inputs is; where none is one, numpy arrays, bf16 as f32."""
    import torch

    home = next((leaf.device for leaf in leaves if isinstance(leaf, torch.Tensor)), None)
    if home is not None:
        return [result.to(home) for result in results]
    return [_array(result.cpu()) for result in results]


def _array(tensor: Any) -> np.ndarray[Any, Any]:
    array: np.ndarray[Any, Any] = (tensor.float() if str(tensor.dtype) == "torch.bfloat16" else tensor).numpy()
    return array
