"""The roofline against the formula worked by hand."""

import pytest

from planish.errors import ProfileError
from planish.hardware_profiles import Roofline, energy_mj, limit, load_profile, time_ms


def test_a_large_matrix_product_is_bound_by_arithmetic() -> None:
    # 4096^3 multiply-adds in bf16 at 989.4 TFLOP/s; three matrices of 4096^2 two-byte numbers at 3.35 TB/s.
    roof = limit(load_profile("h100"), 2 * 4096**3, 3 * 4096**2 * 2, "bf16")
    assert roof.compute_ms == pytest.approx(137438953472 / 989.4e12 * 1e3)
    assert roof.memory_ms == pytest.approx(100663296 / 3.35e12 * 1e3)
    assert roof.bound == "compute"
    assert roof.ms == roof.compute_ms


def test_a_matrix_times_a_vector_is_bound_by_memory() -> None:
    roof = limit(load_profile("h100"), 2 * 4096**2, 4096**2 * 2, "bf16")
    assert roof.bound == "memory"
    assert roof.ms == pytest.approx(33554432 / 3.35e12 * 1e3)


def test_dtypes_take_their_turns() -> None:
    # 2 Gflop of f32 at 236.4 GFLOP/s, then 3 Gop of i8 at 945.5 Gop/s.
    time = time_ms(load_profile("zen4"), {"f32": 2e9, "i8": 3e9}, 0)
    assert time == pytest.approx((2 / 236.4 + 3 / 945.5) * 1e3)


def test_one_core_has_its_own_peak_and_bandwidth() -> None:
    roof = limit(load_profile("zen4"), 1e9, 1e9, cores=1)
    assert roof.compute_ms == pytest.approx(1 / 118.2 * 1e3)
    assert roof.memory_ms == pytest.approx(1 / 30 * 1e3)


def test_energy_is_the_power_bound_over_the_time() -> None:
    # 19.5 Gflop at 19.5 TFLOP/s take 1 ms; at 400 W that is 400 mJ.
    assert energy_mj(load_profile("a100"), {"f32": 19.5e9}, 0) == pytest.approx(400)


def test_a_profile_without_power_has_no_energy() -> None:
    assert energy_mj(load_profile("zen4"), {"f32": 1e9}, 0) is None


def test_a_tie_is_bound_by_arithmetic() -> None:
    assert Roofline(compute_ms=1.0, memory_ms=1.0).bound == "compute"


def test_nothing_to_do_takes_no_time() -> None:
    assert time_ms(load_profile("zen4"), {}, 0) == 0


def test_a_dtype_without_a_rate_is_refused() -> None:
    with pytest.raises(ProfileError, match="profile 'alveo-u280' has no rate for bf16; it has i8"):
        limit(load_profile("alveo-u280"), 1.0, 1.0, "bf16")
