"""Measured times of kernels in SQLite: written one by one, so that what was killed keeps what it has measured.

Below them lie the records that planish brings along, as lines of JSON.
"""

import json
import sqlite3
from collections.abc import Callable, Iterable, Mapping
from contextlib import closing
from dataclasses import asdict, astuple, dataclass, fields
from datetime import UTC, datetime
from pathlib import Path
from typing import Final, TypeAlias

from pydantic import TypeAdapter, ValidationError

from planish.autotune.keys import kernel_key, sizes_key
from planish.codegen.triton.compile import Request
from planish.errors import InputError
from planish.hardware_profiles.measure import cache_folder

_WAIT_SECONDS = 30.0  # for another process that writes


@dataclass(frozen=True, slots=True)
class Machine:
    """What a time was measured on: the device's name, the fingerprint of its profile, and what compiled and ran it."""

    device: str
    profile: str
    triton: str
    driver: str


@dataclass(frozen=True, slots=True)
class Record:
    """One kernel at one set of named sizes: median and p10 seconds of a launch, and when they were measured.

    Where the device would not run it, the seconds are None and `failure` says why.
    """

    device: str
    profile: str
    triton: str
    driver: str
    kernel: str
    sizes: str
    variant: str
    median_seconds: float | None
    p10_seconds: float | None
    failure: str | None
    measured_at: str

    @property
    def known(self) -> float | str:
        """The median seconds, or why there are none."""
        return self.median_seconds if self.median_seconds is not None else self.failure or "it failed"


# what is known of a kernel at named sizes: seconds, or why the device would not run it
Known: TypeAlias = Callable[[Request, Mapping[str, int]], float | str | None]

SHIPPED: Final = Path(__file__).parent / "records"
_RECORD = TypeAdapter(Record)
_COLUMNS = tuple(field.name for field in fields(Record))
_KEY = ("device", "profile", "triton", "driver", "kernel", "sizes")
_NULL = ("median_seconds", "p10_seconds", "failure")
_TYPES = {name: "REAL" for name in _COLUMNS if name.endswith("_seconds")}
_TABLE = f"""
CREATE TABLE IF NOT EXISTS measured (
    {", ".join(f"{n} {_TYPES.get(n, 'TEXT')}{'' if n in _NULL else ' NOT NULL'}" for n in _COLUMNS)},
    PRIMARY KEY ({", ".join(_KEY)})
)
"""


def default_path() -> Path:
    """Where this user's records are: `planish/kernels.sqlite` under $XDG_CACHE_HOME, or under ~/.cache."""
    return cache_folder() / "kernels.sqlite"


def new_record(
    machine: Machine,
    request: Request,
    sizes: Mapping[str, int],
    *,
    variant: str,
    times: tuple[float, float] | None = None,
    failure: str | None = None,
) -> Record:
    """What was measured just now: median and p10 seconds, or a failure."""
    now = datetime.now(UTC).isoformat(timespec="seconds")
    facts = (machine.device, machine.profile, machine.triton, machine.driver)
    middle, tenth = times or (None, None)
    return Record(*facts, kernel_key(request), sizes_key(sizes), variant, middle, tenth, failure, now)


class Store:
    """The records in the file at `path`, which is made when the first is added."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def add(self, record: Record) -> None:
        """Write one record in the place of an older one of the same measurement; raises InputError where it cannot."""
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with closing(self._open()) as database, database:
                database.execute(_TABLE)
                database.execute(f"INSERT OR REPLACE INTO measured VALUES ({_marks(_COLUMNS)})", astuple(record))
        except (sqlite3.Error, OSError) as error:
            raise self._fault(error) from error

    def records(self, profile: str, triton: str) -> tuple[Record, ...]:
        """What was measured on devices of that profile's fingerprint with that Triton, the oldest first; nothing where
        there is no file."""
        if not self.path.exists():
            return ()
        try:
            with closing(self._open()) as database, database:
                database.execute(_TABLE)
                found = database.execute(
                    f"SELECT {', '.join(_COLUMNS)} FROM measured WHERE profile = ? AND triton = ? ORDER BY measured_at",
                    (profile, triton),
                )
                return tuple(Record(*row) for row in found)
        except sqlite3.Error as error:
            raise self._fault(error) from error

    def _open(self) -> sqlite3.Connection:
        return sqlite3.connect(self.path, timeout=_WAIT_SECONDS)

    def _fault(self, error: Exception) -> InputError:
        return InputError(f"the records in '{self.path}' cannot be used: {error}; remove the file or name another")


def shipped(profile: str, triton: str, folder: Path = SHIPPED) -> tuple[Record, ...]:
    """The records that planish brings along for devices of that profile's fingerprint and that Triton."""
    lines = (line for path in sorted(folder.glob("*.jsonl")) for line in path.read_text(encoding="utf-8").splitlines())
    try:
        found = tuple(_RECORD.validate_json(line) for line in lines if f'"{profile}"' in line)
    except ValidationError as error:
        raise InputError(
            f"a record in '{folder}' is damaged ({error.error_count()} fields); install planish again"
        ) from error
    return tuple(record for record in found if (record.profile, record.triton) == (profile, triton))


def ship(records: Iterable[Record], path: Path) -> None:
    """Write records as lines of JSON, in the order of their keys, so that differences can be read."""
    rows = sorted((asdict(record) for record in records), key=lambda row: [row[name] for name in _KEY])
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def _marks(columns: tuple[str, ...]) -> str:
    return ", ".join("?" for _ in columns)
