"""Loops over the batch: which calls run image by image, and that every batch and thread count gives the right numbers."""

from pathlib import Path

import pytest
import torch

from planish.codegen.batches import Loop
from planish.codegen.schedule import Kernels, schedule
from planish.codegen.select import select
from planish.codegen.tvm.isa import AVX2
from planish.codegen.tvm.templates import TEMPLATES
from planish.compiler.evaluate import evaluate
from planish.compiler.text import parse
from planish.runtime.loading import load
from tests.codegen.test_build import compiled, program_of

GEOMETRY = "stride=[1, 1], padding=[1, 1], dilation=[1, 1]"
# The norm is outside of the loop and its result is read inside; %3 and %5 are read behind it.
LARGE = f"""graph main<B: 1..64 = 2>(%x: f32[B, 64, 64, 32]) {{
  %0 = layer_norm(%x): f32[B, 64, 64, 32]
  %1 = conv(%0, @a: f32[32, 3, 3, 32]) {{{GEOMETRY}}}: f32[B, 64, 64, 32]
  %2 = relu(%1): f32[B, 64, 64, 32]
  %3 = conv(%2, @d: f32[32, 3, 3, 1]) {{{GEOMETRY}, groups=32}}: f32[B, 64, 64, 32]
  %4 = conv(%3, @p: f32[32, 1, 1, 32]) {{stride=[1, 1], padding=[0, 0], dilation=[1, 1]}}: f32[B, 64, 64, 32]
  %5 = add(%4, %2): f32[B, 64, 64, 32]
  %6 = mean(%3) {{axes=[1, 2]}}: f32[B, 32]
  %7 = mean(%5) {{axes=[1, 2]}}: f32[B, 32]
  return %5, %6, %7
}}"""


def planned(text: str) -> Kernels:
    (step,) = schedule(select(parse(text), TEMPLATES, AVX2)).steps
    assert isinstance(step, Kernels)
    return step


def test_convolutions_on_large_images_run_image_by_image() -> None:
    step = planned(LARGE)
    (loop,) = step.loops
    assert [choice.template.name for choice in step.calls[loop.first : loop.last]] == ["conv", "depthwise", "conv"]
    assert loop.size == "B"
    assert [value.node.op.name for value in step.passing] == ["relu"]


def test_what_crosses_the_border_of_a_loop_shares_no_buffer_with_what_is_inside() -> None:
    step = planned(LARGE)
    members = [len(slot.members) for slot in step.slots]
    assert members[:3] == [1, 1, 1]


@pytest.mark.parametrize("threads", [1, 2, 5])
def test_every_batch_and_thread_count_is_right(tmp_path: Path, threads: int) -> None:
    program = program_of(LARGE)
    compiled(program, tmp_path)
    executable = load(tmp_path / "artifact", threads=threads)
    generator = torch.Generator().manual_seed(2)
    for batch in (1, 3, 5):
        x = torch.randn(batch, 64, 64, 32, generator=generator)
        expected = evaluate(program.main, (x,), program.weights)
        for ours, reference in zip(executable(x), expected, strict=True):
            torch.testing.assert_close(ours, reference, rtol=1e-4, atol=2e-3)


def test_images_whose_bytes_are_a_sum_are_right(tmp_path: Path) -> None:
    narrow = "stride=[2], padding=[0], dilation=[1]"
    text = f"""graph main<B: 1..64 = 3, S: 600..4000 = 3000>(%x: f32[B, S, 128]) {{
  %0 = conv(%x, @a: f32[128, 3, 128]) {{{narrow}}}: f32[B, (S - 1)//2, 128]
  %1 = conv(%0, @b: f32[128, 2, 128]) {{{narrow}}}: f32[B, (S - 1)//2//2, 128]
  return %1
}}"""
    program = program_of(text)
    assert planned(text).loops == (Loop(0, 2, "B"),)
    executable, x = compiled(program, tmp_path), torch.randn(3, 2601, 128)
    (ours,), (expected,) = executable(x), evaluate(program.main, (x,), program.weights)
    torch.testing.assert_close(ours, expected, rtol=1e-4, atol=2e-3)


def test_the_times_of_all_turns_are_added_up(tmp_path: Path) -> None:
    profile = compiled(program_of(LARGE), tmp_path).profile(torch.randn(6, 64, 64, 32), repeat=3)
    assert all(row.ms > 0 for row in profile.rows)
    assert "f->times[1] += now - start" in (tmp_path / "artifact" / "kernels" / "sources" / "program.c").read_text()


TWO = f"""graph main<B: 1..64 = 2>(%x: f32[B, 64, 64, 32]) {{
  %0 = conv(%x, @a: f32[32, 3, 3, 32]) {{{GEOMETRY}}}: f32[B, 64, 64, 32]
  %1 = conv(%0, @b: f32[32, 3, 3, 32]) {{{GEOMETRY}}}: f32[B, 64, 64, 32]
  return %1
}}"""


def test_two_convolutions_are_a_loop() -> None:
    assert planned(TWO).loops == (Loop(0, 2, "B"),)


@pytest.mark.parametrize(
    "text",
    [
        TWO.replace("<B: 1..64 = 2>", "").replace("f32[B", "f32[8"),
        TWO.replace("64, 64, 32]", "16, 16, 32]"),
        TWO.replace("f32[32, 3, 3, 32]", "f32[32, 23, 23, 32]").replace("padding=[1, 1]", "padding=[11, 11]"),
        TWO.replace(f"conv(%0, @b: f32[32, 3, 3, 32]) {{{GEOMETRY}}}", "softmax(%0) {axis=0}"),
    ],
    ids=["a batch that is known", "small images", "weights larger than an image", "an op across the batch"],
)
def test_nothing_is_looped_over_where_it_does_not_pay_or_fit(text: str) -> None:
    assert planned(text).loops == ()
