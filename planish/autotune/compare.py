"""Whether a kernel's results are what they should be, and which of several kernels most others agree with."""

import math
from collections.abc import Mapping, Sequence
from typing import Final

import torch
from torch import Tensor

from planish.autotune.trial import Sample, Trial
from planish.runtime.dtypes import DTypeName

_FLOATS: Final = ("f64", "f32", "f16", "bf16")
_SAMPLED: Final = 1 << 16  # elements of a result
_STRIDE: Final = 0.6180339887498949  # of what is sampled: no two samples of a row or a tile lie alike
_ALTERED: Final = 0.25  # of codes, that may round to a neighbour
_F8_STEP: Final = 0.125  # from a number of f8 to the next
_F8_LEAST: Final = 2.0**-9
# where no call says what is rounded: of the largest result, two orders of summation over operands rounded like this
_CLOSE: Final[Mapping[DTypeName, float]] = {"f64": 1e-6, "f32": 2e-3, "f16": 1e-2, "bf16": 4e-2}


def differences(
    trial: Trial, wanted: Sequence[Tensor], found: Sequence[Tensor], before: Sequence[Tensor | None], whose: str
) -> str | None:
    """Why the results are not those that are wanted, or None; where `before` gives what was in a result's memory, only
    what one of both has changed counts."""
    for i, (seen, a, b, old) in enumerate(zip(trial.results, wanted, found, before, strict=True)):
        a = a.to(b.dtype)  # what is over its range is infinite in both
        if old is not None:
            touched = (a != old) | (b != old)
            a, b = a[touched], b[touched]
        if (why := difference(seen.dtype, a, b, _allowed(trial, i, a), whose)) is not None:
            return why
    return None


def difference(dtype: DTypeName, wanted: Tensor, found: Tensor, allowed: float, whose: str) -> str | None:
    """Why a result is not the one that is wanted, or None.

    Floats may be off by `allowed`; some codes may be a neighbour, and some other integers another.
    """
    a, b = (t if t.dtype is torch.float64 else t.float() for t in (wanted, found))
    if dtype in _FLOATS:
        near = torch.isclose(b, a, rtol=0.0, atol=allowed, equal_nan=True)
    elif dtype == "f8":
        near = torch.isclose(b, a, rtol=_F8_STEP, atol=_F8_LEAST, equal_nan=True)
    else:
        near = (b - a).abs() <= (1.0 if dtype == "i8" else math.inf)
    if not bool(near.all()):
        off = float((a - b).abs().nan_to_num(nan=math.inf, posinf=math.inf)[~near].max())
        return f"a result is {off:.3g} away from {whose}, whose largest is {_largest(a):.3g}"
    altered = float((a != b).float().mean()) if dtype not in _FLOATS and a.numel() else 0.0
    return f"{altered:.0%} of a result are not those of {whose}" if altered > _ALTERED else None


def sampled(trial: Trial, found: Sequence[Tensor]) -> tuple[Sample, ...]:
    """Elements of all results, always of the same places."""
    return tuple(
        Sample(seen.dtype, _some(result), _allowed(trial, i, result))
        for i, (seen, result) in enumerate(zip(trial.results, found, strict=True))
    )


def minority(samples: Sequence[tuple[Sample, ...]]) -> dict[int, str]:
    """Those whose results are not those that most have, by their places, and why; of two that differ the second."""
    agreeing = [sum(_apart(one, other) is None for other in samples) for one in samples]
    leader = max(range(len(samples)), key=lambda i: (agreeing[i], -i), default=0)
    found = {i: _apart(samples[leader], other) for i, other in enumerate(samples)}
    return {i: why for i, why in found.items() if why is not None}


def _apart(one: tuple[Sample, ...], other: tuple[Sample, ...]) -> str | None:
    for a, b in zip(one, other, strict=True):
        wanted, found = (torch.frombuffer(bytearray(each.elements), dtype=torch.float32) for each in (a, b))
        if (why := difference(a.dtype, wanted, found, a.allowed, "that of most variants")) is not None:
            return why
    return None


def _allowed(trial: Trial, result: int, wanted: Tensor) -> float:
    """By how much a result of the trial may be off."""
    meaning, dtype = trial.meaning, trial.results[result].dtype
    return _largest(wanted) * (meaning.allowed[result] if meaning is not None else _CLOSE.get(dtype, 0.0))


def _largest(tensor: Tensor) -> float:
    wide = tensor if tensor.dtype is torch.float64 else tensor.float()
    return float(wide.abs().nan_to_num(0.0, 0.0, 0.0).max()) if wide.numel() else 0.0


def _some(result: Tensor) -> bytes:
    flat = result.reshape(-1)
    if (count := flat.numel()) > _SAMPLED:
        places = ((torch.arange(_SAMPLED, dtype=torch.float64) * _STRIDE).frac() * count).long()
        flat = flat[torch.cat((places, torch.tensor([0, count - 1]))).to(flat.device)]
    return flat.float().cpu().numpy().tobytes()
