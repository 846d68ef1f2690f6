"""`compile(tune=...)`: what it refuses, and what the report says where nothing is measured."""

from pathlib import Path

import pytest
import torch
from torch import nn
from typer.testing import CliRunner

import planish
from planish.cli import app
from planish.codegen.variants import VariantRow, model_error, picks
from planish.errors import InputError
from planish.hardware_profiles import load_profile
from planish.targets import refuse_measuring

X = torch.zeros(2, 4)


@pytest.mark.parametrize("tune", [-1, "auto", True])
def test_refuses_what_is_no_number_of_variants(tune: object) -> None:
    with pytest.raises(InputError, match="compile: tune is a number of variants from 0 on, not"):
        planish.compile(nn.Identity(), "h200", inputs=(X,), tune=tune)  # type: ignore[arg-type]


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_refuses_to_measure_where_the_device_is_not() -> None:
    words = "compile: tune=3 measures on the device, but this machine has no GPU that torch can use; leave tune out"
    with pytest.raises(InputError, match=words):
        planish.compile(nn.Identity(), "h200", inputs=(X,), tune=3)


def test_refuses_to_measure_kernels_of_a_cpu() -> None:
    words = "compile: tune is for GPUs; kernels for 'neoverse-v2' are chosen without measuring"
    with pytest.raises(InputError, match=words):
        planish.compile(nn.Identity(), "neoverse-v2", inputs=(X,), tune=0)


@pytest.mark.parametrize(
    ("name", "why"), [("NVIDIA H200", None), ("NVIDIA H100 PCIe", "the GPU here is of the profile h100")]
)
def test_an_h100_does_not_stand_for_an_h200(monkeypatch: pytest.MonkeyPatch, name: str, why: str | None) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: name)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (9, 0))
    monkeypatch.setattr(torch.version, "cuda", "12.8")
    assert refuse_measuring(load_profile("h200")) == why


def _row(most: int | None, seconds: float, predicted: float, basis: str = "measured") -> VariantRow:
    return VariantRow("k0", 0, most, 4, "BLOCK_M=16", seconds, basis, "L2", False, None, predicted)


def test_the_models_error_is_the_median_factor_of_what_was_measured() -> None:
    rows = [_row(1, 2.0, 1.0), _row(1, 1.0, 3.0), _row(1, 1.0, 1.0), _row(1, 1.0, 9.0, "predicted")]
    assert model_error(rows) == (3, 2.0)
    assert model_error(rows[3:]) is None


def test_the_models_picks_are_compared_with_the_best_measured() -> None:
    rows = [_row(1, 3.0, 1.0), _row(1, 2.0, 1.5), _row(None, 1.0, 1.0), _row(None, 4.0, 9.0), _row(8, 1.0, 1.0)]
    assert [(pick.variants, pick.slowdown) for pick in picks(rows)] == [(2, 1.5), (2, 1.0)]


def test_a_measured_row_says_what_was_predicted() -> None:
    assert str(_row(1, 2e-6, 1.5e-6)) == "BLOCK_M=16: 2.0 us measured (1.5 predicted), L2"
    assert str(_row(1, 2e-6, 2e-6, "predicted")) == "BLOCK_M=16: 2.0 us predicted, L2"


def two_numbers() -> tuple[nn.Module, tuple[torch.Tensor, ...]]:
    """What the command line compiles."""
    return nn.Identity(), (X,)


def test_the_command_line_passes_the_number_of_variants_on(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    asked: list[object] = []

    def noting(*given: object, **options: object) -> None:
        asked.append(options["tune"])
        raise InputError("enough")

    monkeypatch.setattr(planish, "compile", noting)
    command = ["compile", "tests.autotune.test_tune:two_numbers", "-o", str(tmp_path / "a"), "--target", "h200"]
    for more in (["--tune", "4"], []):
        with pytest.raises(InputError, match="enough"):
            CliRunner().invoke(app, [*command, *more], catch_exceptions=False)
    assert asked == [4, None]


def test_a_report_says_that_nothing_was_measured() -> None:
    compiled = planish.compile(nn.ReLU().eval(), "h200", inputs=(torch.zeros(8, 64).half(),))
    assert "times of kernels are predicted; none was measured" in str(compiled.report)
