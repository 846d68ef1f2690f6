"""Attention compiles for every GPU: within its shared memory and registers, on its matrix units, without spills."""

import pytest
import triton

from planish.codegen.call import Call
from planish.codegen.template import Template
from planish.codegen.triton.attention import Attention
from planish.codegen.triton.block_attention import BlockAttention
from planish.codegen.triton.cache_update import CacheUpdate
from planish.codegen.triton.cached_attention import CachedAttention
from planish.codegen.triton.choose import candidates
from planish.codegen.triton.compile import compile_all
from planish.codegen.triton.cost import refuse_resources
from planish.codegen.triton.device import Device
from planish.codegen.triton.kernel import Kernel
from planish.codegen.triton.request import request_of
from planish.compiler import ops
from planish.compiler.ir import Graph
from planish.compiler.ops.cache import packed_bytes
from planish.compiler.types import DType, symbol
from tests.codegen.harness import call_of
from tests.codegen.triton.harness import device

_S, _N = symbol("s"), symbol("n")


def _of_blocks() -> Call:
    q, k, v = (ops.input_(name=n, shape=(1, h, _S, 128), dtype=DType.f16) for n, h in (("q", 32), ("k", 8), ("v", 8)))
    index = ops.input_(name="i", shape=(1, 32, (_S + 63) // 64, _N), dtype=DType.i32)
    y = ops.block_attention(q, k, v, index, query_block=64, key_block=64, causal=True, scale=0.1)
    return call_of(Graph("main", (q, k, v, index), (y,)), ops.block_attention)


def _of_cache(kind: str, queries: int | None = 1, d: int = 128) -> Call:
    """32 heads over 8 of a cache of 4096 slots, as f16, codes of 8 bits or groups of 4 bits; a named size of queries."""
    q = ops.input_(name="q", shape=(1, 32, queries or _S, d), dtype=DType.f16)
    past = ops.input_(name="past", shape=(1,), dtype=DType.i64)
    inputs, caches = [q, past], []
    for name in "kv":
        width, dtype = {"f16": (d, DType.f16), "i8": (d, DType.i8), "i4": (packed_bytes(d, 32), DType.u8)}[kind]
        cache = ops.input_(name=name, shape=(1, 8, 4096, width), dtype=dtype)
        inputs.append(cache)
        if kind == "i8":
            scale = ops.input_(name=f"{name}s", shape=(1, 8, 4096, 1), dtype=DType.f32)
            inputs.append(scale)
            cache = ops.dequantize(cache, scale, group=d, dtype=DType.f16)
        caches.append(ops.unpack_groups(cache, width=d, dtype=DType.f16) if kind == "i4" else cache)
    y = ops.attention(q, *caches, None, past, causal=True, scale=0.1)
    return call_of(Graph("main", tuple(inputs), (y,)), ops.attention)


def _long(d: int) -> Call:
    """Causal attention over 2048 tokens of 32 heads, without a cache, where 8 heads of keys are shared."""
    q, k, v = (ops.input_(name=n, shape=(1, h, _S, d), dtype=DType.f16) for n, h in (("q", 32), ("k", 8), ("v", 8)))
    return call_of(Graph("main", (q, k, v), (ops.attention(q, k, v, causal=True, scale=0.1),)), ops.attention)


def _cross() -> Call:
    """One query over any number of keys, and a mask."""
    q = ops.input_(name="q", shape=(1, 32, 1, 128), dtype=DType.f16)
    k, v = (ops.input_(name=n, shape=(1, 32, _S, 128), dtype=DType.f16) for n in "kv")
    mask = ops.input_(name="m", shape=(1, 1, 1, _S), dtype=DType.bool)
    y = ops.attention(q, k, v, mask, scale=0.1)
    return call_of(Graph("main", (q, k, v, mask), (y,)), ops.attention)


def _update() -> Call:
    cache = ops.input_(name="c", shape=(1, 8, 4096, packed_bytes(128, 32)), dtype=DType.u8)
    new = ops.input_(name="x", shape=(1, 8, _S, 128), dtype=DType.f16)
    rows = [ops.input_(name=n, shape=(1,), dtype=DType.i64) for n in ("past", "count")]
    y = ops.cache_update(cache, ops.pack_groups(new), *rows)
    return call_of(Graph("main", (cache, new, *rows), (y,)), ops.cache_update)


_CALLS: dict[str, tuple[Template[Device, Kernel], Call]] = {
    "blocks": (BlockAttention(), _of_blocks()),
    **{f"decode {kind}": (CachedAttention(), _of_cache(kind)) for kind in ("i8", "i4")},
    "decode i4 of 256": (CachedAttention(), _of_cache("i4", d=256)),
    "prefill i4": (CachedAttention(), _of_cache("i4", None)),
    "prefill f16": (CachedAttention(), _of_cache("f16", None)),
    "cross": (Attention(), _cross()),
    "update i4": (CacheUpdate(), _update()),
}


@pytest.mark.parametrize("profile", ["a100", "l40s", "h200", "mi300x"])
def test_attention_fits_the_gpu_and_runs_on_its_matrix_units(profile: str) -> None:
    gpu = device(profile)
    units = ("mma.sync", "wgmma.mma_async") if gpu.backend == "cuda" else ("mfma",)
    requests = []
    for template, call in _CALLS.values():
        assert template.refuse(call, gpu) is None
        launch = template.build(call, gpu).launches[0]
        requests.append(request_of(call, launch, launch.regimes[0].variants[0]))
    for name, binary in zip(_CALLS, compile_all(requests, gpu), strict=True):
        assert refuse_resources(binary, gpu) is None, name
        # ptxas gives the update a stack frame of 8 bytes for sm_90, where it takes 30 registers
        assert binary.spilled_bytes <= (8 if name.startswith("update") else 0), name
        assert name.startswith("update") or any(unit in binary.assembly for unit in units), name


@pytest.mark.parametrize("profile", ["a100", "rtx-4090", "h200", "mi300x"])
def test_the_first_choice_for_long_sequences_spills_nothing(profile: str) -> None:
    gpu = device(profile)
    first = []
    for d in (64, 128, 256):
        call = _long(d)
        (((best, *_),),) = candidates("attention", call, Attention().build(call, gpu), gpu, {"s": 2048})
        assert d == 256 or best.variant.constants["BLOCK_M"] == 128
        first.append(best.request)
    # the assembler of Triton 3.6 keeps up to ten registers on the stack where a thread of sm_80 and sm_89 takes all
    allowed = 40 if triton.__version__.startswith("3.6.") and gpu.backend == "cuda" else 0
    for d, binary in zip((64, 128, 256), compile_all(first, gpu), strict=True):
        assert binary.spilled_bytes <= allowed, d
        assert refuse_resources(binary, gpu) is None


def test_long_sequences_are_copied_ahead_and_multiplied_from_shared_memory_on_hopper() -> None:
    gpu, call = device("h200"), _long(128)
    launch = Attention().build(call, gpu).launches[0]
    tiles = {(v.constants["BLOCK_M"], v.constants["BLOCK_N"], v.num_warps): v for v in launch.regimes[0].variants}
    (binary,) = compile_all([request_of(call, launch, tiles[128, 128, 8])], gpu)
    # two products for whole blocks and two for those at the edges, each in 8 steps of 16 numbers
    assert binary.assembly.count("wgmma.mma_async") == 32
    # a thread copies a block of keys and one of values in 8 parts each, before either loop and in it
    assert binary.assembly.count("cp.async.cg.shared.global") == 64
    assert "mma.sync" not in binary.assembly


def test_every_variant_over_codes_compiles_for_amd() -> None:
    gpu = device("mi300x")
    requests = []
    for queries, d in ((1, 128), (16, 128), (1, 256), (16, 256)):
        call = _of_cache("i8", queries, d)
        launch = CachedAttention().build(call, gpu).launches[0]
        requests += [request_of(call, launch, variant) for variant in launch.regimes[0].variants]
    assert len(compile_all(requests, gpu)) == 10
