"""A run of the language benchmark: turns, time limits, what is kept of a killed run, and what is refused."""

from dataclasses import replace
from itertools import cycle
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from benchmarks.language import run as runs
from benchmarks.language.grid import FULL, HEADLINE, QUICK, Grid, Preset, Sitting, chosen
from benchmarks.language.peers import LLAMA_CPP, PEERS, Generated, LanguagePeer, Setting
from benchmarks.language.results import Effort, LanguageSuite, Rates, load
from benchmarks.language.run import Run, left, run_language
from benchmarks.language.source import LLAMA_1B, SMOLLM2, Ids, Source
from benchmarks.language.table import language_markdown
from benchmarks.language.worker import Ready, prepared
from benchmarks.results import Machine
from planish.errors import InputError
from tests.benchmarks.counting import BROKEN, COUNTS, SLEEPS, TINY, Counts

GRID = Grid((TINY,), ("int4",), (2,), ("prefill-4", "decode-8"))
RUN = Run(Preset((GRID,), (COUNTS, BROKEN), Effort(5, 2)), threads=1)


class Near:
    """A worker in this process: a new one costs seconds."""

    ready = Ready(1.0, 1, converted=False)

    def __init__(self, peer: LanguagePeer, source: Source, kind: str, setting: Setting) -> None:
        self._session = peer.prepare(source, kind, setting)

    def generate(self, prompts: Ids, count: int, limit_seconds: float) -> Generated:
        return self._session.generate(prompts, count)

    def close(self) -> None:
        """There is nothing to end."""


@pytest.fixture(autouse=True)
def rates(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runs, "prepared", Near)
    monkeypatch.setattr(runs, "measure_rates", lambda threads: Rates(10.0, {"f32": 100.0}))
    monkeypatch.setattr(runs, "machine", lambda threads: Machine("P", threads, "3", {}))


def quietly(run: Run, path: Path, **options: Any) -> LanguageSuite:
    return run_language(run, "language", path, lambda text: None, **options)


def test_a_run_keeps_every_time_and_every_reason(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runs, "prepared", prepared)
    suite = quietly(RUN, tmp_path / "language.json")
    assert [case.key for case in suite.cases] == [("tiny", "int4", 2, 4), ("tiny", "int4", 2, 8)]
    prefilled, decoded = (case.results[0] for case in suite.cases)
    assert (prefilled.first_ms, prefilled.token_ms) == ((4.0, 4.0), ())
    assert (decoded.first_ms, decoded.token_ms) == ((8.0, 8.0), (1.0,) * 8)
    assert suite.cases[1].results[1].failure == "broken cannot run tiny: NotImplementedError: no such op"
    assert load(tmp_path / "language.json") == suite


def test_the_table_shows_rates_shares_and_reasons(tmp_path: Path) -> None:
    table = language_markdown(quietly(RUN, tmp_path / "language.json"))
    stored = TINY.shape.linear_weights * 4.5 / 8 + TINY.shape.head_weights + 2 * 10 * TINY.shape.cached * 2
    prefill = TINY.shape.flops(8) * 2 / 8e-3 / 100e9
    assert (
        f"| tiny | int4 | 2 | 8 | counts | 2000.0 | 1.00 | 1.00 | {stored / 1e6:.1f} | {stored / 1e-3 / 10e9:.2f} "
        f"| 2000 | {prefill:.2f} f32 |  |" in table
    )
    assert "| tiny | int4 | 2 | 4 | counts |  |  |  |  |  | 2000 |" in table
    assert "- tiny int4, batch 2, 4 8 tokens: broken cannot run tiny" in table
    assert len({line.count("|") for line in table.splitlines() if line.startswith("|")}) == 1


def test_the_table_says_where_the_bandwidth_changed_meanwhile(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    found = cycle([10.0, 20.0])
    monkeypatch.setattr(runs, "measure_rates", lambda threads: Rates(next(found), {"f32": 100.0}))
    table = language_markdown(quietly(RUN, tmp_path / "language.json"))
    stored = TINY.shape.linear_weights * 4.5 / 8 + TINY.shape.head_weights + 2 * 10 * TINY.shape.cached * 2
    assert f"| {stored / 1e-3 / 20e9:.2f} to {stored / 1e-3 / 10e9:.2f} |" in table


def test_a_killed_run_goes_on_where_it_was(tmp_path: Path) -> None:
    path = tmp_path / "language.json"

    def kill(text: str) -> None:
        if "8 tokens, round 1" in text:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_language(RUN, "language", path, kill)
    before = load(path)
    assert [case.context for case in before.cases] == [4]
    said: list[str] = []
    after = run_language(RUN, "language", path, said.append)
    assert after.cases[0] == before.cases[0]
    assert [case.context for case in after.cases] == [4, 8]
    assert not any("4 tokens, round" in text for text in said)
    assert left(RUN, after) == []
    run_language(RUN, "language", path, kill)
    assert load(path) == after


def test_a_peer_that_is_new_is_added_to_the_cases(tmp_path: Path) -> None:
    path = tmp_path / "language.json"
    quietly(RUN, path)
    more = replace(RUN, preset=replace(RUN.preset, peers=(COUNTS, BROKEN, SLEEPS)))
    suite = quietly(more, path)
    assert [[result.peer for result in turns.results] for turns in suite.cases[1].turns] == [
        ["counts", "broken"],
        ["sleeps"],
    ]


def test_a_file_of_another_run_is_neither_continued_nor_lost(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "language.json"
    before = quietly(RUN, path)
    longer = replace(RUN, preset=replace(RUN.preset, effort=Effort(7, 2)))
    with pytest.raises(InputError, match=r"measured with another effort .* give --fresh"):
        quietly(longer, path)
    with pytest.raises(InputError, match="measured with another number of threads"):
        quietly(replace(RUN, threads=2), path)
    assert load(path) == before
    assert len(quietly(longer, path, fresh=True).cases[1].results[0].token_ms) == 12
    monkeypatch.setattr(runs, "code_digest", lambda: "other")
    with pytest.raises(InputError, match="another state of planish's sources"):
        quietly(longer, path)


def test_nothing_is_begun_when_the_minutes_are_over(tmp_path: Path) -> None:
    run = replace(RUN, minutes=-1.0)
    suite = quietly(run, tmp_path / "language.json")
    assert suite.cases == ()
    assert left(run, suite) == ["tiny int4, batch 2, 4 tokens", "tiny int4, batch 2, 8 tokens"]


class Asked(Counts):
    """Stands for a worker and keeps what it was asked for."""

    ready = SimpleNamespace(seconds=1.0, peak_mib=1)

    def __init__(self) -> None:
        self.asked: list[tuple[int, int]] = []

    def generate(self, prompts: np.ndarray, count: int, limit_seconds: float = 0.0) -> Any:
        self.asked.append((prompts.shape[1], count))
        return super().generate(prompts, count)


def test_a_peer_stops_when_its_time_is_used_and_skips_what_would_take_longer() -> None:
    effort, worker = Effort(5, 4, 0.02), Asked()
    sitting = Sitting(TINY, "int4", 1, (4, 64), frozenset((4,)))
    seat: Any = runs._Seat(COUNTS, worker)  # type: ignore[arg-type]
    for prompt in sitting.prompts:
        runs._take_turns(effort, sitting, prompt, [seat], lambda text: None)
        result = runs._result(seat, sitting, prompt, effort)
        if prompt == 4:
            assert result.note == "3 of 4 generations within the limit of 0.02 s"
            assert result.first_ms == (4.0,) * 3
    assert worker.asked == [(4, 2), (4, 5), (4, 5), (4, 5)]
    assert result.failure == "counts would take about 0.068 s, over the limit of 0.02 s"


def test_a_peer_without_an_answer_in_time_is_ended(tmp_path: Path) -> None:
    worker = runs.Worker(SLEEPS, TINY, "int4", runs.Setting(1, 64, 1))
    with pytest.raises(runs.PeerError, match=r"sleeps had no answer within the limit of 0\.2 s"):
        worker.generate(np.zeros((1, 9), np.int64), 2, 0.2)
    worker.close()


def test_peers_take_turns_together_as_far_as_memory_goes(monkeypatch: pytest.MonkeyPatch) -> None:
    peers = tuple(replace(COUNTS, name=f"peer {i}") for i in range(3))
    run = replace(RUN, preset=replace(RUN.preset, peers=peers))

    def groups(run: Run) -> list[int]:
        return [len(group) for _, group in runs._work(run)]

    monkeypatch.setattr(runs, "available_bytes", lambda: 1 << 40)
    assert groups(run) == [3]
    assert groups(replace(run, group=1)) == [1, 1, 1]
    monkeypatch.setattr(runs, "available_bytes", lambda: (1 << 30) + (1400 << 20))
    assert groups(run) == [2, 1]


def test_what_is_chosen_replaces_what_a_preset_has() -> None:
    preset = chosen(QUICK, models="llama-1.1b", formats="f32", peers="llama.cpp", cases="prefill-77", rounds=5)
    (sitting,) = preset.sittings()
    assert sitting == Sitting(LLAMA_1B, "f32", 1, (77,), frozenset())
    assert preset.peers == (LLAMA_CPP,)
    assert preset.effort == replace(QUICK.effort, rounds=5)


def test_the_whole_grid_has_every_model_format_and_batch_once() -> None:
    sittings = FULL.sittings()
    assert len({(s.source, s.kind, s.batch) for s in sittings}) == len(sittings) == 2 * 4 * 2
    assert {s.prompts for s in sittings} == {(16, 128, 512, 2048)}
    assert {s.decoded for s in sittings} == {frozenset((16, 512, 2048))}
    assert FULL.peers == PEERS
    assert {(s.source, s.kind, s.batch) for s in HEADLINE.sittings()} >= {(SMOLLM2, "int4", 1), (LLAMA_1B, "int4", 8)}


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"peers": "lama.cpp"}, r"'lama\.cpp'; did you mean 'llama\.cpp'"),
        ({"cases": "decod-16"}, r"a case is prefill-TOKENS or decode-TOKENS, not 'decod-16'; did you mean 'decode-16'"),
        ({"formats": "int3"}, "nothing to measure is called 'int3'"),
    ],
)
def test_a_name_that_is_not_known_is_refused(options: dict[str, str], reason: str) -> None:
    with pytest.raises(InputError, match=reason):
        chosen(FULL, **options)


@pytest.mark.parametrize("peer", PEERS, ids=lambda peer: peer.name)
def test_every_format_of_the_grid_is_stored_or_has_a_reason(peer: LanguagePeer) -> None:
    assert {*peer.formats, *peer.missing} == {"f32", "bf16", "int8", "int4"}
    assert not {*peer.formats} & {*peer.missing}
