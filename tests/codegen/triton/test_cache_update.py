"""Cache updates on GPUs against the reference in Triton's interpreter: counts, wraps, what is fused."""

import torch

from planish.codegen.triton.cache_update import CacheUpdate
from planish.codegen.view import View
from planish.compiler import ops
from planish.compiler.evaluate import evaluate
from planish.compiler.ir import Graph, Value
from planish.compiler.types import DType
from tests.codegen.compare import leaf, normal
from tests.codegen.harness import call_of
from tests.codegen.triton.harness import run_call


def _update(cache: torch.Tensor, new: torch.Tensor, past: list[int], count: list[int], half: bool = False) -> None:
    tensors = (cache, new, torch.tensor(past), torch.tensor(count))
    leaves = [leaf(f"x{i}", t) for i, t in enumerate(tensors)]
    tokens: Value = ops.cast(leaves[1], dtype=DType.f16) if half else leaves[1]
    output = ops.cache_update(leaves[0], tokens, *leaves[2:])
    graph = Graph("main", tuple(leaves), (output,))
    call = call_of(graph, ops.cache_update, {}, View.contiguous(output.type))
    (wanted,) = evaluate(graph, tensors, {})
    for found in run_call(CacheUpdate(), call, {f"x{i}": t for i, t in enumerate(tensors)}, before=cache):
        torch.testing.assert_close(found, wanted)


def test_rows_write_as_many_tokens_as_they_have() -> None:
    _update(normal(3, 2, 20, 12), normal(3, 2, 5, 12, seed=1), [0, 7, 15], [5, 2, 0])


def test_a_ring_wraps() -> None:
    _update(normal(2, 1, 8, 16), normal(2, 1, 5, 16, seed=1), [6, 29], [5, 4])


def test_one_token_cast_on_its_way() -> None:
    _update(normal(1, 4, 9, 64).half(), normal(1, 4, 1, 64, seed=1), [8], [1], half=True)
