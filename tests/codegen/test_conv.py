"""Convolutions on CPUs against torch: geometries, groups, dtypes, dynamic sizes and instruction sets."""

import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import functional

from planish.codegen.template import Template
from planish.codegen.tvm.build import build_object
from planish.codegen.tvm.conv import Conv
from planish.codegen.tvm.isa import AVX2, AVX512, NEON, Isa
from planish.codegen.view import View
from planish.compiler import ops
from planish.compiler.ir import Graph
from planish.compiler.types import DType, Shape, evaluate_shape, symbol
from tests.codegen.harness import call_of, host_isa, run_call

TORCH = {DType.f32: torch.float32, DType.bf16: torch.bfloat16}
TOLERANCE = {DType.f32: 1e-4, DType.bf16: 3e-2}


def graph(
    shape: Shape,
    weight: tuple[int, ...],
    stride: int,
    padding: tuple[int, ...],
    *,
    dilation: int = 1,
    groups: int = 1,
    after: tuple[int, ...] | None = None,
    dtype: DType = DType.f32,
) -> Graph:
    """A convolution with bias and ReLU6 over x of `shape`."""
    axes = len(shape) - 2
    x = ops.input_(name="x", shape=shape, dtype=dtype)
    w = ops.weight(name="w", shape=weight, dtype=dtype)
    b = ops.weight(name="b", shape=weight[:1], dtype=dtype)
    attrs: dict[str, Any] = {"stride": (stride,) * axes, "padding": padding, "dilation": (dilation,) * axes}
    y = ops.conv(x, w, b, **attrs, groups=groups, after=after)
    return Graph("main", (x,), (ops.clamp(y, low=0.0, high=6.0),))


def check(
    template: Template,
    made: Graph,
    *,
    sizes: dict[str, int] | None = None,
    isa: Isa | None = None,
    tasks: int = 2,
    out: View | None = None,
) -> None:
    """Run the graph of `graph` and compare with torch in f64."""
    call = call_of(made, ops.conv, out=out)
    x, w, b = call.anchor.operands
    generator = torch.Generator().manual_seed(0)
    shapes = {"x": evaluate_shape(x.shape, sizes or {}), "w": w.shape, "b": b.shape}
    t = {name: torch.randn(shape, generator=generator).to(TORCH[x.dtype]) for name, shape in shapes.items()}
    got = run_call(template, call, t, sizes=sizes, isa=isa, tasks=tasks)
    tolerance = TOLERANCE[x.dtype]
    torch.testing.assert_close(got.double(), _expected(call.anchor.attrs, t), rtol=tolerance, atol=tolerance)


def _expected(attrs: Mapping[str, Any], t: dict[str, torch.Tensor]) -> torch.Tensor:
    function: Any = (functional.conv1d, functional.conv2d, functional.conv3d)[t["x"].ndim - 3]
    x, w, b = (t[name].double() for name in "xwb")
    sides = zip(reversed(attrs["padding"]), reversed(attrs["after"] or attrs["padding"]), strict=True)
    padded = functional.pad(x.movedim(-1, 1), [count for side in sides for count in side])
    y: torch.Tensor = function(padded, w.movedim(-1, 1), b, attrs["stride"], 0, attrs["dilation"], attrs["groups"])
    return y.movedim(1, -1).clamp(0, 6)


@pytest.mark.parametrize("isa", [host_isa(), AVX2], ids=["host", "avx2"])
@pytest.mark.parametrize(
    ("shape", "weight", "stride", "padding"),
    [
        ((1, 19, 17, 3), (32, 3, 3, 3), 2, (1, 1)),
        ((2, 13, 11, 16), (33, 3, 3, 16), 1, (1, 1)),
        ((1, 28, 28, 3), (24, 14, 14, 3), 14, (0, 0)),
        ((1, 20, 17, 3), (64, 7, 7, 3), 2, (3, 3)),
        ((1, 9, 8, 24), (40, 1, 1, 24), 1, (0, 0)),
        ((2, 9, 8, 24), (7, 1, 1, 24), 2, (0, 0)),
        ((1, 5, 6, 7), (1, 2, 3, 7), 1, (1, 2)),
        ((1, 1, 1, 4), (5, 3, 3, 4), 1, (1, 1)),
        ((2, 5, 9, 8, 3), (17, 3, 3, 3, 3), 1, (1, 1, 1)),
        ((1, 6, 7, 9, 5), (8, 2, 3, 1, 5), 2, (0, 1, 0)),
        ((2, 3, 4, 5, 6), (9, 1, 1, 1, 6), 1, (0, 0, 0)),
    ],
)
def test_convolutions_over_images_and_volumes_are_right(
    shape: tuple[int, ...], weight: tuple[int, ...], stride: int, padding: tuple[int, ...], isa: Isa
) -> None:
    check(Conv(), graph(shape, weight, stride, padding), isa=isa)


@pytest.mark.parametrize("isa", [host_isa(), AVX2], ids=["host", "avx2"])
@pytest.mark.parametrize(
    ("channels", "kernel", "padding", "after"),
    [(3, 3, (0, 0), (1, 1)), (16, 3, (1, 0), (0, 2)), (8, 1, (0, 0), (1, 0)), (5, 2, (0, 1), (4, 3))],
)
def test_padding_may_differ_between_the_ends_of_an_axis(
    channels: int, kernel: int, padding: tuple[int, int], after: tuple[int, int], isa: Isa
) -> None:
    made = graph((2, 9, 8, channels), (20, kernel, kernel, channels), 2, padding, after=after)
    check(Conv(), made, isa=isa)


@pytest.mark.parametrize("tasks", [1, 3, 50])
@pytest.mark.parametrize("stride", [1, 2])
def test_convolutions_over_time_are_right(stride: int, tasks: int) -> None:
    check(Conv(), graph((2, 31, 10), (20, 3, 10), stride, (1,)), tasks=tasks)


@pytest.mark.parametrize("groups", [1, 2])
def test_dilated_convolutions_are_right(groups: int) -> None:
    check(Conv(), graph((1, 12, 11, 8), (12, 3, 3, 8 // groups), 1, (2, 2), dilation=2, groups=groups))


@pytest.mark.parametrize("isa", [host_isa(), AVX2], ids=["host", "avx2"])
def test_grouped_convolutions_are_right(isa: Isa) -> None:
    check(Conv(), graph((2, 9, 9, 12), (18, 3, 3, 4), 2, (1, 1), groups=3), isa=isa, tasks=3)


def test_a_depthwise_convolution_with_two_outputs_a_channel_is_right() -> None:
    check(Conv(), graph((1, 9, 9, 5), (10, 3, 3, 1), 1, (1, 1), groups=5))


def test_dynamic_images_are_right() -> None:
    n, h, w = symbol("n"), symbol("h"), symbol("w")
    made = graph((n, h, w, 5), (7, 3, 3, 5), 2, (1, 1))
    for sizes in ({"n": 2, "h": 9, "w": 12}, {"n": 1, "h": 1, "w": 1}):
        check(Conv(), made, sizes=sizes, tasks=3)


@pytest.mark.parametrize("channels", [16, 3])
@pytest.mark.parametrize("isa", [host_isa(), AVX2], ids=["host", "avx2"])
def test_bf16_is_summed_in_f32(channels: int, isa: Isa) -> None:
    check(Conv(), graph((1, 9, 8, channels), (33, 3, 3, channels), 1, (1, 1), dtype=DType.bf16), isa=isa)


def test_the_output_may_lie_in_a_wider_buffer() -> None:
    view = View((1, 9, 8, 20), (9 * 8 * 50, 8 * 50, 50, 1), 3, DType.f32)
    check(Conv(), graph((1, 9, 8, 6), (20, 3, 3, 6), 1, (1, 1)), out=view)


@pytest.mark.parametrize("isa", [AVX512, AVX2, NEON], ids=["avx512", "avx2", "neon"])
def test_every_instruction_set_compiles_and_calls_no_library(isa: Isa, tmp_path: Path) -> None:
    call = call_of(graph((1, 9, 9, 3), (8, 3, 3, 3), 2, (1, 1)), ops.conv)
    build_object({"kernel": Conv().build(call, isa).function}, isa, tmp_path / "k.o")
    undefined = subprocess.run(["nm", "-u", tmp_path / "k.o"], capture_output=True, text=True, check=True).stdout
    assert [name for name in undefined.split() if name != "U"] == []


def test_sums_over_short_patches_are_made_in_parts() -> None:
    """Rounding errors of terms that all have one sign grow along a chain of additions."""
    generator = torch.Generator().manual_seed(1)
    tensors = {"x": torch.rand(1, 40, 80, generator=generator), "w": torch.rand(64, 3, 80, generator=generator)}
    x = ops.input_(name="x", shape=(1, 40, 80), dtype=DType.f32)
    w = ops.weight(name="w", shape=(64, 3, 80), dtype=DType.f32)
    made = Graph("main", (x,), (ops.conv(x, w, None, stride=(1,), padding=(0,), dilation=(1,), groups=1),))
    found = run_call(Conv(), call_of(made, ops.conv), tensors)
    patches = tensors["x"][0].unfold(0, 3, 1).transpose(1, 2).reshape(38, 1, 240).double()
    terms = patches * tensors["w"].reshape(1, 64, 240).double()
    wanted, chain = terms.sum(2), torch.zeros(38, 64)
    for step in range(240):
        chain = (chain.double() + terms[..., step]).float()
    chained, ours = ((made_of.double() - wanted).square().mean().sqrt() for made_of in (chain, found[0]))
    assert ours < 0.4 * chained
