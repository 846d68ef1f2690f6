"""What torch says of the kernels of whole programs, and what the kernels compute in Triton's interpreter."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from planish.autotune.measure import Effort, measure
from planish.autotune.operands import trial_of
from planish.autotune.trial import Times
from planish.codegen.triton.build import Library
from planish.codegen.triton.choose import Contest
from planish.codegen.triton.compile import Request
from planish.codegen.triton.kernel import Launch, Variant
from planish.compiler.recipe import parse_pass
from planish.generation import Generation
from planish.passes import ALL
from tests.autotune import test_tuner as tuning
from tests.codegen.triton.harness import small
from tests.generation import architectures
from tests.runtime.device import interpreted
from tests.runtime.device.interpreted import InterpretedLauncher

LARGEST = 16  # rows or tokens: the interpreter is slow
ONCE = Effort(warm=0, least=1, most=1, sets=1, series_seconds=0.0)


@dataclass(slots=True)
class _Judge:
    """Stands for the tuner: each variant is tried, and what comes of it is noted."""

    found: dict[str, Any] = field(default_factory=dict)

    def known(self, request: Request, sizes: Any) -> None:
        """Nothing."""

    def measure(self, contests: Sequence[Contest], progress: Callable[[str], None]) -> None:
        kernels = dict(_named(contest) for contest in contests)
        for contest in contests:
            (chosen,) = contest.candidates
            if chosen.size > LARGEST:
                continue
            others = [c for c in contests if c.candidates[0].kernel == chosen.kernel]
            trial = trial_of(contest, 0, 0, others, small())
            launcher = InterpretedLauncher({name: kernels[k.code] for name, k in trial.kernels().items()})
            name = f"{contest.call.label} {chosen.launch} {chosen.regime.most}"
            self.found[name] = measure(trial, launcher, tuning._Clock(1.0), ONCE)


def _named(contest: Contest) -> tuple[bytes, tuple[Launch, Variant]]:
    (chosen,), (binary,) = contest.candidates, contest.binaries
    return binary.code, (contest.kernel.launches[chosen.launch], chosen.variant)


@pytest.mark.parametrize(
    ("half", "passes", "cache"),
    [
        (False, "quantize-weights{bits=4, group=32}", "i4"),
        pytest.param(True, 'quantize-weights{bits=8, activations="int8"}', "i8", marks=pytest.mark.slow),
    ],
)
def test_all_kernels_of_a_language_model_are_found_right(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, half: bool, passes: str, cache: str
) -> None:
    judge = _Judge()

    def library(device: object, compiler: object) -> Any:
        return Library(small(), compiler=tuning._compiler, tuner=judge, most=1)

    monkeypatch.setattr(interpreted, "Library", library)
    net = architectures.build(transformers.LlamaForCausalLM, transformers.LlamaConfig(**architectures._GATED))
    net = net.half() if half else net
    interpreted.language_executable(
        net,
        torch.tensor([[5, 9, 11]]),
        tmp_path,
        Generation(context=16, chunk=4, cache=cache),
        lossy=[parse_pass(passes, ALL)],
    )
    assert len(judge.found) > 8
    assert {name: outcome for name, outcome in judge.found.items() if outcome != Times(1.0, 1.0)} == {}
