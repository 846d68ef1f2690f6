"""Kernels beside loops that move the same bytes."""

import ctypes

import numpy as np
import pytest
import torch

import planish
from benchmarks.moves import Moves, in_huge_pages, library, time_moves
from benchmarks.peers import PeerError


def _noise(seed: int, rows: int = 7) -> np.ndarray:
    return in_huge_pages(np.random.default_rng(seed).standard_normal((rows, 64), dtype=np.float32))


@pytest.mark.parametrize("past", [False, True])
@pytest.mark.parametrize("reads", [1, 2])
def test_the_loop_copies_or_adds(reads: int, past: bool) -> None:
    a, b, out, seconds = _noise(0), _noise(1), in_huge_pages(np.zeros((7, 64), np.float32)), np.zeros(3)
    addresses = [ctypes.c_void_p(array.ctypes.data) for array in (out, a)]
    second = ctypes.c_void_p(b.ctypes.data if reads == 2 else None)
    times = ctypes.c_void_p(seconds.ctypes.data)
    library().moves_time_loop(*addresses, second, ctypes.c_int64(out.nbytes), past, 2, 1, 3, times)
    np.testing.assert_array_equal(out, a + b if reads == 2 else a)
    assert (seconds > 0).all()


def test_kernels_and_loops_are_timed_on_the_memory_of_the_call() -> None:
    x, y = _noise(0), _noise(1)
    model = planish.compile(_Add().eval(), "cpu", inputs=(torch.from_numpy(x), torch.from_numpy(y)), threads=1)
    moves = time_moves(model, [x, y], 1)
    assert isinstance(moves, Moves)
    assert moves.kernels > 0
    assert moves.loop > 0


def test_a_call_of_three_arrays_is_refused() -> None:
    x = _noise(0)
    inputs = tuple(torch.from_numpy(_noise(i)) for i in range(3))
    model = planish.compile(_AddThree().eval(), "cpu", inputs=inputs, threads=1)
    with pytest.raises(PeerError, match="only a model of kernels alone that reads one or two arrays"):
        time_moves(model, [x, x, x], 1)


class _Add(torch.nn.Module):
    def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return x + y


class _AddThree(torch.nn.Module):
    def forward(self, x: torch.Tensor, y: torch.Tensor, z: torch.Tensor) -> torch.Tensor:
        return x + y + z
