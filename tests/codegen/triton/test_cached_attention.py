"""Attention over caches on GPUs against the reference in Triton's interpreter: splits, groups, rings, i8 and f16."""

import math

import pytest
import torch

from planish.codegen.triton.cached_attention import CachedAttention
from planish.compiler import ops
from planish.compiler.ir import Graph, Value
from planish.compiler.types import DType, Size, evaluate_dim
from tests.codegen.compare import integers, normal
from tests.codegen.harness import call_of
from tests.codegen.triton.harness import check, device, small

S = Size("s").symbol


def _attend(
    past: list[int], h: int, g: int, s: int, slots: int, d: int, window: int | None = None, dynamic: bool = False
) -> None:
    b = len(past)
    q, k, v = normal(b, h, s, d), normal(b, g, slots, d, seed=1), normal(b, g, slots, d, seed=2)
    shapes = (((b, h, S, d) if dynamic else (b, h, s, d)), (b, g, slots, d), (b, g, slots, d), (b,))
    check(
        CachedAttention(),
        lambda q, k, v, p: ops.attention(q, k, v, None, p, scale=d**-0.5, causal=True, window=window),
        *(q, k, v, torch.tensor(past)),
        shapes=shapes,
        sizes={"s": s} if dynamic else {},
        on=small(),
        rtol=1e-5,
        atol=1e-5,
    )


def test_one_sequence_keeps_every_multiprocessor_busy() -> None:
    shapes = {"q": (1, 32, 1, 128), "k": (1, 8, 4096, 128), "v": (1, 8, 4096, 128)}
    q, k, v = (ops.input_(name=name, shape=shape, dtype=DType.f16) for name, shape in shapes.items())
    past = ops.input_(name="p", shape=(1,), dtype=DType.i64)
    y = ops.attention(q, k, v, None, past, scale=0.1, causal=True)
    call = call_of(Graph("main", (q, k, v, past), (y,)), ops.attention)
    for name in ("h200", "rtx-4090"):
        walk, merge = CachedAttention().build(call, device(name)).launches
        for variant in walk.regimes[0].variants:
            programs = math.prod(evaluate_dim(dim, {}) for dim in variant.grid)
            assert programs >= device(name).multiprocessors
        assert merge.arguments["parts"] == walk.arguments["parts"]


@pytest.mark.parametrize("past", [[0], [5, 130], [199]])
def test_one_query_splits_the_keys(past: list[int]) -> None:
    _attend(past, 4, 4, 1, 200, 32)


def test_groups_share_what_is_read_of_the_cache() -> None:
    _attend([70, 3], 6, 2, 1, 90, 40)


@pytest.mark.parametrize("tokens", [3, 40])
def test_a_chunk_of_queries_over_a_cache(tokens: int) -> None:
    _attend([50], 4, 2, tokens, 100, 16, dynamic=tokens > 8)


def test_a_ring_that_has_wrapped() -> None:
    _attend([150, 20], 2, 1, 1, 48, 16, window=40)
    _attend([150], 2, 1, 9, 48, 16, window=40)


def test_caches_of_codes_and_of_half_precision() -> None:
    def codes(q: Value, k: Value, ks: Value, v: Value, vs: Value, p: Value) -> Value:
        keys, values = (ops.dequantize(c, s, group=16) for c, s in ((k, ks), (v, vs)))
        return ops.attention(q, keys, values, None, p, scale=0.25, causal=True)

    k, v = (integers(1, 2, 60, 16, low=-127, high=128, dtype=torch.int8, seed=i) for i in (1, 2))
    ks, vs = normal(1, 2, 60, 1, seed=3).abs() / 50, normal(1, 2, 60, 1, seed=4).abs() / 50
    check(
        CachedAttention(),
        codes,
        *(normal(1, 4, 1, 16), k, ks, v, vs, torch.tensor([47])),
        anchor=ops.attention,
        on=small(),
        rtol=1e-5,
        atol=1e-5,
    )

    def halves(q: Value, k: Value, v: Value, p: Value) -> Value:
        keys, values = (ops.cast(c, dtype=DType.f32) for c in (k, v))
        return ops.attention(q, keys, values, None, p, scale=0.25, causal=True)

    half = (normal(1, 2, 60, 16, seed=i).half() for i in (1, 2))
    check(
        CachedAttention(),
        halves,
        *(normal(1, 2, 1, 16), *half, torch.tensor([47])),
        anchor=ops.attention,
        on=small(),
        rtol=1e-5,
        atol=1e-5,
    )
