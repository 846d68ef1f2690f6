"""The results of a benchmark run as data and as JSON; files are replaced whole or not at all."""

import json
import os
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeVar

from pydantic import TypeAdapter, ValidationError

from planish.errors import InputError

FOLDER = Path(__file__).parent / "results"
FORMAT = 1


@dataclass(frozen=True, slots=True)
class Machine:
    """What the numbers were measured on; `profile` is the hardware profile with its sources, as JSON."""

    processor: str
    threads: int
    python: str
    profile: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Limit:
    """The least time that the machine allows, from its rates measured just before and just after the timings.

    `flops` are those of the eager module; `moved_bytes` its weights, inputs and outputs, each once.
    """

    flops: float
    moved_bytes: float
    peak_gflops: tuple[float, ...]
    bandwidth_gbs: tuple[float, ...]
    ms: float


@dataclass(frozen=True, slots=True)
class Result:
    """One peer on one case: times in milliseconds, or the reason in `failure` why there are none.

    `max_abs_error` is against eager; `prepare_seconds` is the time to export, compile and run once.
    """

    peer: str
    failure: str | None = None
    shapes: str | None = None
    median_ms: float | None = None
    p10_ms: float | None = None
    calls_ms: tuple[float, ...] = ()
    max_abs_error: float | None = None
    prepare_seconds: float | None = None


@dataclass(frozen=True, slots=True)
class Case:
    """One model at one batch; `other_cores` is what other processes used meanwhile, in cores."""

    model: str
    batch: int
    length: int | None
    limit: Limit
    other_cores: float | None
    results: tuple[Result, ...]

    def result(self, peer: str) -> Result | None:
        """The result of `peer`, None where it was not in the run."""
        return next((result for result in self.results if result.peer == peer), None)


@dataclass(frozen=True, slots=True)
class Score:
    """The quality of one peer's outputs on real data."""

    model: str
    peer: str
    metric: str
    value: float
    higher_is_better: bool
    samples: int


@dataclass(frozen=True, slots=True)
class Suite:
    """One run of the benchmark; `peers` gives each peer's version, or why it is absent."""

    name: str
    created: str
    machine: Machine
    peers: dict[str, str]
    cases: tuple[Case, ...] = ()
    scores: tuple[Score, ...] = ()
    format: int = FORMAT


_SUITE = TypeAdapter(Suite)


def save(suite: Suite, path: Path) -> None:
    """Writes the suite as JSON; a run that dies leaves the file as it was before."""
    write(_SUITE.dump_json(suite, indent=1), path)


def write(data: bytes, path: Path) -> None:
    """Replaces the file at `path` with `data` in one step, folders made as needed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, part = tempfile.mkstemp(dir=path.parent, suffix=".part")
    try:
        with os.fdopen(handle, "wb") as stream:
            stream.write(data)
        Path(part).chmod(0o644)
        Path(part).replace(path)
    except BaseException:
        Path(part).unlink(missing_ok=True)
        raise


def load(path: Path) -> Suite:
    """The suite in a JSON file; InputError where it cannot be read or is something else."""
    return read(_SUITE, path, what="benchmark results", form=FORMAT)


def suite_of(path: Path) -> str:
    """The suite that a JSON file names, such as "language"; empty where it names none or cannot be read."""
    try:
        found = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return ""
    return str(found.get("suite", "")) if isinstance(found, dict) else ""


class _Formatted(Protocol):
    @property
    def format(self) -> int: ...


_T = TypeVar("_T", bound=_Formatted)


def read(adapter: "TypeAdapter[_T]", path: Path, *, what: str, form: int) -> _T:
    """What a JSON file holds as the adapter's type; InputError where that is not `what` in the format `form`."""
    try:
        found = json.loads(path.read_bytes())
        if isinstance(found, dict) and found.get("format", form) != form:
            raise InputError(f"'{path}' has format {found['format']}, this version reads {form}; run the suite again")
        return adapter.validate_python(found)
    except OSError as error:
        raise InputError(f"{what} '{path}' cannot be read: {error}; give the path of a JSON file") from error
    except ValidationError as error:
        raise InputError(f"'{path}' holds no {what}: {error.errors()[0]['msg']}; run the suite") from error
    except ValueError as error:
        raise InputError(f"'{path}' holds no {what}: {error}; run the suite") from error
