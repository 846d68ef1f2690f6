"""Activations as codes on GPUs in one kernel with their scales and the norm before them, against torch."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from planish.codegen.select import Choice, select
from planish.codegen.triton.compile import compile_all
from planish.codegen.triton.cost import refuse_resources
from planish.codegen.triton.quantized_rows import QuantizedRows
from planish.codegen.triton.request import request_of
from planish.codegen.triton.templates import TEMPLATES
from planish.compiler import ops
from planish.compiler.ir import Graph, Value
from planish.compiler.types import DType
from tests.codegen.compare import leaf, normal
from tests.codegen.triton.harness import device, run_results

Made = Callable[..., Value]


def graph_of(made: Made, *tensors: Tensor, group: int = 1 << 20) -> Graph:
    leaves = tuple(leaf(f"x{i}", t) for i, t in enumerate(tensors))
    x = made(*leaves)
    group = min(group, int(tensors[0].shape[-1]))
    scale = ops.quantization_scale(x, group=group)
    return Graph("main", leaves, (ops.quantize(x, scale, group=group), scale))


def templates(graph: Graph, gpu: str = "h200") -> list[str]:
    return [w.template.name for w in select(graph, TEMPLATES, device(gpu)).work if isinstance(w, Choice)]


def check(graph: Graph, tensors: tuple[Tensor, ...], x: Tensor) -> None:
    """Against the formula for the rows x: scales of the largest, and codes that are as near as they can be."""
    (choice,) = select(graph, TEMPLATES, device()).work
    assert isinstance(choice, Choice)
    assert isinstance(choice.template, QuantizedRows)
    wanted = x.double().abs().amax(-1, keepdim=True) / 127
    for codes, scale in run_results(QuantizedRows(), choice.call, {f"x{i}": t for i, t in enumerate(tensors)}):
        torch.testing.assert_close(scale.double(), wanted, rtol=2e-3, atol=0)
        assert int(codes.abs().max()) == 127
        assert float((codes * wanted - x).abs().max() / wanted.max()) < 0.52 + 127 * 2e-3


def test_codes_and_scales_of_what_lies_in_memory() -> None:
    x = normal(2, 5, 70)
    x[1, 2] = 0
    check(graph_of(lambda x: x, x), (x,), x)


def test_a_norm_with_casts_and_its_weight_is_computed_on_the_way() -> None:
    x, w = normal(3, 100).half(), (1 + normal(100, seed=1) / 4).half()

    def made(x: Value, w: Value) -> Value:
        return ops.mul(ops.cast(ops.rms_norm(ops.cast(x, dtype=DType.f32), eps=1e-5), dtype=DType.f16), w)

    check(graph_of(made, x, w), (x, w), functional.rms_norm(x.float(), (100,), w.float(), 1e-5))


def test_a_layer_norm_with_weight_and_bias() -> None:
    x, w, b = normal(6, 90), 1 + normal(90, seed=1) / 4, normal(90, seed=2)
    check(
        graph_of(lambda x, w, b: ops.layer_norm(x, w, b, eps=1e-5), x, w, b),
        (x, w, b),
        functional.layer_norm(x, (90,), w, b),
    )


def test_groups_that_are_parts_of_rows_have_kernels_of_their_own() -> None:
    graph = graph_of(lambda x, w: ops.rms_norm(x, w, eps=1e-5), normal(3, 96), normal(96), group=32)
    assert templates(graph) == ["rows", "quantization", "map"]


def test_a_norm_that_something_else_reads_is_written() -> None:
    x = leaf("x0", normal(3, 96))
    y = ops.rms_norm(x, eps=1e-5)
    scale = ops.quantization_scale(y, group=96)
    graph = Graph("main", (x,), (ops.quantize(y, scale, group=96), scale, y))
    assert templates(graph) == ["rows", "quantized-rows"]


@pytest.mark.parametrize("gpu", ["a100", "rtx-4090", "h200", "mi300x"])
@pytest.mark.parametrize("columns", [4096, 14336])
def test_rows_of_language_models_compile_without_spills(gpu: str, columns: int) -> None:
    x, w = torch.empty(8, columns).half(), torch.empty(columns).half()
    (choice,) = select(graph_of(lambda x, w: ops.rms_norm(x, w, eps=1e-5), x, w), TEMPLATES, device(gpu)).work
    assert isinstance(choice, Choice)
    (launch,) = QuantizedRows().build(choice.call, device(gpu)).launches
    (binary,) = compile_all([request_of(choice.call, launch, launch.regimes[0].variants[-1])], device(gpu))
    assert refuse_resources(binary, device(gpu)) is None
    assert binary.spilled_bytes == 0
