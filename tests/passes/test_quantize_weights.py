"""quantize-weights: codes within the bounds of their format, shared, refused by name."""

import numpy as np
import pytest
import torch

from planish.compiler.ops import dequantize
from planish.compiler.pass_ import Context
from planish.compiler.types import DType
from planish.compiler.verify import verify
from planish.errors import PassError
from planish.hardware_profiles import load_profile
from planish.passes import EXACT, QuantizeWeights, parse_pass
from planish.passes.weight_codes import FP4, NF4, Codes, Format
from tests.passes.harness import evaluate_program, graph_text, program_of, random_inputs, refusals

LINEAR = graph_text(
    "%x: f32[B, S, 64]",
    "linear(%x, @w: f32[96, 64]): f32[B, S, 96]  # up",
    "relu(%0): f32[B, S, 96]",
    "linear(%1, @v: f32[48, 96], @b: f32[48]): f32[B, S, 48]  # down",
    outputs="%2",
)
TIED = graph_text(
    "%ids: i64[B, S]",
    "embedding(@e: f32[50, 64], %ids): f32[B, S, 64]  # embed",
    "linear(%0, @e: f32[50, 64]): f32[B, S, 50]  # head",
    outputs="%1",
)


def _restored(codes: Codes, layout: Format) -> torch.Tensor:
    attrs = {"group": layout.group, "bits": layout.bits, "codebook": layout.codebook}
    return dequantize.reference(codes.codes, codes.scale, codes.zero, dtype=DType.f32, **attrs)


def _weight(rows: int = 40, width: int = 100) -> torch.Tensor:
    return torch.randn(rows, width, generator=torch.Generator().manual_seed(3))


def _largest(weight: torch.Tensor, group: int) -> torch.Tensor:
    """The largest magnitude of each element's group, spelled out."""
    parts = [part.abs().amax(1, keepdim=True).expand_as(part) for part in weight.split(group, 1)]
    return torch.cat(parts, 1)


@pytest.mark.parametrize("group", [16, 32, 100])
@pytest.mark.parametrize("bits", [4, 8])
def test_symmetric_codes_are_nearest(bits: int, group: int) -> None:
    weight, layout = _weight(), Format(bits, group)
    codes = layout.encode(weight)
    step = _largest(weight, group) / (127 if bits == 8 else 7)
    # Four bits may clip the largest value, by at most 2 steps, for a smaller squared error than the plain grid has.
    assert ((_restored(codes, layout) - weight).abs() <= (0.5 if bits == 8 else 2) * step * 1.002 + 1e-6).all()
    plain = (weight / step).round().clamp(-8, 7) * step
    assert (_restored(codes, layout) - weight).square().sum() <= (plain - weight).square().sum() * 1.001


def test_zero_points_hold_one_sided_groups_at_half_a_step() -> None:
    weight, layout = _weight().abs() + 0.5, Format(4, 32, symmetric=False)
    codes = layout.encode(weight)
    step = _largest(weight, 32) / 15
    assert ((_restored(codes, layout) - weight).abs() <= 0.5 * step * 1.01).all()


TABLE = (0.3, -2.0, 1.5, 0.1, -0.1, 2.5, -1.0, 0.9, -0.6, 0.6, 2.0, -1.4, 0.0, 1.2, -0.3, -3.0)


@pytest.mark.parametrize("codebook", [NF4, FP4, TABLE], ids=["nf4", "fp4", "any"])
def test_codes_of_a_codebook_take_the_nearest_of_its_levels(codebook: tuple[float, ...]) -> None:
    weight, layout = _weight(8, 64), Format(4, 64, codebook=codebook)
    codes = layout.encode(weight)
    levels = np.array(codebook, np.float32)
    scale = (weight.abs().amax(1, keepdim=True) / float(np.abs(levels).max())).half().float()
    error = np.abs((weight / scale).numpy()[..., None] - levels)
    found = np.take_along_axis(error, codes.codes.numpy()[..., None].astype(int), -1)[..., 0]
    np.testing.assert_allclose(found, error.min(-1), atol=1e-6)


def test_fp4_has_the_levels_of_e2m1() -> None:
    def level(code: int) -> float:
        exponent, mantissa = code >> 1 & 3, code & 1
        size = 2.0 ** (exponent - 1) * (1 + mantissa / 2) if exponent else mantissa / 2
        return -size if code >> 3 else size

    assert [level(code) for code in range(16)] == list(FP4)


def test_f8_keeps_three_bits_of_mantissa_at_any_magnitude() -> None:
    weight = _weight() * 10.0 ** -torch.arange(0.0, 8.0).repeat(5)[:, None]
    codes = Format(8, 100, f8=True).encode(weight)
    assert codes.codes.dtype is torch.float8_e4m3fn
    assert codes.scale.dtype is torch.float32
    restored, scale = _restored(codes, Format(8, 100, f8=True)), weight.abs().amax(1, keepdim=True) / 448
    assert not Format(8, 4, f8=True).encode(torch.tensor([[1e-40, 0.0, -1e-40, 0.0]])).codes.float().isnan().any()
    assert ((restored - weight).abs() <= 1.001 * torch.maximum(2.0**-4 * weight.abs(), 2.0**-10 * scale)).all()


CODED = (Format(4, 32, codebook=NF4), Format(4, 32, codebook=FP4), Format(8, 100, f8=True))


def test_the_stated_error_is_that_of_the_restored_weight() -> None:
    weight = _weight()
    for layout in (Format(4, 32), Format(8, 100), Format(4, 32, symmetric=False), *CODED):
        codes = layout.encode(weight)
        error = float((_restored(codes, layout) - weight).norm() / weight.norm())
        assert codes.error == pytest.approx(error, rel=1e-3)


def test_a_row_of_zeros_stays_zero() -> None:
    for layout in (Format(4, 16), Format(8, 16), Format(4, 16, symmetric=False), *CODED):
        assert not _restored(layout.encode(torch.zeros(2, 40)), layout).any()


@pytest.mark.parametrize(
    ("options", "largest"),
    [("{bits=8}", 0.02), ("{group=32}", 0.2), ("{group=32, symmetric=false}", 0.2), ('{format="nf4"}', 0.2),
     ('{format="fp4"}', 0.2), ('{bits=8, activations="int8"}', 0.04), ('{format="f8"}', 0.05),
     ('{format="f8", activations="f8"}', 0.08)],
)  # fmt: skip
def test_results_stay_near(options: str, largest: float) -> None:
    program = program_of(LINEAR)
    change = parse_pass(f"quantize-weights{options}").apply(program, Context())
    verify(change.program)
    inputs = random_inputs(program.main, {"B": 2, "S": 5})
    (expected,), (actual,) = evaluate_program(program, inputs), evaluate_program(change.program, inputs)
    error = float((expected - actual).norm() / expected.norm())
    assert 1e-4 < error < largest


EXPERTS = graph_text(
    "%x: f32[B, S, 64], %i: i64[B, S]",
    "grouped_linear(%x, @w: f32[3, 96, 64], %i): f32[B, S, 96]  # experts.up",
    outputs="%0",
)


@pytest.mark.parametrize("options", ["bits=8", "bits=4,group=32", "bits=4,symmetric=false", 'format="nf4"'])
def test_each_expert_is_quantized_as_a_matrix_of_its_own(options: str) -> None:
    program, each = program_of(EXPERTS), parse_pass(f"quantize-weights{{{options}}}")
    assert isinstance(each, QuantizeWeights)
    after = each.apply(program, Context()).program
    verify(after)
    layout = each.format_of(64)
    for i, weight in enumerate(program.weights["w"]):
        alone = layout.encode(weight)
        assert torch.equal(after.weights["w.codes"][i], alone.codes)
        assert torch.equal(after.weights["w.scale"][i], alone.scale)
    inputs = random_inputs(program.main, {"B": 2, "S": 5})
    (expected,), (found,) = evaluate_program(program, inputs), evaluate_program(after, inputs)
    assert (found - expected).norm() / expected.norm() < (0.01 if "8" in options else 0.2)


def test_inputs_of_experts_are_not_rounded() -> None:
    program, plain = program_of(EXPERTS), QuantizeWeights(bits=8)
    change = QuantizeWeights(bits=8, activations="int8").apply(program, Context())
    assert str(change.program) == str(plain.apply(program, Context()).program)
    assert refusals(change.hits) == ["inputs of experts are multiplied as floats"]


def test_plain_weights_are_gone_and_sizes_are_told() -> None:
    change = QuantizeWeights(group=32).apply(program_of(LINEAR), Context())
    assert set(change.program.weights) == {"w.codes", "w.scale", "v.codes", "v.scale", "b"}
    assert change.program.notes["quantized weights"][0].startswith(
        "2 weights: 0.0 MB -> 0.0 MB; relative RMS error 0.0"
    )


def test_a_tied_table_is_stored_once() -> None:
    change = QuantizeWeights().apply(program_of(TIED), Context())
    assert set(change.program.weights) == {"e.codes", "e.scale"}
    assert str(change.program.main).count("= dequantize") == 1


def test_embeddings_and_scopes_can_be_left_alone() -> None:
    change = QuantizeWeights(embeddings=False).apply(program_of(TIED), Context())
    assert set(change.program.weights) == {"e", "e.codes", "e.scale"}
    change = QuantizeWeights(skip=("do*",)).apply(program_of(LINEAR), Context())
    assert refusals(change.hits) == ["skipped by its scope"]


F8 = """\
graph main<B: 1..64 = 2, S: 1..32 = 5>(%x: f32[B, S, 64]) {
  %0 = quantization_scale(%x) {group=64, dtype=f8}: f32[B, S, 1]
  %1 = quantize(%x, %0) {group=64, dtype=f8}: f8[B, S, 64]
  %2 = dequantize(%1, %0) {group=64}: f32[B, S, 64]
  %3 = dequantize(@w.codes: f8[96, 64], @w.scale: f32[96, 1]) {group=64}: f32[96, 64]
  %4 = linear(%2, %3): f32[B, S, 96]  # up
  return %4
}"""


def test_rows_and_weight_become_f8() -> None:
    before = graph_text("%x: f32[B, S, 64]", "linear(%x, @w: f32[96, 64]): f32[B, S, 96]  # up", outputs="%0")
    after = parse_pass('quantize-weights{format="f8", activations="f8"}').apply(program_of(before), Context()).program
    assert str(after.main) == F8


def test_a_cpu_refuses_f8() -> None:
    with pytest.raises(PassError, match="zen5 computes no f8; bits=8 takes as much memory"):
        QuantizeWeights(format="f8").apply(program_of(LINEAR), Context(load_profile("zen5")))


def test_a_gpu_without_f8_units_takes_it_for_weights_alone() -> None:
    a100 = Context(load_profile("a100"))
    assert QuantizeWeights(format="f8").apply(program_of(LINEAR), a100).program.weights.keys() >= {"w.codes"}
    with pytest.raises(PassError, match='a100 has no f8 matrix units; take activations="float"'):
        QuantizeWeights(format="f8", activations="f8").apply(program_of(LINEAR), a100)


def test_a_second_time_changes_nothing() -> None:
    once = QuantizeWeights().apply(program_of(LINEAR), Context()).program
    assert str(QuantizeWeights().apply(once, Context()).program) == str(once)


def test_undefined_weights_are_refused_by_name() -> None:
    bad = torch.full((96, 64), float("nan"))
    change = QuantizeWeights().apply(program_of(LINEAR, {"w": bad}), Context())
    assert refusals(change.hits) == ["its weight w holds infinite or undefined numbers"]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ("bits=3", "bits is 4 or 8, not 3"),
        ("group=24", "a group is a multiple of 16 columns, or 0 for rows, not 24"),
        ('format="f4"', "format is int or nf4 or fp4 or f8, not f4"),
        ('format="f8", bits=4', "f8 has 8 bits, no zero points and float or f8 activations"),
        ('format="f8", group=64', "f8 has one scale a row"),
        ('format="fp4", activations="f8"', "fp4 has 4 bits, no zero points and float activations"),
        ('bits=8, activations="f8"', 'activations of f8 go with weights of f8: format="f8"'),
        ('bits=8, format="nf4"', "nf4 has 4 bits"),
        ("bits=8, symmetric=false", "8-bit weights are symmetric"),
    ],
)
def test_impossible_options_are_refused(options: str, words: str) -> None:
    with pytest.raises(PassError, match=words):
        parse_pass(f"quantize-weights{{{options}}}")


def test_it_is_no_part_of_the_exact_passes() -> None:
    assert all(each.name != "quantize-weights" for each in EXACT)
