"""Attention with sinks against torch: a key of each head with a score of its own, whose value is zero."""

import pytest
import torch
from torch import Tensor

from planish.codegen.call import Call
from planish.codegen.tvm.attention import Attention
from planish.codegen.tvm.attention_wide import AttentionWide
from planish.codegen.tvm.cached_attention import CachedAttention
from planish.codegen.tvm.isa import AVX2, Isa
from planish.compiler.ir import Graph, Value
from planish.compiler.ops import attention, dequantize, input_
from planish.compiler.types import Dim, DType, symbol
from tests.codegen.harness import call_of, host_isa, run_call

ISAS = pytest.mark.parametrize("isa", [host_isa(), AVX2], ids=["host", "avx2"])


def expected(q: Tensor, k: Tensor, v: Tensor, sink: Tensor, mask: Tensor) -> Tensor:
    """Softmax in f64 over the scores of all keys and the sink, of which the keys' parts weigh the values.

    `mask` is added to the scores.
    """
    groups = q.shape[1] // k.shape[1]
    k, v = (x.double().repeat_interleave(groups, 1) for x in (k, v))
    scores = q.double() @ k.mT * q.shape[-1] ** -0.5 + mask
    column = sink.double()[:, None, None].expand(*scores.shape[:3], 1)
    return torch.cat((scores, column), -1).softmax(-1)[..., :-1] @ v


def band(queries: int, keys: int, past: int, window: int | None = None) -> Tensor:
    back = torch.arange(past, past + queries)[:, None] - torch.arange(keys)
    return torch.where((back >= 0) & (back < (window or 1 << 40)), 0.0, -torch.inf)


def tensors(**shapes: tuple[int, ...]) -> dict[str, Tensor]:
    torch.manual_seed(0)
    return {name: torch.randn(shape) for name, shape in shapes.items()}


def plain_call(data: dict[str, Tensor], dtype: DType = DType.f32, **attrs: object) -> Call:
    of = {"mask": DType.bool if data.get("mask", torch.ones(1)).dtype is torch.bool else DType.f32, "sink": DType.f32}
    values = {n: input_(name=n, shape=tuple(x.shape), dtype=of.get(n, dtype)) for n, x in data.items()}
    q, k, v = (values[n] for n in "qkv")
    result = attention(q, k, v, values.get("mask"), None, values["sink"], scale=q.shape[3] ** -0.5, **attrs)
    return call_of(Graph("main", tuple(values.values()), (result,)), attention)


@ISAS
@pytest.mark.parametrize(("queries", "keys", "window"), [(1, 31, None), (3, 40, 7), (40, 40, None), (70, 90, 9)])
def test_a_sink_takes_its_share_of_every_query(queries: int, keys: int, window: int | None, isa: Isa) -> None:
    data = tensors(q=(2, 6, queries, 32), k=(2, 2, keys, 32), v=(2, 2, keys, 20), sink=(6,))
    got = run_call(Attention(32, 16), plain_call(data, causal=True, window=window), data, isa=isa, tasks=3)
    wanted = expected(**data, mask=band(queries, keys, keys - queries, window))
    torch.testing.assert_close(got.double(), wanted, rtol=3e-6, atol=3e-6)


@pytest.mark.parametrize("kind", ["bool", "additive"])
def test_sinks_stand_beside_masks(kind: str) -> None:
    data = tensors(q=(2, 4, 9, 16), k=(2, 4, 33, 16), v=(2, 4, 33, 16), mask=(2, 1, 9, 33), sink=(4,))
    added = data["mask"]
    if kind == "bool":
        data["mask"] = added > 0.3
        data["mask"][0, :, 2] = False  # a query that sees no key gives zeros: the sink has all of the weight
        added = torch.where(data["mask"], 0.0, -torch.inf)
    got = run_call(Attention(64, 16), plain_call(data), data)
    wanted = expected(*(data[name] for name in ("q", "k", "v", "sink")), mask=added)
    torch.testing.assert_close(got.double(), wanted, rtol=3e-6, atol=3e-6)


def test_pairs_of_bf16_count_the_sink() -> None:
    data = tensors(q=(1, 4, 40, 32), k=(1, 2, 40, 32), v=(1, 2, 40, 32), sink=(4,))
    data |= {name: data[name].bfloat16() for name in "qkv"}
    got = run_call(Attention(), plain_call(data, DType.bf16, causal=True), data)
    wanted = expected(**data, mask=band(40, 40, 0))
    torch.testing.assert_close(got.double(), wanted, rtol=2**-7, atol=2**-7)


def cached_call(rows: Dim, heads: int, groups: int, tokens: Dim, kind: DType, window: int | None) -> Call:
    """Queries [rows, heads, tokens, 64] over caches of 96 slots."""
    q = input_(name="q", shape=(rows, heads, tokens, 64), dtype=DType.f32)
    past, sink = (
        input_(name="past", shape=(rows,), dtype=DType.i64),
        input_(name="sink", shape=(heads,), dtype=DType.f32),
    )
    inputs: list[Value] = [q]
    held = []
    for name in "kv":
        stored = [input_(name=name, shape=(rows, groups, 96, 64), dtype=kind)]
        if kind is DType.i8:
            stored.append(input_(name=f"{name}_scale", shape=(rows, groups, 96, 1), dtype=DType.f32))
        inputs += stored
        held.append(dequantize(*stored, group=64) if kind is DType.i8 else stored[0])
    result = attention(q, *held, None, past, sink, causal=True, window=window, scale=0.125)
    return call_of(Graph("main", (*inputs, past, sink), (result,)), attention)


@pytest.mark.parametrize(
    ("heads", "groups", "isa"),
    [
        *(pytest.param(heads, 2, host_isa(), id=f"{heads}-host") for heads in (2, 6, 16)),
        pytest.param(6, 2, AVX2, id="6-avx2"),
        *(pytest.param(heads, 2, AVX2, id=f"{heads}-avx2", marks=pytest.mark.slow) for heads in (2, 16)),
    ],
)
@pytest.mark.parametrize("kind", [DType.f32, DType.i8], ids=str)
@pytest.mark.parametrize("tokens", [1, 5])
def test_a_sink_counts_once_however_a_cache_is_shared(
    heads: int, groups: int, tokens: int, kind: DType, isa: Isa
) -> None:
    data = tensors(q=(2, heads, tokens, 64), k=(2, groups, 96, 64), v=(2, groups, 96, 64), sink=(heads,))
    exact = dict(data)
    if kind is DType.i8:
        for name in "kv":
            scale = data[name].abs().amax(-1, keepdim=True) / 127
            data |= {name: (data[name] / scale).round().to(torch.int8), f"{name}_scale": scale}
            exact[name] = data[name] * scale
    data["past"] = torch.tensor([90, 3])
    masks = torch.stack([band(tokens, 96, past) for past in (90, 3)])[:, None]
    wanted = expected(*(exact[name] for name in ("q", "k", "v", "sink")), mask=masks)
    call, tolerance = cached_call(2, heads, groups, tokens, kind, None), 2e-4 if kind is DType.i8 else 3e-6
    for tasks in (1, 5):
        got = run_call(CachedAttention(), call, data, isa=isa, tasks=tasks)
        torch.testing.assert_close(got.double(), wanted, rtol=tolerance, atol=tolerance)


def test_a_ring_of_slots_has_the_sink_too() -> None:
    data = tensors(q=(3, 4, 2, 64), k=(3, 2, 96, 64), v=(3, 2, 96, 64), sink=(4,))
    data["past"] = torch.tensor([0, 50, 93])
    call = cached_call(symbol("rows"), 4, 2, symbol("tokens"), DType.f32, 20)
    got = run_call(CachedAttention(), call, data, sizes={"rows": 3, "tokens": 2})
    masks = torch.stack([band(2, 96, int(past), 20) for past in data["past"]])[:, None]
    wanted = expected(*(data[name] for name in ("q", "k", "v", "sink")), mask=masks)
    torch.testing.assert_close(got.double(), wanted, rtol=3e-6, atol=3e-6)


def test_sinks_in_f64_are_refused() -> None:
    x, sink = input_(name="x", shape=(1, 2, 4, 4), dtype=DType.f64), input_(name="s", shape=(2,), dtype=DType.f64)
    call = call_of(Graph("main", (x, sink), (attention(x, x, x, None, None, sink, scale=1.0),)), attention)
    assert AttentionWide().refuse(call, host_isa()) == "a sink beside the scores of the keys is computed in f32"
