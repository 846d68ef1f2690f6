"""Norms, scales and codes of rows in one kernel, against torch: groups, widths, views, and what is written besides."""

from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from planish.codegen.select import Choice, select
from planish.codegen.tvm.build import build_object
from planish.codegen.tvm.isa import AVX2, Isa
from planish.codegen.tvm.rounded_rows import RoundedRows
from planish.codegen.tvm.templates import TEMPLATES
from planish.compiler.ir import Value
from planish.compiler.text import parse
from planish.hardware_profiles import load_profile
from planish.targets import isa_of_profile
from tests.codegen.compare import normal
from tests.codegen.harness import host_isa, run_results

ISAS = pytest.mark.parametrize("isa", [host_isa(), AVX2], ids=["host", "avx2"])
WIDTHS = pytest.mark.parametrize(("width", "group"), [(64, 64), (64, 16), (100, 32), (37, 7), (5, 8), (576, 128)])

_GRAPH = """graph main<S: 1..64 = 7>(%x: f32[S, W], %y: f32[S, 2 * W]) {{
{before}
  %8 = quantization_scale(%7) {{group=G}}: f32[S, N]
  %9 = quantize(%7, %8) {{group=G}}: i8[S, W]
  return %9, %8{more}
}}"""
_RMS = "  %7 = rms_norm(%x, @gain: f32[W]) {eps=1e-05}: f32[S, W]"
_LAYER = "  %7 = layer_norm(%x, @gain: f32[W], @shift: f32[W]) {eps=1e-05}: f32[S, W]"
_BETWEEN = """  %1 = mul(%x, %x): f32[S, W]
  %2 = rms_norm(%1, @gain: f32[W]) {eps=1e-05}: f32[S, W]
  %7 = add(%2, @shift: f32[W]): f32[S, W]"""
_GATED = """  %1 = slice(%y) {axis=1, start=0, stop=W, step=1}: f32[S, W]
  %2 = slice(%y) {axis=1, start=W, stop=2 * W, step=1}: f32[S, W]
  %3 = silu(%1): f32[S, W]
  %7 = mul(%3, %2): f32[S, W]"""


def _rounded(x: Tensor, group: int) -> tuple[Tensor, Tensor]:
    """Codes and scales, one scale a group."""
    parts = torch.split(x, group, -1)
    scales = [part.abs().amax(-1, keepdim=True) / 127 for part in parts]
    codes = [(p * torch.where(s == 0, 0, 1 / s)).round().clamp(-127, 127) for p, s in zip(parts, scales, strict=True)]
    return torch.cat(codes, -1).to(torch.int8), torch.cat(scales, -1)


def _tensors(rows: int, width: int) -> dict[str, Tensor]:
    names = {"x": (rows, width), "y": (rows, 2 * width), "gain": (width,), "shift": (width,)}
    return {name: normal(*shape, seed=seed) for seed, (name, shape) in enumerate(names.items())}


def _text(before: str, width: int, group: int, more: str = "") -> str:
    numbers = {"2 * W": 2 * width, "W": width, "G": group, "N": -(-width // group)}
    text = _GRAPH.format(before=before, more=more)
    for name, number in numbers.items():
        text = text.replace(f"{name}]", f"{number}]").replace(f"={name}", f"={number}")
    return text


def _choices(text: str, isa: Isa | None = None) -> list[Choice]:
    return [work for work in select(parse(text), TEMPLATES, isa or host_isa()).work if isinstance(work, Choice)]


def _run(text: str, tensors: Mapping[str, Tensor], **options: object) -> list[Tensor]:
    """The results of the only kernel of the graph: codes, scales and the rows themselves where they are written."""
    isa = options.get("isa")
    assert isa is None or isinstance(isa, Isa)
    (choice,) = _choices(text, isa)
    assert isinstance(choice.template, RoundedRows)
    sizes = {"S": len(tensors["x"])}
    found: Mapping[Value, Tensor] = run_results(choice.template, choice.call, tensors, sizes=sizes, **options)  # type: ignore[arg-type]
    return list(found.values())


def _compare(found: list[Tensor], x: Tensor, group: int) -> None:
    """Codes and scales of numbers that may differ in their last bits."""
    codes, scales = _rounded(x, group)
    torch.testing.assert_close(found[1], scales, rtol=1e-5, atol=1e-7)
    assert (found[0].int() - codes.int()).abs().max() <= 1
    assert (found[0] != codes).float().mean() < 0.01


@ISAS
@WIDTHS
def test_rows_in_memory_are_those_of_torch_bit_by_bit(width: int, group: int, isa: Isa) -> None:
    t = _tensors(7, width)
    t["x"][2, :group] = 0
    text = _text("", width, group).replace("%7", "%x")
    for tasks in (1, 3, 20):
        codes, scales = _run(text, t, isa=isa, tasks=tasks)
        wanted = _rounded(t["x"], group)
        assert torch.equal(codes, wanted[0])
        assert torch.equal(scales, wanted[1])


@ISAS
@WIDTHS
@pytest.mark.parametrize("before", [_RMS, _LAYER, _BETWEEN], ids=["rms", "layer", "between"])
def test_normed_rows(before: str, width: int, group: int, isa: Isa) -> None:
    t = _tensors(7, width)
    normed = {
        _RMS: lambda: functional.rms_norm(t["x"], (width,), t["gain"], 1e-5),
        _LAYER: lambda: functional.layer_norm(t["x"], (width,), t["gain"], t["shift"], 1e-5),
        _BETWEEN: lambda: functional.rms_norm(t["x"] * t["x"], (width,), t["gain"], 1e-5) + t["shift"],
    }
    _compare(_run(_text(before, width, group), t, isa=isa, tasks=3), normed[before](), group)


@ISAS
@WIDTHS
def test_gates_over_halves_of_one_row(width: int, group: int, isa: Isa) -> None:
    t = _tensors(7, width)
    found = _run(_text(_GATED, width, group), t, isa=isa, tasks=3)
    _compare(found, functional.silu(t["y"][:, :width]) * t["y"][:, width:], group)


@pytest.mark.parametrize("rows", [1, 2, 64])
@pytest.mark.parametrize("before", [_RMS, _GATED], ids=["rms", "gated"])
def test_any_count_of_rows_and_tasks(before: str, rows: int) -> None:
    t = _tensors(rows, 48)
    functions: dict[str, Callable[[], Tensor]] = {
        _RMS: lambda: functional.rms_norm(t["x"], (48,), t["gain"], 1e-5),
        _GATED: lambda: functional.silu(t["y"][:, :48]) * t["y"][:, 48:],
    }
    for tasks in (1, 2, 5):
        _compare(_run(_text(before, 48, 16), t, tasks=tasks), functions[before](), 16)


@pytest.mark.parametrize("before", [_RMS, _GATED], ids=["rms", "gated"])
def test_rows_that_others_read_are_written(before: str) -> None:
    t = _tensors(5, 100)
    found = _run(_text(before, 100, 32, ", %7"), t)
    wanted = functional.rms_norm(t["x"], (100,), t["gain"], 1e-5)
    wanted = wanted if before == _RMS else functional.silu(t["y"][:, :100]) * t["y"][:, 100:]
    torch.testing.assert_close(found[2], wanted, rtol=1e-5, atol=2e-6)
    codes, scales = _rounded(found[2], 32)
    assert torch.equal(found[0], codes)
    assert torch.equal(found[1], scales)


def test_not_a_number_is_the_scale_of_its_group() -> None:
    t = _tensors(2, 64)
    t["x"][1, 40] = torch.nan
    _, scales = _run(_text("", 64, 32).replace("%7", "%x"), t)
    assert torch.equal(scales.isnan(), torch.tensor([[False, False], [False, True]]))


def test_numbers_that_memory_rounds_are_normed_apart() -> None:
    text = _text(_RMS, 64, 32).replace("f32[S, 64]", "bf16[S, 64]")
    assert [c.template.name for c in _choices(text)] == ["rows", "quantization", "quantization"]
    (misses,) = {c.misses for c in _choices(text) if c.call.anchor.op.name == "quantize"}
    assert misses[0].reason == "its scales are computed elsewhere"


def test_moves_are_kernels_of_their_own() -> None:
    text = _text("  %7 = flip(%x) {axes=[1]}: f32[S, W]", 64, 32)
    assert [c.template.name for c in _choices(text)] == ["map", "quantization", "quantization"]


@pytest.mark.parametrize("target", ["neoverse-v2", "sapphire-rapids", "x86-64-v3"])
@pytest.mark.parametrize("before", [_LAYER, _GATED], ids=["layer", "gated"])
def test_kernels_compile_for_other_cpus(before: str, target: str, tmp_path: Path) -> None:
    isa = isa_of_profile(load_profile(target))
    (choice,) = _choices(_text(before, 100, 32, ", %7"), isa)
    build_object(choice.template.build(choice.call, isa).functions("kernel"), isa, tmp_path / "kernel.o")
    assert (tmp_path / "kernel.o").stat().st_size > 0
