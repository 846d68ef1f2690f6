"""Cache updates against the loop that they mean: rows, rings, dtypes, strides, and what must stay as it was."""

from collections.abc import Mapping

import pytest
import torch
from torch import Tensor

from planish.codegen.call import Call
from planish.codegen.select import Choice, select
from planish.codegen.tvm.build import build_object
from planish.codegen.tvm.cache_update import CacheUpdate
from planish.codegen.tvm.isa import AVX2, NEON, Isa
from planish.codegen.tvm.templates import TEMPLATES
from planish.codegen.view import View
from planish.compiler.ir import Graph
from planish.compiler.ops import cache_update, cast, input_, mul, relu, rope, transpose
from planish.compiler.types import Dim, DType, symbol
from tests.codegen.harness import call_of, host_isa, run_call

KINDS = {DType.f32: torch.float32, DType.f16: torch.float16, DType.i8: torch.int8, DType.bf16: torch.bfloat16}


def update_call(
    cache: tuple[Dim, ...], tokens: Dim, dtype: DType = DType.f32, source: DType | None = None, swapped: bool = True
) -> Call:
    """A call whose new tokens [B, G, S, ...] lie in memory as [B, S, G, ...] when `swapped`."""
    rows, heads, _, *rest = cache
    new = (rows, heads, tokens, *rest)
    held = input_(name="cache", shape=cache, dtype=dtype)
    x = input_(name="new", shape=new, dtype=source or dtype)
    past, count = (input_(name=name, shape=(rows,), dtype=DType.i64) for name in ("past", "count"))
    result = cache_update(held, x if source is None else cast(x, dtype=dtype), past, count)
    memory = View.contiguous(x.type.with_shape((rows, tokens, heads, *rest)))
    view = memory.transpose((0, 2, 1, *range(3, len(cache)))) if swapped else View.contiguous(x.type)
    return call_of(Graph("main", (held, x, past, count), (result,)), cache_update, {"new": view})


def data_of(
    cache: tuple[int, ...], tokens: int, past: list[int], count: list[int], dtype: torch.dtype
) -> dict[str, Tensor]:
    torch.manual_seed(0)
    rows, heads, _, *rest = cache
    made = {"cache": torch.randn(cache) * 9, "new": torch.randn(rows, tokens, heads, *rest) * 9}
    numbers = {"past": torch.tensor(past), "count": torch.tensor(count)}
    return {**{name: x.to(dtype) for name, x in made.items()}, **numbers}


def expected(data: Mapping[str, Tensor]) -> Tensor:
    result = data["cache"].clone()
    for row in range(result.shape[0]):
        for token in range(min(int(data["count"][row]), data["new"].shape[1])):
            slot = (int(data["past"][row]) + token) % result.shape[2]
            result[row, :, slot] = data["new"][row, token].to(result.dtype)
    return result


def updated(call: Call, data: Mapping[str, Tensor], **options: object) -> Tensor:
    held = {**data, "cache": torch.full_like(data["cache"], 77)}  # the kernel must not read it
    return run_call(CacheUpdate(), call, held, before=data["cache"], **options)  # type: ignore[arg-type]


@pytest.mark.parametrize("isa", [host_isa(), AVX2], ids=["host", "avx2"])
@pytest.mark.parametrize("dtype", KINDS, ids=str)
@pytest.mark.parametrize("width", [1, 7, 16, 64, 80])
def test_each_row_gets_its_tokens_and_keeps_the_rest(dtype: DType, width: int, isa: Isa) -> None:
    data = data_of((3, 2, 11, width), 4, [0, 6, 2], [4, 2, 0], KINDS[dtype])
    call = update_call((3, 2, 11, width), 4, dtype)
    for tasks in (1, 3):
        assert torch.equal(updated(call, data, isa=isa, tasks=tasks), expected(data))


@pytest.mark.parametrize("shape", [(2, 3, 8), (2, 3, 8, 5, 18), (1, 1, 8, 33)], ids=str)
def test_caches_of_any_rank_are_written(shape: tuple[int, ...]) -> None:
    data = data_of(shape, 3, [4] * shape[0], [3] * shape[0], torch.float32)
    assert torch.equal(updated(update_call(shape, 3), data), expected(data))


def test_positions_beyond_the_slots_wrap_around() -> None:
    data = data_of((2, 2, 8, 16), 5, [1005, 6], [5, 5], torch.float32)
    assert torch.equal(updated(update_call((2, 2, 8, 16), 5), data), expected(data))


def test_a_cast_is_computed_while_writing() -> None:
    data = data_of((2, 2, 8, 24), 3, [0, 5], [3, 1], torch.float32)
    data["cache"] = data["cache"].half()
    call = update_call((2, 2, 8, 24), 3, DType.f16, DType.f32)
    assert torch.equal(updated(call, data), expected(data))


def turned_call(cache: tuple[Dim, ...], tokens: Dim, source: DType, dtype: DType, scaled: bool = False) -> Call:
    """Keys that lie in memory as [B, S, G, D] are turned by angles of a row and token, cast and written."""
    rows, heads, _, size = cache
    held = input_(name="cache", shape=cache, dtype=dtype)
    x = input_(name="new", shape=(rows, heads, tokens, size), dtype=source)
    angles = [input_(name=name, shape=(rows, 1, tokens, size), dtype=source) for name in ("cosine", "sine")]
    past, count = (input_(name=name, shape=(rows,), dtype=DType.i64) for name in ("past", "count"))
    turned = rope(mul(x, x) if scaled else x, *angles)
    result = cache_update(held, turned if source is dtype else cast(turned, dtype=dtype), past, count)
    view = View.contiguous(x.type.with_shape((rows, tokens, heads, size))).transpose((0, 2, 1, 3))
    return call_of(Graph("main", (held, x, *angles, past, count), (result,)), cache_update, {"new": view})


def turned_data(shape: tuple[int, ...], tokens: int, source: DType, dtype: DType) -> dict[str, Tensor]:
    rows, _, _, size = shape
    data = data_of(shape, tokens, [3, 7, 0][:rows], [tokens, 1, 2][:rows], KINDS[source])
    angles = torch.rand(rows, tokens, size) * 6
    data["cache"] = data["cache"].to(KINDS[dtype])
    return {**data, "cosine": angles.cos().to(KINDS[source]), "sine": angles.sin().to(KINDS[source])}


def turned_keys(data: Mapping[str, Tensor]) -> Tensor:
    """x * cos + (-x2, x1) * sin in f64."""
    x, cosine, sine = (data[name].double() for name in ("new", "cosine", "sine"))
    left, right = x.chunk(2, -1)
    return x * cosine[:, :, None] + torch.cat((-right, left), -1) * sine[:, :, None]


@pytest.mark.parametrize("isa", [host_isa(), AVX2], ids=["host", "avx2"])
@pytest.mark.parametrize("kinds", [(DType.f32, DType.f16), (DType.f32, DType.f32), (DType.bf16, DType.bf16)], ids=str)
@pytest.mark.parametrize("size", [24, 64])
def test_rotary_positions_are_computed_while_writing(size: int, kinds: tuple[DType, DType], isa: Isa) -> None:
    shape = (3, 2, 11, size)
    data = turned_data(shape, 2, *kinds)
    wanted = expected({**data, "new": turned_keys(data)})
    for tasks in (1, 3):
        got = updated(
            turned_call((symbol("rows"), *shape[1:]), 2, *kinds), data, isa=isa, tasks=tasks, sizes={"rows": 3}
        )
        step = 1e-6 if kinds[1] is DType.f32 else torch.finfo(KINDS[kinds[1]]).eps
        torch.testing.assert_close(got, wanted, rtol=step, atol=9 * step)


def test_what_is_turned_may_be_computed_as_well() -> None:
    data = turned_data((2, 2, 8, 32), 1, DType.f32, DType.f32)
    wanted = expected({**data, "new": turned_keys({**data, "new": data["new"] * data["new"]})})
    got = updated(turned_call((2, 2, 8, 32), 1, DType.f32, DType.f32, scaled=True), data)
    torch.testing.assert_close(got, wanted, rtol=1e-5, atol=1e-4)


def test_the_rotary_positions_of_new_keys_join_the_update() -> None:
    graph = turned_call((1, 2, 8, 16), 1, DType.f32, DType.f16)
    work = select(Graph("main", tuple(graph.inputs), (graph.output,)), TEMPLATES, host_isa()).work
    names = [[n.op.name for n in w.call.nodes] for w in work if isinstance(w, Choice)]
    assert names == [["rope", "cast", "cache_update"]]


def test_moved_rotary_positions_are_not_computed_while_writing() -> None:
    held = input_(name="cache", shape=(1, 2, 8, 16), dtype=DType.f32)
    x, cosine, sine = (input_(name=name, shape=(1, 1, 2, 16), dtype=DType.f32) for name in ("x", "cosine", "sine"))
    past, count = (input_(name=name, shape=(1,), dtype=DType.i64) for name in ("past", "count"))
    turned = rope(x, cosine, sine)
    result = cache_update(held, transpose(turned, order=(0, 2, 1, 3)), past, count)
    assert not CacheUpdate().fuses_before(result.node, turned.node)


def test_counts_over_the_tokens_are_cut() -> None:
    data = data_of((1, 2, 8, 16), 2, [1], [5], torch.float32)
    assert torch.equal(updated(update_call((1, 2, 8, 16), 2), data), expected(data))


def test_one_kernel_serves_all_rows_and_tokens() -> None:
    call = update_call((symbol("rows"), 2, 16, 16), symbol("tokens"))
    for rows, tokens in ((1, 1), (3, 9)):
        data = data_of((rows, 2, 16, 16), tokens, [3, 0, 9][:rows], [tokens, 2, 5][:rows], torch.float32)
        got = updated(call, data, sizes={"rows": rows, "tokens": tokens})
        assert torch.equal(got, expected(data))


def test_compiles_for_neon(tmp_path: object) -> None:
    from pathlib import Path

    call = update_call((1, 4, 32, 64), symbol("tokens"), DType.f16, DType.f32)
    build_object({"update": CacheUpdate().build(call, NEON).function}, NEON, Path(str(tmp_path), "k.o"))


def test_refuses_to_compute_on_the_result() -> None:
    call = update_call((1, 1, 4, 4), 1)
    after = relu(call.output)
    joined = Call(call.anchor, (*call.nodes, after.node), call.inputs, after, call.view)
    assert "nothing is computed on the result" in str(CacheUpdate().refuse(joined, host_isa()))


def test_the_cast_of_new_tokens_joins_the_update() -> None:
    graph = update_call((1, 2, 8, 16), 1, DType.f16, DType.f32)
    inputs = tuple(v for v in graph.inputs)
    work = select(Graph("main", inputs, (graph.output,)), TEMPLATES, host_isa()).work
    assert [[n.op.name for n in w.call.nodes] for w in work if isinstance(w, Choice)] == [["cast", "cache_update"]]
