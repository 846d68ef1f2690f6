"""Cache updates on GPUs against the reference in Triton's interpreter: counts, wraps, what is fused."""

import torch

from planish.codegen.select import Choice, select
from planish.codegen.triton.cache_update import CacheUpdate
from planish.codegen.triton.templates import TEMPLATES
from planish.codegen.view import View
from planish.compiler import ops
from planish.compiler.evaluate import evaluate
from planish.compiler.ir import Graph, Value
from planish.compiler.types import DType
from tests.codegen.compare import leaf, normal
from tests.codegen.harness import call_of
from tests.codegen.triton.harness import device, run_call, run_results


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


def test_keys_with_their_positions_and_values_are_written_by_one_kernel() -> None:
    new, table = (normal(2, 2, 3, 16), normal(2, 2, 3, 8, seed=4)), normal(2, 1, 3, 16, seed=1)
    caches = normal(2, 2, 9, 16, seed=2), normal(2, 2, 9, 8, seed=3)
    past, count = torch.tensor([4, 7]), torch.tensor([3, 2])
    tensors = (*new, table, table.flip(3), *caches, past, count)
    leaves = [leaf(f"x{i}", t) for i, t in enumerate(tensors)]
    keys, values, cosine, sine, old_keys, old_values, *tokens = leaves
    k = ops.cache_update(old_keys, ops.rope(keys, cosine, sine), *tokens)
    v = ops.cache_update(old_values, values, *tokens)
    graph = Graph("main", tuple(leaves), (k, v))
    (choice,) = select(graph, TEMPLATES, device()).work
    assert isinstance(choice, Choice)
    assert set(choice.call.results) == {k, v}
    wanted = dict(zip((k, v), evaluate(graph, tensors, {}), strict=True))
    before = dict(zip((k, v), caches, strict=True))
    buffers = {f"x{i}": t for i, t in enumerate(tensors)}
    results = choice.call.results
    for found in run_results(CacheUpdate(), choice.call, buffers, before=[before[value] for value in results]):
        for value, result in zip(results, found, strict=True):
            torch.testing.assert_close(result, wanted[value])
