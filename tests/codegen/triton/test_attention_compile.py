"""Attention compiles for every GPU: within its shared memory and registers, on its matrix units, without spills."""

import pytest

from planish.codegen.call import Call
from planish.codegen.template import Template
from planish.codegen.triton.block_attention import BlockAttention
from planish.codegen.triton.compile import compile_all
from planish.codegen.triton.cost import refuse_resources
from planish.codegen.triton.device import Device
from planish.codegen.triton.kernel import Kernel
from planish.codegen.triton.request import request_of
from planish.compiler import ops
from planish.compiler.ir import Graph
from planish.compiler.types import DType, symbol
from tests.codegen.harness import call_of
from tests.codegen.triton.harness import device

_S, _N = symbol("s"), symbol("n")


def _of_blocks() -> Call:
    q, k, v = (ops.input_(name=n, shape=(1, h, _S, 128), dtype=DType.f16) for n, h in (("q", 32), ("k", 8), ("v", 8)))
    index = ops.input_(name="i", shape=(1, 32, (_S + 63) // 64, _N), dtype=DType.i32)
    y = ops.block_attention(q, k, v, index, query_block=64, key_block=64, causal=True, scale=0.1)
    return call_of(Graph("main", (q, k, v, index), (y,)), ops.block_attention)


_CALLS: dict[str, tuple[Template[Device, Kernel], Call]] = {
    "blocks": (BlockAttention(), _of_blocks()),
}


@pytest.mark.parametrize("profile", ["a100", "rtx-4090", "l40s", "h200", "mi300x"])
def test_attention_fits_the_gpu_and_runs_on_its_matrix_units(profile: str) -> None:
    gpu = device(profile)
    units = ("mma.sync", "wgmma.mma_async") if gpu.backend == "cuda" else ("mfma",)
    for name, (template, call) in _CALLS.items():
        assert template.refuse(call, gpu) is None
        launch = template.build(call, gpu).launches[0]
        (binary,) = compile_all([request_of(call, launch, launch.regimes[0].variants[0])], gpu)
        assert refuse_resources(binary, gpu) is None, name
        assert binary.spilled_bytes == 0, name
        assert any(unit in binary.assembly for unit in units), name
