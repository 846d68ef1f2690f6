"""Scales, codes and dequantized numbers against torch: groups of any size, tails, formats, views and dtypes."""

import pytest
import torch

from planish.codegen.tvm.isa import AVX2, Isa
from planish.codegen.tvm.quantization import Quantization
from planish.compiler import ops
from planish.compiler.types import DType, Size
from planish.passes.weight_codes import NF4
from tests.codegen.compare import check, integers, normal
from tests.codegen.harness import host_isa

S = Size("s").symbol
GROUPS = [(64, 64), (64, 16), (100, 32), (37, 7), (5, 8), (576, 128), (3, 1)]
ISAS = pytest.mark.parametrize("isa", [host_isa(), AVX2], ids=["host", "avx2"])


def scales(rows: int, width: int, group: int) -> torch.Tensor:
    return normal(rows, -(-width // group), seed=1).abs() * 0.1 + 0.01


@ISAS
@pytest.mark.parametrize(("width", "group"), GROUPS)
def test_scales_of_groups(width: int, group: int, isa: Isa) -> None:
    for bits in (4, 8):
        check(
            Quantization(),
            lambda x, b=bits: ops.quantization_scale(x, group=group, bits=b),
            normal(3, width),
            isa=isa,
            tasks=3,
            rtol=0,
            atol=0,
        )


@ISAS
@pytest.mark.parametrize(("width", "group"), GROUPS)
def test_codes_are_those_of_torch(width: int, group: int, isa: Isa) -> None:
    scale = scales(5, width, group)
    scale[0, 0] = 0
    options = {"isa": isa, "rtol": 0, "atol": 0}
    check(Quantization(), lambda x, s: ops.quantize(x, s, group=group), normal(5, width) * 20, scale, **options)
    halves = (torch.arange(5 * width).reshape(5, width) - width) / 2
    check(
        Quantization(), lambda x, s: ops.quantize(x, s, group=group, bits=4), halves, torch.ones_like(scale), **options
    )


@ISAS
@pytest.mark.parametrize(("width", "group"), GROUPS)
@pytest.mark.parametrize("scale_dtype", [torch.float16, torch.float32])
def test_numbers_of_every_format(width: int, group: int, scale_dtype: torch.dtype, isa: Isa) -> None:
    scale = scales(3, width, group).to(scale_dtype)
    signed = integers(3, width, low=-127, high=128, dtype=torch.int8)
    short = integers(3, width, low=0, high=16, dtype=torch.uint8)
    zero = integers(*scale.shape, low=0, high=16, dtype=torch.uint8, seed=2)
    options = {"isa": isa, "rtol": 0, "atol": 0}
    check(Quantization(), lambda q, s: ops.dequantize(q, s, group=group), signed, scale, **options)
    check(Quantization(), lambda q, s: ops.dequantize(q, s, group=group, bits=4), short, scale, **options)
    check(Quantization(), lambda q, s, z: ops.dequantize(q, s, z, group=group, bits=4), short, scale, zero, **options)
    check(Quantization(), lambda q, s: ops.dequantize(q, s, group=group, bits=4, codebook=NF4), short, scale, **options)


@pytest.mark.parametrize("dtype", [DType.bf16, DType.f16])
def test_numbers_round_to_half_precision(dtype: DType) -> None:
    scale, codes = scales(2, 40, 16), integers(2, 40, low=-127, high=128, dtype=torch.int8)
    check(Quantization(), lambda q, s: ops.dequantize(q, s, group=16, dtype=dtype), codes, scale, rtol=0, atol=0)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_quantized_in_single(dtype: torch.dtype) -> None:
    x, scale = normal(2, 40).to(dtype), scales(2, 40, 16)
    check(Quantization(), lambda x: ops.quantization_scale(x, group=16), x, rtol=0, atol=0)
    check(Quantization(), lambda x, s: ops.quantize(x, s, group=16), x, scale, rtol=0, atol=0)


def test_a_dynamic_count_of_rows_and_a_transposed_operand() -> None:
    for n in (1, 9):
        x = normal(4, n, 48).transpose(0, 1)
        options = {"sizes": {"s": n}, "rtol": 0, "atol": 0, "tasks": 3}
        shapes = ((S, 4, 48), (S, 4, 2))
        scale = normal(n, 4, 2, seed=3).abs()
        check(Quantization(), lambda x: ops.quantization_scale(x, group=32), x, shapes=shapes[:1], **options)
        check(Quantization(), lambda x, s: ops.quantize(x, s, group=32), x, scale, shapes=shapes, **options)


def test_not_a_number_is_the_scale_of_its_group() -> None:
    x = normal(2, 64)
    x[1, 40] = torch.nan
    check(Quantization(), lambda x: ops.quantization_scale(x, group=32), x)


def test_what_is_computed_after() -> None:
    scale, codes = scales(2, 40, 16), integers(2, 40, low=-127, high=128, dtype=torch.int8)
    check(Quantization(), lambda q, s: ops.relu(ops.dequantize(q, s, group=16)), codes, scale, anchor=ops.dequantize)
