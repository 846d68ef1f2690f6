"""The reference evaluator against torch."""

import re
from collections.abc import Mapping

import pytest
import torch

from planish.compiler.evaluate import bind_sizes, concrete, evaluate, run_node
from planish.compiler.ir import Node, Program, Value
from planish.compiler.ops import dequantize
from planish.compiler.text import parse
from planish.compiler.types import DType, symbol
from planish.compiler.verify import verify
from planish.errors import InputError, ParseError

TEXT = """graph main<B: 1..8 = 2, S: 1..8 = 3>(%x: f32[B, S, 4], %m: bool[B, S]) {
  %0 = linear(%x, @w: f32[4, 4], @b: f32[4]): f32[B, S, 4]
  %1 = full() {value=0.0, dtype=f32}: f32[]
  %2 = reshape(%m) {shape=[`B`, `S`, 1]}: bool[B, S, 1]
  %3 = where(%2, %0, %1): f32[B, S, 4]
  %4 = reshape(%3) {shape=[`B*S`, 4]}: f32[B*S, 4]
  %5 = slice(%4) {axis=0, stop=`B*S - 1`}: f32[B*S - 1, 4]
  return %5, %x
}"""


def test_a_graph_computes_what_torch_computes() -> None:
    torch.manual_seed(0)
    x, m, w, b = torch.randn(3, 2, 4), torch.rand(3, 2) > 0.5, torch.randn(4, 4), torch.randn(4)
    result, same = evaluate(parse(TEXT), (x, m), {"w": w, "b": b})
    expected = torch.where(m[..., None], x @ w.T + b, 0.0).reshape(6, 4)[:-1]
    torch.testing.assert_close(result, expected)
    assert same is x


def _inputs(*shapes: tuple[int, ...]) -> tuple[torch.Tensor, ...]:
    return torch.zeros(shapes[0]), *(torch.zeros(shape, dtype=torch.bool) for shape in shapes[1:])


def test_sizes_are_bound_from_the_inputs() -> None:
    assert bind_sizes(parse(TEXT), _inputs((5, 7, 4), (5, 7))) == {"B": 5, "S": 7}


def test_a_size_follows_from_a_linear_dimension() -> None:
    graph = parse("graph main<S: 1..9 = 2>(%x: f32[2*S + 1]) {\n  return %x\n}")
    assert bind_sizes(graph, (torch.zeros(7),)) == {"S": 3}


@pytest.mark.parametrize(
    ("inputs", "words"),
    [
        (_inputs((5, 7, 4), (5, 6)), "dimension 1 of input 'm' is 6, expected S = 7"),
        (_inputs((5, 7, 3), (5, 7)), "dimension 2 of input 'x' is 3, expected 4"),
        (_inputs((5, 7), (5, 7)), "input 'x' needs 3 dimensions [B, S, 4], was given 2 [5, 7]"),
        (_inputs((5, 9, 4), (5, 9)), "size S of input 'x' is 9, outside the declared 1..8"),
        (_inputs((5, 7, 4)), "main takes 2 inputs, not 1"),
        ((torch.zeros(5, 7, 4), torch.zeros(5, 7)), "input 'm' is torch.float32[5, 7], not bool[B, S]"),
        ((torch.zeros(5, 7, 4), torch.zeros(5, 7).cfloat()), "input 'm' is torch.complex64[5, 7], not bool[B, S]"),
    ],
)
def test_inputs_that_contradict_the_graph_are_named(inputs: tuple[torch.Tensor, ...], words: str) -> None:
    with pytest.raises(InputError, match=re.escape(words)):
        bind_sizes(parse(TEXT), inputs)


def test_a_size_that_no_input_determines_is_named() -> None:
    graph = parse("graph main<S: 1..9 = 2>(%x: f32[S//2]) {\n  return %x\n}")
    with pytest.raises(ParseError, match="no input dimension determines size S"):
        bind_sizes(graph, (torch.zeros(3),))


def test_attributes_become_numbers() -> None:
    size = symbol("S")
    assert concrete((size + 1, (2, size // 2), "S", None, DType.f32), {"S": 7}) == (8, (2, 3), "S", None, DType.f32)


def test_a_value_that_is_read_late_and_an_input_that_is_not_read_at_all() -> None:
    text = """graph main(%x: f32[2], %unread: f32[3]) {
  %0 = exp(%x): f32[2]
  %1 = neg(%0): f32[2]
  %2 = add(%1, %1): f32[2]
  %3 = mul(%2, %0): f32[2]
  return %3, %0, @w: f32[1], %3
}"""
    x, w = torch.tensor([0.5, -1.0]), torch.ones(1)
    results = evaluate(parse(text), (x, torch.zeros(3)), {"w": w})
    torch.testing.assert_close(results[0], -2 * x.exp() * x.exp())
    torch.testing.assert_close(results[1], x.exp())
    assert results[2] is w
    assert results[3] is results[0]


BLOCK = """graph main<B: 1..8 = 2, S: 1..32 = 5>(%ids: i64[B, S], %keep: bool[B, 1, 1, S]) {
  %0 = embedding(@embed: f32[11, 8], %ids): f32[B, S, 8]  # embed
  %1 = layer_norm(%0, @norm1.w: f32[8], @norm1.b: f32[8]): f32[B, S, 8]  # norm1
  %2 = linear(%1, @q: f32[8, 8]): f32[B, S, 8]  # self_attn
  %3 = reshape(%2) {shape=[`B`, `S`, 2, 4]}: f32[B, S, 2, 4]  # self_attn
  %4 = transpose(%3) {order=[0, 2, 1, 3]}: f32[B, 2, S, 4]  # self_attn
  %5 = linear(%1, @k: f32[8, 8]): f32[B, S, 8]  # self_attn
  %6 = reshape(%5) {shape=[`B`, `S`, 2, 4]}: f32[B, S, 2, 4]  # self_attn
  %7 = transpose(%6) {order=[0, 2, 1, 3]}: f32[B, 2, S, 4]  # self_attn
  %8 = linear(%1, @v: f32[8, 8]): f32[B, S, 8]  # self_attn
  %9 = reshape(%8) {shape=[`B`, `S`, 2, 4]}: f32[B, S, 2, 4]  # self_attn
  %10 = transpose(%9) {order=[0, 2, 1, 3]}: f32[B, 2, S, 4]  # self_attn
  %11 = attention(%4, %7, %10, %keep) {scale=0.5}: f32[B, 2, S, 4]  # self_attn
  %12 = transpose(%11) {order=[0, 2, 1, 3]}: f32[B, S, 2, 4]  # self_attn
  %13 = reshape(%12) {shape=[`B`, `S`, 8]}: f32[B, S, 8]  # self_attn
  %14 = linear(%13, @out.w: f32[8, 8], @out.b: f32[8]): f32[B, S, 8]  # self_attn
  %15 = add(%0, %14): f32[B, S, 8]
  %16 = layer_norm(%15, @norm2.w: f32[8], @norm2.b: f32[8]): f32[B, S, 8]  # norm2
  %17 = linear(%16, @up.w: f32[16, 8], @up.b: f32[16]): f32[B, S, 16]  # linear1
  %18 = gelu(%17): f32[B, S, 16]
  %19 = linear(%18, @down.w: f32[8, 16], @down.b: f32[8]): f32[B, S, 8]  # linear2
  %20 = add(%15, %19): f32[B, S, 8]
  return %20
}"""


def _layer() -> tuple[torch.nn.Module, dict[str, torch.Tensor]]:
    torch.manual_seed(0)
    layer = torch.nn.TransformerEncoderLayer(8, 2, 16, 0.0, "gelu", batch_first=True, norm_first=True).eval()
    state = layer.state_dict()
    q, k, v = state["self_attn.in_proj_weight"].chunk(3)
    short = {"norm1": "norm1", "norm2": "norm2", "self_attn.out_proj": "out", "linear1": "up", "linear2": "down"}
    names = {
        f"{ours}.{kind[0]}": state[f"{theirs}.{kind}"] for theirs, ours in short.items() for kind in ("weight", "bias")
    }
    return layer, {**names, "q": q, "k": k, "v": v, "embed": torch.randn(11, 8)}


@pytest.mark.parametrize(("batch", "length"), [(1, 1), (2, 5), (3, 7)])
@torch.no_grad()
def test_a_transformer_block_is_that_of_torch(batch: int, length: int) -> None:
    layer, weights = _layer()
    ids = torch.randint(0, 11, (batch, length))
    keep = torch.rand(batch, length) > 0.3
    keep[:, 0] = True
    graph = parse(BLOCK)
    verify(Program({"main": graph}, weights))
    (result,) = evaluate(graph, (ids, keep[:, None, None]), weights)
    torch.testing.assert_close(result, layer(weights["embed"][ids], src_key_padding_mask=~keep), rtol=1e-5, atol=1e-5)


def test_codes_that_several_nodes_read_are_the_same_numbers_for_each() -> None:
    graph = parse("""graph main(%i: i64[3], %x: f32[2, 32]) {
  %0 = dequantize(@q: i8[5, 32], @s: f32[5, 1]) {group=32, bits=8, codebook=[], dtype=f32}: f32[5, 32]
  %1 = embedding(%0, %i): f32[3, 32]
  %2 = linear(%x, %0): f32[2, 5]
  return %1, %2, %0
}""")
    generator = torch.Generator().manual_seed(0)
    q = torch.randint(-127, 128, (5, 32), generator=generator, dtype=torch.int8)
    s, x, i = torch.rand(5, 1, generator=generator), torch.randn(2, 32, generator=generator), torch.tensor([4, 0, 4])
    table = q.float() * s
    found = evaluate(graph, (i, x), {"q": q, "s": s})
    torch.testing.assert_close(found, (table[i], x @ table.T, table))


CODED = """graph main<S: 1..9 = 4>(%ids: i64[S], %x: f32[S, 512]) {
  %0 = dequantize(@t.codes: u8[9000, 512], @t.scale: f16[9000, 4]) {group=128, bits=4}: f32[9000, 512]
  %1 = embedding(%0, %ids): f32[S, 512]
  %2 = add(%1, %x): f32[S, 512]
  %3 = linear(%2, %0, @b: f32[9000]): f32[S, 9000]
  return %3
}"""


def test_large_codes_are_never_whole_in_floats() -> None:
    generator = torch.Generator().manual_seed(0)
    codes = torch.randint(0, 16, (9000, 512), dtype=torch.uint8, generator=generator)
    scale, bias = torch.rand(9000, 4, generator=generator).half() / 100, torch.randn(9000, generator=generator)
    ids, x = torch.tensor([3, 8999, 3, 0]), torch.randn(4, 512, generator=generator)
    sizes: list[int] = []

    def watched(node: Node, values: Mapping[Value, torch.Tensor], known: Mapping[str, int]) -> tuple[torch.Tensor, ...]:
        sizes.extend(values[value].numel() for value in node.operands if value.node.op is dequantize)
        return run_node(node, values, known)

    (result,) = evaluate(parse(CODED), (ids, x), {"t.codes": codes, "t.scale": scale, "b": bias}, run=watched)
    table = (codes.float() - 8) * scale.float().repeat_interleave(128, 1)
    torch.testing.assert_close(result, (table[ids] + x) @ table.T + bias, rtol=1e-5, atol=1e-5)
    assert len(sizes) == 6
    assert max(sizes) <= 1 << 20
