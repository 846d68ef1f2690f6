"""The command line of the benchmarks."""

from pathlib import Path

import pytest
from typer.testing import CliRunner

from benchmarks.__main__ import app
from benchmarks.results import FOLDER, Case, Limit, Machine, Result, Suite, save
from planish.errors import InputError

CALL = CliRunner()


@pytest.fixture
def file(tmp_path: Path) -> Path:
    limit = Limit(1e9, 1e6, (100.0,), (10.0,), 10.0)
    case = Case("glassllm", 1, 128, limit, None, (Result("eager", None, "dynamic", 20.0, 18.0, (20.0,), 0.0, 0.1),))
    save(Suite("s", "now", Machine("P", 1, "3", {}), {"eager": "1"}, (case,)), tmp_path / "s.json")
    return tmp_path / "s.json"


def test_table_prints_markdown(file: Path) -> None:
    done = CALL.invoke(app, ["table", str(file)], catch_exceptions=False)
    assert "| glassllm | 1 | eager | 20.00 | 18.00 | 1.00 | 0.50 | 0.0e+00 |  |" in done.stdout


def test_table_prints_results_of_language_models_too() -> None:
    done = CALL.invoke(app, ["table", str(FOLDER / "language.json")], catch_exceptions=False)
    assert "| model | format | batch | context | peer | decode tokens/s |" in done.stdout
    assert "| llama-1.1b | int4 | 1 | 512 | llama.cpp |" in done.stdout


def test_plot_writes_a_png_beside_the_results(file: Path) -> None:
    pytest.importorskip("matplotlib")
    done = CALL.invoke(app, ["plot", str(file)], catch_exceptions=False)
    assert done.stdout.strip() == str(file.with_suffix(".png"))
    assert file.with_suffix(".png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (["run", "--models", "minilmm"], "nothing to measure is called 'minilmm'; did you mean 'minilm'"),
        (["run", "--batches", "0"], "'0' is no size"),
        (["run", "--precision", "b16"], "'b16' is no precision; did you mean 'bf16'"),
        (["run", "--precision", "bf16", "--peers", "onnxruntime"], "nothing to measure is called 'onnxruntime'"),
        (["table", "/no/such.json"], "cannot be read"),
    ],
)
def test_a_mistake_is_named_before_work_starts(words: list[str], reason: str) -> None:
    with pytest.raises(InputError, match=reason):
        CALL.invoke(app, words, catch_exceptions=False)
