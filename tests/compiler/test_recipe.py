"""Passes as text and back."""

from dataclasses import dataclass
from typing import ClassVar

import pytest

from planish.compiler.ir import Program
from planish.compiler.pass_ import Change, Context, Contract, Exact, Pass
from planish.compiler.recipe import parse_pass, parse_recipe, pass_text, recipe_text
from planish.errors import PassError


@dataclass(frozen=True, slots=True)
class Shrink:
    """A pass with an option of every type."""

    limit: int = 1
    ratio: float = 0.5
    deep: bool = False
    only: tuple[str, ...] = ()
    window: int | None = None
    name: ClassVar[str] = "shrink"
    contract: ClassVar[Contract] = Exact()

    def __post_init__(self) -> None:
        if self.limit < 0:
            raise ValueError(f"limit is {self.limit}; use 0 or more")

    def apply(self, program: Program, context: Context) -> Change:
        return Change(program)


@dataclass(frozen=True, slots=True)
class Grow:
    """A pass without options."""

    name: ClassVar[str] = "grow"
    contract: ClassVar[Contract] = Exact()

    def apply(self, program: Program, context: Context) -> Change:
        return Change(program)


KNOWN: tuple[type[Pass], ...] = (Shrink, Grow)


@pytest.mark.parametrize(
    ("each", "text"),
    [
        (Shrink(), "shrink"),
        (Shrink(limit=3), "shrink{limit=3}"),
        (Shrink(ratio=1.0, deep=True), "shrink{ratio=1.0, deep=true}"),
        (Shrink(only=("a.b", "c"), window=4), 'shrink{only=["a.b", "c"], window=4}'),
        (Grow(), "grow"),
    ],
)
def test_a_pass_prints_without_its_defaults_and_parses_back(each: Pass, text: str) -> None:
    assert pass_text(each) == text
    assert parse_pass(text, KNOWN) == each


def test_a_recipe_is_one_pass_after_another() -> None:
    passes = (Shrink(limit=2), Grow(), Shrink())
    assert parse_recipe(recipe_text(passes), KNOWN) == passes
    assert parse_recipe("shrink{limit=2}\n\ngrow\nshrink", KNOWN) == passes


def test_an_integer_stands_for_a_number() -> None:
    assert parse_pass("shrink{ratio=1}", KNOWN) == Shrink(ratio=1.0)


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("shrnk", r"no pass is called 'shrnk'; did you mean 'shrink'\?"),
        ("shrink{limt=3}", r"shrink has no option 'limt'; did you mean 'limit'\?"),
        ("grow{limit=3}", "grow has no option 'limit'; it has none"),
        ("shrink{limit=2.5}", "shrink: option 'limit' is an integer, not 2.5"),
        ("shrink{limit=true}", "shrink: option 'limit' is an integer, not true"),
        ("shrink{deep=1}", "shrink: option 'deep' is true or false, not 1"),
        ("shrink{window=soon}", "shrink: option 'window': 'soon' is no attribute value"),
        ('shrink{window="2"}', "shrink: option 'window' is an integer or none, not \"2\""),
        ("shrink{only=[1]}", r"shrink: option 'only' is a list of a quoted string, not \[1\]"),
        ("shrink{limit}", "shrink: option 'limit'"),
        ("shrink{limit=-1}", "shrink: limit is -1; use 0 or more"),
        ("shrink(limit=1)", "is no pass; write `name` or `name{option=value}`"),
    ],
)
def test_mistakes_are_named(text: str, match: str) -> None:
    with pytest.raises(PassError, match=match):
        parse_pass(text, KNOWN)
