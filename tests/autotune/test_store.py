"""The store of measured times: what is found again, what keeps apart, and what a kill leaves."""

import os
import signal
import sqlite3
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from planish.autotune import keys
from planish.autotune.keys import kernel_key
from planish.autotune.store import Machine, Record, Store, new_record, ship, shipped
from planish.codegen.triton.compile import Request
from planish.codegen.triton.sources import Generated
from planish.errors import InputError

MACHINE = Machine("NVIDIA H200", "ab12", "3.9.0", "13000")
REQUEST = Request("m", "gemm", {"x": "*fp16"}, {"BLOCK_M": 16, "FINISH": Generated("finish", "x + 1")}, ((0,),), 4, 3)


def _record(request: Request = REQUEST, machine: Machine = MACHINE, seconds: float = 2e-6) -> Record:
    sizes = {"seq": 8, "batch": 4}
    return new_record(machine, request, sizes, variant="BLOCK_M=16", times=(seconds, seconds / 2))


def _found(store: Store) -> tuple[Record, ...]:
    return store.records(MACHINE.profile, MACHINE.triton)


def test_a_record_is_found_again_with_its_kernel_and_sizes(tmp_path: Path) -> None:
    store = Store(tmp_path / "new" / "records.sqlite")
    assert _found(store) == ()
    store.add(_record())
    (found,) = _found(store)
    assert (found.kernel, found.sizes, found.known) == (kernel_key(REQUEST), '{"batch":4,"seq":8}', 2e-6)


def test_a_failure_is_kept_with_its_reason(tmp_path: Path) -> None:
    store = Store(tmp_path / "records.sqlite")
    store.add(new_record(MACHINE, REQUEST, {}, variant="v", failure="it died"))
    assert [record.known for record in _found(store)] == ["it died"]


def test_any_difference_of_what_is_compiled_is_another_kernel() -> None:
    others = (
        replace(REQUEST, num_stages=4),
        replace(REQUEST, aligned=()),
        replace(REQUEST, types={"x": "*bf16"}),
        replace(REQUEST, constants={"BLOCK_M": 16, "FINISH": Generated("finish", "x + 2")}),
    )
    assert len({kernel_key(r) for r in (REQUEST, *others)}) == 5


def test_a_kernel_whose_source_changes_is_another_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    request = replace(REQUEST, module="planish.codegen.triton.kernels.int8", name="product")
    before = kernel_key(request)
    digest = keys._digest
    other = "planish.codegen.triton.kernels.gemm"  # which int8 imports
    monkeypatch.setattr(keys, "_digest", lambda module: "changed" if module == other else digest.__wrapped__(module))
    assert kernel_key(request) != before


@pytest.mark.parametrize("field", ["profile", "triton"])
def test_times_of_another_profile_or_triton_do_not_count(tmp_path: Path, field: str) -> None:
    store = Store(tmp_path / "records.sqlite")
    store.add(_record(machine=replace(MACHINE, **{field: "other"})))
    assert _found(store) == ()


def test_a_new_time_takes_the_place_of_the_old_one(tmp_path: Path) -> None:
    store = Store(tmp_path / "records.sqlite")
    store.add(_record())
    store.add(_record(seconds=3e-6))
    assert [r.median_seconds for r in _found(store)] == [3e-6]


def test_records_that_are_shipped_are_read_back_by_profile_and_triton(tmp_path: Path) -> None:
    other = _record(machine=replace(MACHINE, triton="3.6.0"))
    ship([_record(), other], tmp_path / "device.jsonl")
    assert len((tmp_path / "device.jsonl").read_text().splitlines()) == 2
    assert [r.known for r in shipped(MACHINE.profile, MACHINE.triton, tmp_path)] == [2e-6]
    assert shipped(MACHINE.profile, "3.7.0", tmp_path) == ()


def test_a_damaged_record_is_refused(tmp_path: Path) -> None:
    (tmp_path / "device.jsonl").write_text('{"profile": "ab12"}\n')
    with pytest.raises(InputError, match=r"a record in '.*' is damaged \(10 fields\); install planish again"):
        shipped("ab12", "3.9.0", tmp_path)


def test_a_killed_process_leaves_what_it_had_added(tmp_path: Path) -> None:
    path = tmp_path / "records.sqlite"
    code = (
        "import os, signal\nfrom pathlib import Path\nfrom dataclasses import replace\n"
        "from planish.autotune.store import Store\nfrom tests.autotune.test_store import REQUEST, _record\n"
        f"store = Store(Path({str(path)!r}))\n"
        "store.add(_record())\nstore.add(_record(replace(REQUEST, num_warps=8)))\nos.kill(os.getpid(), signal.SIGKILL)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], env={**os.environ, "PYTHONPATH": str(Path.cwd())}, check=False)
    assert done.returncode == -signal.SIGKILL
    assert len(_found(Store(path))) == 2
    with sqlite3.connect(path) as database:
        assert database.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    database.close()


def test_a_file_that_is_no_database_is_named(tmp_path: Path) -> None:
    path = tmp_path / "records.sqlite"
    path.write_text("no database, but long enough to be looked at as one")
    with pytest.raises(InputError, match=r"the records in '.*records.sqlite' cannot be used: file is not a database"):
        _found(Store(path))
