"""Nodes without a kernel as ops of torch, against their own references and formulas."""

import pytest
import torch
from torch import Tensor

from planish.codegen.fallback import as_torch
from planish.compiler import ops
from planish.compiler.evaluate import evaluate
from planish.compiler.ir import Graph, Value
from planish.compiler.rewrite import substitute
from planish.compiler.text import parse
from planish.compiler.types import DType, Size, symbol
from planish.compiler.verify import verify_graph
from planish.errors import TemplateError

S = symbol("S")
SIZE = Size("S", low=1, high=512, hint=7)


def _replaced(value: Value, *leaves: Value) -> Graph:
    """The graph of a value, computed by torch's ops alone."""
    graph = Graph("main", leaves, (value,), (SIZE,))
    done = substitute(graph, lambda node: None if "leaf" in node.op.traits else as_torch(node, {"S": SIZE}))
    assert {n.op.name for n in done.nodes()} <= {"input", "opaque", "dim_value"}
    verify_graph(done)
    return done


def _check(value: Value, leaves: tuple[Value, ...], *tensors: Tensor) -> None:
    done = _replaced(value, *leaves)
    assert str(parse(str(done))) == str(done)
    (wanted,) = evaluate(Graph("main", leaves, (value,), (SIZE,)), tensors, {})
    (found,) = evaluate(done, tensors, {})
    torch.testing.assert_close(found, wanted)


def _input(name: str, *shape: object, dtype: DType = DType.f32) -> Value:
    return ops.input_(name=name, shape=shape, dtype=dtype)


@pytest.mark.parametrize("size", [1, 5, 12])
def test_a_convolution_over_a_named_batch(size: int) -> None:
    x, w, b = _input("x", S, 9, 8, 4), _input("w", 6, 3, 3, 4), _input("b", 6)
    y = ops.conv(x, w, b, stride=(2, 1), padding=(1, 0), dilation=(1, 1), after=(2, 1))
    given = torch.randn(size, 9, 8, 4), torch.randn(6, 3, 3, 4), torch.randn(6)
    _check(y, (x, w, b), *given)


@pytest.mark.parametrize("size", [1, 5, 12])
def test_causal_attention_over_a_named_length(size: int) -> None:
    q, k, v = (_input(n, 2, h, S, 8) for n, h in (("q", 4), ("k", 2), ("v", 2)))
    y = ops.attention(q, k, v, causal=True, scale=0.3)
    _check(y, (q, k, v), *(torch.randn(2, h, size, 8) for h in (4, 2, 2)))


def test_attention_over_a_cache() -> None:
    q, k, v = (_input(n, 2, 2, s, 8) for n, s in (("q", 3), ("k", 10), ("v", 10)))
    past = _input("past", 2, dtype=DType.i64)
    y = ops.attention(q, k, v, None, past, causal=True, window=4, scale=0.3)
    _check(y, (q, k, v, past), torch.randn(2, 2, 3, 8), *torch.randn(2, 2, 2, 10, 8), torch.tensor([0, 13]))


@pytest.mark.parametrize("size", [1, 5])
def test_sizes_in_attributes_stay_names(size: int) -> None:
    x = _input("x", S, 3, 4)
    y = ops.reshape(x, shape=(3, S * 4))
    _check(y, (x,), torch.randn(size, 3, 4))
    y = ops.slice_(ops.reshape(x, shape=(S * 12,)), axis=0, start=S * 2, stop=S * 9)
    _check(y, (x,), torch.randn(size, 3, 4))


@pytest.mark.parametrize("size", [1, 6])
def test_norms_pools_and_sums(size: int) -> None:
    x, w, b = _input("x", S, 6, 6, 4), _input("w", 4), _input("b", 4)
    given = torch.randn(size, 6, 6, 4), torch.randn(4), torch.randn(4)
    _check(ops.group_norm(x, w, b, groups=2, eps=1e-5), (x, w, b), *given)
    _check(ops.layer_norm(x, w, b, eps=1e-5), (x, w, b), *given)
    _check(ops.max_pool(x, kernel=(3, 3), stride=(2, 2), padding=(1, 1)), (x,), given[0])
    _check(ops.avg_pool(x, kernel=(2, 3), stride=(2, 1), padding=(0, 1), count_padding=False), (x,), given[0])
    _check(ops.cumsum(x, axis=1), (x,), given[0])


def test_results_have_the_dtype_of_the_op() -> None:
    x, w = _input("x", S, 8, dtype=DType.bf16), _input("w", 4, 8, dtype=DType.bf16)
    y = ops.linear(x, w, dtype=DType.f32)
    _check(y, (x, w), torch.randn(5, 8).bfloat16(), torch.randn(4, 8).bfloat16())


def test_what_depends_on_data_is_refused_by_name() -> None:
    cache, new = _input("cache", 1, 2, 8, 4), _input("new", 1, 2, 3, 4)
    past, count = (_input(n, 1, dtype=DType.i64) for n in ("past", "count"))
    node = ops.cache_update(cache, new, past, count, scope="layers.0").node
    with pytest.raises(TemplateError, match=r"cache_update in 'layers\.0' cannot run as torch"):
        as_torch(node, {})
