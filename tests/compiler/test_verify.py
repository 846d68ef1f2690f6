"""Every invariant of a program, broken once."""

from dataclasses import replace
from types import MappingProxyType

import pytest
import torch

from planish.compiler.ir import Attr, Graph, Node, Program, Value
from planish.compiler.ops import clamp
from planish.compiler.text import parse
from planish.compiler.types import DType, TensorType
from planish.compiler.verify import verify
from planish.errors import VerifyError

TEXT = """graph main<B: 1..8 = 2>(%x: f32[B, 4], %y: f32[B, 4]) {
  %0 = linear(%x, @w: f32[3, 4]): f32[B, 3]  # head
  %1 = relu(%0): f32[B, 3]
  return %1, %y
}"""


def _program(graph: Graph | None = None, **weights: torch.Tensor) -> Program:
    return Program({"main": graph or parse(TEXT)}, weights or {"w": torch.zeros(3, 4)})


def test_a_sound_program_passes() -> None:
    verify(_program())


def test_a_missing_weight_is_named() -> None:
    with pytest.raises(VerifyError, match="main: the program has no weight 'w'"):
        verify(_program(v=torch.zeros(1)))


@pytest.mark.parametrize("weight", [torch.zeros(4, 3), torch.zeros(3, 4, dtype=torch.float64)])
def test_a_weight_of_another_type_is_named(weight: torch.Tensor) -> None:
    with pytest.raises(VerifyError, match=r"main: weight 'w' is torch.float\d+\[\d, \d\], not f32\[3, 4\]"):
        verify(_program(w=weight))


def test_an_undeclared_size_is_named() -> None:
    with pytest.raises(VerifyError, match="uses the size B that the graph does not declare"):
        verify(_program(replace(parse(TEXT), sizes=())))


def test_an_input_that_is_not_declared_is_named() -> None:
    graph = parse(TEXT)
    with pytest.raises(VerifyError, match="y is read but is no input of the graph"):
        verify(_program(replace(graph, inputs=graph.inputs[:1])))


def test_two_inputs_of_one_name_are_named() -> None:
    graph = parse(TEXT)
    with pytest.raises(VerifyError, match="two inputs share a name among"):
        verify(_program(replace(graph, inputs=(graph.inputs[0], graph.inputs[0]))))


def test_a_computed_input_is_refused() -> None:
    graph = parse(TEXT)
    with pytest.raises(VerifyError, match="is no input node"):
        verify(_program(replace(graph, inputs=(*graph.inputs, graph.outputs[0]))))


def test_a_type_that_the_rule_does_not_give_is_named() -> None:
    graph = parse(TEXT)
    relu = graph.outputs[0].node
    wrong = Node(relu.op, relu.inputs, relu.attrs, (TensorType((5,), DType.f32),), "head")
    with pytest.raises(VerifyError, match=r"<relu f32\[5\] # head> should have the type f32\[B, 3\]"):
        verify(_program(replace(graph, outputs=(Value(wrong), *graph.outputs[1:]))))


def test_operands_that_the_rule_rejects_are_named() -> None:
    graph = parse(TEXT)
    linear = graph.outputs[0].node.operands[0].node
    wrong = Node(linear.op, (graph.outputs[0], linear.inputs[1]), MappingProxyType({}), linear.types, "head")
    with pytest.raises(VerifyError, match="do not contract"):
        verify(_program(replace(graph, outputs=(Value(wrong), *graph.outputs[1:]))))


def test_an_undeclared_size_of_an_attribute_is_named() -> None:
    graph = parse("graph main() {\n  %0 = dim_value() {value=`S + T`}: i64[]\n  return %0\n}")
    with pytest.raises(VerifyError, match=r"main: <dim_value i64\[\]> uses the size S that the graph does not declare"):
        verify(Program({"main": graph}, {}))


def test_a_weight_of_a_dtype_that_the_ir_lacks_is_named() -> None:
    with pytest.raises(VerifyError, match=r"main: weight 'w' is torch.complex64\[3, 4\], not f32\[3, 4\]"):
        verify(_program(w=torch.zeros(3, 4, dtype=torch.complex64)))


def test_a_weight_has_no_named_size() -> None:
    graph = parse("graph main<B: 1..8 = 2>() {\n  return @w: f32[B]\n}")
    with pytest.raises(VerifyError, match=r"main: weight 'w' is torch.float32\[2\], not f32\[B\]"):
        verify(Program({"main": graph}, {"w": torch.zeros(2)}))


def test_the_function_that_is_broken_is_named() -> None:
    broken = replace(parse(TEXT.replace("graph main", "graph decode")), sizes=())
    with pytest.raises(VerifyError, match=r"^decode: <input "):
        verify(Program({"main": parse(TEXT), "decode": broken}, {"w": torch.zeros(3, 4)}))


def test_a_node_with_too_many_results_is_named() -> None:
    graph = parse(TEXT)
    relu = graph.outputs[0].node
    wrong = replace(relu, types=relu.types * 2)
    with pytest.raises(VerifyError, match=r"<relu f32\[B, 3\], f32\[B, 3\]> should have the type f32\[B, 3\]"):
        verify(_program(replace(graph, outputs=(Value(wrong, 1),))))


@pytest.mark.parametrize(
    ("attrs", "words"),
    [
        ({"low": "x", "high": None}, r"<clamp f32\[B, 3\]>: clamp: 'low' is a number or none, not 'x'"),
        ({"lowest": 1.0}, r"<clamp f32\[B, 3\]>: clamp has no attribute 'lowest'"),
    ],
)
def test_attributes_that_the_op_does_not_take_are_named(attrs: dict[str, Attr], words: str) -> None:
    graph = parse(TEXT)
    wrong = Node(clamp, graph.outputs[:1], MappingProxyType(attrs), graph.outputs[0].node.types)
    with pytest.raises(VerifyError, match=f"^main: {words}"):
        verify(_program(replace(graph, outputs=(Value(wrong),))))


def test_types_may_be_written_in_another_way() -> None:
    graph = parse(TEXT)
    relu = graph.outputs[0].node
    size = graph.sizes[0].symbol
    same = replace(relu, types=(TensorType((2 * size - size, 3), DType.f32),))
    verify(_program(replace(graph, outputs=(Value(same), graph.outputs[1]))))
