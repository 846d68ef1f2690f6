"""Errors have one base, and suggestions name the nearest known word."""

import subprocess
import sys

import pytest

from planish import errors
from planish.errors import PlanishError, nearest


@pytest.mark.parametrize("word", ["mat_mul", "matmull", "matmu"])
def test_a_near_word_is_suggested(word: str) -> None:
    assert nearest(word, ["conv", "matmul", "linear"]) == "; did you mean 'matmul'?"


def test_the_nearest_of_several_near_words_is_suggested() -> None:
    assert nearest("layer_norn", ["batch_norm", "group_norm", "layer_norm"]) == "; did you mean 'layer_norm'?"


def test_without_a_near_word_all_are_listed_in_order() -> None:
    assert nearest("zzz", iter(("linear", "conv", "add"))) == "; known: add, conv, linear"


def test_nothing_is_suggested_from_nothing() -> None:
    assert nearest("zzz", ()) == "; nothing is known"


def test_every_error_is_one_that_a_caller_can_catch_at_once() -> None:
    kinds = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, Exception)]
    assert len(kinds) > 10
    for kind in kinds:
        assert issubclass(kind, PlanishError)
        assert kind.__doc__


def test_errors_and_the_runtime_are_there_after_importing_planish_alone() -> None:
    code = "import planish, sys; print(planish.errors.InputError, planish.runtime.load, 'torch' in sys.modules)"
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert shown.stdout.startswith("<class 'planish.errors.InputError'> <function load")
    assert shown.stdout.endswith("False\n")
