"""Round-to-nearest quantization of weights: integers, levels of a codebook, or f8, with one scale a group."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from planish.compiler.ops.quantize import groups_of
from planish.compiler.ops.structure import LARGEST_F8

# Levels of NormalFloat4: quantiles of a normal distribution (arXiv 2305.14314, appendix E).
NF4 = (
    *(-1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453),
    *(-0.28444138169288635, -0.18477343022823334, -0.09105003625154495, 0.0),
    *(0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224),
    *(0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0),
)
# Numbers of two bits of exponent and one of mantissa, by code (OCP Microscaling specification; arXiv 2310.16836).
FP4 = (*(0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0), *(-0.0, -0.5, -1.0, -1.5, -2.0, -3.0, -4.0, -6.0))
_F8 = torch.float8_e4m3fn
_BLOCK = 1 << 17  # elements that are quantized at once: their copies stay in a cache


@dataclass(frozen=True, slots=True)
class Codes:
    """A weight [..., K] as codes i8, u8 or f8 [..., K], scales and zero points u8 [..., G], and its relative RMS error.

    Scales are f16, those of f8 f32.
    """

    codes: Tensor
    scale: Tensor
    zero: Tensor | None
    error: float


@dataclass(frozen=True, slots=True)
class Format:
    """Codes of `bits` in groups of `group` along K. `symmetric` ones have no zero points; `codebook` gives the levels
    of codes that are no integers, and `f8` codes are floats themselves, of 8 bits."""

    bits: int
    group: int
    symmetric: bool = True
    codebook: tuple[float, ...] = ()
    f8: bool = False

    def encode(self, weight: Tensor) -> Codes:
        """The nearest codes of weight [..., K]; scales are rounded to f16 first, so codes fit what is stored. Those of
        f8 stay f32: where codes reach 448, scales of small weights are too small for f16.

        Symmetric 4-bit scales are chosen among three for the least squared error: the largest magnitude at code 7,
        the signed largest value at code -8, and 0.9 of the latter.
        """
        lead, width = weight.shape[:-1], weight.shape[-1]
        with _one_thread():
            found = self._encode(weight.reshape(-1, width), lead.numel(), width)
        zero = None if found.zero is None else found.zero.reshape(*lead, -1)
        return Codes(found.codes.reshape(weight.shape), found.scale.reshape(*lead, -1), zero, found.error)

    def _encode(self, weight: Tensor, rows: int, width: int) -> Codes:
        groups = int(groups_of(width, self.group))
        codes = torch.empty(rows, width, dtype=_F8 if self.f8 else torch.int8 if self.bits == 8 else torch.uint8)
        scale = torch.empty(rows, groups, dtype=torch.float32 if self.f8 else torch.float16)
        zero = None if self.symmetric else torch.empty(rows, groups, dtype=torch.uint8)
        lost = total = 0.0
        for part in _blocks(rows, width):
            x = self._grouped(weight[part])
            q, s, z = self._nearest(x)
            codes[part] = q.flatten(1)[:, :width].to(codes.dtype)
            scale[part] = s.to(scale.dtype)
            if zero is not None and z is not None:
                zero[part] = z.to(torch.uint8)
            lost += float(torch.addcmul(x, self._levels(q, z), s[..., None], value=-1).norm()) ** 2
            total += float(x.norm()) ** 2
        return Codes(codes, scale, zero, (lost / total) ** 0.5 if total else 0.0)

    def _grouped(self, weight: Tensor) -> Tensor:
        missing = -weight.shape[1] % self.group
        return functional.pad(weight.float(), (0, missing)).reshape(weight.shape[0], -1, self.group)

    def _nearest(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        """Codes [N, G, group], scales f32 [N, G] and zero points f32 [N, G] of groups x."""
        largest = x.abs().amax(-1)
        if self.f8:
            scale = largest / LARGEST_F8
            return (x * _inverse(scale)).clamp_(-LARGEST_F8, LARGEST_F8).to(_F8), scale, None
        if self.codebook:
            scale = _as_f16(largest / max(map(abs, self.codebook)))
            return _nearest_level(x * _inverse(scale), self.codebook), scale, None
        if not self.symmetric:
            low, high = x.amin(-1).clamp(max=0.0), x.amax(-1).clamp(min=0.0)
            scale = _as_f16((high - low) / self._top)
            zero = (-low * _inverse(scale)[..., 0]).round().clamp(0, self._top)
            return (x * _inverse(scale)).add_(zero[..., None]).round_().clamp_(0, self._top), scale, zero
        if self.bits == 8:
            scale = _as_f16(largest / 127)
            return (x * _inverse(scale)).round_().clamp_(-127, 127), scale, None
        scale = self._best_scale(x, largest)
        return (x * _inverse(scale)).round_().clamp_(-8, 7).add_(8), scale, None

    @property
    def _top(self) -> int:
        return (1 << self.bits) - 1

    def _best_scale(self, x: Tensor, largest: Tensor) -> Tensor:
        signed = torch.where(x.amax(-1) == largest, largest, -largest)
        tried = [_as_f16(s) for s in (largest / 7, signed / -8, signed / -8 * 0.9)]
        errors = []
        for s in tried:
            levels = (x * _inverse(s)).round_().clamp_(-8, 7)
            errors.append(torch.linalg.vector_norm(torch.addcmul(x, levels, s[..., None], value=-1), dim=-1))
        best = torch.stack(errors).argmin(0, keepdim=True)
        return torch.stack(tried).gather(0, best)[0]

    def _levels(self, q: Tensor, zero: Tensor | None) -> Tensor:
        if self.codebook:
            return torch.tensor(self.codebook)[q]
        if self.f8:
            return q.float()
        middle = 0 if self.bits == 8 else 8
        return q - (middle if zero is None else zero[..., None])


def _nearest_level(x: Tensor, codebook: tuple[float, ...]) -> Tensor:
    """The codes of the nearest levels, which the codebook has in any order."""
    levels, order = torch.tensor(codebook).sort(stable=True)
    return order[torch.bucketize(x, (levels[1:] + levels[:-1]) / 2)]


@contextmanager
def _one_thread() -> Iterator[None]:
    """Blocks are too small to share among threads; waiting for each other would take most of the time."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _blocks(rows: int, width: int) -> Iterator[slice]:
    step = max(1, _BLOCK // max(1, width))
    for start in range(0, rows, step):
        yield slice(start, min(start + step, rows))


def _as_f16(scale: Tensor) -> Tensor:
    return scale.half().float()


def _inverse(scale: Tensor) -> Tensor:
    """1 / scale, as far as f32 reaches, to multiply groups with; 0 where the scale is 0."""
    return torch.where(scale == 0, 0.0, 1.0 / scale).clamp_(max=torch.finfo(torch.float32).max)[..., None]
