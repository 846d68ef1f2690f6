"""Look-ups in tables of codes against torch: formats, tails of groups, ids of any shape, what is computed after."""

import pytest
import torch
from torch.nn import functional

from planish.codegen.tvm.isa import AVX2, NEON, ZEN4, Isa
from planish.codegen.tvm.map import Map
from planish.codegen.tvm.quantized_embedding import QuantizedEmbedding
from planish.codegen.tvm.quantized_linear import QuantizedLinear
from planish.compiler import ops
from planish.compiler.ir import Graph, Value
from planish.compiler.types import DType, Shape, symbol
from tests.codegen.coded import EVERY_FORM, FORMS, Form, Tensors, linear, tensors, weight_of
from tests.codegen.compare import check, integers, normal
from tests.codegen.harness import call_of, host_isa, run_call


def lookup(t: Tensors, shape: Shape, group: int, form: Form, dtype: DType = DType.f32) -> tuple[Value, Value]:
    """The look-up of ids in the table: (ids, rows)."""
    columns, depth = t["q"].shape
    ids = ops.input_(name="ids", shape=shape, dtype=DType.i64)
    q = ops.weight(name="q", shape=(columns, depth), dtype=DType.i8 if form.signed else DType.u8)
    s = ops.weight(name="s", shape=tuple(t["s"].shape), dtype=DType.f16)
    z = ops.weight(name="z", shape=tuple(t["s"].shape), dtype=DType.u8) if form.zero else None
    return ids, ops.embedding(ops.dequantize(q, s, z, group=group, dtype=dtype, **form.attrs), ids)


@EVERY_FORM
@pytest.mark.parametrize("isa", [host_isa(), AVX2], ids=["host", "avx2"])
@pytest.mark.parametrize(("depth", "group"), [(96, 32), (70, 32), (37, 37)])
def test_rows_of_every_format(depth: int, group: int, form: Form, isa: Isa) -> None:
    t = tensors((1,), 50, depth, group, form)
    t["ids"] = integers(2, 3, low=0, high=50)
    ids, y = lookup(t, (2, symbol("n")), group, form)
    call = call_of(Graph("main", (ids,), (y,)), ops.embedding)
    got = run_call(QuantizedEmbedding(), call, t, sizes={"n": 3}, isa=isa, tasks=3)
    torch.testing.assert_close(got, functional.embedding(t["ids"], weight_of(t, group, form).float()))


@EVERY_FORM
@pytest.mark.parametrize("isa", [ZEN4, AVX2, NEON], ids=["zen4", "avx2", "neon"])
def test_a_tied_head_reads_the_same_bytes(form: Form, isa: Isa) -> None:
    t = tensors((1,), 50, 96, 32, form)
    ids, rows = lookup(t, (3,), 32, form)
    x, y = linear((1,), t, 32, form)
    looked_up = QuantizedEmbedding().build(call_of(Graph("main", (ids,), (rows,)), ops.embedding), isa)
    head = QuantizedLinear().build(call_of(Graph("main", (x,), (y,)), ops.linear), isa)
    found = [{str(v.node.attrs["name"]): p.layout for v, p in k.packings.items()} for k in (looked_up, head)]
    assert found[0] == found[1]
    assert {"q", "s"} <= found[0].keys()


def test_codes_that_are_an_input_are_read_as_they_are() -> None:
    t = tensors((1,), 50, 64, 32, FORMS["int4"])
    t["ids"] = integers(5, low=0, high=50)
    ids = ops.input_(name="ids", shape=(5,), dtype=DType.i64)
    q = ops.input_(name="q", shape=(50, 64), dtype=DType.u8)
    s = ops.weight(name="s", shape=(50, 2), dtype=DType.f16)
    y = ops.embedding(ops.dequantize(q, s, group=32, bits=4), ids)
    call = call_of(Graph("main", (ids, q), (y,)), ops.embedding)
    assert QuantizedEmbedding().build(call, host_isa()).packings == {}
    got = run_call(QuantizedEmbedding(), call, t)
    torch.testing.assert_close(got, functional.embedding(t["ids"], weight_of(t, 32, FORMS["int4"]).float()))


def test_what_is_computed_after() -> None:
    form = FORMS["int4"]
    t = tensors((1,), 50, 64, 32, form)
    t["ids"], t["r"] = integers(5, low=0, high=50), normal(5, 64)
    ids, y = lookup(t, (5,), 32, form)
    r = ops.input_(name="r", shape=(5, 64), dtype=DType.f32)
    call = call_of(Graph("main", (ids, r), (ops.add(ops.silu(y), r),)), ops.embedding)
    got = run_call(QuantizedEmbedding(), call, t)
    wanted = functional.silu(functional.embedding(t["ids"], weight_of(t, 32, form).float())) + t["r"]
    torch.testing.assert_close(got, wanted, rtol=1e-5, atol=1e-5)


def test_rows_in_half_precision_round_to_nearest() -> None:
    form = FORMS["int4"]
    t = tensors((1,), 50, 64, 32, form)
    t["ids"] = integers(5, low=0, high=50)
    ids, y = lookup(t, (5,), 32, form, DType.bf16)
    got = run_call(QuantizedEmbedding(), call_of(Graph("main", (ids,), (y,)), ops.embedding), t)
    assert torch.equal(got, functional.embedding(t["ids"], weight_of(t, 32, form).float().bfloat16()))


def test_plain_tables_are_left_to_map() -> None:
    table = ops.weight(name="table", shape=(9, 8), dtype=DType.f32)
    ids = ops.input_(name="ids", shape=(3,), dtype=DType.i64)
    call = call_of(Graph("main", (ids,), (ops.embedding(table, ids),)), ops.embedding)
    assert QuantizedEmbedding().refuse(call, host_isa()) == "the table is not dequantized in the kernel"
    check(Map(), lambda table, ids: ops.embedding(table, ids), normal(9, 8), integers(3, low=0, high=9))
