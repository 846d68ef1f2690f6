"""Memory of calls: arenas, outputs that return when the caller lets go of them, huge pages."""

import gc
import mmap
import pickle
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from planish.runtime import operands
from planish.runtime.blocks import Block
from planish.runtime.buffers import LENT_BYTES, ArenaPool, OutputPool
from planish.runtime.loading import load

SIZE = 2 * LENT_BYTES
COUNT = SIZE // 4


def array(pool: OutputPool) -> np.ndarray:
    result: np.ndarray = operands.empty("f32", (COUNT // 8, 8), None, pool).owner
    return result


def tensor(pool: OutputPool) -> torch.Tensor:
    result: torch.Tensor = operands.empty("f32", (COUNT // 8, 8), torch, pool).owner
    return result


def address(value: Any) -> int:
    return int(value.data_ptr() if isinstance(value, torch.Tensor) else value.ctypes.data)


@pytest.fixture(params=[array, tensor])
def make(request: pytest.FixtureRequest) -> Any:
    return request.param


def test_memory_is_lent_again_once_the_caller_has_dropped_it(make: Any) -> None:
    pool = OutputPool()
    first = make(pool)
    kept = address(first)
    second = make(pool)
    assert address(second) != kept
    del first
    assert address(make(pool)) == kept


@pytest.mark.parametrize(
    "share",
    [
        lambda x: x[3:5, ::2],
        lambda x: x.T,
        lambda x: x.reshape(-1)[5:][2:],
        lambda x: np.asarray(x)[1:],
        lambda x: torch.as_tensor(x)[1],
        lambda x: np.asarray(x).data,
        lambda x: np.asarray(x).view(np.int32)[None],
    ],
)
def test_memory_stays_the_callers_while_anything_shares_it(make: Any, share: Any) -> None:
    pool = OutputPool()
    result = make(pool)
    result[:] = 7
    kept, shared = address(result), share(result)
    del result
    gc.collect()
    others = [make(pool) for _ in range(3)]
    assert kept not in [address(other) for other in others]
    for other in others:
        other[:] = 1
    assert np.array_equal(np.asarray(shared), np.asarray(share(np.full((COUNT // 8, 8), 7, np.float32))))


def test_an_array_is_plain() -> None:
    result = array(OutputPool())
    assert type(result) is np.ndarray
    assert result.flags.c_contiguous
    assert result.flags.writeable
    assert result.flags.aligned
    result[:] = np.arange(8)
    assert np.array_equal(pickle.loads(pickle.dumps(result)), result)  # noqa: S301 - bytes of our own


def test_a_tensor_is_plain() -> None:
    result = tensor(OutputPool())
    assert type(result) is torch.Tensor
    assert result.is_contiguous()
    assert not result.requires_grad
    result.fill_(2).mul_(torch.arange(8))
    assert torch.equal(pickle.loads(pickle.dumps(result)), result)  # noqa: S301 - bytes of our own
    wanted = result[:1].clone()
    result.resize_(10 * COUNT)
    assert torch.equal(result[:8], wanted[0])


@pytest.mark.parametrize("spoil", [lambda x: x.resize_(10 * COUNT), lambda x: x.numpy(), lambda x: x.share_memory_()])
def test_a_storage_that_changed_is_not_lent_again(spoil: Any) -> None:
    pool = OutputPool()
    result = tensor(pool)
    spoil(result)
    storage = result.untyped_storage()._cdata
    del result
    again = tensor(pool)
    assert again.untyped_storage()._cdata != storage
    assert again.resize_(2 * COUNT).numel() == 2 * COUNT


def test_a_storage_that_the_caller_holds_is_not_lent_again() -> None:
    pool = OutputPool()
    result = tensor(pool)
    storage = result.untyped_storage()
    del result
    assert tensor(pool).data_ptr() != storage.data_ptr()


def test_another_size_gets_memory_of_its_own() -> None:
    pool = OutputPool()
    assert pool.array(SIZE).nbytes == SIZE
    assert pool.array(SIZE + 4).nbytes == SIZE + 4
    assert pool.storage(SIZE + 4, torch).nbytes() == SIZE + 4


def test_the_pool_keeps_no_more_than_its_bound() -> None:
    pool = OutputPool(kept_bytes=2 * SIZE)
    held = [array(pool) for _ in range(6)]
    held[0][:] = 3
    assert len(pool._loans) == 2
    assert (held[0] == 3).all()
    assert len({address(value) for value in held}) == 6
    pool.array(4 * SIZE)
    assert pool._loans == []


def test_small_outputs_do_not_touch_the_pool() -> None:
    pool = OutputPool()
    assert operands.empty("f32", (3, 4), None, pool).owner.flags.owndata
    assert operands.empty("i64", (0, 4), torch, pool).owner.shape == (0, 4)
    assert pool._loans == []


def test_eight_threads_never_share_what_they_hold(make: Any) -> None:
    pool = OutputPool()

    def work(number: int) -> bool:
        for _ in range(50):
            result = make(pool)
            result[:] = number
            if not bool((result == number).all()):
                return False
        return True

    with ThreadPoolExecutor(8) as threads:
        assert all(threads.map(work, range(8)))


def test_without_torchs_use_count_every_storage_is_new(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(torch._C, "_storage_Use_Count")
    pool = OutputPool()
    assert tensor(pool).numel() == COUNT
    assert pool._loans == []


def test_large_blocks_start_at_a_huge_page_and_small_ones_at_a_page() -> None:
    assert Block(3 << 20).address % (2 << 20) == 0
    assert Block(5000).address % 4096 == 0


def test_memory_does_not_depend_on_huge_pages(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "other")
    monkeypatch.delattr(mmap, "MAP_PRIVATE")
    view = np.frombuffer(Block(3 << 20).memory, np.uint8)
    view[:] = 5
    assert view.sum() == 5 * (3 << 20)


def test_arenas_are_reused_and_grow() -> None:
    pool = ArenaPool()
    with pool.borrow(4096) as first, pool.borrow(4096) as second:
        assert first != second
    with pool.borrow(100) as again:
        assert again in (first, second)
    with pool.borrow(0) as nothing:
        assert nothing == 0


@pytest.mark.parametrize("convert", [np.asarray, torch.from_numpy])
def test_a_model_reuses_the_memory_of_a_dropped_result(folder: Path, convert: Any) -> None:
    run = load(folder, threads=1)
    x = convert(np.ones((1000, 4), np.float32))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(operands, "LENT_BYTES", 1024)
        first = address(run(x).y)
        held = run(x).y
        assert address(held) == first
        assert address(run(x).y) != first
