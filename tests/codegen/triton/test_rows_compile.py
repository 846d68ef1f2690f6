"""What is bound by memory, and plain attention, compile for every GPU: within its memory and registers, unspilled."""

from collections.abc import Sequence

import pytest

from planish.codegen.select import Choice, select
from planish.codegen.triton.compile import compile_all
from planish.codegen.triton.cost import refuse_resources
from planish.codegen.triton.request import request_of
from planish.codegen.triton.templates import TEMPLATES
from planish.compiler import ops
from planish.compiler.ir import Graph, Value
from planish.compiler.types import DType, Shape, Size
from tests.codegen.triton.harness import device

_M = Size("m")
_X = ops.input_(name="x", shape=(_M.symbol, 4096), dtype=DType.f16)
_Y = ops.input_(name="y", shape=(_M.symbol, 4096), dtype=DType.f16)
_LONG = ops.input_(name="l", shape=(_M.symbol, 32000), dtype=DType.f16)


def _of(name: str, *shape: int, dtype: DType = DType.f16) -> Value:
    return ops.weight(name=name, shape=shape, dtype=dtype)


def _coded(x: Value) -> tuple[Value, Value]:
    scale = ops.quantization_scale(x, group=4096)
    return ops.quantize(x, scale, group=4096), scale


def _attended(width: int) -> Value:
    shapes: Sequence[Shape] = ((1, 32, _M.symbol, width), *[(1, 8, _M.symbol, width)] * 2)
    q, k, v = (ops.input_(name=n, shape=s, dtype=DType.f16) for n, s in zip("qkv", shapes, strict=True))
    return ops.attention(q, k, v, causal=True, scale=0.1)


# by the template that serves the results
_RESULTS: dict[str, tuple[str, tuple[Value, ...]]] = {
    "softmax": ("rows", (ops.softmax(_LONG, axis=1),)),
    "norm with a sum": ("rows", (ops.rms_norm(ops.add(_X, _Y), _of("w", 4096)),)),
    "norm": ("rows", (ops.layer_norm(_X, _of("w", 4096), _of("b", 4096)),)),
    "sum of rows": ("reduce", (ops.sum_(_X, axes=(1,)),)),
    "sum of columns": ("reduce", (ops.sum_(_X, axes=(0,)),)),
    "product": ("map", (ops.mul(ops.silu(_X), _Y),)),
    "look-up": (
        "map",
        (ops.embedding(_of("t", 1000, 4096), ops.input_(name="i", shape=(_M.symbol,), dtype=DType.i64)),),
    ),
    "codes": ("quantized-rows", _coded(ops.rms_norm(_X))),
    "attention": ("attention", (_attended(128),)),
    "attention of 64": ("attention", (_attended(64),)),
}


@pytest.mark.parametrize("profile", ["a100", "rtx-4090", "h200", "mi300x"])
def test_every_kernel_fits_the_gpu_without_spills(profile: str) -> None:
    gpu, requests = device(profile), {}
    for name, (template, results) in _RESULTS.items():
        leaves = {n: None for r in results for n in Graph("main", (), results).nodes() if n.op.name == "input"}
        graph = Graph("main", tuple(n.values[0] for n in leaves), results, (_M,))
        (choice,) = select(graph, TEMPLATES, gpu).work
        assert isinstance(choice, Choice)
        assert choice.template.name == template, name
        for i, launch in enumerate(choice.template.build(choice.call, gpu).launches):
            for j, regime in enumerate(launch.regimes):
                requests[name, i, j] = request_of(choice.call, launch, regime.variants[0])
    for name, binary in zip(requests, compile_all(list(requests.values()), gpu), strict=True):
        assert refuse_resources(binary, gpu) is None, name
        assert binary.spilled_bytes == 0, name
