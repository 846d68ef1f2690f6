"""The store of measured times: what is found again, what keeps apart, and what a kill leaves."""

import os
import signal
import sqlite3
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from planish.autotune.store import Machine, Store, kernel_key
from planish.codegen.triton.compile import Request
from planish.codegen.triton.sources import Generated
from planish.errors import InputError

MACHINE = Machine("NVIDIA H200", "ab12", "3.9.0", "13000")
REQUEST = Request("m", "gemm", {"x": "*fp16"}, {"BLOCK_M": 16, "FINISH": Generated("finish", "x + 1")}, ((0,),), 4, 3)


def _add(store: Store, request: Request = REQUEST, machine: Machine = MACHINE, seconds: float = 2e-6) -> None:
    sizes = {"batch": 4, "seq": 8}
    store.add(machine, request, sizes, variant="BLOCK_M=16", median_seconds=seconds, p10_seconds=seconds / 2)


def test_a_record_is_found_by_its_kernel_and_sizes(tmp_path: Path) -> None:
    store = Store(tmp_path / "new" / "records.sqlite")
    assert store.records(MACHINE) == ()
    _add(store)
    measured = store.measured(MACHINE)
    assert measured(REQUEST, {"seq": 8, "batch": 4}) == 2e-6
    assert measured(REQUEST, {"seq": 9, "batch": 4}) is None
    assert measured(replace(REQUEST, num_warps=8), {"seq": 8, "batch": 4}) is None


def test_any_difference_of_what_is_compiled_is_another_kernel() -> None:
    others = (
        replace(REQUEST, num_stages=4),
        replace(REQUEST, aligned=()),
        replace(REQUEST, types={"x": "*bf16"}),
        replace(REQUEST, constants={"BLOCK_M": 16, "FINISH": Generated("finish", "x + 2")}),
    )
    assert len({kernel_key(r) for r in (REQUEST, *others)}) == 5


@pytest.mark.parametrize("field", ["device", "profile", "triton", "driver"])
def test_times_of_other_machines_do_not_count(tmp_path: Path, field: str) -> None:
    store = Store(tmp_path / "records.sqlite")
    _add(store, machine=replace(MACHINE, **{field: "other"}))
    assert store.records(MACHINE) == ()


def test_a_new_time_takes_the_place_of_the_old_one(tmp_path: Path) -> None:
    store = Store(tmp_path / "records.sqlite")
    _add(store)
    _add(store, seconds=3e-6)
    assert [r.median_seconds for r in store.records(MACHINE)] == [3e-6]


def test_a_killed_process_leaves_what_it_had_added(tmp_path: Path) -> None:
    path = tmp_path / "records.sqlite"
    code = (
        "import os, signal\nfrom pathlib import Path\nfrom dataclasses import replace\n"
        "from planish.autotune.store import Store\nfrom tests.autotune.test_store import MACHINE, REQUEST, _add\n"
        f"store = Store(Path({str(path)!r}))\n"
        "_add(store)\n_add(store, replace(REQUEST, num_warps=8))\nos.kill(os.getpid(), signal.SIGKILL)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], env={**os.environ, "PYTHONPATH": str(Path.cwd())}, check=False)
    assert done.returncode == -signal.SIGKILL
    assert len(Store(path).records(MACHINE)) == 2
    with sqlite3.connect(path) as database:
        assert database.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    database.close()


def test_a_file_that_is_no_database_is_named(tmp_path: Path) -> None:
    path = tmp_path / "records.sqlite"
    path.write_text("no database, but long enough to be looked at as one")
    with pytest.raises(InputError, match=r"the records in '.*records.sqlite' cannot be used: file is not a database"):
        Store(path).records(MACHINE)
