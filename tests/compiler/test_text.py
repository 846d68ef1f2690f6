"""The text form: what is printed parses back to the same text, and mistakes are named by line."""

import pytest
import sympy

from planish.compiler.text import attr_text, parse, parse_attr, parse_dim, parse_program
from planish.compiler.types import DType, dim_text, symbol
from planish.errors import ParseError

TEXT = """graph main<batch: 1..64 = 2, length: 1..512 = 128>(%x: f32[batch, length, 8], %ids: i64[batch, length]) {
  %0 = embedding(@table: f32[100, 8], %ids): f32[batch, length, 8]  # embed
  %1 = add(%x, %0): f32[batch, length, 8]
  %2 = linear(%1, @layers.0.w: f32[16, 8], @layers.0.b: f32[16]): f32[batch, length, 16]  # layers.0
  %3 = clamp(%2) {low=0.0, high=6.0}: f32[batch, length, 16]
  %4 = reshape(%3) {shape=[`batch*length`, 16]}: f32[batch*length, 16]
  %5 = slice(%4) {axis=0, start=1, stop=`batch*length`}: f32[batch*length - 1, 16]
  %6 = full() {value=-inf, dtype=f32}: f32[]
  return %5, %6
}"""


def test_a_graph_prints_as_it_was_written() -> None:
    assert str(parse(TEXT)) == TEXT


def test_blank_lines_and_indentation_do_not_matter() -> None:
    loose = "\n\n".join("   " + line for line in TEXT.splitlines())
    assert str(parse(loose)) == TEXT


def test_a_program_holds_its_functions_by_name() -> None:
    graphs = parse_program(TEXT + "\n\n" + TEXT.replace("graph main", "graph decode"))
    assert list(graphs) == ["main", "decode"]
    assert str(graphs["decode"]) == TEXT.replace("graph main", "graph decode")


def test_sizes_carry_their_range_and_hint() -> None:
    length = parse(TEXT).sizes[1]
    assert (length.name, length.low, length.high, length.hint) == ("length", 1, 512, 128)


def test_an_opaque_node_keeps_its_json() -> None:
    arguments = '{\\"args\\": [{\\"input\\": 0}], \\"kwargs\\": {}}'
    text = f"""graph main(%x: f32[2]) {{
  %0.0 = opaque(%x) {{target="aten.erfinv.default", arguments="{arguments}", shapes=[[2]], dtypes=[f32]}}: f32[2]
  return %0.0
}}"""
    again = str(parse(text.replace("%0.0", "%0")))
    assert '{\\"input\\": 0}' in again
    assert str(parse(again)) == again


@pytest.mark.parametrize(
    "text", ["B", "B + 1", "2*B*S", "B//2", "(B + 3)//4", "max(B, S)", "min(2, B)", "B%4", "B - S"]
)
def test_a_dimension_prints_as_it_was_written(text: str) -> None:
    assert dim_text(parse_dim(text)) == text


@pytest.mark.parametrize("value", [3, 2.5, True, False, None, "a, b", 'say "x"', "a\nb", (1, (2, 3)), DType.bf16])
def test_attributes_survive_printing(value: object) -> None:
    again = parse_attr(attr_text(value))
    assert again == value
    assert type(again) is type(value)


@pytest.mark.parametrize("value", [float("inf"), -float("inf"), 1e-12, -3.4028234663852886e38])
def test_extreme_numbers_survive_printing(value: float) -> None:
    assert parse_attr(attr_text(value)) == value


def test_dimensions_as_attributes_stand_in_backquotes() -> None:
    assert attr_text(symbol("B") + 1) == "`B + 1`"
    assert sympy.simplify(parse_attr("`B + 1`") - symbol("B") - 1) == 0


@pytest.mark.parametrize(
    ("old", "new", "match"),
    [
        ("embedding(", "embeding(", r"line 2: no op is called 'embeding'; did you mean 'embedding'\?"),
        ("add(%x, %0)", "add(%x, %9)", r"line 3: %9 is not defined above"),
        ("f32[batch, length, 8]  # embed", "f32[batch, 8]  # embed", r"line 2: the line states f32\[batch, 8\] but"),
        ("@table: f32[100, 8]", "@table: f33[100, 8]", r"line 2: expected a type such as f32\[B, 384\]"),
        ("1..64 = 2", "1-64", r"line 1: expected `NAME: low..high = hint`"),
        ("low=0.0", "lowest=0.0", r"line 5: clamp has no attribute 'lowest'"),
        ("high=6.0", "high=six", r"line 5: 'six' is no attribute value"),
        ("  return %5, %6\n", "", r"line 9: expected `return` and then `}` at the end of the graph"),
    ],
)
def test_mistakes_are_named_with_their_line(old: str, new: str, match: str) -> None:
    with pytest.raises(ParseError, match=match):
        parse(TEXT.replace(old, new, 1))


def test_a_dimension_is_arithmetic_only() -> None:
    with pytest.raises(ParseError, match="is no dimension"):
        parse_dim("__import__('os').getcwd()")
