"""Each model's metric on real data under eager and planish, and the largest difference of their outputs there."""

from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import torch
from pydantic import TypeAdapter

from benchmarks.peers import Peer, PeerError
from benchmarks.peers.eager import EAGER
from benchmarks.peers.planish import PLANISH
from benchmarks.results import Machine, write
from benchmarks.run import Say, machine, max_abs_error
from benchmarks.zoo import Call, DataError, ZooModel, tensors


@dataclass(frozen=True, slots=True)
class QualityResult:
    """One model: `eager` and `planish` are its metric's values on the same `samples`.

    `max_abs_error` is the largest absolute difference of planish's outputs from eager's over `calls` calls of the
    metric, and `largest_output` the largest absolute finite output of eager there.
    """

    model: str
    metric: str
    higher_is_better: bool
    samples: int
    eager: float
    planish: float
    max_abs_error: float
    largest_output: float
    calls: int


@dataclass(frozen=True, slots=True)
class QualitySuite:
    """One run: what was measured, and for each model that could not be, the reason."""

    name: str
    created: str
    machine: Machine
    peers: dict[str, str]
    results: tuple[QualityResult, ...] = ()
    failures: tuple[str, ...] = ()


class Beside:
    """Calls planish, and eager on the same inputs to compare; the result is planish's."""

    def __init__(self, ours: Call, eager: Call) -> None:
        self.calls, self.error, self.largest = 0, 0.0, 0.0
        self._ours, self._eager = ours, eager

    def __call__(self, *inputs: torch.Tensor) -> object:
        """Raises PeerError where the outputs differ in number or shape."""
        given, expected = self._ours(*inputs), self._eager(*inputs)
        finite = [abs(value[value.isfinite()]) for value in tensors(expected)]
        self.largest = max([self.largest, *(float(value.max()) for value in finite if value.numel())])
        self.error = max(self.error, max_abs_error(given, expected))
        self.calls += 1
        return given


def run_quality(
    models: tuple[ZooModel, ...], name: str, path: Path, *, threads: int, say: Say, ours: Peer = PLANISH
) -> QualitySuite:
    """Measures `models` under eager and `ours`; the JSON at `path` is brought up to date after each."""
    torch.set_num_threads(threads)
    results: list[QualityResult] = []
    failures: list[str] = []
    created = datetime.now(UTC).isoformat(timespec="seconds")
    peers = {peer.name: peer.version() for peer in (EAGER, ours)}
    for model in models:
        try:
            results.append(compare(model, threads, say, ours))
        except (PeerError, DataError) as error:
            failures.append(f"{model.name}: {error}")
        suite = QualitySuite(name, created, machine(threads), peers, tuple(results), tuple(failures))
        write(TypeAdapter(QualitySuite).dump_json(suite, indent=1), path)
    return suite


def compare(model: ZooModel, threads: int, say: Say, ours: Peer = PLANISH) -> QualityResult:
    """The metric of one model under eager, then under planish (`ours`) beside eager.

    Raises PeerError where planish cannot run the model, DataError where the metric's data is not to be had.
    """
    say(f"{model.name}: preparing")
    module, inputs = model.load(), model.inputs(2, model.length)
    eager = EAGER.prepare(model, module, inputs, threads)
    beside = Beside(ours.prepare(model, module, inputs, threads), eager)
    say(f"{model.name}: quality of eager")
    reference = model.quality(eager)
    say(f"{model.name}: quality of planish")
    found = model.quality(beside)
    return QualityResult(
        model=model.name,
        metric=found.metric,
        higher_is_better=found.higher_is_better,
        samples=found.samples,
        eager=reference.value,
        planish=found.value,
        max_abs_error=beside.error,
        largest_output=beside.largest,
        calls=beside.calls,
    )


def quality_markdown(suite: QualitySuite) -> str:
    """A row for each model, and a line for each that could not be measured."""
    head = ("model", "metric", "samples", "eager", "planish", "max abs error", "largest output")
    rows = [(r.model, r.metric, str(r.samples), *_numbers(r)) for r in suite.results]
    lines = [head, ("---",) * len(head), *rows]
    table = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    return "\n\n".join([table, *(f"- {failure}" for failure in suite.failures)]) + "\n"


def _numbers(result: QualityResult) -> tuple[str, ...]:
    values = (f"{result.eager:.6g}", f"{result.planish:.6g}")
    return (*values, f"{result.max_abs_error:.1e}", f"{result.largest_output:.3g}")
