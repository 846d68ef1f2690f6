"""The results of a language run as data and JSON; a file grows case by case."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from typing import Literal

from pydantic import TypeAdapter

from benchmarks.results import Machine, read, write

FORMAT = 2


@dataclass(frozen=True, slots=True)
class PeerResult:
    """One peer in one case, or the reason in `failure` why it has no numbers; times in ms in the order they were taken.

    `first_ms` is from the call to the first token, `token_ms` between tokens of all rows together, none where only
    prefill was asked for. `token_bytes` is what one step cannot do without, at the middle of the tokens generated;
    `prefill_flops` the operations of all prompts. `detail` says how the peer stores the format, `compute` the dtype
    whose peak bounds its prefill, `same_tokens` how many of its first greedy tokens on a text are eager's in f32 (None
    where the model's text means nothing). `note` says where the time limit left fewer generations than asked for.
    """

    peer: str
    failure: str | None = None
    note: str = ""
    detail: str = ""
    compute: str = ""
    prepare_seconds: float | None = None
    peak_mib: int | None = None
    same_tokens: int | None = None
    first_ms: tuple[float, ...] = ()
    token_ms: tuple[float, ...] = ()
    token_bytes: float = 0.0
    prefill_flops: float = 0.0

    @property
    def token_median_ms(self) -> float:
        return median(self.token_ms)

    @property
    def token_p10_ms(self) -> float:
        return tenth(self.token_ms)

    @property
    def first_median_ms(self) -> float:
        return median(self.first_ms)


@dataclass(frozen=True, slots=True)
class Rates:
    """What the machine does: 10^9 B/s of reading main memory, and 10^9 op/s by dtype."""

    bandwidth_gbs: float
    peak_gops: dict[str, float]


@dataclass(frozen=True, slots=True)
class Turns:
    """Peers that were alive together and took turns; `rates` were measured just before and just after.

    `other_cores` is what other processes used meanwhile, in cores.
    """

    rates: tuple[Rates, ...]
    other_cores: float | None
    results: tuple[PeerResult, ...]

    @property
    def bandwidth_gbs(self) -> float:
        """The better of the stream bandwidths."""
        return max(rates.bandwidth_gbs for rates in self.rates)

    def peak_gops(self, dtype: str) -> float | None:
        """The better rate of `dtype`, None where this machine has no instructions for it."""
        return max((rates.peak_gops[dtype] for rates in self.rates if dtype in rates.peak_gops), default=None)


@dataclass(frozen=True, slots=True)
class LanguageCase:
    """One model in one format at one batch after prompts of `context` tokens."""

    model: str
    kind: str
    batch: int
    context: int
    turns: tuple[Turns, ...] = ()

    @property
    def key(self) -> tuple[str, str, int, int]:
        """What tells it from other cases."""
        return self.model, self.kind, self.batch, self.context

    @property
    def results(self) -> tuple[PeerResult, ...]:
        """Those of all turns."""
        return tuple(result for turns in self.turns for result in turns.results)


@dataclass(frozen=True, slots=True)
class Effort:
    """`rounds` generations of `tokens` tokens in a case, every one after a prompt never seen before.

    A peer makes no further generation once those of the case took `limit_seconds`, and one that alone would take longer
    is given up.
    """

    tokens: int = 33
    rounds: int = 3
    limit_seconds: float = 60.0


@dataclass(frozen=True, slots=True)
class LanguageSuite:
    """One run; `peers` gives each peer's version, or why it is absent, `code` a hash of planish's sources."""

    name: str
    created: str
    machine: Machine
    peers: dict[str, str]
    code: str
    effort: Effort
    cases: tuple[LanguageCase, ...] = ()
    suite: Literal["language"] = "language"
    format: int = FORMAT

    def missing(self, key: tuple[str, str, int, int], peers: Sequence[str]) -> list[str]:
        """Those of `peers` that the case has no result of."""
        known = {result.peer for case in self.cases if case.key == key for result in case.results}
        return [peer for peer in peers if peer not in known]

    def with_turns(self, key: tuple[str, str, int, int], turns: Turns) -> "LanguageSuite":
        """The suite with more turns of a case, which comes last where it is new."""
        known = [case.key for case in self.cases]
        cases = self.cases if key in known else (*self.cases, LanguageCase(*key))
        grown = tuple(replace(case, turns=(*case.turns, turns)) if case.key == key else case for case in cases)
        return replace(self, cases=grown)


_SUITE = TypeAdapter(LanguageSuite)


def tenth(values: tuple[float, ...]) -> float:
    """The tenth percentile by the nearest rank."""
    return sorted(values)[(len(values) - 1) // 10]


def save(suite: LanguageSuite, path: Path) -> None:
    """Writes the suite as JSON, all at once."""
    write(_SUITE.dump_json(suite, indent=1), path)


def load(path: Path) -> LanguageSuite:
    """The suite in a JSON file; InputError where it cannot be read or is something else."""
    return read(_SUITE, path, what="language results", form=FORMAT)
