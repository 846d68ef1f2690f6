"""Which variants are right: judged by torch, else by most of them, whichever runs first; in Triton's interpreter."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch

from planish.autotune import operands, oracle
from planish.autotune.compare import difference, minority
from planish.autotune.contents import _packed
from planish.autotune.measure import Effort, measure
from planish.autotune.oracle import expected
from planish.autotune.trial import Block, Drawn, Dropped, Outcome, Sample, Times, Trial
from planish.codegen.call import Call
from planish.codegen.halves import Halves
from planish.codegen.triton.cached_attention import CachedAttention
from planish.codegen.triton.choose import candidates
from planish.codegen.triton.kernel import Kernel, Output, Packing, Scratch
from planish.codegen.triton.packed_weight import _in_tiles, by_group, pack_codes
from planish.codegen.triton.request import passed
from planish.codegen.triton.sampling import TokenChoice
from planish.codegen.view import View
from planish.compiler import ops
from planish.compiler.types import DType
from planish.runtime.device.launcher import Passed
from tests.autotune import test_tuner as tuning
from tests.codegen.triton.harness import device, small
from tests.runtime.device.interpreted import InterpretedLauncher

ONCE = Effort(warm=0, least=1, most=1, sets=1)


class _Wrong(InterpretedLauncher):
    """Some kernels add one to all that they have written."""

    broken: Sequence[str] = ()

    def launch(self, kernel: str, grid: tuple[int, int, int], arguments: Sequence[Passed]) -> None:
        super().launch(kernel, grid, arguments)
        if kernel in self.broken:
            for argument, place in zip(arguments, passed(self.kernels[kernel][0]), strict=True):
                if isinstance(place, Output | Scratch):
                    tuning._tensor(argument).add_(1)


@dataclass(slots=True)
class _Breaking(tuning._Interpreted):
    """Some kernels, by their code, are wrong."""

    broken: Sequence[bytes] = ()

    def run(self, asked: Trial, *, timeout: float) -> Outcome:
        self.trials.append(asked)
        launcher = _Wrong({name: self.kernels[k.code] for name, k in asked.kernels().items()})
        launcher.broken = [name for name, k in asked.kernels().items() if k.code in self.broken]
        return measure(asked, launcher, tuning._Clock(1e-3 * len(self.trials)), ONCE)


def _broken_first(path: Path, call: Call, kernel: Kernel, most: int = 3) -> tuple[Any, Any, _Breaking]:
    """What is chosen where the variant that the model ranks first, of the first launch, is wrong."""
    ((first, *_), *_), *_ = candidates("k0", call, kernel, small(), {}, most)
    child = _Breaking(tuning._variants(call, kernel), broken=[tuning._named(first.request)])
    launches, tuner, _ = tuning._tuned(child, path / "k.sqlite", call, kernel, most, small())
    return launches, tuner, child


def _refused(chosen: Any) -> list[str]:
    return [row.refused for row in chosen.rows if row.refused]


def test_a_first_variant_that_is_wrong_is_dropped_and_the_others_are_not(tmp_path: Path) -> None:
    ((chosen,),), tuner, child = _broken_first(tmp_path, *tuning._product())
    (why,) = _refused(chosen)
    assert "away from what torch computes, whose largest is" in why
    assert chosen.binary.code == child.trials[1].candidate.code
    assert [row.basis for row in chosen.rows].count("measured") == 2
    assert tuner.notes == []


def test_where_torch_cannot_say_most_variants_are_right(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(operands, "meaning_of", lambda *given: None)
    ((chosen,),), tuner, child = _broken_first(tmp_path, *tuning._product())
    (why,) = _refused(chosen)
    assert "away from that of most variants" in why
    assert chosen.binary.code == child.trials[1].candidate.code
    assert tuner.notes == []


def test_two_variants_that_differ_are_noted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(operands, "meaning_of", lambda *given: None)
    _, tuner, _ = _broken_first(tmp_path, *tuning._product(), most=2)
    assert tuner.notes == ["k0: no more than half of its variants agree, and torch cannot say which are right"]


def test_where_torch_finds_none_right_they_are_compared_and_the_report_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "planish.autotune.measure.expected", lambda trial, *given: trial.meaning and [torch.ones(5, 40)]
    )
    ((chosen,),), tuner, child = _broken_first(tmp_path, *tuning._product())
    assert len(child.trials) == 6
    (why,) = _refused(chosen)
    assert "away from that of most variants" in why
    (note,) = tuner.notes
    assert note.startswith("k0: no variant was found right, they were compared with each other: a result is ")


def test_a_variant_that_was_right_before_judges_the_next(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    call, kernel = tuning._product()
    child = _Breaking(tuning._variants(call, kernel))
    tuning._tuned(child, tmp_path / "k.sqlite", call, kernel, 1)
    monkeypatch.setattr(operands, "meaning_of", lambda *given: None)
    right = child.trials[0].candidate.code
    child = _Breaking(child.kernels, broken=[code for code in child.kernels if code != right])
    ((chosen,),), _, _ = tuning._tuned(child, tmp_path / "k.sqlite", call, kernel, 3)
    assert [why.split(",")[0].partition("from ")[2] for why in _refused(chosen)] == ["that of another variant"] * 2


def test_a_launch_is_not_blamed_for_another_one_that_is_wrong(tmp_path: Path) -> None:
    past = ops.input_(name="x3", shape=(1,), dtype=DType.i64)
    q = ops.input_(name="x0", shape=(1, 2, 1, 16), dtype=DType.f32)
    k, v = (ops.input_(name=f"x{i}", shape=(1, 2, 40, 16), dtype=DType.f32) for i in (1, 2))
    out = ops.attention(q, k, v, None, past, causal=True, window=None, scale=0.25)
    call = tuning._call(out, (q, k, v, past), ops.attention)
    ((walk,), (merge,)), _, _ = _broken_first(tmp_path, call, CachedAttention().build(call, small()), most=2)
    assert len(_refused(walk)) == 1
    assert _refused(merge) == []
    assert {row.basis for row in merge.rows} == {"measured"}


def test_torch_without_room_leaves_the_judgement_to_others(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*given: object, **named: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(oracle, "evaluate", full)
    ((trial, launcher),) = tuning._trials(*tuning._product(), {})
    assert measure(trial, launcher, tuning._Clock(1.0), ONCE) == Times(1.0, 1.0)
    alone = replace(trial, reference=trial.candidate)
    found = measure(alone, launcher, tuning._Clock(1.0), ONCE)
    assert isinstance(found, Times)
    assert [len(sample.elements) for sample in found.samples] == [4 * 5 * 40]


def test_a_cache_that_is_not_written_is_wrong() -> None:
    cache = ops.input_(name="x0", shape=(1, 2, 64, 4), dtype=DType.f16)
    new = ops.input_(name="x1", shape=(1, 2, 1, 4), dtype=DType.f16)
    past, count = (ops.input_(name=f"x{i}", shape=(1,), dtype=DType.i64) for i in (2, 3))
    call = tuning._call(ops.cache_update(cache, new, past, count), (cache, new, past, count), ops.cache_update)
    ((trial, launcher),) = tuning._trials(call, tuning.CacheUpdate().build(call, device()), {})
    assert measure(trial, launcher, tuning._Clock(1.0), ONCE) == Times(1.0, 1.0)
    idle = replace(trial, candidate=replace(trial.candidate, grid=(0, 1, 1)))
    found = measure(idle, launcher, tuning._Clock(1.0), ONCE)
    assert isinstance(found, Dropped)
    assert "away from what torch computes" in found.reason


def test_narrow_floats_are_widened_and_indices_are_clamped() -> None:
    table = ops.input_(name="x0", shape=(7, 8), dtype=DType.f16)
    index = ops.input_(name="x1", shape=(5,), dtype=DType.i64)
    call = tuning._call(ops.relu(ops.embedding(table, index)), (table, index), ops.embedding)
    held = [operands.seen(i, view, {}) for i, view in enumerate(call.inputs.values())]
    meaning = oracle.meaning_of(call, held, device(), {})
    given, places = torch.randn(7, 8, generator=torch.Generator().manual_seed(0)).half(), torch.tensor([0, 6, 7, -1, 9])
    blocks = [t.flatten().view(torch.uint8) for t in (given, places)]
    results = (operands.seen(2, call.view, {}),)
    trial = Trial("cuda", (), (), *[None] * 2, (), (), results, 0, meaning)  # type: ignore[arg-type]
    (found,) = expected(trial, blocks, torch.device("cpu")) or ()
    torch.testing.assert_close(found, given.float()[[0, 6, 6, 0, 6]].relu(), rtol=0, atol=0)


ROWS = 304


@pytest.mark.parametrize(
    ("shape", "halves"),
    [
        ((ROWS, 128), None),
        ((40, 64), None),
        ((2, ROWS, 64), None),
        ((2 * ROWS, 64), Halves((None, None), (0, ROWS), ROWS, 8)),  # type: ignore[arg-type]
        ((48, 64), Halves((None, None), (0, 24), 24, 8)),  # type: ignore[arg-type]
    ],
)
def test_what_is_said_of_a_packed_weight_is_what_lies_there(shape: tuple[int, ...], halves: Halves | None) -> None:
    turns: Callable[[Any], Any] = halves.in_turns if halves else lambda array: array
    packing = Packing("t", lambda a: pack_codes(turns(a), 4, 8), lambda a: _in_tiles(turns(a)))
    view = View(shape, tuple(math.prod(shape[i + 1 :]) for i in range(len(shape))), 0, DType.i8)
    block, known = _packed(view, packing, 4, 0.25)
    assert known is not None
    sample = numpy.frombuffer(known.data, numpy.int8).reshape(-1, shape[-1])
    assert (sample.min(), sample.max()) == (-8, 7)
    array = sample[numpy.frombuffer(known.rows, numpy.int32)].reshape(shape)
    stored = numpy.resize(numpy.frombuffer(block.pattern, numpy.uint8), block.size)
    whole = packing.pack(array)
    numpy.testing.assert_array_equal(stored[: whole.size], whole)


@pytest.mark.parametrize("sampled", [False, True])
def test_the_choice_of_tokens_is_judged_with_options_that_there_are(sampled: bool) -> None:
    logits = ops.input_(name="x0", shape=(2, 300), dtype=DType.f16)
    seen = ops.input_(name="x1", shape=(2, 300), dtype=DType.u8)
    controls = ops.input_(name="x2", shape=(2, 6), dtype=DType.f64)
    out = ops.sampled_tokens(logits, seen, controls) if sampled else ops.greedy_tokens(logits)
    call = tuning._call(out, (logits, seen, controls)[: 3 if sampled else 1], out.node.op)
    for trial, launcher in tuning._trials(call, TokenChoice().build(call, small()), {}):
        assert measure(trial, launcher, tuning._Clock(1.0), ONCE) == Times(1.0, 1.0)


def test_of_scales_whose_layout_mixes_the_rows_all_are_packed() -> None:
    view = View((600, 4), (4, 1), 0, DType.f16)
    block, known = _packed(view, Packing("t", by_group), 4, 0.25)
    array = numpy.frombuffer(known.data, numpy.float16).reshape(600, 4)  # type: ignore[union-attr]
    assert (block, known) == (Block(608 * 8, by_group(array).tobytes()), Drawn("f16", (600, 4), array.tobytes()))


def _allowed(dtype: DType, depth: int) -> float:
    x, w = (ops.input_(name=f"x{i}", shape=(n, depth), dtype=dtype) for i, n in ((0, 4), (1, 8)))
    call = tuning._call(ops.linear(x, w), (x, w), ops.linear)
    return oracle._allowed(dtype, oracle._graph(call, {}), device())


def test_the_tolerance_follows_from_the_dtype_and_the_length_of_sums() -> None:
    assert _allowed(DType.f16, 64) == pytest.approx(8 * 2.0**-11, rel=1e-2)
    assert _allowed(DType.bf16, 64) == pytest.approx(8 * 2.0**-8, rel=1e-2)
    grown = _allowed(DType.f32, 1 << 20) - _allowed(DType.f32, 1 << 10)
    assert grown == pytest.approx(4 * 2.0**-24 * (1024 - 32))


@pytest.mark.parametrize(
    ("dtype", "wanted", "found", "why"),
    [
        ("f16", [1.0, -4.0], [1.009, -4.0], None),
        ("f16", [1.0, -4.0], [1.02, -4.0], "a result is 0.02 away from X, whose largest is 4"),
        ("f32", [math.nan, math.inf], [math.nan, math.inf], None),
        ("f32", [1.0, 1.0], [math.nan, 1.0], "a result is inf away from X, whose largest is 1"),
        ("i8", [5] * 8, [5] * 7 + [6], None),
        ("i8", [5] * 8, [5] * 7 + [7], "a result is 2 away from X, whose largest is 5"),
        ("i8", [5] * 4, [5] * 2 + [6] * 2, "50% of a result are not those of X"),
        ("f8", [16.0] * 8, [16.0] * 7 + [18.0], None),
        ("f8", [16.0] * 8, [16.0] * 7 + [20.0], "a result is 4 away from X, whose largest is 16"),
        ("i64", [3] * 8, [3] * 7 + [900], None),
        ("i64", [3] * 2, [3, 900], "50% of a result are not those of X"),
    ],
)
def test_floats_may_be_off_and_codes_be_neighbours(
    dtype: str, wanted: list[float], found: list[float], why: str | None
) -> None:
    a, b = torch.tensor(wanted), torch.tensor(found)
    assert difference(dtype, a, b, 0.01, "X") == why  # type: ignore[arg-type]


def test_what_most_agree_on_is_right_and_of_two_the_first() -> None:
    def sample(value: float) -> tuple[Sample, ...]:
        return (Sample("f32", numpy.full(3, value, numpy.float32).tobytes(), 0.1),)

    assert set(minority([sample(1.0), sample(2.0), sample(2.05)])) == {0}
    assert set(minority([sample(1.0), sample(2.0)])) == {1}
    assert minority([sample(1.0)]) == {}
    assert minority([]) == {}
