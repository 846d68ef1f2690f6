"""Laws that hold for every pass on every small net."""

import json

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from planish.compiler.ir import Graph, Program, Value
from planish.compiler.ops import BY_NAME, full, input_
from planish.compiler.pass_ import Close, Context, Contract, Exact, Lossy, Pass
from planish.compiler.pipeline import Pipeline, relative_error
from planish.compiler.report import Report
from planish.compiler.text import parse
from planish.compiler.types import DType, TensorType
from planish.compiler.verify import verify, verify_graph
from planish.passes import ALL, EXACT, FoldConstants, MergeCommonSubexpressions
from tests.nets import NETS
from tests.passes.harness import program_of, random_inputs

POSITIVE = {"variance": torch.tensor([0.5, 1.0, 2.0, 0.1])}


def _program(net: str) -> Program:
    return program_of(NETS[net], POSITIVE if net == "convolution" else None)


def _sizes(graph: Graph, extra: int) -> dict[str, int]:
    return {size.name: min(size.hint + extra, size.high) for size in graph.sizes}


def _allowed(contract: Contract) -> float:
    match contract:
        case Exact():
            return 1e-6
        case Close(rtol=rtol, atol=atol):
            return rtol + atol
        case Lossy():
            return float("inf")


@pytest.mark.parametrize("net", NETS)
@pytest.mark.parametrize("kind", ALL, ids=lambda kind: kind.name)
def test_a_pass_keeps_its_promises(kind: type[Pass], net: str) -> None:
    program, each = _program(net), kind()
    before, tensors = str(program), {name: t.clone() for name, t in program.weights.items()}
    after, report = Pipeline((each,)).run(program, Context())
    verify(after)
    assert str(parse(str(after.main))) == str(after.main)
    assert str(program) == before
    assert all(torch.equal(t, program.weights[name]) for name, t in tensors.items())
    assert Report.from_json(json.loads(json.dumps(report.to_json()))) == report
    for extra in (0, 3):
        inputs = random_inputs(program.main, _sizes(program.main, extra), seed=extra)
        assert relative_error(program, after, inputs) <= _allowed(each.contract)


@pytest.mark.parametrize("net", NETS)
@pytest.mark.parametrize("kind", [k for k in ALL if isinstance(k.contract, Exact)], ids=lambda kind: kind.name)
def test_an_exact_pass_has_nothing_left_to_do(kind: type[Pass], net: str) -> None:
    once = kind().apply(_program(net), Context()).program
    twice = kind().apply(once, Context()).program
    assert str(twice) == str(once)
    assert list(twice.weights) == list(once.weights)


@pytest.mark.parametrize("net", NETS)
def test_the_default_pipeline_keeps_the_numbers_and_settles(net: str) -> None:
    program = _program(net)
    after, _ = Pipeline(EXACT).run(program, Context())
    for extra in (0, 3):
        inputs = random_inputs(program.main, _sizes(program.main, extra), seed=extra)
        assert relative_error(program, after, inputs) <= 2e-6
    again, _ = Pipeline(EXACT).run(after, Context())
    assert str(again) == str(after)


_UNARY = ("neg", "abs", "exp", "tanh", "sigmoid", "relu", "silu", "floor", "sin")
_BINARY = ("add", "sub", "mul", "maximum", "minimum")


@st.composite
def _graphs(draw: st.DrawFn) -> Graph:
    """A random graph over two inputs, two weights and literals, with sizes that broadcast."""
    of = TensorType((3, 4), DType.f32)
    values: list[Value] = [input_(name=n, shape=of.shape, dtype=of.dtype) for n in ("x", "y")]
    inputs = tuple(values)
    for name, shape in (("w", (3, 4)), ("u", (1, 4))):
        values.append(BY_NAME["weight"](name=name, shape=shape, dtype=DType.f32))
    values.append(full(value=draw(st.sampled_from([0.0, 1.0, -0.5])), dtype=DType.f32))
    for _ in range(draw(st.integers(1, 12))):
        values.append(_draw_node(draw, values))
    return Graph("main", inputs, tuple(values[-draw(st.integers(1, 3)) :]))


def _draw_node(draw: st.DrawFn, values: list[Value]) -> Value:
    x = draw(st.sampled_from(values))
    kind = draw(st.sampled_from(("unary", "binary", "reduce", "move", "expand")))
    if kind == "binary":
        return BY_NAME[draw(st.sampled_from(_BINARY))](x, draw(st.sampled_from(values)))
    if kind == "reduce" and x.type.rank == 2:
        return BY_NAME[draw(st.sampled_from(("sum", "mean", "amax")))](x, axes=(1,), keep=True)
    if kind == "move" and x.shape == (3, 4):
        turned = BY_NAME["transpose"](x, order=(1, 0))
        return BY_NAME["reshape"](turned, shape=(3, 4))
    if kind == "expand" and x.shape in ((1, 4), (3, 1)):
        return BY_NAME["expand"](x, shape=(3, 4))
    return BY_NAME[draw(st.sampled_from(_UNARY))](x)


@given(_graphs())
@settings(max_examples=60, deadline=None, derandomize=True)
def test_random_graphs_print_parse_and_verify(graph: Graph) -> None:
    verify_graph(graph)
    again = parse(str(graph))
    verify_graph(again)
    assert str(again) == str(graph)


@given(_graphs(), st.sampled_from([MergeCommonSubexpressions(), FoldConstants(), *EXACT]))
@settings(max_examples=120, deadline=None, derandomize=True)
def test_random_graphs_keep_their_numbers(graph: Graph, each: Pass) -> None:
    program = program_of(str(graph))
    after = each.apply(program, Context()).program
    verify(after)
    inputs = random_inputs(program.main, {})
    assert relative_error(program, after, inputs) <= 1e-5
