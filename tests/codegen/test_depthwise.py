"""Depthwise convolutions on CPUs against torch: geometries, channel counts, dtypes and instruction sets."""

import subprocess
from pathlib import Path

import pytest

from planish.codegen.tvm.build import build_object
from planish.codegen.tvm.depthwise import Depthwise
from planish.codegen.tvm.isa import AVX2, AVX512, NEON, Isa
from planish.compiler import ops
from planish.compiler.types import DType, symbol
from tests.codegen.harness import call_of, host_isa
from tests.codegen.test_conv import check, graph


@pytest.mark.parametrize("isa", [host_isa(), AVX2], ids=["host", "avx2"])
@pytest.mark.parametrize(
    ("size", "channels", "kernel", "stride"),
    [
        ((7, 7), 32, 3, 1),
        ((14, 13), 48, 5, 1),
        ((15, 15), 23, 5, 2),
        ((9, 9), 7, 7, 1),
        ((5, 9), 300, 3, 2),
        ((1, 1), 16, 3, 1),
        ((2, 31), 1, 3, 2),
    ],
)
def test_depthwise_convolutions_are_right(
    size: tuple[int, int], channels: int, kernel: int, stride: int, isa: Isa
) -> None:
    made = graph((1, *size, channels), (channels, kernel, kernel, 1), stride, (kernel // 2,) * 2, groups=channels)
    check(Depthwise(), made, isa=isa)


@pytest.mark.parametrize("tasks", [1, 2, 3, 100])
def test_every_split_of_the_work_is_right(tasks: int) -> None:
    check(Depthwise(), graph((2, 9, 9, 150), (150, 3, 3, 1), 1, (1, 1), groups=150), tasks=tasks)


@pytest.mark.parametrize("padding", [0, 2])
def test_dilation_and_any_padding_are_right(padding: int) -> None:
    check(Depthwise(), graph((1, 12, 12, 17), (17, 3, 3, 1), 1, (padding,) * 2, dilation=2, groups=17))


@pytest.mark.parametrize("isa", [host_isa(), AVX2], ids=["host", "avx2"])
@pytest.mark.parametrize(("padding", "after"), [((0, 0), (1, 1)), ((2, 0), (0, 3)), ((0, 1), (5, 6))])
def test_padding_may_differ_between_the_ends_of_an_axis(
    padding: tuple[int, int], after: tuple[int, int], isa: Isa
) -> None:
    for stride in (1, 2):
        check(Depthwise(), graph((2, 9, 10, 40), (40, 3, 3, 1), stride, padding, after=after, groups=40), isa=isa)


def test_convolutions_over_time_are_right() -> None:
    check(Depthwise(), graph((2, 13, 20), (20, 5, 1), 1, (2,), groups=20))


@pytest.mark.parametrize("stride", [1, 2])
def test_convolutions_over_volumes_are_right(stride: int) -> None:
    made = graph((2, 5, 6, 7, 20), (20, 3, 2, 3, 1), stride, (1, 0, 2), groups=20)
    check(Depthwise(), made)


def test_dynamic_images_are_right() -> None:
    n, h, w = symbol("n"), symbol("h"), symbol("w")
    made = graph((n, h, w, 40), (40, 3, 3, 1), 2, (1, 1), groups=40)
    for sizes in ({"n": 2, "h": 9, "w": 12}, {"n": 1, "h": 1, "w": 2}):
        check(Depthwise(), made, sizes=sizes, tasks=3)


@pytest.mark.parametrize("isa", [host_isa(), AVX2], ids=["host", "avx2"])
def test_bf16_is_summed_in_f32(isa: Isa) -> None:
    check(Depthwise(), graph((1, 9, 9, 27), (27, 3, 3, 1), 1, (1, 1), groups=27, dtype=DType.bf16), isa=isa)


@pytest.mark.parametrize("isa", [AVX512, AVX2, NEON], ids=["avx512", "avx2", "neon"])
def test_every_instruction_set_compiles_and_calls_no_library(isa: Isa, tmp_path: Path) -> None:
    call = call_of(graph((1, 9, 9, 24), (24, 3, 3, 1), 1, (1, 1), groups=24), ops.conv)
    build_object({"kernel": Depthwise().build(call, isa).function}, isa, tmp_path / "k.o")
    undefined = subprocess.run(["nm", "-u", tmp_path / "k.o"], capture_output=True, text=True, check=True).stdout
    assert [name for name in undefined.split() if name != "U"] == []


def test_refuses_what_is_not_depthwise() -> None:
    words = "it is not depthwise with one output channel a group"
    for weight, groups in (((8, 3, 3, 8), 1), ((16, 3, 3, 1), 8)):
        call = call_of(graph((1, 9, 9, 8), weight, 1, (1, 1), groups=groups), ops.conv)
        assert Depthwise().refuse(call, AVX2) == words
