"""Pipelines: order, verification, rows and errors against the program before."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import pytest
import torch

from planish.compiler.ir import Program
from planish.compiler.ops import exp, full, mul, neg, relu
from planish.compiler.pass_ import Change, Close, Context, Contract, Exact, Lossy
from planish.compiler.pipeline import Pipeline, Step, contract_text, relative_error
from planish.compiler.report import Refused
from planish.compiler.rewrite import Hit, substitute
from planish.compiler.text import parse
from planish.errors import VerifyError

TEXT = """graph main<B: 1..64 = 2>(%x: f32[B, 4]) {
  %0 = neg(%x): f32[B, 4]  # a
  %1 = relu(%0): f32[B, 4]  # b
  return %1
}"""


@dataclass(frozen=True, slots=True)
class Scale:
    """Multiplies what `neg` gives by a number."""

    factor: float = 1.0
    name: ClassVar[str] = "scale"
    contract: ClassVar[Contract] = Close(1e-3, 0.0)

    def apply(self, program: Program, context: Context) -> Change:
        graph = substitute(
            program.main,
            lambda n: (mul(n.values[0], full(value=self.factor, dtype=n.types[0].dtype)),) if n.op is neg else None,
        )
        hits = (Hit("scale", "a"), Hit("scale", "b", "it is no neg"), Hit("scale", "c", "it is no neg"))
        return Change(program.with_function(graph), hits)


@dataclass(frozen=True, slots=True)
class LoseWeights:
    """Breaks programs: it drops all weights."""

    name: ClassVar[str] = "lose-weights"
    contract: ClassVar[Contract] = Exact()

    def apply(self, program: Program, context: Context) -> Change:
        return Change(program.with_weights({}))


def _program() -> Program:
    return Program({"main": parse(TEXT)}, {})


def test_passes_run_in_order_and_leave_the_input_alone() -> None:
    program = _program()
    after, report = Pipeline((Scale(2.0), Scale(3.0))).run(program, Context())
    assert str(program.main) == TEXT
    assert [n.op.name for n in after.main.nodes()] == ["input", "neg", "full", "mul", "full", "mul", "relu"]
    assert [row.name for row in report.rows] == ["scale{factor=2.0}", "scale{factor=3.0}"]


def test_a_row_tells_what_the_pass_did() -> None:
    _, report = Pipeline((Scale(2.0),)).run(_program(), Context(sizes={"B": 10}))
    (row,) = report.rows
    assert row.contract == "close 0.001, 0"
    assert row.applied == {"scale": 1}
    assert row.refused == (Refused("scale", "b", "it is no neg"), Refused("scale", "c", "it is no neg"))
    assert (row.before.ops, row.after.ops) == (2, 4)
    assert (row.before.flops, row.after.flops) == (80, 120)
    assert row.time_ms >= 0
    assert row.error is None
    assert row.after.roofline_ms is None


def test_a_profile_adds_the_roofline() -> None:
    from planish.hardware_profiles import load_profile

    profile = load_profile("sapphire-rapids")
    (row,) = Pipeline((Scale(2.0),)).run(_program(), Context(profile=profile))[1].rows
    assert row.after.roofline_ms == pytest.approx(row.after.bytes_moved / profile.dram.bandwidth_gbs / 1e6, rel=1e-3)


def test_check_measures_the_error_against_the_program_before() -> None:
    x = torch.tensor([[-1.0, -2.0, -4.0, 3.0]])
    _, report = Pipeline((Scale(1.0), Scale(1.5))).run(_program(), Context(), check=(x,))
    assert [row.error for row in report.rows] == [0.0, pytest.approx(0.5)]


def test_watch_sees_every_step_as_it_ends() -> None:
    seen: list[Step] = []
    after, report = Pipeline((Scale(2.0), Scale(3.0))).run(_program(), Context(), seen.append)
    assert [(s.done, s.total, s.row) for s in seen] == [(1, 2, report.rows[0]), (2, 2, report.rows[1])]
    assert seen[-1].program is after


def test_a_pass_that_breaks_the_program_is_named() -> None:
    text = TEXT.replace("neg(%x)", "linear(%x, @w: f32[4, 4])")
    program = Program({"main": parse(text)}, {"w": torch.zeros(4, 4)})
    with pytest.raises(VerifyError, match="after lose-weights: main: the program has no weight 'w'"):
        Pipeline((LoseWeights(),)).run(program, Context())


def test_a_broken_program_is_refused_before_any_pass() -> None:
    program = Program({"main": parse(TEXT.replace("neg(%x)", "linear(%x, @w: f32[4, 4])"))}, {})
    with pytest.raises(VerifyError, match=r"^main: the program has no weight 'w'"):
        Pipeline(()).run(program, Context())


@pytest.mark.parametrize(
    ("change", "error"),
    [
        (lambda x: x, 0.0),
        (lambda x: mul(x, full(value=0.5, dtype=x.dtype)), 0.5),
        (lambda x: exp(mul(x, full(value=float("inf"), dtype=x.dtype))), float("inf")),
        (lambda x: relu(full(shape=(7,), value=1.0, dtype=x.dtype)), float("inf")),
    ],
)
def test_the_relative_error_is_the_largest_gap_over_the_largest_value(change: Callable, error: float) -> None:
    program = _program()
    other = substitute(program.main, lambda n: (change(n.values[0]),) if n.op is relu else None)
    x = torch.tensor([[-1.0, -2.0, -4.0, 3.0]])
    assert relative_error(program, program.with_function(other), (x,)) == error


def test_contracts_print_in_a_few_words() -> None:
    assert [contract_text(c) for c in (Exact(), Close(1e-2, 1e-3), Lossy("perplexity"))] == [
        "exact",
        "close 0.01, 0.001",
        "lossy: perplexity",
    ]
