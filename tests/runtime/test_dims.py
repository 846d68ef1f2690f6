"""Dimension expressions and the sizes that input shapes imply."""

import random
import re

import pytest

from planish.errors import InputError, ParseError
from planish.runtime.dims import Dimension, SizeRange, SizeSolver


def solver(sizes: dict[str, tuple[int, int]], **shapes: list[int | str]) -> SizeSolver:
    ranges = [SizeRange(name, low, high, low) for name, (low, high) in sizes.items()]
    return SizeSolver(ranges, list(shapes), [[Dimension.parse(d) for d in shape] for shape in shapes.values()])


@pytest.mark.parametrize("text", ["2*S + 1", "(B + 1)*S//3%7", "max(S - 4, 1, B)", "min(S, 12)", "-S + 2*B*S", "7"])
def test_an_expression_has_the_value_that_python_gives_it(text: str) -> None:
    rng = random.Random(0)
    for _ in range(50):
        sizes = {"B": rng.randrange(1, 40), "S": rng.randrange(1, 600)}
        python = eval(text, {"max": max, "min": min}, dict(sizes))  # noqa: S307
        assert Dimension.parse(text).evaluate(sizes) == python


@pytest.mark.parametrize("text", ["S ** 2", "S / 2", "f(S)", "S.real", "max(S)", "1.5", "True", "'a'", "S if S else 1"])
def test_refuses_what_is_outside_the_grammar(text: str) -> None:
    with pytest.raises(ParseError, match=re.escape("is outside integers, names")):
        Dimension.parse(text)


@pytest.mark.parametrize("text", ["S +", "", "(((" * 400, "a b", "x := 3"])
def test_refuses_text_that_is_no_expression(text: str) -> None:
    with pytest.raises(ParseError, match="is no dimension"):
        Dimension.parse(text)


def test_plain_names_bind_and_other_dimensions_are_checked() -> None:
    rules = solver({"B": (1, 8), "S": (2, 512)}, ids=["B", "S"], mask=["B", 1, "S", "S"], cache=["2*B", "S//2"])
    assert rules.solve([(3, 10), (3, 1, 10, 10), (6, 5)]) == {"B": 3, "S": 10}


def test_a_size_follows_from_a_linear_dimension() -> None:
    rules = solver({"S": (1, 100), "B": (1, 9)}, x=["4*B*S + 3*S - 2"], y=["B - 1"])
    assert rules.solve([(4 * 5 * 7 + 3 * 7 - 2,), (4,)]) == {"B": 5, "S": 7}


def test_a_size_is_reported_by_the_input_that_has_it_plainly() -> None:
    rules = solver({"S": (1, 100)}, x=["2*S"], y=["S"])
    with pytest.raises(InputError) as error:
        rules.solve([(9,), (5,)])
    assert (
        str(error.value) == "dimension 0 of input 'x' is 9, expected 2*S = 10 (S comes from dimension 0 of input 'y')"
    )


@pytest.mark.parametrize(
    ("shapes", "words"),
    [
        ([(600,), (600,)], "size S of input 'ids' is 600, outside the declared 2..512; compile with a wider dynamic"),
        ([(1,), (1,)], "size S of input 'ids' is 1, outside the declared 2..512"),
        ([(5,), (6,)], "dimension 0 of input 'mask' is 6, expected S = 5 (S comes from dimension 0 of input 'ids')"),
        ([(5, 1), (5,)], "input 'ids' needs 1 dimensions [S], was given 2 [5, 1]"),
    ],
)
def test_refuses_shapes_by_input_dimension_expected_and_given(shapes: list[tuple[int, ...]], words: str) -> None:
    with pytest.raises(InputError, match=re.escape(words)):
        solver({"S": (2, 512)}, ids=["S"], mask=["S"]).solve(shapes)


def test_refuses_a_fixed_dimension_that_differs() -> None:
    with pytest.raises(InputError, match="dimension 1 of input 'x' is 5, expected 4"):
        solver({"B": (1, 9)}, x=["B", 4]).solve([(3, 5)])


def test_refuses_a_dimension_without_a_whole_size() -> None:
    words = re.escape("dimension 0 of input 'x' is 8, but must be 2*S + 1 for a whole S")
    with pytest.raises(InputError, match=words):
        solver({"S": (1, 9)}, x=["2*S + 1"]).solve([(8,)])


@pytest.mark.parametrize("dimension", ["S//2", "S*S", "max(S, 4)", "S + T"])
def test_refuses_inputs_that_do_not_determine_a_size(dimension: str) -> None:
    with pytest.raises(ParseError, match="no input dimension determines size S"):
        solver({"S": (1, 9), "T": (1, 9)}, x=[dimension])


def test_refuses_an_undeclared_size() -> None:
    with pytest.raises(ParseError, match="dimension 1 of input 0, 'T', uses the undeclared T"):
        solver({"S": (1, 9)}, x=["S", "T"])


@pytest.mark.parametrize(("low", "high", "hint"), [(3, 2, 3), (1, 9, 10), (-1, 4, 0)])
def test_refuses_a_range_that_is_out_of_order(low: int, high: int, hint: int) -> None:
    with pytest.raises(ParseError, match="size S needs low <= hint <= high"):
        SizeRange("S", low, high, hint)
