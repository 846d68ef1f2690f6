"""Sampling against transformers' processors of logits, distributions against their formula, and refusals by words."""

import math

import numpy as np
import pytest
import torch

from planish.errors import InputError
from planish.runtime.generation.sampling import Sampler, Sampling, candidates, chosen_by, drawn, penalized
from tests.generation.processors import processed


def logits_of(size: int, seed: int = 0, scale: float = 3.0) -> np.ndarray:
    return (scale * np.random.default_rng(seed).standard_normal(size)).astype(np.float32)


def reference(logits: np.ndarray, options: Sampling, seen: list[int] | None = None) -> np.ndarray:
    """Logits f32[V] by transformers, -inf for the tokens that it drops."""
    return processed(torch.tensor(logits), options, seen or [0]).numpy()


def ours(logits: np.ndarray, options: Sampling, seen: list[int] | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Whether each token is kept, and its probability."""
    if options.repetition_penalty is not None:
        logits = penalized(logits, np.array(sorted(set(seen or [0]))), options.repetition_penalty)
    tokens, weights = candidates(logits, options, options.used_temperature)
    kept, found = np.zeros(len(logits), bool), np.zeros(len(logits))
    place = slice(None) if tokens is None else tokens
    kept[place], found[place] = True, weights / weights.sum(dtype=np.float64)
    return kept, found


@pytest.mark.parametrize("size", [5, 63, 64, 1000, 50_001])
@pytest.mark.parametrize(
    "options",
    [
        Sampling(temperature=0.7),
        Sampling(top_k=1),
        Sampling(top_k=4),
        Sampling(top_k=50, temperature=1.3),
        Sampling(top_p=0.01),
        Sampling(top_p=0.5),
        Sampling(top_p=0.95, temperature=0.4),
        Sampling(top_p=0.999, temperature=2.0),
        Sampling(min_p=0.05),
        Sampling(min_p=1.0),
        Sampling(repetition_penalty=1.3, temperature=1.0),
        Sampling(top_k=40, top_p=0.9, min_p=0.1, temperature=0.8, repetition_penalty=1.2),
    ],
)
def test_keeps_the_tokens_and_probabilities_that_transformers_keeps(size: int, options: Sampling) -> None:
    seen = [0, 1, 3, 3, 4]
    for seed in range(3):
        logits = logits_of(size, seed)
        expected, (kept, found) = reference(logits, options, seen), ours(logits, options, seen)
        assert np.array_equal(kept, expected > -np.inf)
        assert np.abs(found - torch.tensor(expected).softmax(-1).numpy()).max() < 2e-6


def test_top_k_keeps_ties_as_transformers_does() -> None:
    logits = np.array([1, 2, 2, 2, 0, -1], np.float32)
    options = Sampling(top_k=2)
    assert ours(logits, options)[0].tolist() == (reference(logits, options) > -np.inf).tolist() == [0, 1, 1, 1, 0, 0]


def test_top_p_keeps_the_likeliest_token_however_small_p_is() -> None:
    assert np.flatnonzero(ours(logits_of(100), Sampling(top_p=1e-9))[0]).tolist() == [int(logits_of(100).argmax())]


@pytest.mark.parametrize(("size", "p"), [(10, 0.45), (300, 0.5), (5000, 0.11)])
def test_of_equal_logits_top_p_keeps_the_first(size: int, p: float) -> None:
    kept = ours(np.zeros(size, np.float32), Sampling(top_p=p))[0]
    assert np.flatnonzero(kept).tolist() == list(range(math.ceil(size * p)))


def test_a_choice_by_numbers_is_that_of_the_sampler() -> None:
    options = Sampling(temperature=0.8, top_k=40, top_p=0.9, min_p=0.01, repetition_penalty=1.2, seed=7)
    for each in (
        options,
        Sampling(temperature=1.5, seed=1),
        Sampling(repetition_penalty=2.0),
        Sampling(top_k=3, seed=2),
    ):
        sampler, numbers = Sampler(each, 500), Sampler(each, 500)
        for step in range(20):
            logits = logits_of(500, step)
            seen = np.zeros(500, bool) if sampler.seen is None else sampler.seen
            token = chosen_by(logits, seen, np.array(numbers.controls()))
            assert token == sampler.choose(logits)
            sampler.note([token])


def test_equal_logits_are_all_kept_by_top_p_of_one() -> None:
    assert ours(np.zeros(300, np.float32), Sampling(top_p=1.0))[0].all()


@pytest.mark.parametrize("size", [7, 64, 200])
def test_draws_follow_the_softmax(size: int) -> None:
    logits = logits_of(size, scale=1.0)
    expected = np.exp(logits.astype(np.float64))
    expected /= expected.sum()
    sampler, draws = Sampler(Sampling(temperature=1.0, seed=3), size), 20_000
    counts = np.bincount([sampler.choose(logits) for _ in range(draws)], minlength=size)
    # five standard deviations of a binomial count
    assert (np.abs(counts - draws * expected) <= 5 * np.sqrt(draws * expected) + 1).all()


@pytest.mark.parametrize("size", [1, 63, 64, 65, 129, 1000])
def test_a_draw_is_never_a_token_without_weight(size: int) -> None:
    weights = np.zeros(size, np.float32)
    weights[size // 2] = 1.0
    for share in (0.0, 0.3, 0.999999, 1.0):
        assert drawn(weights, share) == size // 2


def test_every_token_can_be_drawn() -> None:
    weights = np.ones(130, np.float32)
    assert {drawn(weights, (i + 0.5) / 130) for i in range(130)} == set(range(130))


def test_temperature_zero_takes_the_likeliest_after_the_penalty() -> None:
    logits = np.array([1.0, 3.0, 2.9, -1.0], np.float32)
    sampler = Sampler(Sampling(repetition_penalty=1.5), 4)
    assert sampler.choose(logits) == 1
    sampler.note([1])
    assert sampler.choose(logits) == 2
    assert logits[1] == 3.0, "the caller's logits stay as they are"


def test_a_temperature_too_small_to_divide_by_takes_the_likeliest() -> None:
    logits = logits_of(100)
    for temperature in (1e-45, 1e-40, 1e-21, 1e-18):
        assert Sampler(Sampling(temperature), 100).choose(logits) == int(logits.argmax())


def test_a_seed_repeats_the_draws_and_rows_differ() -> None:
    logits = logits_of(500)

    def draws(seed: int, row: int = 0) -> list[int]:
        sampler = Sampler(Sampling(temperature=1.0, seed=seed), 500, row=row)
        return [sampler.choose(logits) for _ in range(20)]

    assert draws(1) == draws(1)
    assert draws(1) != draws(2)
    assert draws(1) != draws(1, row=1)


def test_a_filter_alone_makes_it_draw() -> None:
    assert Sampling().used_temperature == 0
    assert Sampling(top_k=5).used_temperature == Sampling(top_p=0.5).used_temperature == 1
    assert Sampling(top_k=5, temperature=0).used_temperature == 0


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"temperature": -1}, "temperature is a number of at least 0, not -1"),
        ({"temperature": float("nan")}, "temperature is a number of at least 0, not nan"),
        ({"temperature": float("inf")}, "temperature is a number of at least 0, not inf"),
        ({"temperature": "hot"}, "temperature is a number of at least 0, not 'hot'"),
        ({"top_k": 0}, "top_k is an integer of at least 1, not 0"),
        ({"top_k": 2.5}, "top_k is an integer of at least 1, not 2.5"),
        ({"top_k": True}, "top_k is an integer of at least 1, not True"),
        ({"top_p": 0}, "top_p is above 0 and at most 1, not 0"),
        ({"top_p": 1.1}, "top_p is above 0 and at most 1, not 1.1"),
        ({"min_p": -0.1}, "min_p is from 0 to 1, not -0.1"),
        ({"repetition_penalty": 0}, "repetition_penalty is from 1e-6 to 1e6, where 1 changes nothing, not 0"),
        ({"repetition_penalty": 1e39}, "repetition_penalty is from 1e-6 to 1e6"),
        ({"seed": -1}, "seed is an integer of at least 0, not -1"),
    ],
)
def test_refuses_options_out_of_range(options: dict[str, object], words: str) -> None:
    with pytest.raises(InputError, match=words):
        Sampling(**options)  # type: ignore[arg-type]
