"""Attention on GPUs against torch in Triton's interpreter: shapes, groups, masks, windows, strides."""

import pytest
import torch
from torch import Tensor

from planish.codegen.triton.attention import Attention
from planish.codegen.view import View
from planish.compiler import ops
from planish.compiler.ir import Graph
from planish.compiler.types import DType, Size, evaluate_dim
from tests.codegen.compare import normal
from tests.codegen.harness import call_of
from tests.codegen.triton.harness import check, device

S = Size("s").symbol


def _placed(b: int, h: int, s: int, d: int, seed: int) -> Tensor:
    """A [b, h, s, d] view of memory that lies as [b, s, h, d]."""
    return normal(b, s, h, d, seed=seed).transpose(1, 2)


def _attend(
    b: int, h: int, g: int, s: int, t: int, d: int, dtype: torch.dtype = torch.float32, **attrs: object
) -> None:
    q, k, v = (_placed(b, heads, n, d, i).to(dtype) for i, (heads, n) in enumerate(((h, s), (g, t), (g, t))))
    loose = dtype is not torch.float32
    check(
        Attention(),
        lambda q, k, v: ops.attention(q, k, v, scale=d**-0.5, **attrs),
        *(q, k, v),
        out=View((b, h, s, d), (s * h * d, d, h * d, 1), 0, DType.f16 if loose else DType.f32),
        rtol=2e-3 if loose else 1e-5,
        atol=2e-3 if loose else 1e-5,
    )


@pytest.mark.parametrize(("s", "t", "d"), [(1, 1, 16), (5, 70, 40), (130, 130, 64), (33, 20, 80)])
def test_any_sizes(s: int, t: int, d: int) -> None:
    _attend(2, 2, 2, s, t, d)


@pytest.mark.parametrize("window", [None, 1, 9, 64])
def test_causal_bands_and_windows(window: int | None) -> None:
    _attend(1, 2, 1, 70, 90, 32, causal=True, window=window)


def test_groups_of_queries_in_half_precision() -> None:
    _attend(1, 6, 2, 37, 37, 64, torch.float16, causal=True)


@pytest.mark.parametrize("shape", [(2, 1, 1, 40), (1, 3, 20, 40), (2, 3, 20, 1)])
def test_masks_broadcast(shape: tuple[int, ...]) -> None:
    q, k, v = _placed(2, 3, 20, 16, 0), _placed(2, 3, 40, 16, 1), _placed(2, 3, 40, 16, 2)
    for mask in (normal(*shape, seed=3), normal(*shape, seed=3) > 0):
        check(
            Attention(),
            lambda q, k, v, m: ops.attention(q, k, v, m, scale=0.25),
            *(q, k, v, mask),
            rtol=1e-5,
            atol=1e-5,
        )


def test_a_query_that_sees_no_key_gives_zeros() -> None:
    q, k, v = _placed(1, 1, 9, 16, 0), _placed(1, 1, 4, 16, 1), _placed(1, 1, 4, 16, 2)
    check(Attention(), lambda q, k, v: ops.attention(q, k, v, scale=0.25, causal=True), q, k, v, rtol=1e-5, atol=1e-5)


def test_dynamic_lengths() -> None:
    q, k, v = normal(2, 2, 21, 16), normal(2, 2, 21, 16, seed=1), normal(2, 2, 21, 16, seed=2)
    shapes, sizes = ((2, 2, S, 16),) * 3, {"s": 21}
    check(
        Attention(),
        lambda q, k, v: ops.attention(q, k, v, scale=0.25, causal=True),
        *(q, k, v),
        shapes=shapes,
        sizes=sizes,
        rtol=1e-5,
        atol=1e-5,
    )


def test_heads_that_lie_inside_one_merged_projection() -> None:
    merged = normal(2, 21, 3 * 4 * 16).reshape(2, 21, 3, 4, 16).permute(2, 0, 3, 1, 4)
    check(Attention(), lambda q, k, v: ops.attention(q, k, v, scale=0.25), *merged, rtol=1e-5, atol=1e-5)


def test_refuses_wide_heads() -> None:
    q = ops.input_(name="q", shape=(1, 1, 4, 320), dtype=DType.f16)
    call = call_of(Graph("main", (q,), (ops.attention(q, q, q, scale=1.0),), ()), ops.attention)
    assert Attention().refuse(call, device()) == "head size 320 is over its 256"


def test_the_heads_of_a_hundred_thousand_windows_fit_the_axes_of_a_grid() -> None:
    """CUDA's second and third axes end at 65535; a Swin has as many windows as its batch has parts of images."""
    q, k, v = (ops.input_(name=n, shape=(S, 3, 49, 32), dtype=DType.f16) for n in "qkv")
    graph = Graph("main", (q, k, v), (ops.attention(q, k, v, scale=1.0),), (Size("s", hint=64),))
    (launch,) = Attention().build(call_of(graph, ops.attention), device()).launches
    for variant in launch.regimes[0].variants:
        x, y, z = (evaluate_dim(d, {"s": 100_000}) for d in variant.grid)
        assert x == 3 * 100_000 * -(-49 // variant.constants["BLOCK_M"])
        assert (y, z) == (1, 1)
