"""Quantization: numbers as codes, integers or f8, with one scale a group, and back."""

import math

import torch
from torch import Tensor

from planish.compiler.ir import op
from planish.compiler.ops.checks import check_float
from planish.compiler.ops.structure import FROM_TORCH, LARGEST_F8, TORCH_DTYPE
from planish.compiler.types import Dim, DType, TensorType, same_shape, simplify
from planish.errors import TypeRuleError

_BLOCK = 1 << 20  # elements that are computed at once: intermediate results of a large weight stay small


def groups_of(width: Dim, group: int) -> Dim:
    """How many groups of `group` elements cover `width`; the last may be shorter."""
    return simplify((width + group - 1) // group)


def _spread(x: Tensor, width: int, group: int) -> Tensor:
    """One value a group [..., G] as one an element [..., width]."""
    return x.repeat_interleave(group, -1)[..., :width]


def largest_code(dtype: DType, bits: int) -> float:
    """The magnitude that symmetric codes reach: 448 of f8, 2**(bits - 1) - 1 of integers."""
    return LARGEST_F8 if dtype is DType.f8 else (1 << (bits - 1)) - 1


def _quantization_scale(x: Tensor, *, group: int, bits: int, dtype: DType) -> Tensor:
    missing = -x.shape[-1] % group
    grouped = torch.nn.functional.pad(x.float(), (0, missing)).reshape(*x.shape[:-1], -1, group)
    largest: Tensor = grouped.abs().amax(-1)
    return largest / largest_code(dtype, bits)


@op(_quantization_scale)
def quantization_scale(x: TensorType, *, group: int, bits: int = 8, dtype: DType = DType.i8) -> TensorType:
    """The scale of symmetric quantization by group: max |x| / (2**(bits - 1) - 1), or max |x| / 448 for codes of f8.

    x [..., K] in groups of `group` along the last axis, of which the last may be shorter -> f32 [..., ceil(K / group)].
    """
    check_float(x)
    _check_groups(x, group, bits)
    _check_codes(dtype, bits, DType.i8)
    return TensorType((*x.shape[:-1], groups_of(x.shape[-1], group)), DType.f32)


def _quantize(x: Tensor, scale: Tensor, *, group: int, bits: int, dtype: DType) -> Tensor:
    limit = largest_code(dtype, bits)
    wide = _spread(scale, x.shape[-1], group)
    inverse = torch.where(wide == 0, 0.0, 1.0 / wide)
    levels = x.float() * inverse
    levels = levels if dtype is DType.f8 else levels.round()
    return levels.clamp(-limit, limit).to(TORCH_DTYPE[dtype])


@op(_quantize)
def quantize(x: TensorType, scale: TensorType, *, group: int, bits: int = 8, dtype: DType = DType.i8) -> TensorType:
    """Symmetric codes: x * (1 / scale), clamped to +-(2**(bits - 1) - 1), or to +-448 for f8, and rounded to the
    nearest code, ties to even; zero where scale is 0.

    x [..., K], scale f32 [..., ceil(K / group)] -> i8 or f8 [..., K].
    """
    check_float(x)
    _check_groups(x, group, bits)
    _check_codes(dtype, bits, DType.i8)
    _check_scale(x, scale, group)
    return TensorType(x.shape, dtype)


def _dequantize(
    q: Tensor,
    scale: Tensor,
    zero: Tensor | None = None,
    *,
    group: int,
    bits: int,
    codebook: tuple[float, ...],
    dtype: DType,
) -> Tensor:
    result = torch.empty(q.shape, dtype=TORCH_DTYPE[dtype])
    rows = max(1, _BLOCK // max(1, math.prod(q.shape[1:])))
    for i in range(0, q.shape[0], rows):
        part = slice(i, i + rows)
        zeros = None if zero is None else _spread(zero[part].float(), q.shape[-1], group)
        levels = _levels(q[part], zeros, bits, codebook)
        result[part] = levels.mul_(_spread(scale[part].float(), q.shape[-1], group))
    return result


def _levels(q: Tensor, zeros: Tensor | None, bits: int, codebook: tuple[float, ...]) -> Tensor:
    if codebook:
        return torch.tensor(codebook, dtype=torch.float32)[q.int()]
    return q.float().sub_(middle(FROM_TORCH[q.dtype], bits) if zeros is None else zeros)


def middle(codes: DType, bits: int) -> int:
    """The code that means zero where no zero point is given: half the range of unsigned codes, 0 of i8 and f8."""
    return 1 << (bits - 1) if codes is DType.u8 else 0


@op(_dequantize)
def dequantize(
    q: TensorType,
    scale: TensorType,
    zero: TensorType | None = None,
    *,
    group: int,
    bits: int = 8,
    codebook: tuple[float, ...] = (),
    dtype: DType = DType.f32,
) -> TensorType:
    """Codes as numbers: (q - zero) * scale, or codebook[q] * scale.

    q i8 or u8 [..., K] of codes that fit in `bits` (one code an element; kernels pack them), or f8, whose codes are
    numbers themselves; scale f32, f16 or bf16 and zero u8 [..., ceil(K / group)]. Without `zero`, unsigned codes are
    centred at 2**(bits - 1), signed ones and f8 at 0. `codebook` has 2**bits levels in any order, such as those of nf4
    (arXiv 2305.14314), and takes unsigned codes and no zero.
    """
    _check_groups(q, group, bits)
    if not dtype.is_float:
        raise TypeRuleError(f"dequantize takes codes of i8, u8 or f8 to a float, not {q} to {dtype}")
    _check_codes(q.dtype, bits, DType.i8, DType.u8)
    check_float(scale)
    _check_scale(q, scale, group)
    if zero is not None and q.dtype is DType.f8:
        raise TypeRuleError("codes of f8 have no zero points")
    if zero is not None and (zero.dtype is not DType.u8 or not same_shape(zero.shape, scale.shape)):
        raise TypeRuleError(f"zero is u8 of the scale's shape, not {zero} for {scale}")
    if codebook and (len(codebook) != 2**bits or q.dtype is not DType.u8 or zero is not None):
        raise TypeRuleError(f"a codebook of {len(codebook)} levels needs unsigned codes of {bits} bits and no zero")
    return TensorType(q.shape, dtype)


def _check_groups(x: TensorType, group: int, bits: int) -> None:
    if x.rank < 1 or group < 1 or not 2 <= bits <= 8:
        raise TypeRuleError(f"groups of {group} at {bits} bits do not fit {x}; bits are 2 to 8")


def _check_codes(codes: DType, bits: int, *integers: DType) -> None:
    if codes not in (*integers, DType.f8):
        raise TypeRuleError(f"codes are {', '.join(map(str, integers))} or f8, not {codes}")
    if codes is DType.f8 and bits != 8:
        raise TypeRuleError(f"codes of f8 have 8 bits, not {bits}")


def _check_scale(x: TensorType, scale: TensorType, group: int) -> None:
    wanted = (*x.shape[:-1], groups_of(x.shape[-1], group))
    if not same_shape(scale.shape, wanted):
        raise TypeRuleError(f"scale {scale} is not {list(wanted)}, one a group of {group} of {x}")
