"""Quantized activations on GPUs against torch in Triton's interpreter: scales of groups and rows, and codes."""

import pytest
import torch

from planish.codegen.triton.compile import compile_all
from planish.codegen.triton.cost import refuse_resources
from planish.codegen.triton.map import Map
from planish.codegen.triton.quantization import Quantization
from planish.codegen.triton.request import request_of
from planish.compiler import ops
from planish.compiler.ir import Graph, Value
from planish.compiler.types import DType, Size
from tests.codegen.compare import normal
from tests.codegen.harness import call_of
from tests.codegen.triton.harness import check, device

S = Size("s").symbol


@pytest.mark.parametrize("group", [32, 48, 100])
def test_scales_of_groups_of_which_the_last_may_be_short(group: int) -> None:
    x = normal(2, 5, 100)
    x[0, 1] = 0
    shapes, sizes = ((2, S, 100),), {"s": 5}
    check(Quantization(), lambda x: ops.quantization_scale(x, group=group), x, shapes=shapes, sizes=sizes)


def test_codes_round_to_even_and_are_zero_where_the_scale_is() -> None:
    x, scale = 4 * normal(3, 70), normal(3, 3).abs()
    x[0, :4], scale[0, 0], scale[1, 1] = 0.5, 1.0, 0.0
    check(Map(), lambda x, s: ops.quantize(x, s, group=32, bits=4), x, scale)


def test_scales_of_f8_reach_its_largest_number() -> None:
    check(Quantization(), lambda x: ops.quantization_scale(x, group=100, dtype=DType.f8), normal(5, 100))


def _spread_out() -> torch.Tensor:
    """Numbers of all magnitudes, halves between two codes, and what is beyond the last."""
    x = torch.randn(4, 300) * 2.0 ** torch.randint(-14, 10, (4, 300))
    codes = torch.arange(127, dtype=torch.uint8).view(torch.float8_e4m3fn).float()
    x[0, :126], x[1, :127] = (codes[1:] + codes[:-1]) / 2, -codes
    x[2, :6] = torch.tensor([464.0, 465.0, -1e9, torch.inf, torch.nan, -0.0])
    return x


def test_casts_to_f8_round_as_torch_does() -> None:
    check(Map(), lambda x: ops.cast(ops.cast(x, dtype=DType.f8), dtype=DType.f32), _spread_out(), rtol=0, atol=0)


def test_every_code_of_f8_is_read() -> None:
    codes = torch.arange(256, dtype=torch.uint8).view(torch.float8_e4m3fn).reshape(2, 128)
    check(Map(), lambda x: ops.cast(x, dtype=DType.f32), codes, rtol=0, atol=0)


def test_codes_of_f8_saturate_and_become_numbers_again() -> None:
    x, scale = _spread_out(), torch.tensor([[1.0], [0.3], [2.0], [0.0]])

    def build(x: Value, s: Value) -> Value:
        return ops.dequantize(ops.quantize(x, s, group=300, dtype=DType.f8), s, group=300)

    check(Map(), build, x, scale, anchor=ops.dequantize)


@pytest.mark.parametrize("profile", ["a100", "rtx-4090", "h200", "mi300x"])
def test_codes_of_f8_and_their_scales_are_made_on_every_gpu(profile: str) -> None:
    x = ops.input_(name="x", shape=(S, 1024), dtype=DType.f16)
    scale = ops.input_(name="s", shape=(S, 1), dtype=DType.f32)
    made = {
        Quantization(): ops.quantization_scale(x, group=1024, dtype=DType.f8),
        Map(): ops.dequantize(ops.quantize(x, scale, group=1024, dtype=DType.f8), scale, group=1024),
    }
    gpu, requests = device(profile), []
    for template, result in made.items():
        call = call_of(Graph("main", (x, scale), (result,), (Size("s"),)), result.node.op)
        (launch,) = template.build(call, gpu).launches
        requests.append(request_of(call, launch, launch.regimes[0].variants[0]))
    for binary in compile_all(requests, gpu):
        assert refuse_resources(binary, gpu) is None
        assert binary.spilled_bytes == 0
