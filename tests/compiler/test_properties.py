"""Random graphs from the op table: they verify, print and parse back, and mean the same to torch afterwards."""

from collections.abc import Callable

import pytest
import torch
from hypothesis import HealthCheck, given, note, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional

from planish.compiler import ops
from planish.compiler.evaluate import evaluate
from planish.compiler.ir import Graph, Op, Program, Value
from planish.compiler.pass_ import Context, Pass
from planish.compiler.rewrite import substitute
from planish.compiler.text import parse
from planish.compiler.types import DType, Size, elements, evaluate_shape, same_shape, symbol
from planish.compiler.verify import verify
from planish.passes import EXACT, FoldConstants, MergeCommonSubexpressions

B, S = symbol("B"), symbol("S")
SHAPES = (((B, S, 4), (B, 1, 4)), ((S, 3), (S, 3)), ((B, 2), (B, S)), ((S, B, 1, 2), (S,)))
SCOPES = st.sampled_from(["", "layers.0.mlp", "a  # b", "é\n"])
RULES = settings(
    max_examples=80, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck)
)

Meaning = Callable[[Tensor], Tensor]
Grown = tuple[Value, Meaning]
Case = tuple[Graph, tuple[Tensor, ...], tuple[Tensor, ...]]

UNARY: tuple[tuple[Op, Meaning], ...] = (
    *((ops.neg, torch.neg), (ops.tanh, torch.tanh), (ops.sigmoid, torch.sigmoid), (ops.relu, torch.relu)),
    *((ops.sin, torch.sin), (ops.silu, functional.silu), (ops.gelu, functional.gelu), (ops.abs_, torch.abs)),
    *((ops.erf, torch.erf), (ops.isnan, torch.isnan)),
)
BINARY: tuple[tuple[Op, Callable[[Tensor, Tensor], Tensor]], ...] = (
    *((ops.add, torch.add), (ops.sub, torch.sub), (ops.mul, torch.mul)),
    *((ops.maximum, torch.maximum), (ops.minimum, torch.minimum), (ops.lt, torch.lt)),
)
REDUCTIONS: tuple[tuple[Op, Callable[..., Tensor]], ...] = (
    *((ops.sum_, torch.sum), (ops.mean, torch.mean), (ops.amax, torch.amax), (ops.amin, torch.amin)),
)


@st.composite
def elementwise(draw: st.DrawFn, x: Value) -> Grown:
    op, meaning = draw(st.sampled_from(UNARY))
    value, scope = op(x, scope=draw(SCOPES)), draw(SCOPES)
    if value.dtype is DType.f32:
        return value, meaning
    return ops.cast(value, dtype=DType.f32, scope=scope), lambda t: meaning(t).float()


@st.composite
def literal(draw: st.DrawFn, x: Value) -> Grown:
    number = draw(st.sampled_from((0.0, 1.0, -2.5, 3.0)))
    other = ops.full(value=number, dtype=DType.f32)
    op, meaning = draw(st.sampled_from(((ops.add, torch.add), (ops.mul, torch.mul), (ops.div, torch.div))))
    if op is ops.div and number == 0:
        return ops.clamp(x, low=-0.5, high=2), lambda t: t.clamp(-0.5, 2)
    return op(x, other), lambda t: meaning(t, torch.tensor(number))


@st.composite
def reduction(draw: st.DrawFn, x: Value) -> Grown:
    op, meaning = draw(st.sampled_from(REDUCTIONS))
    axes, keep = tuple(sorted(draw(st.sets(st.integers(0, x.type.rank - 1), min_size=1)))), draw(st.booleans())
    return op(x, axes=axes, keep=keep), lambda t: meaning(t, axes, keepdim=keep)


@st.composite
def movement(draw: st.DrawFn, x: Value) -> Grown:
    rank = x.type.rank
    axis, order = draw(st.integers(0, rank - 1)), tuple(draw(st.permutations(range(rank))))
    size, ones = x.shape[axis], (*x.shape[:axis], 1, *x.shape[axis:])
    moves: tuple[Callable[[], Grown], ...] = (
        lambda: (ops.transpose(x, order=order), lambda t: t.permute(order)),
        lambda: (ops.flip(x, axes=(axis,)), lambda t: t.flip(axis)),
        lambda: (ops.roll(x, shifts=(1,), axes=(axis,)), lambda t: t.roll(1, axis)),
        lambda: (ops.reshape(x, shape=(elements(x.shape),)), torch.flatten),
        lambda: (ops.reshape(x, shape=ones), lambda t: t.unsqueeze(axis)),
        lambda: (ops.expand(x, shape=(2, *x.shape)), lambda t: t.expand(2, *t.shape)),
        lambda: (ops.concat(x, x, axis=axis), lambda t: torch.cat((t, t), axis)),
        lambda: (
            ops.slice_(x, axis=axis, stop=size, step=2),
            lambda t: t.index_select(axis, torch.arange(0, t.shape[axis], 2)),
        ),
        lambda: (
            ops.pad(x, before=(1,) * rank, after=(0,) * rank, value=-0.25),
            lambda t: functional.pad(t, (1, 0) * t.ndim, value=-0.25),
        ),
    )
    return draw(st.sampled_from(moves))()


@st.composite
def contraction(draw: st.DrawFn, x: Value) -> Grown:
    width = x.shape[-1]
    if not isinstance(width, int):
        return ops.softmax(x, axis=x.type.rank - 1), lambda t: t.softmax(-1)
    w, b = (ops.weight(name=f"w, {s}", shape=s, dtype=DType.f32) for s in ((3, width), (3,)))
    if draw(st.booleans()):
        return ops.linear(x, w), lambda t: functional.linear(t, content(3, width))
    return ops.linear(x, w, b), lambda t: functional.linear(t, content(3, width), content(3))


def content(*shape: int) -> Tensor:
    """What the weight of that shape holds."""
    return torch.sin(torch.arange(1.0, 1 + torch.Size(shape).numel())).reshape(shape)


@st.composite
def cases(draw: st.DrawFn) -> Case:
    """A graph, inputs for it, and what torch computes for its outputs."""
    sizes = {"B": draw(st.integers(1, 3)), "S": draw(st.integers(2, 5))}
    shapes = draw(st.sampled_from(SHAPES))
    inputs = [ops.input_(name=n, shape=s, dtype=DType.f32) for n, s in zip(("x", "0 y"), shapes, strict=True)]
    torch.manual_seed(draw(st.integers(0, 99)))
    tensors = tuple(torch.randn(evaluate_shape(shape, sizes)) for shape in shapes)
    pool = list(zip(inputs, tensors, strict=True))
    for _ in range(draw(st.integers(4, 12))):
        pool.append(draw(_grown(pool)))
    chosen = [pool[-1], *draw(st.lists(st.sampled_from(pool[2:]), max_size=2))]
    used = [s for s in (Size("B", 1, 8, 2), Size("S", 2, 16, 4)) if any(s.symbol in v.shape for v in inputs)]
    return Graph("main", tuple(inputs), tuple(v for v, _ in chosen), tuple(used)), tensors, tuple(t for _, t in chosen)


@st.composite
def _grown(draw: st.DrawFn, pool: list[tuple[Value, Tensor]]) -> tuple[Value, Tensor]:
    x, tensor = draw(st.sampled_from(pool[-3:]))
    if draw(st.integers(0, 3)) == 0:
        op, meaning = draw(st.sampled_from(BINARY))
        y, other = draw(st.sampled_from([(v, t) for v, t in pool if same_shape(v.shape, x.shape)]))
        value = op(x, y, scope=draw(SCOPES))
        return (value if op is not ops.lt else ops.where(value, x, y)), (
            meaning(tensor, other) if op is not ops.lt else torch.minimum(tensor, other)
        )
    families = [elementwise, literal]
    if x.type.rank:
        families.append(reduction)
    if 0 < x.type.rank < 5 and tensor.numel() < 300:
        families += [movement, contraction]
    value, meaning_of_one = draw(draw(st.sampled_from(families))(x))
    return value, meaning_of_one(tensor)


def _weights(graph: Graph) -> dict[str, Tensor]:
    leaves = (node for node in graph.nodes() if node.op is ops.weight)
    return {str(node.attrs["name"]): content(*evaluate_shape(node.types[0].shape, {})) for node in leaves}


def _agree(given: tuple[Tensor, ...], wanted: tuple[Tensor, ...]) -> None:
    for left, right in zip(given, wanted, strict=True):
        torch.testing.assert_close(left, right, rtol=1e-4, atol=1e-4 * max(1.0, float(right.abs().max())))


@RULES
@given(cases())
def test_a_random_graph_verifies_and_computes_what_torch_computes(case: Case) -> None:
    graph, inputs, wanted = case
    weights = _weights(graph)
    verify(Program({"main": graph}, weights))
    _agree(evaluate(graph, inputs, weights), wanted)


@RULES
@given(cases())
def test_a_random_graph_parses_to_the_same_text_and_the_same_numbers(case: Case) -> None:
    graph, inputs, wanted = case
    again = parse(str(graph))
    assert str(again) == str(graph)
    assert [n.scope for n in again.nodes() if n.scope] == [n.scope for n in graph.nodes() if n.scope]
    verify(Program({"main": again}, _weights(again)))
    _agree(evaluate(again, inputs, _weights(again)), wanted)


@RULES
@given(cases())
def test_a_substitution_of_nothing_is_the_same_graph(case: Case) -> None:
    graph, _, _ = case
    assert substitute(graph, lambda node: None).nodes() == graph.nodes()


@pytest.mark.parametrize("of", [MergeCommonSubexpressions(), FoldConstants()], ids=lambda of: of.name)
@settings(RULES, max_examples=30)
@given(case=cases())
def test_a_pass_alone_keeps_the_numbers_of_a_random_graph(of: Pass, case: Case) -> None:
    graph, inputs, wanted = case
    after = of.apply(Program({"main": graph}, _weights(graph)), Context()).program
    verify(after)
    _agree(evaluate(after.main, inputs, after.weights), wanted)


@settings(RULES, max_examples=60)
@given(cases())
def test_every_exact_pass_in_turn_keeps_the_numbers_of_a_random_graph(case: Case) -> None:
    graph, inputs, wanted = case
    note(str(graph))
    program = Program({"main": graph}, _weights(graph))
    for of in EXACT:
        program = of.apply(program, Context()).program
        note(f"{of.name}: {program.main}")
        verify(program)
        _agree(evaluate(program.main, inputs, program.weights), wanted)
    assert str(parse(str(program.main))) == str(program.main)
