"""PLANISH_DUMP shows every stage and changes nothing."""

import json
from pathlib import Path

import pytest

from planish.compiler.ir import Program
from planish.compiler.pass_ import Context
from planish.compiler.pipeline import Pipeline
from planish.compiler.report import Report
from planish.compiler.text import parse
from planish.passes import CancelMovements, SimplifyArithmetic

TEXT = """graph main(%x: f32[2, 3]) {
  %0 = transpose(%x) {order=[1, 0]}: f32[3, 2]  # a<b>
  %1 = transpose(%0) {order=[1, 0]}: f32[2, 3]
  %2 = relu(%1): f32[2, 3]
  return %2
}"""


def _run() -> tuple[Program, Report]:
    return Pipeline((SimplifyArithmetic(), CancelMovements())).run(Program({"main": parse(TEXT)}, {}), Context())


def test_every_stage_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PLANISH_DUMP", str(tmp_path / "new" / "folder"))
    program, report = _run()
    folder = tmp_path / "new" / "folder"
    names = ["00-import.txt", "01-simplify-arithmetic.txt", "02-cancel-movements.txt"]
    assert sorted(p.name for p in folder.iterdir()) == [*names, "diff.html", "report.json", "report.txt"]
    assert (folder / names[0]).read_text() == TEXT + "\n"
    assert (folder / names[2]).read_text() == str(program)
    assert Report.from_json(json.loads((folder / "report.json").read_text())) == report
    assert (folder / "report.txt").read_text() == report.text() + "\n"


def test_the_page_shows_what_changed_and_needs_no_other_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PLANISH_DUMP", str(tmp_path))
    _run()
    page = (tmp_path / "diff.html").read_text()
    assert "a&lt;b&gt;" in page
    assert "<summary>simplify-arithmetic</summary><p>no change</p>" in page
    assert "transpose(%x)" in page.partition("<summary>cancel-movements</summary>")[2]
    assert "http" not in page
    assert "src=" not in page


def test_dumping_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plain, _ = _run()
    monkeypatch.setenv("PLANISH_DUMP", str(tmp_path))
    assert str(_run()[0]) == str(plain)
