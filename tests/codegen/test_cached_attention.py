"""Attention over caches against torch: rows with their own past, groups, rings, dtypes and dynamic sizes."""

import subprocess
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from planish.codegen.call import Call
from planish.codegen.select import Choice, select
from planish.codegen.tvm.attention import Attention
from planish.codegen.tvm.attention_wide import AttentionWide
from planish.codegen.tvm.build import build_object
from planish.codegen.tvm.cached_attention import CachedAttention
from planish.codegen.tvm.isa import AVX2, NEON, Isa
from planish.codegen.tvm.kernel import Kernel
from planish.codegen.tvm.templates import TEMPLATES
from planish.codegen.view import View
from planish.compiler.ir import Graph, Value
from planish.compiler.ops import attention, cast, dequantize, input_, relu
from planish.compiler.text import parse
from planish.compiler.types import Dim, DType, evaluate_dim, symbol
from tests.codegen.harness import call_of, host_isa, on_both, run_call

TORCH = {DType.f32: torch.float32, DType.f16: torch.float16, DType.bf16: torch.bfloat16}


@dataclass(frozen=True)
class Case:
    """Queries [b, h, s, d] that lie as [b, s, h, d] over caches [b, g, slots, d] of `kind` (f32, f16, bf16 or i8)."""

    b: Dim
    h: int
    g: int
    s: Dim
    slots: int
    d: int
    past: tuple[int, ...]
    window: int | None = None
    kind: DType = DType.f32
    of: DType = DType.f32


def placed(case: Case) -> View:
    return View((case.b, case.h, case.s, case.d), (case.s * case.h * case.d, case.d, case.h * case.d, 1), 0, case.of)


def cached_call(case: Case) -> Call:
    cache, inputs = (case.b, case.g, case.slots, case.d), {}
    q = input_(name="q", shape=(case.b, case.h, case.s, case.d), dtype=case.of)
    past = input_(name="past", shape=(case.b,), dtype=DType.i64)
    held: list[Value] = []
    for name in "kv":
        x = inputs[name] = input_(name=name, shape=cache, dtype=case.kind)
        if case.kind is DType.i8:
            scale = inputs[f"{name}_scale"] = input_(name=f"{name}_scale", shape=(*cache[:3], 1), dtype=DType.f32)
            x = dequantize(x, scale, group=case.d, dtype=case.of)
        held.append(x if x.dtype is case.of else cast(x, dtype=case.of))
    result = attention(q, *held, None, past, causal=True, window=case.window, scale=case.d**-0.5)
    graph = Graph("main", (q, past, *inputs.values()), (result,))
    return call_of(graph, attention, {"q": placed(case)}, placed(case))


def data_of(case: Case) -> dict[str, Tensor]:
    torch.manual_seed(0)
    cache = (int(case.b), case.g, case.slots, case.d)
    data = {"q": torch.randn(int(case.b), int(case.s), case.h, case.d).to(TORCH[case.of])}
    for name in "kv":
        if case.kind is DType.i8:
            data[name] = torch.randint(-127, 128, cache, dtype=torch.int8)
            data[f"{name}_scale"] = torch.rand(*cache[:3], 1) / 60
        else:
            data[name] = torch.randn(cache).to(TORCH[case.kind])
    return {**data, "past": torch.tensor(case.past[: int(case.b)])}


def expected(case: Case, data: Mapping[str, Tensor]) -> Tensor:
    """Row by row torch's own attention in f64 over the keys in the order of their positions."""
    rows = []
    for row, past in enumerate(int(p) for p in data["past"]):
        last = past + int(case.s)
        first = max(0, last - case.slots)
        slots = torch.arange(first, last) % case.slots
        k, v = (_numbers(data, name)[row][:, slots] for name in "kv")
        back = torch.arange(past, last)[:, None] - torch.arange(first, last)
        seen = (back >= 0) & (back < (case.window or 1 << 40))
        q = data["q"][row].transpose(0, 1).double()
        rows.append(functional.scaled_dot_product_attention(q, k, v, attn_mask=seen, enable_gqa=True))
    return torch.stack(rows)


def _numbers(data: Mapping[str, Tensor], name: str) -> Tensor:
    scale = data.get(f"{name}_scale", torch.ones(()))
    return data[name].double() * scale.double()


def check(case: Case, *, isa: Isa | None = None, tasks: int = 2, sizes: Mapping[str, int] | None = None) -> None:
    """Run the call of a case with dynamic sizes on data of given ones."""
    real = replace(case, b=evaluate_dim(case.b, sizes or {}), s=evaluate_dim(case.s, sizes or {}))
    data = data_of(real)
    got = run_call(CachedAttention(), cached_call(case), data, isa=isa, tasks=tasks, sizes=sizes)
    tolerance = {DType.f32: 3e-6, DType.f16: 2**-10, DType.bf16: 2**-7}[case.of]
    if case.kind is DType.i8 and case.s == 1:  # 16 bits of queries and weights
        tolerance = max(tolerance, 2e-4)
    torch.testing.assert_close(got.double(), expected(real, data), rtol=tolerance, atol=tolerance)


FEW = (
    Case(1, 1, 1, 1, 16, 16, (0,)),
    Case(3, 9, 3, 1, 64, 64, (0, 17, 63)),
    Case(2, 8, 1, 1, 200, 80, (199, 31)),
    Case(1, 32, 4, 1, 100, 64, (99,)),
    Case(2, 6, 6, 1, 70, 128, (5, 60)),
    Case(1, 40, 2, 1, 50, 20, (33,)),
    Case(2, 4, 2, 2, 33, 64, (30, 0)),
)
MANY = (
    Case(2, 4, 2, 13, 70, 16, (0, 57)),
    Case(3, 9, 3, 70, 128, 64, (58, 0, 3)),
    Case(1, 8, 2, 33, 600, 80, (555,)),
    Case(1, 2, 2, 7, 19, 7, (11,)),
)
RINGS = (
    Case(3, 4, 2, 1, 32, 64, (0, 31, 1000), window=24),
    Case(2, 6, 2, 9, 32, 16, (70, 25), window=20),
    Case(2, 2, 1, 40, 112, 64, (100, 223), window=70),
    Case(1, 4, 1, 1, 48, 64, (47,), window=48),
    Case(1, 4, 1, 3, 200, 16, (190,), window=5),
)


# heads of whole vectors and of parts of one, groups, blocks of queries, rings
_NARROW = (FEW[1], FEW[2], FEW[5], MANY[1], MANY[3], RINGS[1], RINGS[2], RINGS[3])


@pytest.mark.parametrize(("case", "isa"), on_both(FEW + MANY + RINGS, _NARROW))
def test_every_query_sees_what_its_position_lets_it(case: Case, isa: Isa) -> None:
    check(case, isa=isa, tasks=3)


_WIDENED = (FEW[1], FEW[2], MANY[1], RINGS[2])


@pytest.mark.parametrize("kind", [DType.f16, DType.i8], ids=str)
@pytest.mark.parametrize(("case", "isa"), on_both(_WIDENED, (FEW[1], FEW[2], MANY[1])))
def test_narrow_caches_are_widened_as_they_are_read(case: Case, kind: DType, isa: Isa) -> None:
    check(replace(case, kind=kind), isa=isa)


@pytest.mark.parametrize(
    ("case", "of"), [(FEW[1], DType.f16), (FEW[3], DType.bf16), (MANY[1], DType.f16), (MANY[1], DType.bf16)], ids=str
)
@pytest.mark.parametrize("kind", [None, DType.f32, DType.i8], ids=str)
def test_narrow_models_are_computed_in_f32(case: Case, kind: DType | None, of: DType) -> None:
    check(replace(case, kind=kind or of, of=of))


SPLIT = (
    Case(2, 3, 1, 1, 700, 64, (699, 130)),
    Case(3, 16, 2, 1, 300, 32, (5, 299, 64)),
    Case(2, 4, 2, 1, 256, 64, (300, 1000), window=200),
)


@pytest.mark.parametrize("tasks", [1, 2, 5, 40])
@pytest.mark.parametrize("case", SPLIT, ids=str)
@pytest.mark.parametrize("kind", [DType.f32, DType.f16, DType.i8], ids=str)
def test_tasks_share_the_keys_of_a_head(case: Case, tasks: int, kind: DType) -> None:
    check(replace(case, kind=kind), isa=replace(host_isa(), halved=True), tasks=tasks)


@dataclass(frozen=True, slots=True)
class Unmerged(CachedAttention):
    """The kernel without its merge, for two tasks."""

    def build(self, call: Call, isa: Isa) -> Kernel:
        built = CachedAttention().build(call, isa)
        return replace(built, merge=None, scratch_bytes=2 * built.scratch_bytes)


@pytest.mark.parametrize(
    "case",
    [
        Case(1, 9, 3, 1, 80, 64, (63,), kind=DType.f16),
        Case(4, 6, 2, 1, 300, 32, (299, 260, 280, 290)),
        Case(4, 3, 1, 1, 64, 64, (500, 40, 63, 7), window=48),
    ],
    ids=str,
)
def test_even_shares_of_whole_heads_leave_nothing_to_merge(case: Case) -> None:
    data = data_of(case)
    got = run_call(Unmerged(), cached_call(case), data)
    torch.testing.assert_close(got.double(), expected(case, data), rtol=3e-6, atol=3e-6)


GROUPS = (
    Case(2, 10, 2, 1, 45, 32, (44, 7)),
    Case(1, 16, 1, 1, 70, 96, (69,)),
    Case(2, 14, 2, 1, 48, 128, (60, 3), window=40),
    Case(1, 12, 1, 1, 17, 64, (16,)),
    Case(9, 32, 4, 1, 80, 64, (31, 0, 64, 15, 79, 63, 1, 16, 40)),
)


@pytest.mark.parametrize("kind", [DType.f16, DType.bf16, DType.i8], ids=str)
@pytest.mark.parametrize("case", GROUPS, ids=str)
def test_many_queries_share_a_head_of_narrow_keys(case: Case, kind: DType) -> None:
    check(replace(case, kind=kind), tasks=3)


@pytest.mark.parametrize("name", ["q", "k"])
@pytest.mark.parametrize(
    "case",
    [
        FEW[1],
        FEW[3],
        MANY[1],
        *(replace(FEW[i], kind=kind) for i, kind in ((1, DType.i8), (3, DType.i8), (3, DType.f16))),
    ],
    ids=str,
)
def test_what_is_not_a_number_reaches_what_reads_it_alone(case: Case, name: str) -> None:
    data = data_of(case)
    if name == "q":
        data["q"][0, 0, 0, 3] = float("nan")
    else:
        data["k_scale" if case.kind is DType.i8 else "k"][0, 0, 0, 0] = float("nan")
    got = run_call(CachedAttention(), cached_call(case), data)
    readers = torch.zeros(got.shape[:3], dtype=torch.bool)
    if name == "q":
        readers[0, 0, 0] = True
    else:
        readers[0, : case.h // case.g] = True
    assert torch.equal(got.isnan().all(-1), readers)
    assert torch.equal(got.isnan().any(-1), readers)


def test_one_kernel_serves_all_rows_and_tokens() -> None:
    case = Case(symbol("rows"), 6, 2, symbol("tokens"), 160, 32, (3, 90, 50))
    for rows, tokens in ((1, 1), (2, 5), (3, 70)):
        check(case, sizes={"rows": rows, "tokens": tokens})


def test_a_long_context_is_summed_over_blocks() -> None:
    check(Case(1, 8, 1, 1, 2048, 64, (2047,)), tasks=1)
    check(Case(1, 2, 1, 65, 2048, 64, (1983,)), tasks=1)


@pytest.mark.parametrize("case", [FEW[1], MANY[1]], ids=str)
def test_slots_that_no_query_sees_change_nothing(case: Case) -> None:
    data = data_of(case)
    wanted = expected(case, data)
    for row, past in enumerate(case.past):
        for name in "kv":
            data[name][row, :, past + int(case.s) :] = 1e30
    got = run_call(CachedAttention(), cached_call(case), data)
    torch.testing.assert_close(got.double(), wanted, rtol=3e-6, atol=3e-6)


def test_tokens_after_the_last_slot_of_a_padded_row_are_finite() -> None:
    case = Case(2, 4, 2, 8, 16, 64, (12, 4))
    data = data_of(case)
    got = run_call(CachedAttention(), cached_call(case), data)
    real = replace(case, s=4)
    wanted = expected(real, {**data, "q": data["q"][:, :4]})
    torch.testing.assert_close(got[:, :, :4].double(), wanted, rtol=3e-6, atol=3e-6)
    assert got.isfinite().all()


@pytest.mark.parametrize("kind", [DType.f32, DType.f16, DType.i8], ids=str)
@pytest.mark.parametrize("tokens", [1, symbol("tokens")], ids=str)
def test_compiles_for_neon_and_needs_libc_alone(kind: DType, tokens: Dim, tmp_path: Path) -> None:
    call = cached_call(Case(1, 8, 2, tokens, 128, 64, (0,), kind=kind))
    for isa in (NEON, AVX2) if kind is DType.f16 else (NEON,):  # without F16C numbers would be converted by a library
        build_object({"attention": CachedAttention().build(call, isa).function}, isa, tmp_path / "kernel.o")
        listed = subprocess.run(["nm", "-u", tmp_path / "kernel.o"], capture_output=True, text=True, check=True)
        assert set(listed.stdout.split()) <= {"U", "memset", "memcpy"}


def test_refuses_what_it_cannot_compute_by_its_words() -> None:
    isa, call = host_isa(), cached_call(FEW[0])
    assert Attention().refuse(call, isa) == "attention over a cache has templates of its own"
    assert AttentionWide().refuse(call, isa) == "attention over a cache has templates of its own"
    after = relu(call.output)
    joined = Call(call.anchor, (*call.nodes, after.node), call.inputs, after, call.view)
    assert "nothing beside itself" in str(CachedAttention().refuse(joined, isa))
    x = input_(name="x", shape=(1, 1, 4, 4), dtype=DType.f32)
    plain = call_of(Graph("main", (x,), (attention(x, x, x, scale=1.0),)), attention)
    assert CachedAttention().refuse(plain, isa) == "it attends over caches, with past"


NARROW = """graph decode(%k: f16[1, 2, 32, 16], %v: f16[1, 2, 32, 16], %x: f32[1, 2, 1, 16], %q: f32[1, 4, 1, 16], %past: i64[1],
 %count: i64[1]) {
  %0 = cast(%x) {dtype=f16}: f16[1, 2, 1, 16]
  %1 = cache_update(%k, %0, %past, %count): f16[1, 2, 32, 16]
  %2 = cache_update(%v, %0, %past, %count): f16[1, 2, 32, 16]
  %3 = cast(%1) {dtype=f32}: f32[1, 2, 32, 16]
  %4 = cast(%2) {dtype=f32}: f32[1, 2, 32, 16]
  %5 = attention(%q, %3, %4, none, %past) {causal=true, scale=0.25}: f32[1, 4, 1, 16]
  return %5, %1, %2
}"""


def test_a_narrow_cache_is_never_stored_wide() -> None:
    graph = parse(NARROW.replace(",\n ", ", "))
    work = [w for w in select(graph, TEMPLATES, host_isa()).work if isinstance(w, Choice)]
    assert [(w.template.name, [n.op.name for n in w.call.nodes]) for w in work] == [
        ("map", ["cast"]),
        ("cache-update", ["cache_update"]),
        ("cache-update", ["cache_update"]),
        ("cached-attention", ["cast", "cast", "attention"]),
    ]
