"""Work in a process of its own: what crashes, hangs or raises there, and what comes after it."""

import os
import time

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
