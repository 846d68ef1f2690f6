"""How attention walks on GPUs: whole blocks and edges, parts of the keys, the order of programs; against torch's SDPA."""

import pytest
import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.nn import functional

from planish.codegen.template import Template
from planish.codegen.triton.attention import Attention
from planish.codegen.triton.cached_attention import CachedAttention
from planish.codegen.triton.device import Device
from planish.codegen.triton.kernel import Kernel
from planish.codegen.triton.kernels.attention import tile_and_pair
from planish.codegen.view import View
from planish.compiler import ops
from planish.compiler.ir import Graph
from planish.compiler.types import DType
from tests.codegen.compare import leaf, normal
from tests.codegen.harness import call_of
from tests.codegen.triton.harness import run_call, small


def _seen(queries: Tensor, keys: Tensor, causal: bool, window: int | None) -> Tensor:
    """Which positions of keys [T] the positions of queries [S] see, bool [S, T]."""
    behind = queries[:, None] - keys[None, :]
    return torch.ones_like(behind).bool() if not causal else (behind >= 0) & (behind < (window or 1 << 30))


def _expected(q: Tensor, k: Tensor, v: Tensor, mask: Tensor, scale: float) -> Tensor:
    """SDPA in f64, where a query that sees no key gives zeros."""
    mask = mask if mask.dtype is torch.bool else mask.double()
    q, k, v = (t.double() for t in (q, k, v))
    out = functional.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=scale, enable_gqa=True)
    return torch.where((mask > -torch.inf if mask.is_floating_point() else mask).any(-1, keepdim=True), out, 0.0)


def _run(template: Template[Device, Kernel], tensors: list[Tensor], wanted: Tensor, **attributes: object) -> None:
    """Every variant of the attention of the tensors (q, k, v, mask, past) gives what is wanted."""
    leaves = [leaf(f"x{i}", t) for i, t in enumerate(tensors)]
    cached = len(tensors) > 3 and tensors[3].dtype is torch.int64
    operands = [*leaves[:3], None, leaves[3]] if cached else leaves
    output = ops.attention(*operands, **attributes)
    call = call_of(Graph("main", tuple(leaves), (output,)), ops.attention)
    for found in run_call(template, call, {f"x{i}": t for i, t in enumerate(tensors)}, on=small()):
        torch.testing.assert_close(found.double(), wanted, rtol=1e-5, atol=1e-5)


def _operands(h: int, g: int, s: int, t: int, d: int, batch: int = 1) -> list[Tensor]:
    return [normal(batch, n, length, d, seed=i) for i, (n, length) in enumerate(((h, s), (g, t), (g, t)))]


def _uncached(h: int, g: int, s: int, t: int, *, causal: bool = True, window: int | None = None) -> None:
    q, k, v = _operands(h, g, s, t, 16)
    mask = _seen(torch.arange(s) + t - s, torch.arange(t), causal, window)
    _run(Attention(), [q, k, v], _expected(q, k, v, mask, 0.3), scale=0.3, causal=causal, window=window)


@pytest.mark.parametrize(("h", "g", "s"), [(2, 2, 70), (4, 1, 37), (8, 1, 19)])
def test_whole_blocks_and_the_diagonal(h: int, g: int, s: int) -> None:
    _uncached(h, g, s, 170)


@pytest.mark.parametrize(("s", "t"), [(150, 150), (131, 300), (90, 37)])
def test_causal_bands_at_several_offsets(s: int, t: int) -> None:
    _uncached(1, 1, s, t)


@pytest.mark.parametrize("window", [5, 130, 230])
def test_whole_blocks_between_both_edges_of_a_window(window: int) -> None:
    _uncached(2, 1, 75, 320, window=window)


def test_all_keys_and_a_ragged_last_block() -> None:
    _uncached(1, 1, 40, 201, causal=False)


@pytest.mark.parametrize(("h", "g", "s"), [(2, 2, 1), (4, 1, 3)])
def test_few_queries_part_the_keys_of_a_cross_attention(h: int, g: int, s: int) -> None:
    q, k, v = _operands(h, g, s, 300, 24, batch=2)
    call = call_of(
        Graph("main", leaves := tuple(map(leaf, "qkv", (q, k, v))), (ops.attention(*leaves, scale=0.3),)), ops.attention
    )
    assert [launch.function.fn.__name__ for launch in Attention().build(call, small()).launches] == [
        "flash",
        "merge_parts",
    ]
    _run(Attention(), [q, k, v], _expected(q, k, v, torch.ones(s, 300).bool(), 0.3), scale=0.3)


def test_parts_of_keys_under_a_mask() -> None:
    q, k, v = _operands(2, 1, 2, 290, 16)
    mask = normal(1, 1, 2, 290, seed=4) > 0
    mask[:, :, :, 100:260] = False
    mask[:, :, 1] = False
    _run(Attention(), [q, k, v, mask], _expected(q, k, v, mask, 0.3), scale=0.3)


def test_a_row_whose_mask_is_the_smallest_number_weighs_its_keys_alike() -> None:
    q, k, v = _operands(1, 1, 20, 90, 16)
    mask = torch.zeros(1, 1, 20, 90)
    mask[..., 3, :] = torch.finfo(torch.float32).min
    mask[..., 4, 10:] = -torch.inf
    wanted = _expected(q, k, v, mask, 0.3)
    torch.testing.assert_close(wanted[0, 0, 3], v[0, 0].double().mean(0))
    _run(Attention(), [q, k, v, mask], wanted, scale=0.3)


def test_a_scale_below_zero() -> None:
    q, k, v = _operands(1, 1, 20, 40, 16)
    _run(Attention(), [q, k, v], _expected(q, k, v, torch.ones(20, 40).bool(), -0.3), scale=-0.3)


@pytest.mark.parametrize(
    ("s", "past", "window"), [(80, 0, None), (40, 150, None), (70, 400, 120), (1, 500, 120), (3, 180, None)]
)
def test_caches_and_rings(s: int, past: int, window: int | None) -> None:
    slots = 200 if window is None else 192
    q, k, v = _operands(4, 2, s, slots, 16)
    # the last position before the end of the queries that each slot holds
    last, slot = past + s - 1, torch.arange(slots)
    held = last - (last - slot) % slots
    mask = _seen(past + torch.arange(s), held, True, window) & (held >= 0)
    tensors = [q, k, v, torch.tensor([past])]
    _run(CachedAttention(), tensors, _expected(q, k, v, mask, 0.3), scale=0.3, causal=True, window=window)


@triton.jit
def _places(found, rows, pairs, section, block: tl.constexpr):
    tile, pair = tile_and_pair(rows, pairs, section, block)
    tl.store(found + tl.program_id(0) * 2, tile)
    tl.store(found + tl.program_id(0) * 2 + 1, tl.max(pair))


@pytest.mark.parametrize("section", [1, 3, 100])
def test_the_longest_rows_of_a_section_start_first(section: int) -> None:
    tiles, pairs = 4, 7
    found = torch.zeros(tiles * pairs, 2, dtype=torch.int64)
    _places[(tiles * pairs,)](found, 16 * tiles - 5, pairs, section, 16)
    wanted = sorted(
        ((tile, pair) for tile in range(tiles) for pair in range(pairs)), key=lambda p: (p[1] // section, -p[0], p[1])
    )
    assert [tuple(row) for row in found.tolist()] == wanted


def test_keys_that_lie_beyond_two_to_the_31_elements() -> None:
    """Pages of the memory between the two rows of the batch are never touched."""
    far, (s, t, d) = 2**31 + 64, (20, 40, 16)
    q = normal(2, 1, s, d)
    parts = [normal(2, 1, t, d, seed=i) for i in (1, 2)]
    views = []
    for part in parts:
        memory = torch.empty(far + t * d, dtype=torch.float32)
        view = torch.as_strided(memory, (2, 1, t, d), (far, t * d, d, 1))
        view.copy_(part)
        views.append(view)
    wanted = _expected(q, parts[0], parts[1], torch.ones(s, t).bool(), 0.3)
    leaves = [leaf(f"x{i}", x) for i, x in enumerate((q, *parts))]
    call = call_of(
        Graph("main", tuple(leaves), (ops.attention(*leaves, scale=0.3),)),
        ops.attention,
        {f"x{i}": View(tuple(x.shape), x.stride(), 0, DType.f32) for i, x in enumerate(views, 1)},
    )
    buffers = {"x0": q, **{f"x{i}": x.as_strided((far + t * d,), (1,)) for i, x in enumerate(views, 1)}}
    for found in run_call(Attention(), call, buffers):
        torch.testing.assert_close(found.double(), wanted, rtol=1e-5, atol=1e-5)
