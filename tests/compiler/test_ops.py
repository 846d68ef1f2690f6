"""Type rules against what the references, which are torch, really return."""

import json
from collections.abc import Mapping
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from planish.compiler import ops
from planish.compiler.evaluate import evaluate
from planish.compiler.ir import Attr, Op
from planish.compiler.ops.structure import FROM_TORCH, TORCH_DTYPE
from planish.compiler.text import parse
from planish.compiler.types import DType, TensorType, evaluate_shape
from planish.compiler.verify import verify_graph
from planish.errors import TypeRuleError

Shapes = tuple[tuple[int, ...] | None, ...]
Case = tuple[Op, Shapes, Mapping[str, Attr]]

UNARY = (
    *(
        ops.neg,
        ops.abs_,
        ops.exp,
        ops.log,
        ops.sqrt,
        ops.rsqrt,
        ops.reciprocal,
        ops.sin,
        ops.cos,
        ops.tanh,
        ops.sigmoid,
    ),
    *(ops.erf, ops.relu, ops.silu, ops.gelu, ops.floor, ops.ceil, ops.round_, ops.logical_not, ops.isnan, ops.clamp),
)
BINARY = (
    *(ops.add, ops.sub, ops.mul, ops.div, ops.floor_divide, ops.remainder, ops.pow_, ops.maximum, ops.minimum),
    *(ops.eq, ops.ne, ops.lt, ops.le, ops.gt, ops.ge, ops.logical_and, ops.logical_or),
)
REDUCTIONS = (ops.sum_, ops.mean, ops.amax, ops.amin, ops.prod, ops.any_, ops.all_)
HEADS = (2, 4, 3, 6)

# Operands that the op takes at every dtype that its rule accepts.
PLAIN: tuple[Case, ...] = (
    *((op, ((2, 3),), {}) for op in UNARY),
    *((op, ((),), {}) for op in UNARY),
    *((op, ((2, 1, 3), (4, 1)), {}) for op in BINARY),
    (ops.gelu, ((2, 3),), {"approximate": "tanh"}),
    (ops.clamp, ((2, 3),), {"low": 1, "high": 2}),
    (ops.clamp, ((2, 3),), {"high": 1.5}),
    (ops.clamp, ((2, 3),), {"low": 1}),
    *((ops.cast, ((2, 3),), {"dtype": dtype}) for dtype in DType),
    (ops.linear, ((2, 5, 4), (3, 4)), {}),
    (ops.linear, ((4,), (3, 4), (3,)), {}),
    (ops.matmul, ((2, 1, 3, 4), (5, 4, 6)), {}),
    (ops.conv, ((2, 7, 4), (6, 3, 2), (6,)), {"stride": (2,), "padding": (1,), "dilation": (2,), "groups": 2}),
    (ops.conv, ((2, 7, 8, 3), (5, 3, 2, 3)), {"stride": (2, 1), "padding": (0, 1), "dilation": (1, 3)}),
    (
        ops.conv,
        ((1, 7, 8, 3), (5, 3, 3, 3)),
        {"stride": (2, 2), "padding": (0, 1), "dilation": (1, 1), "after": (1, 3)},
    ),
    (ops.attention, (HEADS, HEADS, HEADS), {"scale": 0.5}),
    (ops.attention, (HEADS, (2, 2, 5, 6), (2, 2, 5, 7)), {"scale": 0.5, "causal": True, "window": 2}),
    (ops.attention, (HEADS, HEADS, HEADS, (1, 1, 3, 3)), {"scale": 0.5}),
    (ops.softmax, ((2, 3),), {"axis": 0}),
    (ops.log_softmax, ((2, 3),), {"axis": 1}),
    (ops.layer_norm, ((2, 3, 4), (4,), (4,)), {}),
    (ops.layer_norm, ((2, 4), None, (4,)), {"eps": 1e-3}),
    (ops.rms_norm, ((2, 3, 4),), {}),
    (ops.rms_norm, ((4,), (4,)), {"eps": 1e-3}),
    (ops.batch_norm, ((4,), (4,), (2, 3, 4)), {}),
    (ops.batch_norm, ((4,), (4,), (2, 3, 4), (4,), (4,)), {}),
    (ops.group_norm, ((2, 3, 5, 4), (4,), (4,)), {"groups": 2}),
    (ops.group_norm, ((2, 3, 4),), {"groups": 4}),
    (ops.rope, ((2, 3, 5, 4), (5, 4), (2, 1, 5, 4)), {}),
    *((op, ((2, 3, 4),), {"axes": (0, 2)}) for op in REDUCTIONS),
    *((op, ((2, 3),), {"axes": (1,), "keep": True}) for op in REDUCTIONS),
    (ops.argmax, ((2, 3),), {"axis": 1}),
    (ops.argmax, ((2, 3),), {"axis": 0, "keep": True}),
    (ops.cumsum, ((2, 3),), {"axis": 0}),
    *((op, ((2, 7, 3),), {"kernel": (3,), "stride": (2,), "padding": (1,)}) for op in (ops.max_pool, ops.avg_pool)),
    (ops.max_pool, ((2, 7, 6, 3),), {"kernel": (3, 2), "stride": (2, 2), "padding": (1, 0)}),
    (ops.avg_pool, ((2, 7, 6, 3),), {"kernel": (3, 2), "stride": (2, 1), "padding": (1, 1), "count_padding": False}),
    (ops.reshape, ((2, 3, 4),), {"shape": (6, 1, 4)}),
    (ops.transpose, ((2, 3, 4),), {"order": (2, 0, 1)}),
    (ops.expand, ((3, 1),), {"shape": (2, 3, 4)}),
    (ops.slice_, ((2, 7),), {"axis": 1, "start": 1, "stop": 6, "step": 2}),
    (ops.slice_, ((2, 7),), {"axis": 0, "stop": 0}),
    (ops.concat, ((2, 3), (2, 1), (2, 0)), {"axis": 1}),
    (ops.pad, ((2, 3),), {"before": (1, 0), "after": (0, 2), "value": 1.0}),
    (ops.roll, ((2, 3),), {"shifts": (1, -1), "axes": (1, 0)}),
    (ops.flip, ((2, 3),), {"axes": (1,)}),
    (ops.full, (), {"shape": (2, 3), "value": 1.0, "dtype": DType.f16}),
    (ops.full, (), {"value": True, "dtype": DType.bool}),
    (ops.arange, (), {"length": 5, "start": 2, "step": 3}),
    (ops.arange, (), {"length": 0, "dtype": DType.f32}),
    (ops.dim_value, (), {"value": 7, "dtype": DType.i32}),
)


def _name(case: Case) -> str:
    return f"{case[0].name}-{'x'.join(map(str, case[1]))}-{','.join(case[2])}".replace(" ", "")


def _tensor(shape: tuple[int, ...], dtype: DType) -> Tensor:
    torch.manual_seed(len(shape))
    return (torch.rand(shape) * 3 + 1).to(TORCH_DTYPE[dtype])


def _check(op: Op, tensors: tuple[Tensor | None, ...], attrs: Mapping[str, Attr]) -> None:
    types = [None if t is None else TensorType(tuple(t.shape), FROM_TORCH[t.dtype]) for t in tensors]
    full = {**op.defaults, **attrs}
    inferred = op.infer(*types, **full)
    results = op.reference(*tensors, **full)
    results = results if isinstance(results, tuple) else (results,)
    inferred = inferred if isinstance(inferred, tuple) else (inferred,)
    assert [TensorType(tuple(t.shape), FROM_TORCH[t.dtype]) for t in results] == list(inferred)


@pytest.mark.parametrize("case", PLAIN, ids=_name)
def test_a_type_rule_accepts_a_dtype_only_if_the_reference_returns_the_inferred_type(case: Case) -> None:
    op, shapes, attrs = case
    accepted = []
    for dtype in DType:
        tensors = tuple(None if shape is None else _tensor(shape, dtype) for shape in shapes)
        try:
            op.infer(
                *(None if t is None else TensorType(tuple(t.shape), dtype) for t in tensors), **{**op.defaults, **attrs}
            )
        except TypeRuleError:
            continue
        _check(op, tensors, attrs)
        accepted.append(dtype)
    assert {DType.f64, DType.f32, DType.f16, DType.bf16} <= set(accepted)


INDEX = torch.tensor([[0, 2, 1], [1, 1, 0]])
ROWS = torch.arange(12.0).reshape(3, 4)
MIXED: tuple[tuple[Op, tuple[Tensor, ...], Mapping[str, Attr]], ...] = (
    (ops.where, (INDEX > 0, torch.zeros(2, 1), torch.ones(3)), {}),
    (ops.where, (INDEX > 0, INDEX, INDEX), {}),
    (ops.embedding, (ROWS, INDEX), {}),
    (ops.embedding, (ROWS.half(), INDEX.int()), {}),
    (ops.gather, (ROWS[:, :3], INDEX), {"axis": 0}),
    (ops.gather, (ROWS, INDEX), {"axis": 1}),
    (ops.index_select, (ROWS, INDEX), {"axis": 1}),
    (ops.index_select, (ROWS, INDEX[0, 0].int()), {"axis": 0}),
    (
        ops.attention,
        (torch.ones(HEADS),) * 3 + (torch.ones(3, 3, dtype=torch.bool).tril()[None, None],),
        {"scale": 1.0},
    ),
    (ops.layer_norm, (ROWS.bfloat16(), torch.ones(4), torch.ones(4)), {}),
    (ops.batch_norm, (torch.zeros(4), torch.ones(4), ROWS.bfloat16(), torch.ones(4), torch.ones(4)), {}),
    (ops.group_norm, (ROWS.bfloat16()[None], torch.ones(4), torch.ones(4)), {"groups": 2}),
    (ops.rms_norm, (ROWS, torch.ones(4)), {}),
    (
        ops.block_attention,
        (torch.ones(HEADS), *(torch.ones(2, 2, 5, 6),) * 2, torch.tensor([[1, -1], [0, 2]])[None, None]),
        {"query_block": 2, "key_block": 2, "scale": 1.0},
    ),
    (ops.attention, (torch.ones(HEADS),) * 3 + (None, torch.tensor([0, 1])), {"scale": 1.0, "causal": True}),
    (ops.cache_update, (torch.ones(HEADS), torch.ones(HEADS)[:, :, :2], *torch.tensor([[1, 2], [2, 1]])), {}),
    (ops.grouped_linear, (ROWS[INDEX], torch.ones(3, 5, 4), INDEX), {}),
    (ops.grouped_linear, (ROWS[INDEX].bfloat16(), torch.ones(3, 5, 4).bfloat16(), INDEX.int()), {"dtype": DType.f32}),
    (ops.greedy_tokens, (ROWS,), {}),
    (
        ops.sampled_tokens,
        (ROWS.half(), (ROWS > 5).to(torch.uint8), torch.tensor([[0.5, 1, 2, 0.9, 0, 1.1]] * 3).double()),
        {},
    ),
    (ops.pack_groups, (torch.ones(*HEADS[:3], 40).half(),), {"group": 16}),
    (ops.unpack_groups, (torch.ones(2, 36, dtype=torch.uint8),), {"width": 40, "group": 16, "dtype": DType.bf16}),
    (ops.quantization_scale, (ROWS,), {"group": 3}),
    (ops.quantize, (ROWS, torch.ones(*ROWS.shape[:-1], 2)), {"group": 3}),
    (ops.quantization_scale, (ROWS,), {"group": 3, "dtype": DType.f8}),
    (ops.quantize, (ROWS, torch.ones(*ROWS.shape[:-1], 2)), {"group": 3, "dtype": DType.f8}),
    (ops.dequantize, (ROWS.to(torch.float8_e4m3fn), torch.ones(*ROWS.shape[:-1], 2)), {"group": 3}),
    (ops.dequantize, (ROWS.to(torch.uint8), torch.ones(*ROWS.shape[:-1], 2)), {"group": 3, "bits": 4}),
    (
        ops.dequantize,
        (ROWS.to(torch.uint8), torch.ones(*ROWS.shape[:-1], 1), torch.zeros(*ROWS.shape[:-1], 1, dtype=torch.uint8)),
        {"group": 4, "bits": 4},
    ),
)


@pytest.mark.parametrize("case", MIXED, ids=lambda case: case[0].name)
def test_a_type_rule_of_mixed_dtypes_gives_what_the_reference_returns(case: tuple[Op, tuple[Tensor, ...], Any]) -> None:
    _check(*case)


def _opaque(target: str, arguments: Mapping[str, Any], *results: TensorType) -> Mapping[str, Attr]:
    shapes, dtypes = tuple(r.shape for r in results), tuple(r.dtype for r in results)
    return {"target": target, "arguments": json.dumps(arguments), "shapes": shapes, "dtypes": dtypes}


@pytest.mark.parametrize(
    ("target", "arguments", "tensors", "expected"),
    [
        ("aten.erfinv.default", {"args": [{"input": 0}], "kwargs": {}}, (ROWS / 20,), lambda x: torch.erfinv(x)),
        (
            "aten.sort.default",
            {"args": [{"input": 0}, 1, True], "kwargs": {}},
            (ROWS,),
            lambda x: torch.sort(x, 1, True),
        ),
        (
            "aten.cumprod.default",
            {"args": [{"input": 0}, {"int": 1}], "kwargs": {"dtype": {"dtype": "f64"}}},
            (ROWS, torch.tensor(1)),
            lambda x, dim: torch.cumprod(x, int(dim), dtype=torch.float64),
        ),
        (
            "aten.cat.default",
            {"args": [[{"input": 0}, {"input": 1}]], "kwargs": {}},
            (ROWS, ROWS),
            lambda *x: torch.cat(x),
        ),
    ],
)
def test_an_opaque_op_runs_as_torch(target: str, arguments: Any, tensors: tuple[Tensor, ...], expected: Any) -> None:
    wanted = expected(*tensors)
    wanted = wanted if isinstance(wanted, tuple) else (wanted,)
    attrs = _opaque(target, arguments, *(TensorType(tuple(t.shape), FROM_TORCH[t.dtype]) for t in wanted))
    _check(ops.opaque, tensors, attrs)
    torch.testing.assert_close(tuple(ops.opaque.reference(*tensors, **attrs)), tuple(wanted))


def test_every_op_has_an_example_here() -> None:
    tested = {case[0] for case in (*PLAIN, *MIXED)} | {ops.opaque}
    assert set(ops.OPS) - tested == {ops.input_, ops.weight}


# One line a node over %x: f32[B, S, 4], with the type that it must have.
SYMBOLIC = (
    "conv(%x, @k: f32[5, 3, 4]) {stride=[2], padding=[1], dilation=[1]}: f32[B, (S + 1)//2, 5]",
    "conv(%x, @k: f32[5, 3, 4]) {stride=[3], padding=[2], dilation=[2]}: f32[B, (S + 2)//3, 5]",
    "conv(%x, @k: f32[5, 3, 4]) {stride=[2], padding=[0], dilation=[1], after=[1]}: f32[B, S//2, 5]",
    "max_pool(%x) {kernel=[3], stride=[2], padding=[1]}: f32[B, (S + 1)//2, 4]",
    "avg_pool(%x) {kernel=[2], stride=[2], padding=[0]}: f32[B, S//2, 4]",
    "linear(%x, @w: f32[7, 4]): f32[B, S, 7]",
    "grouped_linear(%x, @e: f32[6, 7, 4], @i: i64[B, S]): f32[B, S, 7]",
    "matmul(%x, @m: f32[1, 4, 6]): f32[B, S, 6]",
    "add(%x, @p: f32[4]): f32[B, S, 4]",
    "reshape(%x) {shape=[`2*B*S`, 2]}: f32[2*B*S, 2]",
    "reshape(%x) {shape=[`B`, `4*S`]}: f32[B, 4*S]",
    "transpose(%x) {order=[1, 2, 0]}: f32[S, 4, B]",
    "expand(%x) {shape=[3, `B`, `S`, 4]}: f32[3, B, S, 4]",
    "slice(%x) {axis=1, start=1, stop=`S`}: f32[B, S - 1, 4]",
    "slice(%x) {axis=1, start=`S - 1`, stop=`S`}: f32[B, 1, 4]",
    "slice(%x) {axis=1, stop=`S`, step=3}: f32[B, (S + 2)//3, 4]",
    "concat(%x, %x, @p: f32[B, 1, 4]) {axis=1}: f32[B, 2*S + 1, 4]",
    "pad(%x) {before=[0, 1, 0], after=[0, 2, 0]}: f32[B, S + 3, 4]",
    "roll(%x) {shifts=[1], axes=[1]}: f32[B, S, 4]",
    "softmax(%x) {axis=1}: f32[B, S, 4]",
    "sum(%x) {axes=[0, 2]}: f32[S]",
    "mean(%x) {axes=[1], keep=true}: f32[B, 1, 4]",
    "argmax(%x) {axis=2}: i64[B, S]",
    "index_select(%x, @i: i64[3, 1]) {axis=1}: f32[B, 3, 1, 4]",
    "full() {shape=[`B + 1`], value=2.5, dtype=f32}: f32[B + 1]",
    "arange() {length=`S//2`, start=`B`}: i64[S//2]",
    "dim_value() {value=`B*S`}: i64[]",
)


@pytest.mark.parametrize("line", SYMBOLIC)
def test_a_rule_over_named_sizes_gives_the_shape_that_torch_has_for_their_values(line: str) -> None:
    graph = parse(f"graph main<B: 1..9 = 2, S: 3..99 = 8>(%x: f32[B, S, 4]) {{\n  %0 = {line}\n  return %0\n}}")
    verify_graph(graph)
    assert str(graph).splitlines()[1] == f"  %0 = {line}"
    for sizes in ({"B": 1, "S": 3}, {"B": 2, "S": 8}, {"B": 5, "S": 13}):
        weights = {
            str(node.attrs["name"]): _tensor(evaluate_shape(node.types[0].shape, sizes), node.types[0].dtype) // 2
            for node in graph.nodes()
            if node.op is ops.weight
        }
        (result,) = evaluate(graph, (torch.rand(sizes["B"], sizes["S"], 4),), weights)
        assert tuple(result.shape) == evaluate_shape(graph.outputs[0].shape, sizes)
        assert FROM_TORCH[result.dtype] is graph.outputs[0].dtype


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("keys", [5, 9])
def test_attention_is_that_of_torch_with_grouped_queries(causal: bool, keys: int) -> None:
    torch.manual_seed(0)
    q, k, v = torch.randn(2, 4, 5, 8), torch.randn(2, 2, keys, 8), torch.randn(2, 2, keys, 8)
    seen = torch.ones(5, keys, dtype=torch.bool).tril(keys - 5) if causal else None
    expected = functional.scaled_dot_product_attention(q, k, v, seen, enable_gqa=True)
    torch.testing.assert_close(ops.attention.reference(q, k, v, causal=causal, window=None, scale=8**-0.5), expected)


def test_a_window_counts_the_position_of_the_query() -> None:
    q = k = torch.zeros(1, 1, 4, 2)
    v = torch.eye(4)[None, None]
    seen = ops.attention.reference(q, k, v, causal=True, window=2, scale=1.0)[0, 0]
    assert seen.tolist() == [[1, 0, 0, 0], [0.5, 0.5, 0, 0], [0, 0.5, 0.5, 0], [0, 0, 0.5, 0.5]]


def test_a_query_that_sees_no_key_gives_zeros() -> None:
    q = k = v = torch.ones(1, 1, 2, 2)
    mask = torch.tensor([[True, False], [False, False]])[None, None]
    assert ops.attention.reference(q, k, v, mask, causal=False, window=None, scale=1.0)[0, 0].tolist() == [
        [1, 1],
        [0, 0],
    ]


def test_rope_rotates_pairs_of_halves_as_complex_numbers() -> None:
    torch.manual_seed(0)
    x, angle = torch.randn(1, 2, 3, 4), torch.rand(3, 2)
    rotated = torch.complex(x[..., :2], x[..., 2:]) * torch.polar(torch.ones(3, 2), angle)
    doubled = torch.cat((angle, angle), -1)
    expected = torch.cat((rotated.real, rotated.imag), -1)
    torch.testing.assert_close(ops.rope.reference(x, doubled.cos(), doubled.sin()), expected)


def test_convolution_and_pooling_are_channels_last() -> None:
    torch.manual_seed(0)
    x, w, b = torch.randn(2, 6, 5, 3), torch.randn(4, 3, 3, 3), torch.randn(4)
    y = ops.conv.reference(x, w, b, stride=(2, 1), padding=(1, 0), dilation=(1, 1), groups=1)
    expected = functional.conv2d(x.permute(0, 3, 1, 2), w.permute(0, 3, 1, 2), b, (2, 1), (1, 0))
    torch.testing.assert_close(y, expected.permute(0, 2, 3, 1))
    y = ops.conv.reference(x, w, b, stride=(2, 1), padding=(1, 0), dilation=(1, 1), groups=1, after=(2, 3))
    padded = functional.pad(x.permute(0, 3, 1, 2), (0, 3, 1, 2))
    expected = functional.conv2d(padded, w.permute(0, 3, 1, 2), b, (2, 1))
    torch.testing.assert_close(y, expected.permute(0, 2, 3, 1))
    z = ops.max_pool.reference(x, kernel=(2, 2), stride=(2, 2), padding=(0, 0))
    torch.testing.assert_close(z, functional.max_pool2d(x.permute(0, 3, 1, 2), 2).permute(0, 2, 3, 1))


def test_batch_and_group_norm_are_those_of_torch_modules() -> None:
    torch.manual_seed(0)
    x, mean, variance, w, b = torch.randn(2, 5, 4), torch.randn(4), torch.rand(4), torch.randn(4), torch.randn(4)
    batch = functional.batch_norm(x.movedim(-1, 1), mean, variance, w, b).movedim(1, -1)
    torch.testing.assert_close(ops.batch_norm.reference(mean, variance, x, w, b, eps=1e-5), batch)
    group = functional.group_norm(x.movedim(-1, 1), 2, w, b).movedim(1, -1)
    torch.testing.assert_close(ops.group_norm.reference(x, w, b, groups=2, eps=1e-5), group)


def test_codes_of_f8_are_the_nearest_numbers_of_three_bits_of_mantissa() -> None:
    """Powers of two from 2**-6 with eighths between, below them multiples of 2**-9, at most 448 (OCP 8-bit floating
    point specification)."""
    torch.manual_seed(0)
    x = torch.randn(4, 200) * 10.0 ** torch.randint(-4, 3, (4, 200))
    scale = ops.quantization_scale.reference(x, group=200, bits=8, dtype=DType.f8)
    torch.testing.assert_close(scale, x.abs().amax(1, keepdim=True) / 448)
    found = ops.quantize.reference(x, scale, group=200, bits=8, dtype=DType.f8).double()
    levels = x.double() / scale.double()
    step = 2.0 ** (torch.frexp(levels)[1].clamp(min=-5) - 4)
    assert torch.equal(found / step, (found / step).round())
    assert ((found - levels).abs() <= 0.5001 * step).all()
    assert found.abs().amax() == 448


def test_codes_of_f8_saturate() -> None:
    x, scale = torch.tensor([[1e9, -1e9, 3.0]]), torch.ones(1, 1)
    found = ops.quantize.reference(x, scale, group=3, bits=8, dtype=DType.f8)
    assert found.float().tolist() == [[448, -448, 3]]


@pytest.mark.parametrize("op", [ops.input_, ops.weight])
def test_inputs_and_weights_have_no_reference(op: Op) -> None:
    with pytest.raises(AssertionError, match="bound by the evaluator"):
        op.reference(name="x", shape=(), dtype=DType.f32)


def test_a_grouped_linear_multiplies_each_row_by_the_weights_of_its_expert() -> None:
    torch.manual_seed(0)
    x, w, index = torch.randn(5, 2, 6), torch.randn(4, 3, 6), torch.randint(0, 3, (5, 2))
    found = ops.grouped_linear.reference(x, w, index, dtype=None)
    torch.testing.assert_close(found, torch.einsum("bsk,bsnk->bsn", x, w[index]))


def test_a_grouped_linear_takes_the_nearest_expert_for_indices_out_of_range() -> None:
    x, w = torch.ones(2, 3), torch.arange(4.0).reshape(4, 1, 1).repeat(1, 2, 3)
    found = ops.grouped_linear.reference(x, w, torch.tensor([-1, 9]), dtype=None)
    assert found.tolist() == [[0.0, 0.0], [9.0, 9.0]]
