"""Work in a process of its own: what crashes, hangs or raises there, and what comes after it."""

import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from planish.autotune.child import Child, ChildError, ChildUnavailable


def _echo(asked: str) -> str:
    if asked == "dies":
        os._exit(7)
    if asked == "hangs":
        time.sleep(60)
    if asked == "raises":
        raise RuntimeError("CUDA error:\n an illegal memory access")
    return asked


def _broken() -> None:
    raise RuntimeError("no device")


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        ("dies", "the process died with status 7"),
        ("hangs", "took longer than 0 s"),
        ("raises", "RuntimeError: CUDA error: an illegal memory access"),
    ],
)
def test_a_process_that_fails_is_replaced_by_a_new_one(asked: str, words: str) -> None:
    child = Child(_echo)
    with pytest.raises(ChildError, match=words):
        child.run(asked, timeout=0.3 if asked == "hangs" else 30.0)
    assert child.run("fine", timeout=30.0) == "fine"
    child.end()


def test_a_process_that_died_between_two_requests_is_replaced() -> None:
    child = Child(_echo)
    assert child.run("fine", timeout=30.0) == "fine"
    assert child._process is not None
    child._process.kill()
    child._process.join()
    with pytest.raises(ChildError, match="the process died with status -9"):
        child.run("fine", timeout=30.0)
    assert child.run("fine", timeout=30.0) == "fine"
    child.end()


def test_a_process_that_cannot_be_made_ready_is_not_asked() -> None:
    with pytest.raises(ChildUnavailable, match="RuntimeError: no device"):
        Child(_echo, _broken).run("fine", timeout=30.0)


def _several(asked: int) -> Iterator[int]:
    for i in range(asked):
        if i == 2:
            raise KeyError("lost")
        yield i


def test_several_answers_come_one_by_one_until_one_fails_and_its_place_is_told() -> None:
    child = Child(_several)
    assert list(child.each(2, timeout=30.0)) == [0, 1]
    found: list[int] = []
    with pytest.raises(ChildError, match=r"KeyError: 'lost' \(test_child.py:\d+ in _several\)"):
        found += child.each(3, timeout=30.0)
    assert list(child.each(1, timeout=30.0)) == [0]
    child.end()


def _orphan(asked: str) -> int:
    made = Child(_hung)
    made._send("now")
    assert made._process is not None
    return made._process.pid or 0


def _hung(asked: str) -> None:
    time.sleep(600)


def test_a_process_ends_with_the_one_that_started_it_whatever_it_does() -> None:
    child = Child(_orphan, parent=True)
    grandchild = child.run("now", timeout=60.0)
    os.kill(grandchild, 0)
    child.end()
    state = Path(f"/proc/{grandchild}/stat")
    for _ in range(200):
        if not state.exists() or ") Z" in state.read_text():
            return
        time.sleep(0.05)
    pytest.fail("it is still there")
