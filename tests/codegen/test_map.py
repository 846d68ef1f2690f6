"""Map kernels against torch: merged axes, tiles, joins and look-ups on odd shapes, views and task counts."""

import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from planish.codegen.call import Call
from planish.codegen.tvm.build import build_object
from planish.codegen.tvm.fabric import weave
from planish.codegen.tvm.isa import AVX2, NEON, Isa
from planish.codegen.tvm.map import Map
from planish.codegen.view import View
from planish.compiler import ops
from planish.compiler.ir import Graph, Value
from planish.compiler.types import DType, Size, simplify
from tests.codegen.compare import check, integers, leaf, normal
from tests.codegen.harness import call_of, host_isa
from tests.codegen.test_expression import MOVES, X

F = DType.f32
S = Size("s").symbol


@pytest.mark.parametrize("tasks", [1, 2, 3, 50])
@pytest.mark.parametrize(
    "shape", [(), (1,), (2,), (7,), (33,), (1000,), (5000,), (3, 1), (13, 31), (2, 3, 127), (9, 300)]
)
def test_elementwise_work_of_any_shape(shape: tuple[int, ...], tasks: int) -> None:
    check(Map(), lambda x, y: ops.relu(ops.sub(x, y)), normal(*shape), normal(*shape, seed=1), tasks=tasks)


@pytest.mark.parametrize("isa", [host_isa(), AVX2], ids=["host", "avx2"])
@pytest.mark.parametrize("tasks", [1, 3])
@pytest.mark.parametrize("n", [1, 5, 16, 50, 700])
def test_dynamic_sizes(n: int, tasks: int, isa: Isa) -> None:
    x, bias = normal(3, n, 24), normal(24, seed=1)
    sizes, shapes = {"s": n}, ((3, S, 24), (24,))
    check(
        Map(),
        lambda x, b: ops.gelu(ops.add(x, b)),
        x,
        bias,
        sizes=sizes,
        shapes=shapes,
        tasks=tasks,
        isa=isa,
        atol=3e-6,
    )
    row = ((4, S), (S,))
    check(Map(), lambda x, b: ops.mul(x, b), normal(4, n), normal(n), sizes=sizes, shapes=row, tasks=tasks, isa=isa)


def test_broadcast_operands() -> None:
    check(Map(), lambda x, y: ops.add(x, y), normal(3, 1, 20), normal(5, 1))
    check(
        Map(), lambda x, y: ops.where(ops.gt(x, ops.full(value=0.0, dtype=F)), x, y), normal(2, 4, 9), normal(1, 4, 1)
    )


@pytest.mark.parametrize("move", MOVES)
def test_movement(move: str) -> None:
    check(Map(), MOVES[move], X)


TRANSPOSED = [
    (normal(40, 33).T, None),
    (normal(2, 5, 37, 8).permute(0, 2, 1, 3), None),
    (normal(1, 3, 20, 21).permute(0, 2, 3, 1), None),
    (normal(2, 20, 21, 3).permute(0, 3, 1, 2), None),
    (normal(2, 20, 7, 17).permute(0, 3, 1, 2), None),
    (normal(17, 18, 19).permute(2, 1, 0), None),
    (integers(23, 45).T, None),
    (integers(23, 45, dtype=torch.int32).T, None),
    (integers(39, 70, low=0, high=2, dtype=torch.bool).T, None),
    (normal(33, 31).bfloat16().T, None),
    (normal(20, 64)[:, 3:60:2], None),
    (normal(40, 64)[2:30, 5:60].T, None),
]


@pytest.mark.parametrize("isa", [host_isa(), AVX2], ids=["host", "avx2"])
@pytest.mark.parametrize("case", range(len(TRANSPOSED)))
def test_copies_of_strided_views(case: int, isa: Isa) -> None:
    x, _ = TRANSPOSED[case]
    check(Map(), lambda x: ops.reshape(x, shape=tuple(x.shape)), x, rtol=0, atol=0, isa=isa, tasks=3)


def test_elementwise_work_on_a_transposed_operand() -> None:
    check(Map(), lambda x, y: ops.add(ops.exp(x), y), normal(40, 33).T, normal(33, 40, seed=1))
    check(Map(), lambda x, y: ops.add(ops.exp(x), y), normal(2, 3, 33, 40).permute(0, 3, 1, 2), normal(40, 1, 1))
    check(
        Map(),
        lambda x, y: ops.mul(ops.cast(x, dtype=F), y),
        normal(40, 33).bfloat16().T,
        normal(33, 40).T.contiguous().T,
    )


def test_a_transposed_output() -> None:
    out = View((30, 20), (1, 30), 0, F)
    check(Map(), lambda x: ops.neg(x), normal(30, 20), out=out)


@pytest.mark.parametrize("n", [1, 3, 16, 45])
def test_a_transposed_operand_of_dynamic_size(n: int) -> None:
    view = View((S, 20), (1, S), 0, F)
    x = leaf("x0", normal(n, 20), (S, 20))
    graph = Graph("main", (x,), (ops.reshape(x, shape=(S, 20)),), (Size("s"),))
    from tests.codegen.harness import run_call

    tensor = normal(20, n)
    found = run_call(Map(), call_of(graph, ops.reshape, {"x0": view}), {"x0": tensor}, sizes={"s": n}, tasks=2)
    torch.testing.assert_close(found, tensor.T)


def test_merged_heads_need_no_index_arithmetic() -> None:
    x = normal(2, 5, 7, 8).permute(0, 2, 1, 3)
    check(Map(), lambda x: ops.neg(ops.reshape(x, shape=(2, 7, 40))), x)
    value = leaf("x0", x)
    graph = Graph("main", (value,), (ops.reshape(value, shape=(2, 7, 40)),))
    view = View(tuple(x.shape), x.stride(), 0, F)
    assert weave(call_of(graph, ops.reshape, {"x0": view})) is not None


def test_joins_are_one_loop_a_part() -> None:
    join = lambda x, y: ops.concat(x, y, x, axis=1)  # noqa: E731
    check(Map(), join, normal(2, 3, 20), normal(2, 5, 20, seed=1), tasks=3)
    check(Map(), lambda x, y: ops.mul(ops.concat(x, y, axis=2), y), normal(2, 5, 1), normal(2, 5, 1, seed=1))
    values = leaf("x0", normal(2, 3, 20)), leaf("x1", normal(2, 5, 20))
    parts = weave(call_of(Graph("main", values, (join(*values),)), ops.concat))
    assert parts is not None
    assert len(parts) == 3


def test_joins_of_dynamic_sizes() -> None:
    sizes, shapes = {"s": 5}, ((2, S, 20), (2, 1, 20))
    check(Map(), lambda x, y: ops.concat(y, x, axis=1), normal(2, 5, 20), normal(2, 1, 20), sizes=sizes, shapes=shapes)


def test_padding_is_one_loop_a_band() -> None:
    pad = lambda x: ops.pad(x, before=(0, 1, 2, 0), after=(0, 3, 0, 5), value=-1.0)  # noqa: E731
    check(Map(), pad, normal(2, 5, 6, 20), tasks=3)
    check(Map(), lambda x: ops.exp(pad(x)), normal(2, 5, 6, 20))


def test_rotated_halves_with_sums() -> None:
    def rotate(x: Value, c: Value, s: Value) -> Value:
        left, right = ops.slice_(x, axis=3, start=0, stop=8), ops.slice_(x, axis=3, start=8, stop=16)
        return ops.add(ops.mul(x, c), ops.mul(ops.concat(ops.neg(right), left, axis=3), s))

    check(Map(), rotate, normal(2, 3, 5, 16), normal(5, 16, seed=1), normal(5, 16, seed=2))


@pytest.mark.parametrize("dtype", [torch.int64, torch.int32])
def test_a_sum_of_embeddings(dtype: torch.dtype) -> None:
    words, places, kinds = normal(50, 40), normal(20, 40, seed=1), normal(2, 40, seed=2)
    tokens, types = integers(3, 7, low=0, high=50, dtype=dtype), integers(3, 7, low=0, high=2, dtype=dtype)

    def total(w: Value, p: Value, k: Value, t: Value, y: Value) -> Value:
        position = ops.embedding(p, ops.arange(length=7))
        return ops.add(ops.add(ops.embedding(w, t), ops.embedding(k, y)), position)

    check(Map(), total, words, places, kinds, tokens, types, tasks=3)


def test_masks_from_integers() -> None:
    def mask(tokens: Value) -> Value:
        wide = ops.reshape(tokens, shape=(3, 1, 1, 20))
        keep = ops.ne(wide, ops.full(value=0, dtype=DType.i64))
        return ops.where(keep, ops.full(value=0.0, dtype=F), ops.full(value=-3e38, dtype=F))

    check(Map(), mask, integers(3, 20, low=0, high=2))
    rows = lambda: ops.reshape(ops.arange(length=20), shape=(20, 1))  # noqa: E731
    check(Map(), lambda x: ops.where(ops.le(ops.arange(length=20), rows()), x, ops.neg(x)), normal(20, 20))


def test_batch_norm() -> None:
    c = [normal(20, seed=i) for i in range(1, 4)]
    args = (c[0], c[1].abs(), normal(2, 3, 20), c[2], c[0])
    check(Map(), lambda m, v, x, w, b: ops.batch_norm(m, v, x, w, b, eps=1e-3), *args)
    check(Map(), lambda m, v, x: ops.silu(ops.batch_norm(m, v, x)), *args[:3])


def test_refuses_what_it_cannot_compute() -> None:
    x = leaf("x", normal(4).double())
    call = call_of(Graph("main", (x,), (ops.pow_(x, x),)), ops.pow_)
    assert Map().refuse(call, host_isa()) == "pow of f64 has no kernel; cast to f32, or write exp(y * log(x))"
    y = leaf("y", normal(4, 4))
    call = call_of(Graph("main", (y,), (ops.softmax(y, axis=1),)), ops.softmax)
    assert Map().refuse(call, host_isa()) == "softmax is not computed element by element"


@pytest.mark.parametrize("isa", [host_isa(), NEON], ids=["host", "neon"])
def test_objects_call_no_library(isa: Isa, tmp_path: Path) -> None:
    x, y = leaf("x", normal(40, 33)), leaf("y", normal(33, 40).half())
    moved = ops.transpose(ops.cast(y, dtype=F), order=(1, 0))
    graph = Graph("main", (x, y), (ops.pow_(ops.tanh(x), ops.gelu(moved)),))
    call: Call = call_of(graph, ops.pow_)
    build: Callable[..., None] = build_object
    build({"k": Map().build(call, isa).function}, isa, tmp_path / "k.o")
    listed = subprocess.run(["nm", "-u", str(tmp_path / "k.o")], capture_output=True, text=True, check=True)
    assert listed.stdout.split() == []


def test_sizes_that_are_products_of_others() -> None:
    flat = (simplify(3 * S), 8)
    build = lambda x: ops.relu(ops.reshape(x, shape=flat))  # noqa: E731
    check(Map(), build, normal(3, 5, 8), sizes={"s": 5}, shapes=((3, S, 8),))
