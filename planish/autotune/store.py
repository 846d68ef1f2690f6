"""Measured times of kernels in SQLite: written one by one, so that what was killed keeps what it has measured."""

import hashlib
import json
import sqlite3
from collections.abc import Mapping
from contextlib import closing
from dataclasses import astuple, dataclass, fields
from datetime import UTC, datetime
from pathlib import Path

from planish.codegen.triton.choose import Measured
from planish.codegen.triton.compile import Request
from planish.errors import InputError

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
    """One kernel at one set of named sizes: median and p10 seconds of a launch, and when they were measured."""

    device: str
    profile: str
    triton: str
    driver: str
    kernel: str
    sizes: str
    variant: str
    median_seconds: float
    p10_seconds: float
    measured_at: str


_COLUMNS = tuple(field.name for field in fields(Record))
_KEY = ("device", "profile", "triton", "driver", "kernel", "sizes")
_TABLE = f"""
CREATE TABLE IF NOT EXISTS records (
    {", ".join(f"{name} {'REAL' if name.endswith('_seconds') else 'TEXT'} NOT NULL" for name in _COLUMNS)},
    PRIMARY KEY ({", ".join(_KEY)})
)
"""


def kernel_key(request: Request) -> str:
    """SHA-256 (hex) of everything that a kernel is compiled from."""
    return hashlib.sha256(repr(request).encode()).hexdigest()


def sizes_key(sizes: Mapping[str, int]) -> str:
    """The named sizes as canonical JSON."""
    return json.dumps(dict(sizes), sort_keys=True, separators=(",", ":"))


class Store:
    """The records in the file at `path`, which is made when the first is added."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def add(
        self,
        machine: Machine,
        request: Request,
        sizes: Mapping[str, int],
        *,
        variant: str,
        median_seconds: float,
        p10_seconds: float,
    ) -> None:
        """Write one record in the place of an older one of the same measurement; raises InputError where it cannot."""
        now = datetime.now(UTC).isoformat(timespec="seconds")
        facts = (machine.device, machine.profile, machine.triton, machine.driver)
        record = Record(*facts, kernel_key(request), sizes_key(sizes), variant, median_seconds, p10_seconds, now)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with closing(self._open()) as database, database:
                database.execute(_TABLE)
                database.execute(f"INSERT OR REPLACE INTO records VALUES ({_marks(_COLUMNS)})", astuple(record))
        except sqlite3.Error as error:
            raise self._fault(error) from error

    def records(self, machine: Machine) -> tuple[Record, ...]:
        """What was measured on such a machine; nothing where there is no file."""
        if not self.path.exists():
            return ()
        where = " AND ".join(f"{name} = ?" for name in ("device", "profile", "triton", "driver"))
        try:
            with closing(self._open()) as database, database:
                database.execute(_TABLE)
                found = database.execute(f"SELECT {', '.join(_COLUMNS)} FROM records WHERE {where}", astuple(machine))
                return tuple(Record(*row) for row in found)
        except sqlite3.Error as error:
            raise self._fault(error) from error

    def measured(self, machine: Machine) -> Measured:
        """The median seconds by kernel and sizes, for the choice of kernels; of the records as they are now."""
        known = {(r.kernel, r.sizes): r.median_seconds for r in self.records(machine)}
        return lambda request, sizes: known.get((kernel_key(request), sizes_key(sizes)))

    def _open(self) -> sqlite3.Connection:
        return sqlite3.connect(self.path, timeout=_WAIT_SECONDS)

    def _fault(self, error: sqlite3.Error) -> InputError:
        return InputError(f"the records in '{self.path}' cannot be used: {error}; remove the file or name another")


def _marks(columns: tuple[str, ...]) -> str:
    return ", ".join("?" for _ in columns)
