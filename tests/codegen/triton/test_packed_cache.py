"""Caches of 4 bits in Triton's interpreter: updates against the reference, attention against torch on what they hold."""

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from planish.codegen.triton.cache_update import CacheUpdate
from planish.codegen.triton.cached_attention import CachedAttention
from planish.codegen.triton.map import Map
from planish.codegen.view import View
from planish.compiler import ops
from planish.compiler.evaluate import evaluate
from planish.compiler.ir import Graph, Value
from planish.compiler.types import DType, Size
from tests.codegen.compare import leaf, normal
from tests.codegen.harness import call_of
from tests.codegen.packed import unpacked
from tests.codegen.triton.harness import check, run_call, small


def _bytes(*shape: int, seed: int) -> Tensor:
    found = ops.pack_groups.reference(normal(*shape, seed=seed), group=32)
    assert isinstance(found, Tensor)
    return found


@pytest.mark.parametrize(("width", "tokens"), [(64, 5), (80, 1), (16, 3)])
def test_tokens_are_packed_where_they_are_written(width: int, tokens: int) -> None:
    cache, new = _bytes(2, 2, 9, width, seed=1), normal(2, 2, tokens, width)
    given = (cache, new, torch.tensor([6, 2]), torch.tensor([tokens, min(tokens, 2)]))
    leaves = [leaf(f"x{i}", t) for i, t in enumerate(given)]
    output = ops.cache_update(leaves[0], ops.pack_groups(ops.mul(leaves[1], leaves[1])), *leaves[2:])
    graph = Graph("main", tuple(leaves), (output,))
    (wanted,) = evaluate(graph, given, {})
    call = call_of(graph, ops.cache_update, {}, View.contiguous(output.type))
    for found in run_call(CacheUpdate(), call, {f"x{i}": t for i, t in enumerate(given)}, before=cache):
        assert torch.equal(found, wanted)


def _attend(
    past: Sequence[int], h: int, g: int, s: int, slots: int, d: int, window: int | None = None, dynamic: bool = False
) -> None:
    b, v_width = len(past), d + 16
    q = normal(b, h, s, d)
    k, v = _bytes(b, g, slots, d, seed=1), _bytes(b, g, slots, v_width, seed=2)
    data = (q, k, v, torch.tensor(past))
    leaves = [leaf(f"x{i}", t) for i, t in enumerate(data)]
    if dynamic:
        leaves[0] = leaf("x0", q, (b, h, Size("s").symbol, d))
    keys, values = (ops.unpack_groups(x, width=w) for x, w in ((leaves[1], d), (leaves[2], v_width)))
    y = ops.attention(leaves[0], keys, values, None, leaves[3], scale=d**-0.5, causal=True, window=window)
    graph = Graph("main", tuple(leaves), (y,), (Size("s", hint=s),) if dynamic else ())
    call = call_of(graph, ops.attention)
    assert CachedAttention().build(call, small()).launches[0].function.fn.__name__ == "flash_packed"
    wanted = _expected(q, torch.from_numpy(unpacked(k, d)), torch.from_numpy(unpacked(v, v_width)), past, window)
    sizes = {"s": s} if dynamic else {}
    for found in run_call(CachedAttention(), call, {f"x{i}": t for i, t in enumerate(data)}, sizes=sizes, on=small()):
        torch.testing.assert_close(found.double(), wanted, rtol=1e-5, atol=1e-5)


def _expected(q: Tensor, k: Tensor, v: Tensor, past: Sequence[int], window: int | None) -> Tensor:
    """Each query over the positions that it sees, wherever they lie in the ring."""
    (b, h, s, d), (g, slots) = q.shape, k.shape[1:3]
    result = torch.zeros(b, h, s, v.shape[3], dtype=torch.float64)
    for i, head, row in ((i, j, r) for i in range(b) for j in range(h) for r in range(s)):
        position = past[i] + row
        seen = [p % slots for p in range(max(0, position + 1 - (window or position + 1)), position + 1)]
        shared = head // (h // g)
        weights = torch.softmax(k[i, shared, seen] @ q[i, head, row].double() * d**-0.5, 0)
        result[i, head, row] = weights @ v[i, shared, seen]
    return result


def test_one_query_splits_the_keys() -> None:
    _attend([0, 70], 2, 1, 1, 90, 64)


def test_sixteen_queries_share_a_head_of_keys() -> None:
    _attend([40], 16, 1, 1, 60, 80)


def test_a_chunk_of_queries_over_a_ring_that_has_wrapped() -> None:
    _attend([150], 4, 2, 9, 48, 32, window=40)


def test_chunks_of_any_length() -> None:
    _attend([20], 2, 1, 19, 40, 16, dynamic=True)


def test_packed_rows_are_read_element_by_element_where_no_attention_reads_them() -> None:
    check(
        Map(),
        lambda x: ops.unpack_groups(x, width=80),
        _bytes(1, 2, 20, 80, seed=1),
        rtol=1e-6,
        atol=1e-6,
    )


def test_packed_keys_beside_plain_values() -> None:
    q, k, v = normal(1, 2, 1, 32), _bytes(1, 1, 20, 32, seed=1), normal(1, 1, 20, 32, seed=2)
    check(
        CachedAttention(),
        lambda q, k, v, p: ops.attention(q, ops.unpack_groups(k, width=32), v, None, p, scale=0.2, causal=True),
        *(q, k, v, torch.tensor([14])),
        on=small(),
        rtol=1e-5,
        atol=1e-5,
    )


def test_half_precision() -> None:
    q, k, v = normal(1, 2, 1, 64).half(), _bytes(1, 1, 20, 64, seed=1), _bytes(1, 1, 20, 64, seed=2)

    def build(q: Value, k: Value, v: Value, p: Value) -> Value:
        keys, values = (ops.unpack_groups(x, width=64, dtype=DType.f16) for x in (k, v))
        return ops.attention(q, keys, values, None, p, scale=0.125, causal=True)

    check(CachedAttention(), build, q, k, v, torch.tensor([14]), on=small(), rtol=2e-3, atol=2e-3)
