"""Sizes at which a regime is judged: those of the workload where it serves them, else the largest that it serves."""

from collections.abc import Mapping

from planish.codegen.triton.kernel import Launch
from planish.compiler.types import Dim, evaluate_dim

_ABOVE = 4  # times the largest size of the regime below, for one that has no end
_LARGEST = 1 << 31


def reached(launch: Launch) -> tuple[int, ...]:
    """The regimes that the launch can take, by their place: one where its size is a number."""
    regimes = range(len(launch.regimes))
    if not isinstance(launch.size, int):
        return tuple(regimes)
    ends = (launch.regimes[at].most for at in regimes)
    return (next(at for at, most in zip(regimes, ends, strict=True) if most is None or launch.size <= most),)


def judged_sizes(launch: Launch, at: int, hints: Mapping[str, int]) -> Mapping[str, int]:
    """Values of the named sizes for which the launch takes its regime `at`.

    The workload's `hints` where they do; else the named sizes are changed, that with the largest hint first, until the
    launch's size is as near below the regime's largest as it gets.
    """
    low = (launch.regimes[at - 1].most or 0) if at else 0
    most = launch.regimes[at].most
    size = evaluate_dim(launch.size, hints)
    if low < size and (most is None or size <= most):
        return hints
    return _reaching(launch.size, _ABOVE * low if most is None else most, hints)


def _reaching(size: Dim, target: int, hints: Mapping[str, int]) -> Mapping[str, int]:
    names = [] if isinstance(size, int) else sorted(symbol.name for symbol in size.free_symbols)
    found = dict(hints)
    for name in sorted(names, key=lambda name: -hints[name]):
        found[name] = _largest(size, target, found, name)
        if evaluate_dim(size, found) <= target:
            break
    return found


def _largest(size: Dim, target: int, sizes: Mapping[str, int], name: str) -> int:
    """The largest value of the named size with which `size`, which grows with it, is at most `target`; at least 1."""
    low, high = 1, _LARGEST
    while low < high:
        middle = (low + high + 1) // 2
        if evaluate_dim(size, {**sizes, name: middle}) <= target:
            low = middle
        else:
            high = middle - 1
    return low
