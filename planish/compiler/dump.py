"""`PLANISH_DUMP=folder` writes every stage of a pipeline: texts, report and an HTML page of differences."""

import difflib
import html
import json
import os
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path

from planish.compiler.ir import Program
from planish.compiler.report import Report

_VARIABLE = "PLANISH_DUMP"


@dataclass(slots=True)
class Dump:
    """Writes stages into `folder`; it reads programs and changes none."""

    folder: Path
    stages: list[tuple[str, str]] = field(default_factory=list)

    def stage(self, name: str, program: Program) -> None:
        """Write the text of the program after the pass `name`."""
        text = str(program)
        self.folder.mkdir(parents=True, exist_ok=True)
        stem = name.partition("{")[0]
        (self.folder / f"{len(self.stages):02d}-{stem}.txt").write_text(text, encoding="utf-8")
        self.stages.append((name, text))

    def close(self, report: Report) -> None:
        """Write `report.json`, `report.txt` and `diff.html`."""
        (self.folder / "report.json").write_text(json.dumps(report.to_json(), indent=1), encoding="utf-8")
        (self.folder / "report.txt").write_text(report.text() + "\n", encoding="utf-8")
        (self.folder / "diff.html").write_text(diff_page(self.stages, report), encoding="utf-8")


def dump_from_environment() -> Dump | None:
    """A dump into the folder that PLANISH_DUMP names, if it is set."""
    folder = os.environ.get(_VARIABLE)
    return Dump(Path(folder)) if folder else None


def diff_page(stages: list[tuple[str, str]], report: Report) -> str:
    """One self-contained page: the report, then each stage side by side with the one before it."""
    parts = [f"<h1>planish</h1><pre>{html.escape(report.text())}</pre>"]
    for (_, before), (name, after) in pairwise(stages):
        parts.append(f"<details><summary>{html.escape(name)}</summary>{_table(before, after)}</details>")
    return f"<!doctype html><meta charset='utf-8'><title>planish</title><style>{_STYLE}</style>{''.join(parts)}\n"


def _table(before: str, after: str) -> str:
    left, right = before.splitlines(), after.splitlines()
    rows: list[str] = []
    matcher = difflib.SequenceMatcher(None, _without_numbers(left), _without_numbers(right), autojunk=False)
    for tag, a, b, c, d in matcher.get_opcodes():
        if tag == "equal":
            rows.append(f"<tr class='equal'><td colspan='2'>{b - a} lines alike</td></tr>")
        else:
            rows.append(f"<tr>{_cell('old', left[a:b])}{_cell('new', right[c:d])}</tr>")
    return f"<table>{''.join(rows)}</table>" if left != right else "<p>no change</p>"


def _without_numbers(lines: list[str]) -> list[str]:
    """The lines as they read when values are not counted: the numbers of values shift with every change above."""
    return [" ".join("%" if word.startswith("%") else word for word in line.split(" ")) for line in lines]


def _cell(kind: str, lines: list[str]) -> str:
    return f"<td class='{kind if lines else 'none'}'><pre>{html.escape(chr(10).join(lines))}</pre></td>"


_STYLE = (
    "body{font:14px sans-serif}pre{font:12px monospace;margin:0;white-space:pre-wrap}"
    "table{width:100%;border-collapse:collapse;table-layout:fixed}td{vertical-align:top;border:1px solid #ddd}"
    ".old{background:#fdd}.new{background:#dfd}.equal{color:#888;text-align:center}"
    "summary{cursor:pointer;font-weight:bold;padding:4px}"
)
