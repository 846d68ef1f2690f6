"""The results of a language run as data and JSON."""

from dataclasses import dataclass
from pathlib import Path
from statistics import median

from pydantic import TypeAdapter, ValidationError

from benchmarks.results import Machine, write
from planish.errors import InputError

FORMAT = 1


@dataclass(frozen=True, slots=True)
class Point:
    """One peer after prompts of `context` tokens: every time in milliseconds, in the order they were taken.

    `first_ms` is from the call to the first token, `token_ms` between tokens of all rows together.
    `token_bytes` is what one step cannot do without, at the middle of the tokens generated.
    """

    context: int
    first_ms: tuple[float, ...]
    token_ms: tuple[float, ...]
    token_bytes: float
    prefill_flops: float

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
class PeerResult:
    """One peer in one case, or the reason in `failure` why it has no numbers.

    `detail` says how it stores the format, `compute` the dtype whose peak bounds its prefill, `same_tokens` how many
    of its first greedy tokens on a text are eager's in f32 (None where the model's text means nothing).
    """

    peer: str
    failure: str | None = None
    detail: str = ""
    compute: str = ""
    prepare_seconds: float | None = None
    peak_mib: int | None = None
    same_tokens: int | None = None
    points: tuple[Point, ...] = ()


@dataclass(frozen=True, slots=True)
class Rates:
    """What the machine does: 10^9 B/s of reading main memory, and 10^9 op/s by dtype."""

    bandwidth_gbs: float
    peak_gops: dict[str, float]


@dataclass(frozen=True, slots=True)
class LanguageCase:
    """One model in one format at one batch; `rates` were measured before, between and after the peers."""

    model: str
    kind: str
    batch: int
    rates: tuple[Rates, ...]
    other_cores: float | None
    results: tuple[PeerResult, ...]

    @property
    def bandwidth_gbs(self) -> float:
        """The best stream bandwidth seen in the run."""
        return max(rates.bandwidth_gbs for rates in self.rates)

    def peak_gops(self, dtype: str) -> float | None:
        """The best rate of `dtype` seen in the run, None where this machine has no instructions for it."""
        return max((rates.peak_gops[dtype] for rates in self.rates if dtype in rates.peak_gops), default=None)


@dataclass(frozen=True, slots=True)
class LanguageSuite:
    """One run; `peers` gives each peer's version, or why it is absent."""

    name: str
    created: str
    machine: Machine
    peers: dict[str, str]
    cases: tuple[LanguageCase, ...] = ()
    format: int = FORMAT


_SUITE = TypeAdapter(LanguageSuite)


def tenth(values: tuple[float, ...]) -> float:
    """The tenth percentile by the nearest rank."""
    return sorted(values)[(len(values) - 1) // 10]


def save(suite: LanguageSuite, path: Path) -> None:
    """Writes the suite as JSON, all at once."""
    write(_SUITE.dump_json(suite, indent=1), path)


def load(path: Path) -> LanguageSuite:
    """The suite in a JSON file; InputError where it cannot be read or is something else."""
    try:
        suite = _SUITE.validate_json(path.read_bytes())
    except OSError as error:
        raise InputError(f"language results '{path}' cannot be read: {error}; give the path of a JSON file") from error
    except ValidationError as error:
        raise InputError(f"'{path}' holds no language results: {error.errors()[0]['msg']}; run the suite") from error
    if suite.format != FORMAT:
        raise InputError(f"'{path}' has format {suite.format}, this version reads {FORMAT}; run the suite again")
    return suite
