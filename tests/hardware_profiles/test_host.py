"""What a machine says of itself, and whether code built for another one runs on it."""

import platform
import subprocess
import sys
import time
from pathlib import Path

import pytest

from planish.hardware_profiles import Host, host_supports, read_host

ZEN4 = Host("x86_64", "AMD EPYC", "AuthenticAMD", 25, 17, frozenset({"avx2", "fma", "avx512f"}))

GRACE = """processor\t: 0
BogoMIPS\t: 2000.00
Features\t: fp asimd atomics fphp asimdhp asimddp sve sve2 svebitperm i8mm bf16
CPU implementer\t: 0x41
CPU architecture: 8
CPU variant\t: 0x0
CPU part\t: 0xd4f

processor\t: 1
Features\t: none
"""

SAPPHIRE_RAPIDS = """processor\t: 0
vendor_id\t: GenuineIntel
cpu family\t: 6
model\t\t: 143
model name\t: Intel(R) Xeon(R) Platinum 8480+
flags\t\t: pni sse4_1 abm bmi1 avx2 avx512_bf16 avx512_vnni amx_tile amx_int8

processor\t: 1
flags\t\t: none
"""


def _file(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "cpuinfo"
    path.write_text(text)
    return path


def test_accepts_code_for_the_same_architecture_and_a_subset_of_the_features() -> None:
    assert host_supports("x86_64-linux-gnu", ["avx2", "fma"], host=ZEN4) is None
    assert host_supports("amd64-unknown-linux-gnu", (), host=ZEN4) is None


def test_refuses_another_architecture_by_name() -> None:
    reason = host_supports("aarch64-linux-gnu", ["neon"], host=ZEN4)
    assert reason == "it is built for aarch64 and this machine is x86_64"


def test_refuses_another_operating_system() -> None:
    reason = host_supports("x86_64-windows-msvc", [], host=ZEN4)
    assert reason == "it is built for 'x86_64-windows-msvc' and this machine runs linux"


def test_refuses_missing_features_and_lists_them_all() -> None:
    reason = host_supports("x86_64-linux-gnu", ["avx2", "amx-tile", "amx-int8"], host=ZEN4)
    assert reason == "it needs amx-int8, amx-tile, which this machine's processor (AMD EPYC) does not offer"


def test_reads_intel_flags_under_the_names_of_llvm(tmp_path: Path) -> None:
    host = read_host(_file(tmp_path, SAPPHIRE_RAPIDS), machine="x86_64")
    assert (host.vendor, host.family, host.model) == ("GenuineIntel", 6, 143)
    names = {"sse3", "sse4.1", "lzcnt", "bmi", "avx2", "avx512bf16", "avx512vnni", "amx-tile", "amx-int8"}
    assert host.features == names


def test_reads_arm_features_under_the_names_of_llvm(tmp_path: Path) -> None:
    host = read_host(_file(tmp_path, GRACE), machine="arm64")
    assert (host.arch, host.family, host.model) == ("aarch64", 0x41, 0xD4F)
    assert {"neon", "fullfp16", "dotprod", "lse", "sve2", "sve-bitperm", "i8mm", "bf16"} <= host.features


def test_a_machine_without_cpuinfo_offers_no_features(tmp_path: Path) -> None:
    host = read_host(tmp_path / "absent", machine="x86_64")
    assert host.features == frozenset()
    assert "does not offer" in str(host_supports("x86_64-linux-gnu", ["avx2"], host=host))


@pytest.mark.skipif(platform.system() != "Linux", reason="reads /proc/cpuinfo")
def test_the_machine_at_hand_supports_itself() -> None:
    host = read_host()
    assert host.arch in ("x86_64", "aarch64")
    assert host_supports(host.triple, host.features) is None


def test_the_check_takes_under_five_milliseconds() -> None:
    times = []
    for _ in range(20):
        start = time.perf_counter()
        host_supports("x86_64-linux-gnu", ["avx2"])
        times.append(time.perf_counter() - start)
    assert min(times) < 0.005


def test_the_package_loads_without_pydantic_torch_or_tvm() -> None:
    code = (
        "import sys, planish.hardware_profiles\nprint(sorted({'pydantic', 'torch', 'tvm', 'numpy'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_an_unknown_name_of_the_package_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        import_nothing()


def import_nothing() -> object:
    import planish.hardware_profiles as package

    return package.nothing
