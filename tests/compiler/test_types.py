"""Dimensions, sizes and tensor types."""

import re

import pytest
import sympy
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from planish.compiler.ops.structure import FROM_TORCH, TORCH_DTYPE
from planish.compiler.text import parse_dim, parse_type
from planish.compiler.types import (
    DType,
    Size,
    TensorType,
    dim_text,
    elements,
    evaluate_dim,
    evaluate_shape,
    floor_div,
    same_dim,
    same_shape,
    simplify,
    symbol,
)
from planish.errors import ParseError, TypeRuleError

B, S = symbol("B"), symbol("S")


def _python(text: str, **sizes: int) -> int:
    return int(eval(text, {"max": max, "min": min}, dict(sizes)))  # noqa: S307


@pytest.mark.parametrize(
    "text",
    [
        *("7", "B", "B + 1", "B - 1", "2*B*S", "B//2", "(B + 3)//4", "B%4", "(B + S)%4", "max(B, S)", "min(2, B)"),
        *("B*(S//2)", "max(1, B - 4)", "B - S", "(B//2)*(S//2)", "B + S//2 + 1", "B//S"),
    ],
)
def test_a_dimension_prints_as_it_was_written(text: str) -> None:
    assert dim_text(parse_dim(text)) == text


@pytest.mark.parametrize(
    ("written", "printed"),
    [
        ("B+1", "B + 1"),
        ("1 + B", "B + 1"),
        ("B*2", "2*B"),
        ("2*(B + 1)", "2*B + 2"),
        ("B - B", "0"),
        ("B*S//B", "S"),
        ("B*B", "B*B"),
        ("max(B, B)", "B"),
        ("(4*B)//2", "2*B"),
        ("7//2", "3"),
        ("(2*B)%2", "0"),
    ],
)
def test_a_dimension_prints_simplified(written: str, printed: str) -> None:
    assert dim_text(parse_dim(written)) == printed


def _larger(parts: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    positive = st.one_of(st.integers(1, 9).map(str), st.sampled_from(["B", "S"]))
    return st.one_of(
        st.tuples(parts, st.sampled_from([" + ", " - ", "*"]), parts).map(lambda t: f"({t[0]}){t[1]}({t[2]})"),
        st.tuples(parts, st.sampled_from(["//", "%"]), positive).map(lambda t: f"({t[0]}){t[1]}{t[2]}"),
        st.tuples(st.sampled_from(["max", "min"]), parts, parts).map(lambda t: f"{t[0]}({t[1]}, {t[2]})"),
        parts.map(lambda part: f"-({part})"),
    )


EXPRESSIONS = st.recursive(st.one_of(st.integers(0, 12).map(str), st.sampled_from(["B", "S"])), _larger, max_leaves=6)


@settings(max_examples=300, deadline=None, derandomize=True)
@given(EXPRESSIONS, st.integers(1, 50), st.integers(1, 50))
def test_a_dimension_has_the_value_that_python_gives_it_before_and_after_printing(text: str, b: int, s: int) -> None:
    dim = parse_dim(text)
    printed = dim_text(dim)
    assert evaluate_dim(dim, {"B": b, "S": s}) == _python(text, B=b, S=s) == _python(printed, B=b, S=s)
    assert dim_text(parse_dim(printed)) == printed


@pytest.mark.parametrize(
    "text",
    [
        *("", "B +", "B S", "1.5", "True", "'B'", "B/2", "B**2", "f(B)", "B.real", "max(B)", "max()", "max(B, key=S)"),
        *("B if S else 1", "[B]", "lambda: B", "not B", "B\0", "(" * 400),
    ],
)
def test_refuses_what_is_outside_the_grammar(text: str) -> None:
    with pytest.raises(ParseError, match="is no dimension"):
        parse_dim(text)


@pytest.mark.parametrize("text", ["B//0", "B%0", "1//(2 - 2)", "B//(S - S)"])
def test_refuses_a_division_by_zero(text: str) -> None:
    with pytest.raises(ParseError, match="a dimension divides by zero"):
        parse_dim(text)


def test_text_refuses_an_expression_that_is_no_dimension() -> None:
    with pytest.raises(ValueError, match=re.escape("sqrt(B) is no dimension: only + - * // % max min")):
        dim_text(sympy.sqrt(B))


def test_a_missing_size_is_a_key_error() -> None:
    with pytest.raises(KeyError, match="S"):
        evaluate_dim(B + S, {"B": 1})


def test_shapes_evaluate_elementwise() -> None:
    assert evaluate_shape((B, 3, B * S - 1), {"B": 2, "S": 5}) == (2, 3, 9)


def test_equal_dimensions_are_equal_however_they_are_written() -> None:
    assert same_dim(2 * (B + 1), B + B + 2)
    assert same_dim(4, sympy.Integer(4))
    assert not same_dim(B, S)
    assert not same_dim(B, 1)
    assert same_shape((B * S, 4), (S * B, 4))
    assert not same_shape((B, 4), (B, 4, 1))


def test_simplified_numbers_are_plain_integers() -> None:
    for number in (simplify(sympy.Integer(6)), simplify(B - B + 3), elements((2, 3)), floor_div(9, 4)):
        assert type(number) is int


def test_the_elements_of_a_shape_are_its_product() -> None:
    assert elements(()) == 1
    assert elements((2, 0, 5)) == 0
    assert same_dim(elements((B, 3, S)), 3 * B * S)


def test_floor_division_rounds_down() -> None:
    assert [evaluate_dim(floor_div(B + 1, 3), {"B": b}) for b in range(1, 8)] == [(b + 1) // 3 for b in range(1, 8)]


@pytest.mark.parametrize("dtype", list(DType))
def test_a_dtype_has_the_bytes_and_kind_of_torch(dtype: DType) -> None:
    torch_dtype = TORCH_DTYPE[dtype]
    assert dtype.itemsize == torch_dtype.itemsize
    if dtype is DType.f8:  # no arithmetic takes it
        assert not dtype.is_float
    else:
        assert dtype.is_float == torch_dtype.is_floating_point
    assert dtype.is_integer == (not torch_dtype.is_floating_point and torch_dtype is not torch.bool)
    assert FROM_TORCH[torch_dtype] is dtype
    assert str(dtype) == repr(dtype) == dtype.value


def test_a_type_prints_its_dtype_and_shape() -> None:
    assert str(TensorType((B, 2 * (S + 1), 4), DType.bf16)) == "bf16[B, 2*S + 2, 4]"
    assert str(TensorType((), DType.bool)) == "bool[]"


@pytest.mark.parametrize("text", ["f32[]", "i64[B, S//2]", "u8[max(B, S), 3]", "bf16[B*S - 1]", "bool[0]"])
def test_a_type_parses_as_it_prints(text: str) -> None:
    assert str(parse_type(text)) == text


@pytest.mark.parametrize("text", ["f32", "f31[2]", "[2]", "f32[2", "f32(2)", "f32[2,,3]", "f32[2]]", "float32[2]"])
def test_refuses_what_is_no_type(text: str) -> None:
    with pytest.raises(ParseError, match=r"expected a type such as f32\[B, 384\]|is no dimension"):
        parse_type(text)


def test_a_type_changes_one_part_at_a_time() -> None:
    x = TensorType((2, B), DType.f32)
    assert x.rank == 2
    assert x.with_shape((3,)) == TensorType((3,), DType.f32)
    assert x.with_dtype(DType.i8) == TensorType((2, B), DType.i8)


def test_refuses_a_negative_dimension() -> None:
    with pytest.raises(TypeRuleError, match=re.escape("f32[2, -1] has a negative dimension")):
        TensorType((2, B - B - 1), DType.f32)


def test_a_size_is_the_one_symbol_of_its_name() -> None:
    assert Size("B", 1, 8, 2).symbol == B


@pytest.mark.parametrize("name", ["", "1B", "a b", "a.b", "if", "None"])
def test_refuses_a_size_without_an_identifier(name: str) -> None:
    with pytest.raises(ValueError, match=re.escape(f"a size needs an identifier as its name, not {name!r}")):
        Size(name)


@pytest.mark.parametrize(("low", "high", "hint"), [(3, 2, 3), (1, 9, 10), (-1, 4, 0), (2, 9, 1)])
def test_refuses_a_range_that_is_out_of_order(low: int, high: int, hint: int) -> None:
    with pytest.raises(ValueError, match=f"size B needs low <= hint <= high, not {low}, {hint}, {high}"):
        Size("B", low, high, hint)


def test_divisions_of_divisions_have_one_form() -> None:
    samples, frames = symbol("s"), symbol("s")
    for kernel, stride in ((10, 5), (3, 2), (3, 2), (2, 2)):
        frames = floor_div(simplify(frames - kernel), stride) + 1
    nested = floor_div(floor_div(floor_div(floor_div(samples, 5) - 2, 2) - 1, 2), 2)
    assert same_dim(frames, nested)
    assert dim_text(simplify(floor_div(samples - 1, 2) + 1)) == "(s + 1)//2"
    for value in (400, 401, 479, 480, 16000):
        reduced = value
        for kernel, stride in ((10, 5), (3, 2), (3, 2), (2, 2)):
            reduced = (reduced - kernel) // stride + 1
        assert evaluate_dim(simplify(frames), {"s": value}) == reduced
