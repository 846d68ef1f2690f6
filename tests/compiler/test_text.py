"""The text form: what is printed parses back to the same text, and mistakes are named by line."""

import json
import math
import re
from pathlib import Path

import pytest
import sympy

from planish.compiler.ir import Graph, Program
from planish.compiler.ops import clamp, input_, linear, neg, opaque, pad, sub, weight
from planish.compiler.text import attr_text, parse, parse_attr, parse_program, split
from planish.compiler.types import DType, symbol
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


OPAQUE = """graph main(%x: f32[4, 2]) {
  %0.0, %0.1 = opaque(%x) {target="aten.sort.default", arguments="{\\"args\\": [{\\"input\\": 0}, 1], \\"kwargs\\": {}}", shapes=[[4, 2], [4, 2]], dtypes=[f32, i64]}: f32[4, 2], i64[4, 2]  # top.k
  %1 = embedding(%x, %0.1): f32[4, 2, 2]
  return %0.0, %1, %0.0
}"""


def test_an_opaque_node_keeps_its_json_and_its_results() -> None:
    graph = parse(OPAQUE)
    assert str(graph) == OPAQUE
    node = graph.outputs[0].node
    assert json.loads(str(node.attrs["arguments"])) == {"args": [{"input": 0}, 1], "kwargs": {}}
    assert [value.index for value in graph.outputs] == [0, 0, 0]
    assert graph.outputs[1].node.inputs[1] == node.values[1]


ODD = [
    "",
    " ",
    "a b",
    "a,b",
    "a: f32[2]",
    "none",
    "1",
    "0.weight",
    "-",
    'say "x"',
    "a\\",
    "a\nb",
    "\r\x85\u2028",
    "é",
    "(",
    "]}",
]
ODD += [
    "  # x",
    "a}: f32[2]  # b",
    "# x",
    "x  ",
    '"x"',
    "a\rb",
    "a\u2028b",
    "\ud800",
    "😀",
    "\0",
    "`",
    "%0",
    "@w",
    "return",
    "}",
]


@pytest.mark.parametrize("name", ODD)
def test_any_name_scope_and_string_survives(name: str) -> None:
    x, y = (input_(name=word, shape=(2, 4), dtype=DType.f32) for word in (name, f"{name}x"))
    w = weight(name=name, shape=(3, 4), dtype=DType.f32)
    attrs = {"target": "aten.sin.default", "arguments": name, "shapes": ((2, 4),), "dtypes": (DType.f32,)}
    node = opaque.node((x, y), attrs, scope=name)
    graph = Graph(name or "main", (x, y), (linear(node.values[0], w, scope=f"a.{name}"), w))
    again = parse(str(graph))
    assert str(again) == str(graph)
    assert all(line.isprintable() for line in str(graph).split("\n"))
    assert again.name == graph.name
    assert [v.node.attrs["name"] for v in again.inputs] == [name, f"{name}x"]
    last = again.outputs[0].node
    assert (last.scope, last.operands[0].node.scope) == (f"a.{name}", name)
    assert last.operands[0].node.attrs["arguments"] == name
    assert again.outputs[1].node.attrs["name"] == name


def test_an_input_with_a_number_as_its_name_is_no_computed_value() -> None:
    x = input_(name="0", shape=(2,), dtype=DType.f32)
    text = str(Graph("main", (x,), (sub(neg(x), x),)))
    assert text.splitlines()[0] == 'graph main(%"0": f32[2]) {'
    again = parse(text)
    assert str(again) == text
    assert again.outputs[0].node.inputs[1] == again.inputs[0]


@pytest.mark.parametrize(
    "text",
    [
        "graph main() {\n  return\n}",
        "graph main() {\n  %0 = full() {value=1, dtype=i8}: i8[]\n  return %0\n}",
        "graph main(%x: f32[]) {\n  return %x, %x\n}",
        "graph main() {\n  return @w: bf16[0, 2]\n}",
        "graph main(%x: f32[2, 4]) {\n  %0 = layer_norm(%x, none, @b: f32[4]): f32[2, 4]\n  return %0\n}",
        "graph main(%x: f32[4], %y: f32[4]) {\n  %0 = add(%x, @w.0: f32[4]): f32[4]\n  return %0\n}",
    ],
)
def test_small_graphs_print_as_they_were_written(text: str) -> None:
    assert str(parse(text)) == text


@pytest.mark.parametrize(
    ("low", "text"), [(0.0, "{low=0.0}"), (0, "{low=0}"), (-0.0, "{low=-0.0}"), (None, "{high=0}")]
)
def test_an_attribute_is_omitted_only_where_it_prints_as_its_default(low: float | None, text: str) -> None:
    x = input_(name="x", shape=(2,), dtype=DType.f32)
    value = clamp(x, low=low, high=0 if low is None else None)
    assert text in str(Graph("main", (x,), (value,)))


def test_a_padding_of_minus_zero_is_no_default() -> None:
    x = input_(name="x", shape=(2,), dtype=DType.f32)
    plain, minus = (pad(x, before=(1,), after=(0,), value=value) for value in (0.0, -0.0))
    assert "value" not in str(Graph("main", (x,), (plain,)))
    again = parse(str(Graph("main", (x,), (minus,))))
    assert math.copysign(1, again.outputs[0].node.attrs["value"]) == -1


def test_spaces_in_types_do_not_matter() -> None:
    text = "graph main<B: 1..8 = 2>(%x: f32[B,2*B+2]) {\n  %0 = neg(%x): f32[B,2*(B + 1)]\n  return %0\n}"
    assert "%0 = neg(%x): f32[B, 2*B + 2]" in str(parse(text))


def test_a_program_prints_all_its_functions_and_parses_back() -> None:
    one, two = parse(TEXT), parse(TEXT.replace("graph main", "graph decode"))
    text = str(Program({"main": one, "decode": two}, {}))
    assert "\n\n".join(map(str, parse_program(text).values())) + "\n" == text


def test_a_weight_that_stands_twice_is_one_value() -> None:
    text = "graph main() {\n  %0 = add(@w: f32[2], @w: f32[2]): f32[2]\n  return %0\n}"
    left, right = parse(text).outputs[0].node.operands
    assert left == right


@pytest.mark.parametrize(
    "value",
    [
        *(3, -7, 0, 2.5, -0.5, 1e22, True, False, None, "a, b", 'say "x"', "a\nb", "[1", "`", "\\", '\\"', "none", ""),
        *((), (1,), (1, (2, 3)), ((), ((),)), (True, None, 1.0, "a, ]"), DType.bf16, (DType.bool, DType.f64), 10**40),
    ],
)
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


def test_a_number_that_is_none_survives_printing() -> None:
    assert math.isnan(parse_attr(attr_text(math.nan)))


@pytest.mark.parametrize(
    "text", ["", "six", "1,2", "[1", "1]", '"a', "'a'", "{1}", "1_0", "1.2.3", "0x10", "--1", "+1", "`B", "(1, 2)"]
)
def test_refuses_what_is_no_attribute(text: str) -> None:
    with pytest.raises(ParseError, match=r"is no attribute value|is no string in double quotes"):
        parse_attr(text)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", []),
        ("  ", []),
        ("a", ["a"]),
        ("a, b", ["a", "b"]),
        ("f32[2, 3], (a, b), {c, d}", ["f32[2, 3]", "(a, b)", "{c, d}"]),
        ('"a, ]", `max(a, b)`', ['"a, ]"', "`max(a, b)`"]),
        ('"a\\\\", b', ['"a\\\\"', "b"]),
        ('"a\\", b"', ['"a\\", b"']),
        ("a,, b,", ["a", "", "b", ""]),
    ],
)
def test_words_are_split_at_commas_outside_brackets_and_quotes(text: str, words: list[str]) -> None:
    assert split(text) == words


MISTAKES = (
    ("embedding(", "embeding(", "line 2: no op is called 'embeding'; did you mean 'embedding'?"),
    ("add(%x, %0)", "add(%x, %9)", "line 3: %9 is not defined above"),
    ("add(%x, %0)", "add(%x, )", "line 3: an empty operand is not defined above"),
    ("add(%x, %0)", "add(%x, y)", "line 3: y is not defined above"),
    ("add(%x, %0)", "add(%x, %0", "line 3: the bracket ( is not closed"),
    ("add(%x, %0)", "add(%x, %ids)", "line 3: add: operands are f32 and i64; cast one"),
    ("add(%x, %0)", "add(%x, none)", "line 3: add takes (x, y), not 2 operands"),
    ("%1 = add(", "%1 add(", "line 3: expected `%name = op(operands) {attributes}: type  # scope`"),
    ("%1 = add(", "1 = add(", "line 3: expected `%name = op(operands) {attributes}: type  # scope`"),
    ("%1 = add(", "%0 = add(", "line 3: %0 is defined twice"),
    ("%1 = add(", "%x = add(", "line 3: %x is defined twice"),
    ("%1 = add(", "%1, %7 = add(", "line 3: expected 1 results, not 2"),
    ("%x, %0): f32[batch, length, 8]", "%x, %0)", "line 3: expected `: type  # scope` after the operands"),
    ("f32[batch, length, 8]  # embed", "f32[batch, 8]  # embed", "line 2: the line states f32[batch, 8] but embedding gives"),
    ("f32[batch, length, 8]  # embed", "f32[], f32[]", "line 2: the line states f32[], f32[] but embedding gives"),
    ("f32[batch, length, 8]  # embed", "f32[batch, length, 8]  # \"em", 'line 2: "em is no string in double quotes'),
    ("@table: f32[100, 8]", "@table: f33[100, 8]", "line 2: expected a type such as f32[B, 384], not 'f33[100, 8]'"),
    ("@table: f32[100, 8]", "@table", "line 2: expected a name and a type such as %x: f32[B, 384], not '@table'"),
    ("@table: f32[100, 8]", "@my table: f32[100, 8]", "line 2: expected a name and a type"),
    ("@table: f32[100, 8]", "@table: f32[100, -8]", "line 2: f32[100, -8] has a negative dimension"),
    ("@table: f32[100, 8]", "@table: f32[100, 8.0]", "line 2: '8.0' is no dimension"),
    ("1..64 = 2", "1-64", "line 1: expected `NAME: low..high = hint`, not 'batch: 1-64'"),
    ("1..64 = 2", "3..64 = 2", "line 1: size batch needs low <= hint <= high, not 3, 2, 64"),
    ("<batch: 1", "<1batch: 1", "line 1: a size needs an identifier as its name, not '1batch'"),
    ("graph main", "graf main", "line 1: expected `graph NAME<sizes>(%input: type, ...) {`"),
    ("graph main", "graph", "line 1: expected `graph NAME<sizes>(%input: type, ...) {`"),
    ("%ids: i64[batch, length]) {", "%ids: i64[batch, length])", "line 1: expected `graph NAME<sizes>(%input: type, ...) {`"),
    ("%ids: i64[batch, length]) {", "%ids) {", "line 1: expected a name and a type such as %x: f32[B, 384], not '%ids'"),
    ("%ids: i64[batch, length]) {", "%x: i64[batch]) {", "line 1: %x is defined twice"),
    ("low=0.0", "lowest=0.0", "line 5: clamp has no attribute 'lowest'; it has ['low', 'high']"),
    ("low=0.0", "high=0.0", "line 5: the attribute 'high' is given twice"),
    ("high=6.0", "high=six", "line 5: 'six' is no attribute value"),
    ("high=6.0", "high", "line 5: '' is no attribute value"),
    ("high=6.0", 'high="6"', "line 5: clamp: 'high' is a number or none, not '6'"),
    ("{low=0.0, high=6.0}", "{low=0.0, high=6.0", "line 5: the bracket { is not closed"),
    ("`batch*length`, 16", "`batch*`, 16", "line 6: 'batch*' is no dimension"),
    ("  return %5, %6\n", "", "line 9: expected `return` and then `}` at the end of the graph"),
    ("  return %5, %6\n", "  return %5, %7\n", "line 9: %7 is not defined above"),
    ("  return %5, %6\n", "  return %5\n  return %6\n", "line 10: expected `return` and then `}` at the end"),
    ("\n}", "", "the text ends before the `}` of its graph"),
    ("\n}", "\n}\n}", "line 11: expected nothing after the `}` of the graph"),
    (TEXT, "\n", "the text has no `graph NAME(...) {` header with a `return` line"),
    (TEXT, "return", "line 1: expected `graph NAME<sizes>(%input: type, ...) {`"),
)  # fmt: skip


@pytest.mark.parametrize(("old", "new", "words"), MISTAKES)
def test_mistakes_are_named_with_their_line(old: str, new: str, words: str) -> None:
    assert old in TEXT
    with pytest.raises(ParseError, match="^" + re.escape(words)):
        parse(TEXT.replace(old, new, 1))


def test_a_mistake_names_the_line_of_the_whole_text() -> None:
    text = "\n\n" + TEXT + "\n\n" + TEXT.replace("graph main", "graph decode").replace("embedding(", "embeding(")
    with pytest.raises(ParseError, match=r"^line 15: no op is called 'embeding'"):
        parse_program(text)
    with pytest.raises(ParseError, match=r"^line 4: "):
        parse("\n\n" + TEXT.replace("embedding(", "embeding("))


def test_refuses_two_graphs_of_one_name() -> None:
    with pytest.raises(ParseError, match=r"^line 12: two graphs are called 'main'"):
        parse_program(TEXT + "\n\n" + TEXT)


def test_refuses_lines_before_the_first_graph() -> None:
    with pytest.raises(ParseError, match=r"^line 1: expected `graph NAME"):
        parse_program("a note\n" + TEXT)


def test_the_example_of_the_grammar_page_parses() -> None:
    page = (Path(__file__).parents[2] / "docs" / "text.md").read_text()
    (example,) = re.findall(r"```text\n(graph .*?)```", page, re.DOTALL)
    graphs = parse_program(example)
    assert "\n\n".join(map(str, graphs.values())) + "\n" == example


def test_the_grammar_page_names_every_dtype() -> None:
    page = (Path(__file__).parents[2] / "docs" / "text.md").read_text()
    assert all(f'"{dtype}"' in page for dtype in DType)
