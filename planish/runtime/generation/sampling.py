"""Choosing the next token from logits: penalties, filters and the draw, in the order of transformers."""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from planish.errors import InputError

Array = np.ndarray[Any, Any]
_BLOCK = 64
# What the choice of a row's token depends on beside its logits and the tokens that were there, as f64; filters that are
# off are 0 (top_k, min_p) and 1 (top_p, the penalty). `share` says where the draw falls.
CONTROLS: Final = ("share", "temperature", "top_k", "top_p", "min_p", "repetition_penalty")
# Only the outermost of these shells below the largest logit that a share of the probability reaches is sorted.
_DEPTHS = (2.0, 4.0, 6.0, 9.0, 13.0, 20.0, math.inf)
# Below this no draw gives another token than the likeliest, and logits divided by it may pass f32.
_COLD: Final = 1e-20
_PENALTIES: Final = (1e-6, 1e6)


@dataclass(frozen=True, slots=True)
class Sampling:
    """How tokens are chosen. At `temperature` 0 the likeliest is; otherwise one is drawn from what the filters leave.

    repetition_penalty: divides positive logits of tokens that were there before, multiplies negative ones.
    temperature: divides the logits; None is 1 where a filter is given, else 0. Below 1e-20 it counts as 0.
    top_k: keeps the k largest logits, and ties of the least of them.
    top_p: keeps the likeliest tokens until their probabilities reach p; of equal ones the first.
    min_p: keeps tokens at least that many times as likely as the likeliest.
    seed: makes draws repeatable.

    Raises InputError naming an option that is out of its range.
    """

    temperature: float | None = None
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None
    seed: int | None = None

    def __post_init__(self) -> None:
        _check("temperature", self.temperature, "a number of at least 0", _number(self.temperature, 0))
        whole = isinstance(self.top_k, int | np.integer) and not isinstance(self.top_k, bool) and self.top_k >= 1
        _check("top_k", self.top_k, "an integer of at least 1", whole)
        _check("top_p", self.top_p, "above 0 and at most 1", _number(self.top_p, 0, 1) and self.top_p != 0)
        _check("min_p", self.min_p, "from 0 to 1", _number(self.min_p, 0, 1))
        penalty = _number(self.repetition_penalty, *_PENALTIES)
        _check("repetition_penalty", self.repetition_penalty, "from 1e-6 to 1e6, where 1 changes nothing", penalty)
        seeded = isinstance(self.seed, int | np.integer) and not isinstance(self.seed, bool) and self.seed >= 0
        _check("seed", self.seed, "an integer of at least 0", seeded)

    @property
    def used_temperature(self) -> float:
        """The temperature in force."""
        if self.temperature is not None:
            return float(self.temperature) if self.temperature >= _COLD else 0.0
        return 0.0 if self.top_k is None and self.top_p is None and self.min_p is None else 1.0


class Sampler:
    """The choice of one row's tokens; knows which tokens were there before."""

    def __init__(self, options: Sampling, vocabulary: int, *, row: int = 0) -> None:
        self._options, self._temperature = options, options.used_temperature
        self._random = np.random.default_rng(None if options.seed is None else [options.seed, row])
        penalty = options.repetition_penalty
        self.seen = None if penalty in (None, 1) else np.zeros(vocabulary, bool)

    @property
    def is_greedy(self) -> bool:
        """Whether the token of the largest logit is chosen, whatever the others are."""
        return self.seen is None and self._temperature == 0

    def note(self, ids: Iterable[int]) -> None:
        """Tokens that are there now: the prompt's, or chosen ones."""
        if self.seen is not None:
            self.seen[np.fromiter(ids, np.int64)] = True

    def choose(self, logits: Array) -> int:
        """The next token after finite `logits` f32[V]."""
        return chosen(logits, self.seen, self._options, self.share)

    def share(self) -> float:
        """How much of the probability lies before the next draw; the next number of the seed."""
        return float(self._random.random())

    def controls(self) -> tuple[float, ...]:
        """The numbers of `CONTROLS` for the next token; where it is drawn, the share is the next number of the seed."""
        made = self._options
        share = self.share() if self._temperature else 0.0
        penalty = 1.0 if self.seen is None else float(made.repetition_penalty or 1.0)
        top_p = 1.0 if made.top_p is None else float(made.top_p)
        return share, self._temperature, float(made.top_k or 0), top_p, float(made.min_p or 0.0), penalty


def chosen(logits: Array, seen: Array | None, options: Sampling, share: Callable[[], float]) -> int:
    """The next token after finite `logits` f32[V]; `seen` bool[V] are the tokens that the penalty is on, `share` says
    where a draw falls."""
    temperature = options.used_temperature
    if seen is not None:
        logits = penalized(logits, np.flatnonzero(seen), float(options.repetition_penalty or 1.0))
    if temperature == 0:
        return int(logits.argmax())
    tokens, weights = candidates(logits, options, temperature)
    place = drawn(weights, share())
    return place if tokens is None else int(tokens[place])


def chosen_by(logits: Array, seen: Array, controls: Array) -> int:
    """`chosen` by the numbers of `CONTROLS`, f64."""
    share, temperature, top_k, top_p, min_p, penalty = controls.tolist()
    return chosen(logits, seen, Sampling(temperature, int(top_k) or None, top_p, min_p, penalty), lambda: share)


def penalized(logits: Array, seen: Array, penalty: float) -> Array:
    """A copy of `logits` with the repetition penalty on the tokens `seen` (arXiv 1909.05858)."""
    logits = logits.copy()
    old = logits[seen]
    logits[seen] = np.where(old < 0, old * np.float32(penalty), old / np.float32(penalty))
    return logits


def candidates(logits: Array, options: Sampling, temperature: float) -> tuple[Array | None, Array]:
    """The tokens that the filters leave (None for all) and their probabilities up to a common factor."""
    scores = logits / np.float32(temperature)
    tokens: Array | None = None
    if options.top_k is not None and options.top_k < len(scores):
        tokens = np.flatnonzero(scores >= _least_of_largest(scores, int(options.top_k)))
        scores = scores[tokens]
    # exp underflows to 0 for what can never be drawn
    depth = scores.max() - scores
    weights = np.exp(-depth)
    if options.top_p is not None and options.top_p < 1:
        kept = _likeliest(weights, depth, float(options.top_p))
        tokens, weights = kept if tokens is None else tokens[kept], weights[kept]
    if options.min_p:
        kept = np.flatnonzero(weights >= np.float32(options.min_p) * weights.max())
        tokens, weights = kept if tokens is None else tokens[kept], weights[kept]
    return tokens, weights


def drawn(weights: Array, share: float) -> int:
    """An index by its weight: `share`, from 0 to 1, says how much of the total lies before it in a fixed order."""
    columns = max(1, len(weights) // _BLOCK)
    folded = columns * (len(weights) // columns)
    # summed down the columns, which numpy does in vectors
    sums = weights[:folded].reshape(-1, columns).sum(axis=0, dtype=np.float32)
    whole = np.cumsum([*sums.tolist(), float(weights[folded:].sum())])
    wanted = share * whole[-1]
    column = _place(whole, wanted)
    places = np.arange(column, folded, columns) if column < columns else np.arange(folded, len(weights))
    inside = np.cumsum(weights[places], dtype=np.float64)
    return int(places[_place(inside, wanted - (whole[column - 1] if column else 0.0))])


def _place(sums: Array, wanted: float) -> int:
    """The first place whose sum is over `wanted`; where rounding leaves none, the last that adds anything."""
    return min(int(np.searchsorted(sums, wanted, side="right")), int(np.searchsorted(sums, sums[-1])))


def _least_of_largest(scores: Array, count: int) -> Any:
    """The least of the `count` largest scores."""
    folded = len(scores) // _BLOCK * _BLOCK
    if folded >= _BLOCK * count:
        # so many columns have a maximum of at least the bound, hence so many scores are
        maxima = scores[:folded].reshape(_BLOCK, -1).max(axis=0)
        scores = scores[scores >= np.partition(maxima, -count)[-count]]
    return np.partition(scores, -count)[-count]


def _likeliest(weights: Array, depth: Array, share: float) -> Array:
    """Indices of the largest weights exp(-depth): all before which less than `share` of the total is passed."""
    wanted = share * float(weights.sum(dtype=np.float64))
    kept, passed, inner = np.zeros(len(weights), bool), 0.0, -1.0
    for outer in _DEPTHS:
        shell = np.flatnonzero((depth > inner) & (depth <= outer))
        gained = float(weights[shell].sum(dtype=np.float64))
        if passed + gained >= wanted:
            break
        kept[shell] = True
        passed, inner = passed + gained, outer
    shell = shell[np.argsort(depth[shell])]
    sums = passed + np.cumsum(weights[shell], dtype=np.float64)
    count = 1 + int(np.searchsorted(sums, wanted))
    if count < len(shell) and depth[shell[count]] == depth[shell[count - 1]]:
        shell = _in_order(shell, depth[shell], count - 1)
    kept[shell[:count]] = True
    return np.flatnonzero(kept)


def _in_order(places: Array, depth: Array, among: int) -> Array:
    """The places, ascending in `depth`, with those that are as deep as the one `among` them in their own order."""
    first, end = (int(np.searchsorted(depth, depth[among], side=side)) for side in ("left", "right"))
    return np.concatenate((places[:first], np.sort(places[first:end]), places[end:]))


def _number(given: object, low: float, high: float = math.inf) -> bool:
    numeric = isinstance(given, int | float | np.number) and not isinstance(given, bool)
    return numeric and low <= given <= high and math.isfinite(given)  # type: ignore[operator, arg-type]


def _check(name: str, given: object, allowed: str, fits: bool) -> None:
    if given is not None and not fits:
        raise InputError(f"generate: {name} is {allowed}, not {given!r}")
