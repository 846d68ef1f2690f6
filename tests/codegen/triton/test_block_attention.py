"""Attention over an index of kept blocks in Triton's interpreter against a mask spelled out in torch."""

import pytest
import torch
from torch import Tensor

from planish.codegen.select import select
from planish.codegen.triton.block_attention import BlockAttention
from planish.compiler import ops
from planish.compiler.ir import Graph
from planish.compiler.types import DType, Size
from planish.errors import TemplateError, TypeRuleError
from tests.codegen.compare import leaf, normal
from tests.codegen.harness import call_of, host_isa
from tests.codegen.triton.harness import check, device, run_call


def _index(b: int, h: int, rows: int, kept: int, blocks: int) -> Tensor:
    """For each block of queries some distinct blocks of keys in any order, with gaps and a row that keeps none."""
    generator = torch.Generator().manual_seed(3)
    order = torch.stack([torch.randperm(blocks, generator=generator) for _ in range(b * h * rows)])[:, :kept]
    order[torch.rand(order.shape, generator=generator) < 0.3] = -1
    order[0] = -1
    return order.reshape(b, h, rows, -1).contiguous()


def _expected(q: Tensor, k: Tensor, v: Tensor, index: Tensor, sizes: tuple[int, int], causal: bool) -> Tensor:
    """Each query by itself over the keys of its blocks."""
    result = torch.zeros(*q.shape[:3], v.shape[3], dtype=torch.float64)
    (b, h, s, d), (g, t) = q.shape, k.shape[1:3]
    for i, head, row in ((i, j, r) for i in range(b) for j in range(h) for r in range(s)):
        named = index[i % index.shape[0], head % index.shape[1], row // sizes[0]].tolist()
        keys = [key for n in named if n >= 0 for key in range(n * sizes[1], min(t, (n + 1) * sizes[1]))]
        keys = [key for key in keys if not causal or key <= row + t - s]
        if keys:
            shared = head // (h // g)
            scores = k[i, shared, keys].double() @ q[i, head, row].double() * d**-0.5
            result[i, head, row] = torch.softmax(scores, 0) @ v[i, shared, keys].double()
    return result


def _attend(
    shape: tuple[int, int, int, int, int, int], sizes: tuple[int, int], causal: bool, lead: tuple[int, int], kept: int
) -> None:
    b, h, g, s, t, d = shape
    q, k, v = normal(b, h, s, d), normal(b, g, t, d, seed=1), normal(b, g, t, d + 8, seed=2)
    index = _index(*lead, -(-s // sizes[0]), kept, -(-t // sizes[1]))
    leaves = [leaf(f"x{i}", x) for i, x in enumerate((q, k, v, index))]
    y = ops.block_attention(*leaves, query_block=sizes[0], key_block=sizes[1], causal=causal, scale=d**-0.5)
    call = call_of(Graph("main", tuple(leaves), (y,)), ops.block_attention)
    given = {f"x{i}": x for i, x in enumerate((q, k, v, index))}
    wanted = _expected(q, k, v, index, sizes, causal)
    reference = ops.block_attention.reference(
        q, k, v, index, query_block=sizes[0], key_block=sizes[1], causal=causal, scale=d**-0.5
    )
    assert isinstance(reference, Tensor)
    torch.testing.assert_close(reference.double(), wanted, rtol=1e-5, atol=1e-5)
    for found in run_call(BlockAttention(), call, given):
        torch.testing.assert_close(found.double(), wanted, rtol=1e-5, atol=1e-5)


def test_heads_that_share_keys_walk_over_their_own_blocks() -> None:
    _attend((1, 4, 2, 70, 100, 32), (32, 16), False, (1, 4), 4)


def test_causal_queries_see_no_later_key_inside_a_block() -> None:
    _attend((2, 2, 2, 50, 50, 16), (16, 32), True, (2, 1), 2)


def test_one_index_for_all_rows_and_heads_with_blocks_that_are_no_power_of_two() -> None:
    _attend((2, 2, 1, 60, 130, 40), (48, 48), True, (1, 1), 3)


def test_lengths_and_index_are_dynamic() -> None:
    s, n = Size("s").symbol, Size("n").symbol
    q, index = normal(1, 2, 40, 16), torch.tensor([[0, -1], [0, 1], [2, 0]]).int()[None, None]
    check(
        BlockAttention(),
        lambda q, k, v, i: ops.block_attention(q, k, v, i, query_block=16, key_block=16, causal=True, scale=0.25),
        *(q, q.flip(1).clone(), q.flip(2).clone(), index),
        shapes=(*((1, 2, s, 16),) * 3, (1, 1, (s + 15) // 16, n)),
        sizes={"s": 40, "n": 2},
        rtol=1e-5,
        atol=1e-5,
    )


def _call(query_block: int, key_block: int, d: int = 64) -> Graph:
    q = ops.input_(name="q", shape=(1, 1, 32, d), dtype=DType.f32)
    index = ops.input_(name="i", shape=(1, 1, -(-32 // query_block), 1), dtype=DType.i64)
    y = ops.block_attention(q, q, q, index, query_block=query_block, key_block=key_block, scale=1.0)
    return Graph("main", (q, index), (y,))


@pytest.mark.parametrize(
    ("sizes", "why"),
    [
        ((24, 32, 64), "query blocks of 24 tokens are no multiple of 16"),
        ((32, 8, 64), "key blocks of 8 tokens are no multiple of 16"),
        ((32, 32, 320), "head size 320 is over its 256"),
    ],
)
def test_refuses_blocks_and_heads_that_no_tile_holds(sizes: tuple[int, int, int], why: str) -> None:
    assert BlockAttention().refuse(call_of(_call(*sizes), ops.block_attention), device()) == why


def test_cpus_refuse_it_by_name() -> None:
    pytest.importorskip("tvm", reason="templates of CPUs are TVM's")
    from planish.codegen.tvm.templates import TEMPLATES

    with pytest.raises(TemplateError, match=r"block_attention in '' f32.* has no kernel here: no template serves this"):
        select(_call(16, 16), TEMPLATES, host_isa())


@pytest.mark.parametrize(
    ("shape", "dtype", "why"),
    [
        ((1, 1, 3, 1), DType.i64, r"blocks i64\[1, 1, 3, 1\] are not \[1 or 1, 1 or 1, 2, n\]"),
        ((1, 2, 2, 1), DType.i64, "are not"),
        ((2, 1), DType.i64, "are not"),
        ((1, 1, 2, 1), DType.f32, "takes indices of i64 or i32"),
    ],
)
def test_an_index_of_other_queries_is_an_error(shape: tuple[int, ...], dtype: DType, why: str) -> None:
    q = ops.input_(name="q", shape=(1, 1, 32, 16), dtype=DType.f32)
    index = ops.input_(name="i", shape=shape, dtype=dtype)
    with pytest.raises(TypeRuleError, match=why):
        ops.block_attention(q, q, q, index, query_block=16, key_block=16, scale=1.0)
