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


def check(graph: Graph, tensors: tuple[Tensor, ...], x: Tensor, *others: Tensor, group: int = 1 << 20) -> None:
    """Against the formula for the rows x: scales of the largest of each group, and codes that are as near as they can
    be. `others` are further results."""
    (choice,) = select(graph, TEMPLATES, device()).work
    assert isinstance(choice, Choice)
    assert isinstance(choice.template, QuantizedRows)
    parts = [part.double().abs().amax(-1, keepdim=True) / 127 for part in x.split(group, dim=-1)]
    wanted = torch.cat(parts, dim=-1)
    spread = wanted.repeat_interleave(min(group, x.shape[-1]), dim=-1)[..., : x.shape[-1]]
    for codes, scale, *more in run_results(QuantizedRows(), choice.call, {f"x{i}": t for i, t in enumerate(tensors)}):
        torch.testing.assert_close(scale.double(), wanted, rtol=2e-3, atol=0)
        assert int(codes.abs().max()) == 127
        assert float(((codes * spread - x).abs() / spread.clamp(min=1e-9)).max()) < 0.52 + 127 * 2e-3
        for found, other in zip(more, others, strict=True):
            torch.testing.assert_close(found.float(), other, rtol=2e-3, atol=1e-4)


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


@pytest.mark.parametrize(("columns", "group"), [(96, 32), (72, 16)])
def test_groups_that_are_parts_of_rows(columns: int, group: int) -> None:
    x, w = normal(3, columns), 1 + normal(columns, seed=1) / 4
    normed = functional.rms_norm(x, (columns,), w, 1e-5)
    graph = graph_of(lambda x, w: ops.rms_norm(x, w, eps=1e-5), x, w, group=group)
    check(graph, (x, w), normed, group=group)
    check(graph_of(lambda x: x, x, group=group), (x,), x, group=group)


def test_groups_go_over_several_blocks_of_a_row() -> None:
    x = normal(2, 1100).half()
    check(graph_of(lambda x: x, x, group=128), (x,), x.float(), group=128)


def test_other_groups_have_kernels_of_their_own() -> None:
    graph = graph_of(lambda x, w: ops.rms_norm(x, w, eps=1e-5), normal(3, 96), normal(96), group=48)
    assert templates(graph) == ["rows", "quantization", "map"]


def test_rows_that_no_block_holds_are_read_twice() -> None:
    x = normal(2, 17000).half()
    x[1] = 0
    graph = graph_of(lambda x: ops.mul(x, ops.sigmoid(x)), x)
    check(graph, (x,), x.float() * torch.sigmoid(x.float()))


def test_a_gate_is_computed_on_the_way() -> None:
    gate, up = normal(3, 70).half(), normal(3, 70, seed=1).half()
    graph = graph_of(lambda g, u: ops.mul(ops.silu(g), u), gate, up)
    check(graph, (gate, up), functional.silu(gate.float()) * up.float())


def summed(*tensors: Tensor) -> Graph:
    """Codes of the norm of a sum, with the norm and the sum, which all lie in memory at the end."""
    x, y, w = (leaf(f"x{i}", t) for i, t in enumerate(tensors))
    total = ops.add(x, y)
    normed = ops.mul(ops.cast(ops.rms_norm(ops.cast(total, dtype=DType.f32), eps=1e-5), dtype=DType.f16), w)
    columns = int(tensors[0].shape[-1])
    scale = ops.quantization_scale(normed, group=columns)
    return Graph("main", (x, y, w), (ops.quantize(normed, scale, group=columns), scale, normed, total))


def test_the_norm_and_the_sum_that_others_read_are_written_too() -> None:
    x, y, w = normal(2, 3, 90).half(), normal(2, 3, 90, seed=1).half(), (1 + normal(90, seed=2) / 4).half()
    total = x.float() + y.float()
    normed = functional.rms_norm(total, (90,), w.float(), 1e-5)
    check(summed(x, y, w), (x, y, w), normed, normed, total)


def test_a_norm_that_reads_what_comes_after_a_reader_of_the_sum_waits() -> None:
    x, y = leaf("x0", normal(3, 96)), leaf("x1", normal(3, 96))
    total = ops.add(x, y)
    weight = ops.mean(ops.softmax(total, axis=1), axes=(0,))
    graph = Graph("main", (x, y), (ops.rms_norm(total, weight, eps=1e-5), total))
    assert templates(graph) == ["map", "rows", "reduce", "rows"]


def normed(columns: int, group: int = 1 << 20) -> Graph:
    x, w = torch.empty(8, columns).half(), torch.empty(columns).half()
    return graph_of(lambda x, w: ops.rms_norm(x, w, eps=1e-5), x, w, group=group)


GRAPHS = {
    "4096 columns": lambda: normed(4096),
    "14336 columns": lambda: normed(14336),
    "groups": lambda: normed(4096, group=128),
    "long rows": lambda: graph_of(lambda x: x, torch.empty(8, 28672).half()),
    "groups of long rows": lambda: graph_of(lambda x: x, torch.empty(8, 28672).half(), group=128),
    "four results": lambda: summed(*(torch.empty(*shape).half() for shape in ((8, 4096), (8, 4096), (4096,)))),
}


@pytest.mark.parametrize("gpu", ["a100", "rtx-4090", "h200", "mi300x"])
def test_rows_of_language_models_compile_without_spills(gpu: str) -> None:
    requests = []
    for made in GRAPHS.values():
        (choice,) = select(made(), TEMPLATES, device(gpu)).work
        assert isinstance(choice, Choice)
        (launch,) = QuantizedRows().build(choice.call, device(gpu)).launches
        requests.append(request_of(choice.call, launch, launch.regimes[0].variants[-1]))
    for name, binary in zip(GRAPHS, compile_all(requests, device(gpu)), strict=True):
        assert refuse_resources(binary, device(gpu)) is None, name
        assert binary.spilled_bytes == 0, name
