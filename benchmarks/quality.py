"""Each model's metric on real data under eager and planish, and how far their outputs are apart and from f64 there."""

import copy
import math
from collections.abc import Callable, Mapping
from dataclasses import astuple, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from pydantic import TypeAdapter
from torch import nn
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree

from benchmarks.peers import Peer, PeerError
from benchmarks.peers.eager import EAGER
from benchmarks.peers.planish import PLANISH
from benchmarks.results import Machine, write
from benchmarks.run import Say, machine, paired
from benchmarks.zoo import Call, DataError, ZooModel, tensors

_AIM = 1e-4  # the largest difference from eager that outputs in f32 may have
_SURE = 5e-5  # how near to f64 eager has to be for that to be asked
_EXACT = 4  # so many calls are computed in f64 too, and all whose outputs are farther apart than the aim


@dataclass(frozen=True, slots=True)
class Distance:
    """The largest and the root mean square absolute difference of outputs."""

    largest: float
    mean_square_root: float


@dataclass(frozen=True, slots=True)
class QualityResult:
    """One model: `eager` and `planish` are its metric's values on the same `samples`.

    `apart` is the distance of planish's outputs from eager's over `calls` calls of the metric, the other two are of
    both from those of the model in f64, over `exact_calls`: the first four and all in which the two are more than 1e-4
    apart. `largest_output` is the largest absolute finite output of eager.
    """

    model: str
    metric: str
    higher_is_better: bool
    samples: int
    eager: float
    planish: float
    apart: Distance
    eager_error: Distance
    planish_error: Distance
    largest_output: float
    calls: int
    exact_calls: int

    @property
    def verdict(self) -> str:
        """Whether planish is as near as it has to be.

        Where eager is within 5e-5 of f64, to eager: 1e-4. Elsewhere a difference from eager says as much of eager, and
        planish has to be as near to f64 as eager is.
        """
        if self.apart.largest <= _AIM:
            return "within 1e-4 of eager"
        if self.eager_error.largest <= _SURE:
            return "too far from eager"
        pairs = zip(astuple(self.planish_error), astuple(self.eager_error), strict=True)
        return "farther from f64 than eager" if any(ours > eager for ours, eager in pairs) else "nearer to f64"


@dataclass(frozen=True, slots=True)
class QualitySuite:
    """One run: what was measured, and for each model that could not be, the reason."""

    name: str
    created: str
    machine: Machine
    peers: dict[str, str]
    results: tuple[QualityResult, ...] = ()
    failures: tuple[str, ...] = ()


class Gap:
    """Gathers the distance of outputs from expected ones."""

    def __init__(self) -> None:
        self._largest, self._squares, self._count = 0.0, 0.0, 0

    def take(self, outputs: object, expected: object) -> float:
        """The largest difference of these; raises PeerError where the outputs differ in number or shape."""
        found = 0.0
        for a, b in paired(outputs, expected):
            difference = (a.double() - b.double()).abs()
            found = max(found, difference.max().item())
            self._squares += difference.square().sum().item()
            self._count += difference.numel()
        self._largest = max(self._largest, found)
        return found

    @property
    def distance(self) -> Distance:
        return Distance(self._largest, math.sqrt(self._squares / max(self._count, 1)))


class Beside:
    """Calls planish, and eager and at times the model in f64 on the same inputs to compare; the result is planish's."""

    def __init__(self, ours: Call, eager: Call, exact: Call) -> None:
        self.calls, self.exact_calls, self.largest = 0, 0, 0.0
        self.apart, self.eager_error, self.planish_error = Gap(), Gap(), Gap()
        self._ours, self._eager, self._exact = ours, eager, exact

    def __call__(self, *inputs: torch.Tensor) -> object:
        """Raises PeerError where the outputs differ in number or shape."""
        given, expected = self._ours(*inputs), self._eager(*inputs)
        finite = [abs(value[value.isfinite()]) for value in tensors(expected)]
        self.largest = max([self.largest, *(float(value.max()) for value in finite if value.numel())])
        self.calls += 1
        if self.apart.take(given, expected) > _AIM or self.exact_calls < _EXACT:
            exact = self._exact(*inputs)
            self.eager_error.take(expected, exact)
            self.planish_error.take(given, exact)
            self.exact_calls += 1
        return given


class _Doubled(TorchFunctionMode):
    """Makes what a model casts to f32 on its own account, such as the norms of LLaMA, f64."""

    def __torch_function__(
        self,
        func: Callable[..., object],
        types: object,
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> object:
        given = (args, dict(kwargs or {}))
        args, kwargs = pytree.tree_map(lambda leaf: torch.float64 if leaf is torch.float32 else leaf, given)
        return (torch.Tensor.double if func is torch.Tensor.float else func)(*args, **kwargs)


def in_f64(module: nn.Module) -> Call:
    """The module with weights and inputs in f64, computed in f64 throughout."""
    doubled = copy.deepcopy(module).double()

    @torch.inference_mode()
    def call(*inputs: torch.Tensor) -> object:
        wide = [value.double() if value.is_floating_point() else value for value in inputs]
        with _Doubled():
            return doubled(*wide)

    return call


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
    beside = Beside(ours.prepare(model, module, inputs, threads), eager, in_f64(module))
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
        apart=beside.apart.distance,
        eager_error=beside.eager_error.distance,
        planish_error=beside.planish_error.distance,
        largest_output=beside.largest,
        calls=beside.calls,
        exact_calls=beside.exact_calls,
    )


def quality_markdown(suite: QualitySuite) -> str:
    """A row for each model, and a line for each that could not be measured."""
    metric = ("model", "metric", "samples", "eager", "planish")
    head = (*metric, "largest output", "apart", "eager to f64", "planish to f64", "verdict")
    rows = [(r.model, r.metric, str(r.samples), *_numbers(r), r.verdict) for r in suite.results]
    lines = [head, ("---",) * len(head), *rows]
    table = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    return "\n\n".join([table, *(f"- {failure}" for failure in suite.failures)]) + "\n"


def _numbers(result: QualityResult) -> tuple[str, ...]:
    """Distances as the largest and, behind it, the root mean square."""
    values = (f"{result.eager:.6g}", f"{result.planish:.6g}", f"{result.largest_output:.3g}")
    distances = (result.apart, result.eager_error, result.planish_error)
    return (*values, *(f"{d.largest:.1e} ({d.mean_square_root:.1e})" for d in distances))
