"""Timing in turns: the order of calls, when it stops, and the statistics."""

import time
from pathlib import Path

import pytest

from benchmarks import timing
from benchmarks.timing import Effort, Timing, take_turns

QUICK = Effort(seconds=0, warm=0, least=3, most=10, rest_ms=0, burst=1)


def test_gives_everyone_a_turn_a_round_and_rotates_who_starts() -> None:
    made: list[str] = []
    take_turns({name: lambda name=name: made.append(name) for name in "abc"}, QUICK)  # type: ignore[misc]
    assert "".join(made) == "aabbcc" + "bbccaa" + "ccaabb"


def test_warms_up_without_timing() -> None:
    made: list[int] = []
    effort = Effort(seconds=0, warm=4, least=3, most=3, rest_ms=0, burst=2)
    turns = take_turns({"a": lambda: made.append(1)}, effort)
    assert len(made) == 4 + 3 * (1 + 2)
    assert len(turns.timings["a"].calls_ms) == 3 * 2


def test_stops_at_the_most_rounds_before_the_time_is_over() -> None:
    turns = take_turns({"a": lambda: None}, Effort(seconds=60, warm=0, least=1, most=4, rest_ms=0, burst=1))
    assert len(turns.timings["a"].calls_ms) == 4


def test_goes_on_until_the_time_is_over() -> None:
    start = time.perf_counter()
    take_turns({"a": lambda: None}, Effort(seconds=0.05, warm=0, least=1, most=10**6, rest_ms=1))
    assert 0.05 <= time.perf_counter() - start < 5


def test_times_the_call_and_not_the_rest_before_it() -> None:
    def busy() -> None:
        end = time.perf_counter() + 0.02
        while time.perf_counter() < end:
            pass

    turns = take_turns({"a": busy}, Effort(seconds=0, warm=0, least=3, most=3, rest_ms=100))
    assert all(20 <= value < 100 for value in turns.timings["a"].calls_ms)


def test_knows_the_median_and_the_tenth_percentile() -> None:
    values = Timing(tuple(float(value) for value in range(20, -1, -1)))
    assert values.median_ms == 10
    assert values.p10_ms == 2
    assert Timing((3.0,)).p10_ms == 3


def test_counts_the_work_of_others_without_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(timing, "_busy_seconds", lambda: 2.5 * time.perf_counter())
    monkeypatch.setattr(timing, "_own_seconds", time.perf_counter)
    turns = take_turns({"a": lambda: time.sleep(0.05)}, QUICK)
    assert turns.other_cores == pytest.approx(1.5, rel=0.05)


def test_admits_that_the_work_of_others_is_unknown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(timing, "_STAT", Path("/no/such/file"))
    assert take_turns({"a": lambda: None}, QUICK).other_cores is None
