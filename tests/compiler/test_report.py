"""Reports as tables and as JSON."""

import json

from planish.compiler.report import Refused, Report, Row, Totals

BEFORE = Totals(ops=12, weight_bytes=4_000_000, flops=2_000_000_000, bytes_moved=9_000_000, roofline_ms=1.5)
AFTER = Totals(ops=7, weight_bytes=4_000_000, flops=2_000_000_000, bytes_moved=6_000_000, roofline_ms=1.25)
ROWS = (
    Row(
        name="fuse-things{limit=3}",
        contract="exact",
        time_ms=12.34,
        applied={"one": 2, "two": 1},
        refused=(
            Refused("two", "layers.0", "it is shared"),
            Refused("two", "layers.1", "it is shared"),
            Refused("one", "head", "no"),
        ),
        before=BEFORE,
        after=AFTER,
        error=2.5e-7,
    ),
    Row("do-nothing", "lossy: perplexity", 0.04, {}, (), AFTER, AFTER),
)
TEXT = """\
pass                  contract             ms  applied  refused      ops  weights  GFLOP   moved  roofline ms    error
fuse-things{limit=3}  exact              12.3        3        3  12 -> 7   4.0 MB  2.000  6.0 MB        1.250  2.5e-07
do-nothing            lossy: perplexity   0.0        0        0        7   4.0 MB  2.000  6.0 MB        1.250        -

12 -> 7 ops, 9.0 MB -> 6.0 MB moved, 12 ms in passes
refused:
  2 x two: it is shared (in 'layers.0')
  1 x one: no (in 'head')"""


def test_a_report_is_an_aligned_table_with_its_refusals() -> None:
    assert str(Report(ROWS)) == TEXT


def test_a_report_without_profile_and_refusals_says_so() -> None:
    plain = Totals(1, 0, 0, 0)
    text = Report((Row("p", "exact", 1.0, {}, (), plain, plain),)).text()
    assert " ".join(text.splitlines()[1].split()) == "p exact 1.0 0 0 1 0.0 MB 0.000 0.0 MB - -"
    assert "refused:" not in text


def test_an_empty_report_says_that_no_pass_ran() -> None:
    assert "no pass ran" in Report(()).text()


def test_a_report_survives_json() -> None:
    report = Report(ROWS)
    assert Report.from_json(json.loads(json.dumps(report.to_json()))) == report


def test_refusals_are_listed_over_all_passes() -> None:
    assert [r.scope for r in Report(ROWS).refusals()] == ["layers.0", "layers.1", "head"]
