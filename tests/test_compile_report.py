"""The report of a compilation as text."""

from planish.compile_report import CompileReport, KernelRow
from planish.compiler.report import Report


def test_reasons_against_templates_are_counted_not_repeated() -> None:
    why = (("fast", "the weight is odd"),)
    rows = [KernelRow("main", f"layers.{i}", ("linear",), "slow", why) for i in range(300)]
    last = KernelRow("main", "head", ("linear",), "slow", (("fast", "too wide"),))
    lines = str(CompileReport(Report(()), (*rows, last), {}, {})).splitlines()
    assert lines[3:6] == [
        "301 kernel calls: 301 slow",
        "  300 x slow not fast: the weight is odd (in 'layers.0')",
        "  1 x slow not fast: too wide (in 'head')",
    ]
