"""Detection and measuring on the machine at hand, its cache, and what is said when it cannot be done."""

import os
import platform
import time
from pathlib import Path

import numpy as np
import pytest

from planish.errors import BackendMissing, BuildError, InputError
from planish.hardware_profiles import (
    Host,
    Profile,
    detect,
    host_supports,
    load_profile,
    measure,
    measure_peak,
    measure_stream,
    measured_dtypes,
)
from planish.hardware_profiles.processors import compute_features, llvm_cpu, vector_bits
from planish.hardware_profiles.topology import Cache, caches, core_cpus, dram_bytes

pytestmark = pytest.mark.skipif(platform.system() != "Linux", reason="reads /proc and /sys")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(autouse=True)
def _own_cache(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(folder))
    measure._program.cache_clear()


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Replaces measuring by constants; the list gathers what was asked for."""
    asked: list[str] = []

    def peak(dtype: str, seconds: float, *, threads: int) -> float:
        asked.append(f"{dtype} on {threads}")
        return 100.0 * threads

    def stream(seconds: float, *, threads: int, read_bytes: int | None = None) -> float:
        asked.append(f"stream on {threads}")
        return 10.0 * threads

    module = "planish.hardware_profiles.detection"
    monkeypatch.setattr(f"{module}.measure_peak", peak)
    monkeypatch.setattr(f"{module}.measure_stream", stream)
    monkeypatch.setattr(f"{module}.measure_clock", lambda: 3.0)
    return asked


def _kept(folder: Path) -> Path:
    (path,) = (folder / "planish").glob("*.toml")
    return path


def test_the_machine_at_hand_is_measured_in_sane_numbers() -> None:
    profile = detect(refresh=True)
    cpu = profile.cpu
    assert cpu.cores == len(core_cpus()) <= len(os.sched_getaffinity(0))
    assert 0.5 < cpu.clock_ghz < 8
    assert profile.core_rates is not None
    assert set(profile.rates.given()) == set(profile.core_rates.given()) == set(measured_dtypes())
    lanes = cpu.vector_bits // 32
    # No processor multiplies and adds on more than four vectors a cycle.
    assert 0 < profile.core_rates.given()["f32"] < 1.2 * cpu.clock_ghz * 4 * lanes * 2
    assert profile.dram.core_bandwidth_gbs is not None
    assert 0.1 < profile.dram.core_bandwidth_gbs <= profile.dram.bandwidth_gbs < 10_000
    assert host_supports(cpu.triple, cpu.features) is None


def test_a_second_detection_reads_the_cache(fake: list[str]) -> None:
    first = detect(refresh=True)
    fake.clear()
    start = time.perf_counter()
    assert detect() == first
    assert time.perf_counter() - start < 0.5
    assert fake == []


def test_refresh_measures_anew(fake: list[str]) -> None:
    detect()
    fake.clear()
    detect(refresh=True)
    assert "f32 on 1" in fake


@pytest.mark.parametrize("damage", ["", "name = = broken", 'name = "cut"\n', "\x00\x01"])
def test_a_damaged_cache_is_measured_anew_and_mended(fake: list[str], folder: Path, damage: str) -> None:
    whole = detect(refresh=True)
    _kept(folder).write_text(damage)
    fake.clear()
    assert detect() == whole
    assert fake
    assert Profile.from_toml(_kept(folder)) == whole


def test_nothing_but_whole_files_is_left_in_the_cache(fake: list[str], folder: Path) -> None:
    detect(refresh=True)
    assert not list((folder / "planish").glob("*.part"))


def test_a_cache_that_cannot_be_written_keeps_nothing(
    fake: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    blocker = tmp_path / "file"
    blocker.write_text("not a folder")
    monkeypatch.setenv("XDG_CACHE_HOME", str(blocker))
    assert detect().backend == "tvm"
    assert fake
    assert blocker.read_text() == "not a folder"


def test_cpu_is_the_name_of_the_machine_at_hand(fake: list[str]) -> None:
    assert load_profile("cpu") == detect()


def test_the_measured_peak_is_no_less_than_numpy_reaches() -> None:
    size, best = 384, 0.0
    a = np.random.default_rng(0).standard_normal((size, size), dtype=np.float32)
    for _ in range(30):
        start = time.perf_counter()
        a @ a
        best = max(best, 2 * size**3 / (time.perf_counter() - start) * 1e-9)
    peak = max(measure_peak("f32", 0.1) for _ in range(3))
    assert peak > 0.9 * best


def test_a_near_buffer_is_read_faster_than_main_memory() -> None:
    near = max(measure_stream(0.05, threads=1, read_bytes=16384) for _ in range(3))
    assert near > measure_stream(0.1, threads=1)


def test_an_unknown_dtype_is_refused_with_the_known_ones() -> None:
    known = ", ".join(measured_dtypes())
    with pytest.raises(InputError, match=f"this machine has no instructions for f8; measure one of {known}"):
        measure_peak("f8")


def test_more_threads_than_cores_are_refused() -> None:
    cores = len(core_cpus())
    with pytest.raises(InputError, match=f"cannot measure on 5000 threads; this process has {cores} cores"):
        measure_peak("f32", threads=5000)


def test_without_a_compiler_the_pip_command_is_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    _without_program(monkeypatch, tmp_path)
    monkeypatch.setattr("shutil.which", lambda name: None)
    monkeypatch.setattr(measure, "find_spec", lambda name: None)
    with pytest.raises(BackendMissing, match="needs a C compiler: install gcc or clang, or run pip install ziglang"):
        measure_peak("f32")


def test_a_compiler_that_fails_is_quoted(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    _without_program(monkeypatch, tmp_path)
    monkeypatch.setattr(measure, "_compilers", lambda: [["sh", "-c", "echo no such thing >&2; exit 1"]])
    with pytest.raises(BuildError, match=r"measure.c does not compile; install a newer compiler[^$]*no such thing"):
        measure_peak("f32")


def test_a_second_compiler_is_tried(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    _without_program(monkeypatch, tmp_path)
    monkeypatch.setattr(measure, "_compilers", lambda compilers=measure._compilers: [["false"], *compilers()])
    assert measure_peak("f32", 0.02) > 0


def test_a_damaged_program_is_built_again(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    _without_program(monkeypatch, tmp_path)
    measure_peak("f32", 0.02)
    (program,) = (tmp_path / "planish").glob("measure-*")
    program.write_bytes(b"\x00" * 64)
    assert measure_peak("f32", 0.02) > 0


@pytest.mark.parametrize(
    ("status", "message"),
    [(7, "measuring rate .* ended with status 7; try again"), (3, "the system refused the matrix registers that f32")],
)
def test_a_program_that_fails_is_told(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, status: int, message: str
) -> None:
    program = tmp_path / "program"
    program.write_text(f"#!/bin/sh\nexit {status}\n")
    program.chmod(0o755)
    monkeypatch.setattr(measure, "_program", lambda: program)
    with pytest.raises(BuildError, match=message):
        measure_peak("f32")


def test_a_refused_stream_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measure, "_run", lambda *words: None)
    with pytest.raises(BuildError, match=r"measure\.c refused to measure read"):
        measure_stream()


def test_no_folder_to_build_in_is_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    _without_program(monkeypatch, tmp_path)
    monkeypatch.setattr(Path, "mkdir", _refuse)
    with pytest.raises(BuildError, match="can be written; set XDG_CACHE_HOME to one that can"):
        measure_peak("f32")


def _refuse(*words: object, **more: object) -> None:
    raise PermissionError("no")


def _without_program(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(folder))
    measure._program.cache_clear()


def test_llvm_gives_this_machine_the_same_name() -> None:
    pytest.importorskip("tvm", reason="asks the LLVM inside TVM")
    from tvm.target import codegen

    from planish.hardware_profiles import read_host

    name = llvm_cpu(read_host())
    if name.startswith("x86-64") or name == "generic":
        pytest.skip("the host hides features of its processor, so that the general name is right")
    assert name == codegen.llvm_get_system_cpu()


ZEN5 = frozenset(load_profile("zen5").cpu.features)
GRACE = frozenset(load_profile("neoverse-v2").cpu.features)
RAPIDS = frozenset(load_profile("sapphire-rapids").cpu.features)
LEVEL3 = frozenset(load_profile("x86-64-v3").cpu.features)


@pytest.mark.parametrize(
    ("host", "name", "bits"),
    [
        (Host("x86_64", "Ryzen 9 9950X", "AuthenticAMD", 26, 68, ZEN5), "znver5", 512),
        (Host("x86_64", "EPYC 9654", "AuthenticAMD", 25, 17, ZEN5), "znver4", 512),
        (Host("x86_64", "EPYC 7763", "AuthenticAMD", 25, 1, LEVEL3), "znver3", 256),
        (Host("x86_64", "EPYC 7742", "AuthenticAMD", 23, 49, LEVEL3), "znver2", 256),
        (Host("x86_64", "EPYC 7601", "AuthenticAMD", 23, 1, LEVEL3), "znver1", 256),
        (Host("x86_64", "Xeon 8480+", "GenuineIntel", 6, 143, RAPIDS), "sapphirerapids", 512),
        (Host("x86_64", "Xeon 8480+ without AMX", "GenuineIntel", 6, 143, ZEN5), "x86-64-v4", 512),
        (Host("x86_64", "Xeon 8380", "GenuineIntel", 6, 106, RAPIDS), "icelake-server", 512),
        (Host("x86_64", "Xeon 8380H", "GenuineIntel", 6, 85, RAPIDS), "cooperlake", 512),
        (Host("x86_64", "Xeon 8280", "GenuineIntel", 6, 85, RAPIDS - {"avx512bf16"}), "cascadelake", 512),
        (
            Host("x86_64", "Xeon 8180", "GenuineIntel", 6, 85, RAPIDS - {"avx512bf16", "avx512vnni"}),
            "skylake-avx512",
            512,
        ),
        (Host("x86_64", "unknown", "Other", 1, 1, LEVEL3), "x86-64-v3", 256),
        (Host("x86_64", "unknown", "Other", 1, 1, LEVEL3 - {"fma"}), "x86-64-v2", 256),
        (Host("x86_64", "unknown", "Other", 1, 1, frozenset()), "x86-64", 128),
        (Host("aarch64", "Grace", "0x41", 0x41, 0xD4F, GRACE), "neoverse-v2", 128),
        (Host("aarch64", "Graviton 2", "0x41", 0x41, 0xD0C, GRACE), "neoverse-n1", 128),
        (Host("aarch64", "unknown", "0x61", 0x61, 1, GRACE), "generic", 128),
    ],
)
def test_a_processor_gets_the_name_of_llvm_or_the_best_level_it_fills(host: Host, name: str, bits: int) -> None:
    assert llvm_cpu(host) == name
    assert vector_bits(host) == bits


def test_only_features_that_compute_are_listed() -> None:
    host = Host("x86_64", "x", "y", 1, 1, frozenset({"avx2", "hypervisor", "fma", "syscall"}))
    assert compute_features(host) == ("avx2", "fma")


def test_caches_are_read_once_for_each_group_that_shares_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("planish.hardware_profiles.topology.usable_cpus", lambda: (0, 1, 2, 3))
    for cpu in range(4):
        pair = f"{cpu // 2 * 2}-{cpu // 2 * 2 + 1}"
        _write(tmp_path / f"cpu{cpu}/topology", thread_siblings_list=pair)
        _write(tmp_path / f"cpu{cpu}/cache/index0", level="1", type="Data", size="48K", shared_cpu_list=pair)
        _write(tmp_path / f"cpu{cpu}/cache/index1", level="1", type="Instruction", size="32K", shared_cpu_list=pair)
        _write(tmp_path / f"cpu{cpu}/cache/index2", level="3", type="Unified", size="32M", shared_cpu_list="0-3")
    assert caches(tmp_path) == (Cache("L1", 49152, 2), Cache("L3", 33554432, 1))
    assert core_cpus(tmp_path) == (0, 2)


def test_a_system_that_tells_nothing_has_no_caches(tmp_path: Path) -> None:
    assert caches(tmp_path) == ()
    assert core_cpus(tmp_path) == tuple(sorted(os.sched_getaffinity(0)))
    assert dram_bytes(tmp_path / "absent") == 2**32


def _write(folder: Path, **files: str) -> None:
    folder.mkdir(parents=True)
    for name, text in files.items():
        (folder / name).write_text(text + "\n")
