"""The schema of profiles: round trip, fingerprint, and every message about a bad one."""

import hashlib
import json
import math
import re
import tomllib
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from planish.errors import ProfileError
from planish.hardware_profiles import Profile, load_profile, parse_profile
from planish.hardware_profiles.toml import emit_toml

CPU = """
name = "mine"
description = "A processor"
backend = "tvm"

[processor]
source = "my data sheet, table 1"
triple = "x86_64-linux-gnu"
cpu = "znver4"
features = ["avx2", "fma"]
vector_bits = 256
cores = 4
clock_ghz = 2.5

[rates]
source = "my data sheet, table 2"
f32 = 320
bf16 = 640.0

[core_rates]
source = "my data sheet, table 3"
f32 = 100

[[memory]]
name = "L1"
source = "my data sheet, table 4"
bytes = 32768
bandwidth_gbs = 160
per = "core"
count = 4

[[memory]]
name = "L2"
source = "my data sheet, table 4"
bytes = 1048576
per = "shared"
count = 1

[dram]
source = "my data sheet, table 5"
bytes = 16000000000
bandwidth_gbs = 40
core_bandwidth_gbs = 25

[energy]
source = "my data sheet, table 6"
tdp_watts = 65
"""


def _refusal(text: str) -> str:
    with pytest.raises(ProfileError) as caught:
        parse_profile(text, origin="mine.toml")
    return str(caught.value)


def test_a_valid_file_loads_with_its_numbers(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(CPU)
    profile = Profile.from_toml(path)
    assert profile == load_profile(str(path))
    assert (profile.cpu.cores, profile.cpu.features) == (4, ("avx2", "fma"))
    assert profile.rates.given() == {"f32": 320.0, "bf16": 640.0}
    assert profile.dram.bytes == 16_000_000_000
    level = profile.level("L1")
    assert level is not None
    assert (level.bytes, level.bandwidth_gbs) == (32768, 160.0)
    assert profile.level("L9") is None


def test_a_profile_reads_back_from_its_own_text() -> None:
    profile = parse_profile(CPU, origin="mine.toml")
    again = parse_profile(profile.to_toml(), origin="again.toml")
    assert again == profile
    assert again.fingerprint == profile.fingerprint


def test_the_fingerprint_is_the_sha256_of_sorted_compact_json() -> None:
    facts = tomllib.loads(CPU)
    facts["processor"]["clock_ghz"] = 2.5
    for table, key in [("rates", "f32"), ("core_rates", "f32"), ("dram", "bandwidth_gbs"), ("energy", "tdp_watts")]:
        facts[table][key] = float(facts[table][key])
    facts["dram"]["core_bandwidth_gbs"] = 25.0
    facts["memory"][0]["bandwidth_gbs"] = 160.0
    text = json.dumps(facts, sort_keys=True, separators=(",", ":"))
    assert parse_profile(CPU, origin="mine.toml").fingerprint == hashlib.sha256(text.encode()).hexdigest()


def test_the_fingerprint_changes_with_any_number() -> None:
    other = parse_profile(CPU.replace("tdp_watts = 65", "tdp_watts = 66"), origin="mine.toml")
    assert other.fingerprint != parse_profile(CPU, origin="mine.toml").fingerprint


def test_a_profile_cannot_be_changed() -> None:
    profile = parse_profile(CPU, origin="mine.toml")
    with pytest.raises(ValueError, match="frozen"):
        profile.name = "other"  # type: ignore[misc]


@pytest.mark.parametrize("table", ["processor", "rates", "core_rates", "dram", "energy"])
def test_a_table_of_numbers_without_a_source_is_refused(table: str) -> None:
    text = re.sub(rf'(\[{table}\]\n)source = "[^"]*"\n', r"\1", CPU)
    assert _refusal(text) == (
        "profile 'mine.toml' has 1 problem:\n"
        f"  {table}.source: missing; name the data sheet, manual or measurement that the numbers of this table are from"
    )


def test_a_memory_level_without_a_source_is_refused_by_its_index() -> None:
    text = CPU.replace('name = "L2"\nsource = "my data sheet, table 4"\n', 'name = "L2"\n')
    assert "  memory[1].source: missing; name the data sheet" in _refusal(text)


def test_a_number_outside_the_tables_is_refused() -> None:
    assert "  clock_ghz: no such key" in _refusal("clock_ghz = 3\n" + CPU)


PROBLEMS = [
    ("vector_bits = 256", "vector_bit = 256", "processor.vector_bit: no such key; did you mean 'vector_bits'?"),
    ("vector_bits = 256", "vector_bit = 256", "processor.vector_bits: missing"),
    ("vector_bits = 256", "vector_bits = 300", "processor.vector_bits: expected 128, 256 or 512, given 300"),
    ("cores = 4", "cores = 0", "processor.cores: expected a number over 0, given 0"),
    ("cores = 4", "cores = 4.5", "processor.cores: expected a whole number, given 4.5"),
    ("cores = 4", "cores = true", "processor.cores: expected a whole number, given True"),
    ("clock_ghz = 2.5", 'clock_ghz = "fast"', "processor.clock_ghz: expected a number, given 'fast'"),
    ("clock_ghz = 2.5", "clock_ghz = inf", "processor.clock_ghz: expected a finite number, given inf"),
    ('cpu = "znver4"', "cpu = 4", "processor.cpu: expected a text in quotes, given 4"),
    ('cpu = "znver4"', 'cpu = ""', "processor.cpu: expected a text of at least 1 characters, given ''"),
    ('["avx2", "fma"]', '"avx2"', "processor.features: expected a list, given 'avx2'"),
    ('["avx2", "fma"]', '["avx2", 7]', "processor.features[1]: expected a text in quotes, given 7"),
    (
        "x86_64-linux-gnu",
        "x86-linux",
        "processor.triple: expected a text that matches ^(x86_64|aarch64)-linux-gnu$, given 'x86-linux'",
    ),
    ('"my data sheet, table 2"', '"me"', "rates.source: expected a text of at least 8 characters, given 'me'"),
    ("bf16 = 640.0", "b16 = 640.0", "rates.b16: no such key; did you mean 'bf16'?"),
    (
        "f32 = 320\nbf16 = 640.0",
        "",
        "rates: no rate; give at least one of f64, f32, tf32, f16, bf16, f8, i8, i4",
    ),
    ('per = "shared"', 'per = "all"', "memory[1].per: expected 'core' or 'shared', given 'all'"),
    ('name = "L2"', 'name = "L1"', "memory: 'L1' names two levels; give each its own name"),
    ('name = "mine"', 'name = "My CPU"', "name: expected a text that matches ^[a-z0-9][a-z0-9.-]*$, given 'My CPU'"),
    ('"tvm"', '"tritn"', "backend: expected 'tvm', 'triton' or 'fpga', given 'tritn'; did you mean 'triton'?"),
    ('"tvm"', '"cuda"', "backend: expected 'tvm', 'triton' or 'fpga', given 'cuda'"),
    ('"tvm"', "7", "backend: expected 'tvm', 'triton' or 'fpga', given 7"),
    (
        'backend = "tvm"',
        "",
        "backend: missing; give 'tvm', 'triton' or 'fpga', which tells what [processor] holds",
    ),
    ("[energy]", "[enrgy]", "enrgy: no such key; did you mean 'energy'?"),
    ('"tvm"', '"fpga"', "processor.part: missing"),
    ("tdp_watts = 65", "tdp_watts = -1", "energy.tdp_watts: expected a number over 0, given -1"),
]


@pytest.mark.parametrize(("right", "wrong", "line"), PROBLEMS)
def test_a_problem_is_told_by_path_and_expectation(right: str, wrong: str, line: str) -> None:
    assert right in CPU
    lines = _refusal(CPU.replace(right, wrong)).splitlines()
    assert f"  {line}" in lines


def test_a_table_in_place_of_a_value_and_the_other_way_round_are_told() -> None:
    start, _, end = CPU.partition("[dram]")
    text = "dram = 3\n" + start + "[energy]" + end.partition("[energy]")[2]
    assert "  dram: expected a table, given 3" in _refusal(text).splitlines()


def test_all_problems_are_told_at_once() -> None:
    text = CPU.replace("cores = 4", "cores = 0").replace("bytes = 32768", "").replace("f32 = 320", "f31 = 320")
    assert _refusal(text).splitlines() == [
        "profile 'mine.toml' has 3 problems:",
        "  processor.cores: expected a number over 0, given 0",
        "  rates.f31: no such key; did you mean 'f32'?",
        "  memory[0].bytes: missing",
    ]


def test_an_unknown_backend_hides_what_cannot_be_known_of_the_processor() -> None:
    text = CPU.replace('"tvm"', '"tritn"').replace("cores = 4", "cores = 0")
    assert "processor" not in _refusal(text)


def test_an_fpga_without_ultra_rams_takes_none_and_refuses_fewer() -> None:
    profile = load_profile("ecp5-85k")
    assert profile.fpga.ultra_rams == 0
    text = profile.to_toml().replace("ultra_rams = 0", "ultra_rams = -1")
    assert "  processor.ultra_rams: expected a number of at least 0, given -1" in _refusal(text)


def test_text_that_is_not_toml_is_refused_with_the_line() -> None:
    assert re.match(r"profile 'mine.toml' is not TOML: .*line 1", _refusal("name = = 3"))


def test_a_missing_file_is_refused_by_its_path(tmp_path: Path) -> None:
    with pytest.raises(ProfileError, match=r"profile '.*absent.toml' cannot be read: .*No such file.*; give the path"):
        load_profile(tmp_path / "absent.toml")


def test_a_binary_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "binary.toml"
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ProfileError, match="cannot be read"):
        Profile.from_toml(path)


def test_asking_for_another_kind_of_processor_is_refused() -> None:
    profile = parse_profile(CPU, origin="mine.toml")
    with pytest.raises(ProfileError, match="profile 'mine' has backend 'tvm', which is not for a GPU"):
        _ = profile.gpu
    with pytest.raises(ProfileError, match="profile 'mine' has backend 'tvm', which is not for an FPGA"):
        _ = profile.fpga
    with pytest.raises(ProfileError, match="profile 'h100' has backend 'triton', which is not for a CPU"):
        _ = load_profile("h100").cpu


def test_a_dtype_without_a_rate_runs_as_the_next_wider_one() -> None:
    profile = parse_profile(CPU, origin="mine.toml")
    assert profile.peak_gflops("bf16") == 640.0
    assert profile.peak_gflops("f16") == 320.0
    assert profile.peak_gflops("i4") == 320.0


def test_a_dtype_that_nothing_can_run_is_refused() -> None:
    with pytest.raises(ProfileError, match="profile 'ecp5-85k' has no rate for f32; it has i8"):
        load_profile("ecp5-85k").peak_gflops("f32")


def test_fewer_cores_have_their_own_rate_up_to_the_device() -> None:
    profile = parse_profile(CPU, origin="mine.toml")
    assert [profile.peak_gflops("f32", cores=cores) for cores in (1, 2, 4)] == [100.0, 200.0, 320.0]
    assert [profile.dram_gbs(cores=cores) for cores in (1, 2, None)] == [25.0, 40.0, 40.0]
    text = re.sub(r"\[core_rates\][^\[]*", "", CPU)
    assert parse_profile(text, origin="mine.toml").peak_gflops("f32", cores=1) == 80.0


_scalars = (
    st.text(st.characters(max_codepoint=0x2FF), max_size=8)
    | st.integers(-(2**53), 2**53)
    | st.booleans()
    | st.floats(allow_nan=False, allow_infinity=False)
)
_keys = st.text("abcdefghijklmnopqrstuvwxyz_", min_size=1, max_size=8)
_tables = st.dictionaries(_keys, _scalars | st.lists(_scalars, max_size=3), max_size=4)


@settings(max_examples=60, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
@given(st.dictionaries(_keys, _scalars | _tables | st.lists(_tables, min_size=1, max_size=3), max_size=5))
def test_written_toml_reads_back_by_the_standard_library(facts: dict[str, object]) -> None:
    assert tomllib.loads(emit_toml(facts)) == facts  # type: ignore[arg-type]


def test_numbers_survive_the_text_to_the_last_bit() -> None:
    facts = {"third": 1 / 3, "tiny": 5e-324, "large": 1.7e308}
    read = tomllib.loads(emit_toml(facts))
    assert all(math.isclose(read[name], value, rel_tol=0.0, abs_tol=0.0) for name, value in facts.items())
