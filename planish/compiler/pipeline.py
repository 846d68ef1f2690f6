"""Runs passes in order: verify, apply, verify, one report row a pass."""

import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from planish.compiler.analysis import Costs, costs
from planish.compiler.dump import dump_from_environment
from planish.compiler.evaluate import evaluate
from planish.compiler.ir import Program
from planish.compiler.pass_ import Close, Context, Contract, Exact, Pass
from planish.compiler.recipe import pass_text
from planish.compiler.report import Refused, Report, Row, Totals
from planish.compiler.verify import verify
from planish.errors import ProfileError, VerifyError


@dataclass(frozen=True, slots=True)
class Step:
    """A pass that has run: the `done`-th of `total`, its row and the program after it."""

    done: int
    total: int
    row: Row
    program: Program


@dataclass(frozen=True, slots=True)
class Pipeline:
    """Passes in the order in which they run."""

    passes: tuple[Pass, ...]

    def run(
        self,
        program: Program,
        context: Context,
        watch: Callable[[Step], None] | None = None,
        *,
        check: Sequence[Tensor] | None = None,
    ) -> tuple[Program, Report]:
        """The program after all passes, and the report; `program` itself is left as it is.

        `watch` is called after each pass. With `check`, inputs of `main`, every row also carries the error against
        the program before the pass on the reference evaluator. Raises VerifyError naming the pass that broke the
        program.
        """
        verify(program)
        dump, rows, before = dump_from_environment(), list[Row](), totals(program, context)
        if dump:
            dump.stage("import", program)
        for i, of in enumerate(self.passes, 1):
            program, row = _step(of, program, context, before, check)
            rows, before = [*rows, row], row.after
            if dump:
                dump.stage(row.name, program)
            if watch:
                watch(Step(i, len(self.passes), row, program))
        report = Report(tuple(rows))
        if dump:
            dump.close(report)
        return program, report


def _step(
    of: Pass, program: Program, context: Context, before: Totals, check: Sequence[Tensor] | None
) -> tuple[Program, Row]:
    start = time.perf_counter()
    change = of.apply(program, context)
    elapsed = 1e3 * (time.perf_counter() - start)
    try:
        verify(change.program)
    except VerifyError as error:
        raise VerifyError(f"after {of.name}: {error}") from error
    row = Row(
        name=pass_text(of),
        contract=contract_text(of.contract),
        time_ms=elapsed,
        applied=dict(Counter(h.rule for h in change.hits if h.refused is None)),
        refused=tuple(Refused(h.rule, h.scope, h.refused) for h in change.hits if h.refused is not None),
        before=before,
        after=totals(change.program, context),
        error=None if check is None else relative_error(program, change.program, check),
    )
    return change.program, row


def totals(program: Program, context: Context) -> Totals:
    """The program in numbers at the context's sizes, with the roofline of the context's profile."""
    found = costs(program, context.sizes)
    return Totals(found.ops, found.weight_bytes, found.flops, found.bytes_moved, _roofline_ms(found, context))


def _roofline_ms(found: Costs, context: Context) -> float | None:
    if context.profile is None:
        return None
    from planish.hardware_profiles import time_ms

    rated = {d: float(f) for d, f in found.flops_by_dtype.items() if d in ("f64", "f32", "f16", "bf16", "i8")}
    try:
        return time_ms(context.profile, rated, found.bytes_moved)
    except ProfileError:  # measured profiles have no rate for f64
        return None


def relative_error(reference: Program, other: Program, inputs: Sequence[Tensor]) -> float:
    """The largest difference of a result of `main`, relative to the largest finite reference value of that result."""
    expected = evaluate(reference.main, inputs, reference.weights)
    actual = evaluate(other.main, inputs, other.weights)
    return max((_difference(a, b) for a, b in zip(expected, actual, strict=True)), default=0.0)


def _difference(expected: Tensor, actual: Tensor) -> float:
    if expected.shape != actual.shape or expected.dtype is not actual.dtype:
        return float("inf")
    if expected.numel() == 0 or torch.equal(expected, actual):
        return 0.0
    a, b = expected.double(), actual.double()
    same = (a == b) | (a.isnan() & b.isnan())
    scale = torch.where(a.isfinite(), a.abs(), 0.0).max().clamp(min=1e-30)
    gap = torch.where(same, 0.0, (a - b).abs()).max() / scale
    return float("inf") if bool(gap.isnan()) else float(gap)


def contract_text(contract: Contract) -> str:
    """The contract in a few characters."""
    match contract:
        case Exact():
            return "exact"
        case Close(rtol=rtol, atol=atol):
            return f"close {rtol:g}, {atol:g}"
        case _:
            return f"lossy: {contract.metric}"
