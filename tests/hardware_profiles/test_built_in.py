"""The built-in profiles: all load, and their rates follow from clocks and widths that the vendors give."""

import pytest

from planish.errors import ProfileError
from planish.hardware_profiles import load_profile, parse_profile, profile_names

WANTED = {
    "a100",
    "alveo-u280",
    "ecp5-85k",
    "h100",
    "h200",
    "l40s",
    "mi300x",
    "neoverse-v2",
    "rtx-4090",
    "sapphire-rapids",
    "versal-vck190",
    "x86-64-v3",
    "zen4",
    "zen5",
}

# Operations of one core or multiprocessor a cycle, from the vendors' manuals.
CYCLES = [
    ("x86-64-v3", {"f64": 16, "f32": 32}, 0.001),
    ("zen4", {"f32": 32, "bf16": 64, "i8": 128}, 0.005),
    ("zen5", {"f64": 32, "f32": 64, "bf16": 128, "i8": 256}, 0.001),
    ("sapphire-rapids", {"f64": 32, "f32": 64, "f16": 128, "bf16": 1024, "i8": 2048}, 0.001),
    ("neoverse-v2", {"f64": 16, "f32": 32, "f16": 64, "bf16": 128, "i8": 256}, 0.001),
    ("a100", {"f64": 128, "f32": 128, "tf32": 1024, "f16": 2048, "bf16": 2048, "i8": 4096, "i4": 8192}, 0.01),
    ("h100", {"tf32": 2048, "f16": 4096, "bf16": 4096, "f8": 8192, "i8": 8192}, 0.01),
    ("h200", {"tf32": 2048, "f16": 4096, "bf16": 4096, "f8": 8192, "i8": 8192}, 0.01),
    ("l40s", {"f32": 256, "tf32": 512, "f16": 1024, "bf16": 1024, "f8": 2048, "i8": 2048}, 0.02),
    ("rtx-4090", {"f32": 256, "tf32": 256, "f16": 512, "bf16": 512, "f8": 1024, "i8": 2048, "i4": 4096}, 0.01),
    ("mi300x", {"f64": 256, "f32": 256, "tf32": 1024, "f16": 2048, "bf16": 2048, "f8": 4096, "i8": 4096}, 0.01),
]


def test_every_wanted_target_is_built_in() -> None:
    assert set(profile_names()) == WANTED


@pytest.mark.parametrize("name", sorted(WANTED))
def test_a_built_in_profile_loads_under_its_own_name_and_reads_back(name: str) -> None:
    profile = load_profile(name)
    assert profile.name == name
    assert parse_profile(profile.to_toml(), origin=name) == profile


@pytest.mark.parametrize(("name", "operations", "tolerance"), CYCLES)
def test_rates_are_units_times_clock_times_operations_a_cycle(
    name: str, operations: dict[str, int], tolerance: float
) -> None:
    profile = load_profile(name)
    units = profile.cpu.cores if profile.backend == "tvm" else profile.gpu.multiprocessors
    clock = profile.cpu.clock_ghz if profile.backend == "tvm" else profile.gpu.clock_ghz
    given = profile.rates.given()
    for dtype, count in operations.items():
        assert given[dtype] == pytest.approx(units * clock * count, rel=tolerance), dtype


@pytest.mark.parametrize(("name", "products"), [("alveo-u280", 2), ("versal-vck190", 3), ("ecp5-85k", 1)])
def test_an_fpga_multiplies_as_often_a_cycle_as_its_dsps_can(name: str, products: int) -> None:
    profile = load_profile(name)
    assert profile.rates.i8 == pytest.approx(2 * products * profile.fpga.dsps * profile.fpga.clock_ghz)


@pytest.mark.parametrize("name", sorted(WANTED))
def test_nearer_memory_is_smaller(name: str) -> None:
    profile = load_profile(name)
    sizes = [level.bytes * level.count for level in profile.memory if level.per == "shared"] + [profile.dram.bytes]
    assert sizes == sorted(sizes)


@pytest.mark.parametrize("name", ["x86-64-v3", "zen4", "zen5", "sapphire-rapids", "neoverse-v2"])
def test_llvm_knows_the_processor_and_gives_it_all_its_features(name: str) -> None:
    pytest.importorskip("tvm", reason="asks the LLVM inside TVM")
    from tvm.target import Target, codegen

    cpu = load_profile(name).cpu
    target = Target({"kind": "llvm", "mtriple": cpu.triple, "mcpu": cpu.cpu})
    assert set(cpu.features) <= {str(feature) for feature in codegen.llvm_get_cpu_features(target)}


@pytest.mark.parametrize(
    ("wrong", "right"), [("zen55", "zen5"), ("h10", "h100"), ("saphire-rapids", "sapphire-rapids")]
)
def test_an_unknown_name_suggests_the_nearest(wrong: str, right: str) -> None:
    message = rf"no profile is called '{wrong}' \(one of your own is a path ending in .toml\); did you mean '{right}'\?"
    with pytest.raises(ProfileError, match=message):
        load_profile(wrong)


def test_a_name_like_no_other_lists_the_known_ones() -> None:
    with pytest.raises(ProfileError, match="; known: a100, alveo-u280, cpu, ecp5-85k"):
        load_profile("toaster")
