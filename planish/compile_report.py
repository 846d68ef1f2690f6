"""What a compilation did: passes, kernels with the reasons against the others, and where the time went."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from planish.codegen.select import Choice, Selection
from planish.codegen.variants import VariantRow, model_error
from planish.compiler.report import Report


@dataclass(frozen=True, slots=True)
class KernelRow:
    """The kernel for one call: its module scope, its ops in order, the template, and why others were not taken."""

    function: str
    scope: str
    ops: tuple[str, ...]
    template: str
    refused: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True, slots=True)
class CompileReport:
    """The report of `planish.compile`: prints as text, `to_json` gives the same facts.

    `stages` are seconds; `notes` are facts by topic, such as ops that run as torch. `variants` are the ways to run each
    kernel of a GPU, those of one regime together, the chosen one first.
    """

    passes: Report
    kernels: tuple[KernelRow, ...]
    stages: Mapping[str, float]
    notes: Mapping[str, tuple[str, ...]]
    variants: tuple[VariantRow, ...] = ()

    def to_json(self) -> dict[str, Any]:
        return {
            "passes": self.passes.to_json(),
            "kernels": [asdict(row) for row in self.kernels],
            "stages_s": {name: round(seconds, 3) for name, seconds in self.stages.items()},
            "notes": {topic: list(lines) for topic, lines in self.notes.items()},
            "variants": [asdict(row) for row in self.variants],
        }

    def __str__(self) -> str:
        lines = [str(self.passes), ""]
        counts: dict[str, int] = {}
        for row in self.kernels:
            counts[row.template] = counts.get(row.template, 0) + 1
        lines.append(f"{len(self.kernels)} kernel calls: " + ", ".join(f"{n} {name}" for name, n in counts.items()))
        lines += _refusal_lines(self.kernels)
        lines += [_variant_line(row) for row in self.variants]
        lines += _model_lines(self.variants)
        for topic, notes in self.notes.items():
            lines += [f"{topic}: {note}" for note in notes]
        lines.append("seconds: " + ", ".join(f"{name} {seconds:.2f}" for name, seconds in self.stages.items()))
        return "\n".join(lines)


def _refusal_lines(rows: tuple[KernelRow, ...]) -> list[str]:
    """Why other templates were not taken: each reason once, with the number of calls and the first of them."""
    found: dict[tuple[str, str, str], list[str]] = {}
    for row in rows:
        for template, why in row.refused:
            found.setdefault((row.template, template, why), []).append(row.scope or row.function)
    return [
        f"  {len(where)} x {taken} not {template}: {why} (in '{where[0]}')"
        for (taken, template, why), where in found.items()
    ]


def _variant_line(row: VariantRow) -> str:
    if not row.chosen:
        return f"    not {row}"
    until = "any size" if row.most is None else f"sizes up to {row.most}"
    return f"  {row.kernel}.{row.launch} for {until}, judged at {row.size}: {row}"


def _model_lines(rows: tuple[VariantRow, ...]) -> list[str]:
    if not rows:
        return []
    found = model_error(rows)
    if found is None:
        return ["times of kernels are predicted; none was measured"]
    count, factor = found
    return [
        f"{count} of {len(rows)} variants were measured; predicted times are off by a factor of {factor:.2f} (median)"
    ]


def torch_notes(selections: Mapping[str, Selection], target: str) -> tuple[str, ...]:
    """A line for each kind of op without a template on the target: where it stands and each template's reason."""
    scopes: dict[tuple[str, str], dict[str, None]] = {}
    for selection in selections.values():
        for each in selection.unserved:
            scopes.setdefault((each.node.op.name, each.reasons), {})[each.node.scope] = None
    return tuple(
        f"{name} in {_places(tuple(where))} has no template on {target}: {reasons}; it will run as torch"
        for (name, reasons), where in scopes.items()
    )


def _places(scopes: tuple[str, ...]) -> str:
    more = f" and {len(scopes) - 1} more" if len(scopes) > 1 else ""
    return f"'{scopes[0]}'{more}"


def kernel_rows(selections: Mapping[str, Selection]) -> tuple[KernelRow, ...]:
    """One row for each kernel call and each op that runs as torch, in running order."""
    rows = []
    for function, selection in selections.items():
        for work in selection.work:
            if isinstance(work, Choice):
                ops = tuple(node.op.name for node in work.call.nodes)
                refused = tuple((miss.template, miss.reason) for miss in work.misses)
                rows.append(KernelRow(function, work.call.scope, ops, work.template.name, refused))
            else:
                rows.append(KernelRow(function, work.scope, (str(work.node.attrs["target"]),), "torch"))
    return tuple(rows)
