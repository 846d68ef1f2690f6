"""The static model of launches against formulas, data sheets and published times."""

from collections.abc import Mapping

import pytest

from planish.codegen.triton.compile import Binary
from planish.codegen.triton.cost import blocks_at_once, predict, predicted_seconds, refuse_resources
from planish.codegen.triton.device import Device
from planish.codegen.triton.gemm import Tile, _variant
from planish.codegen.triton.kernel import Variant, Work
from planish.compiler.types import DType
from planish.hardware_profiles import limit
from tests.codegen.triton.harness import device

_GPUS = ("a100", "h100", "h200", "l40s", "rtx-4090", "mi300x")


def _binary(*, registers: int = 64, shared: int = 0, warps: int = 4, spilled: int = 0) -> Binary:
    return Binary("kernel", b"", "", warps, shared, registers, spilled, 0.0)


def _blocks(count: int, work: Work, *, warps: int = 4, stages: int = 1) -> Variant:
    def of(sizes: Mapping[str, int]) -> Work:
        return work

    return Variant({}, (count, 1, 1), of, num_warps=warps, num_stages=stages)


def _copy(count: int, block_bytes: int = 8192) -> Variant:
    return _blocks(count, Work(0.0, DType.f32, block_bytes, block_bytes, block_bytes))


def _product(m: int, n: int, k: int, tile: Tile, dtype: DType = DType.f16) -> Variant:
    return _variant(tile, (m, n, k), dtype)


# CUDA C++ Programming Guide, compute capability 9.0 and 8.9; 65536 registers a multiprocessor in both
@pytest.mark.parametrize(
    ("name", "binary", "blocks"),
    [
        ("h200", _binary(registers=32), 16),  # 64 warps of 4
        ("rtx-4090", _binary(registers=32), 12),  # 48 warps of 4
        ("h200", _binary(registers=128), 4),  # 65536 / (128 * 128)
        ("h200", _binary(registers=129), 3),  # given out in eights: 136
        ("h200", _binary(registers=32, shared=100 * 1024), 2),  # 228 KB, of which each block has 1 KB more
        ("a100", _binary(registers=32, shared=100 * 1024), 1),  # 164 KB
        ("mi300x", _binary(registers=64, shared=32 * 1024), 2),  # 64 KB
        ("h200", _binary(registers=32, warps=1), 32),  # blocks
    ],
)
def test_blocks_at_once_are_those_of_the_occupancy_tables(name: str, binary: Binary, blocks: int) -> None:
    assert (
        blocks_at_once(_blocks(1, Work(0, DType.f32, 0, 0, 0), warps=binary.num_warps), device(name), binary) == blocks
    )


def test_what_no_multiprocessor_holds_is_refused() -> None:
    ada = device("rtx-4090")
    assert refuse_resources(_binary(shared=101376), ada) is None
    assert refuse_resources(_binary(shared=101377), ada) == (
        "a block takes 101377 bytes of shared memory, the device has 101376"
    )
    assert refuse_resources(_binary(registers=255, warps=16), ada) == (
        "a block takes 131072 registers, a multiprocessor has 65536"
    )
    assert refuse_resources(_binary(registers=8, warps=64), ada) == "a block has 64 warps, a multiprocessor runs 48"


@pytest.mark.parametrize("name", _GPUS)
@pytest.mark.parametrize("size", [512, 2048, 8192])
def test_no_product_beats_the_roofline(name: str, size: int) -> None:
    gpu = device(name)
    found = predicted_seconds(_product(size, size, size, Tile(128, 128, 64, 8, 3)), gpu, {}, None)
    least = limit(gpu.profile, 2.0 * size**3, 3.0 * 2 * size**2, "f16").ms / 1e3
    assert found >= least


# an H200 multiplies 8192 x 8192 x 8192 in bf16 at 770 to 800 TFLOP/s through cuBLAS; an A100 reaches about 250 in f16
# (NVIDIA, "Matrix Multiplication Background User's Guide", figures for large sizes)
@pytest.mark.parametrize(("name", "tflops"), [("h200", 785.0), ("a100", 250.0)])
def test_large_products_take_about_what_libraries_take(name: str, tflops: float) -> None:
    binary = _binary(registers=200, shared=147456, warps=8)
    found = predicted_seconds(_product(8192, 8192, 8192, Tile(128, 256, 64, 8, 3)), device(name), {}, binary)
    published = 2.0 * 8192**3 / (tflops * 1e12)
    assert published / 1.5 < found < published * 2


@pytest.mark.parametrize("name", _GPUS)
def test_long_copies_run_at_nearly_the_bandwidth(name: str) -> None:
    gpu = device(name)
    count = 1 << 18
    found = predict(_copy(count), gpu, {}, _binary(registers=32))
    least = count * 2 * 8192 / (1e9 * gpu.profile.dram_gbs())
    assert found.bound == "main memory"
    assert least < found.seconds < 1.3 * least


@pytest.mark.parametrize("name", _GPUS)
def test_more_blocks_never_take_less_time(name: str) -> None:
    gpu, binary = device(name), _binary(registers=168, warps=8)
    counts = [1, 2, 3, 50, 107, 108, 109, 131, 132, 133, 263, 264, 265, 303, 304, 305, 1000, 10000]
    for work in (Work(1e8, DType.f16, 1e6, 1e5, 1e5), Work(0, DType.f32, 1e4, 1e4, 1e4)):
        times = [predicted_seconds(_blocks(n, work, warps=8), gpu, {}, binary) for n in counts]
        assert times == sorted(times)


def test_one_block_more_than_fits_starts_another_wave() -> None:
    gpu, binary = device("h200"), _binary(registers=255, warps=8)
    work = Work(2.0 * 128 * 256 * 8192, DType.f16, 6e6, 1e6, 65536)
    last, full, over = (
        predicted_seconds(_blocks(n, work, warps=8, stages=4), gpu, {}, binary) for n in (131, 132, 133)
    )
    assert last <= full < 1.05 * last
    assert over > 1.7 * full


def test_what_a_block_spends_more_of_takes_longer() -> None:
    gpu, binary = device("h200"), _binary(registers=128)
    base = Work(1e8, DType.f16, 1e5, 1e4, 1e4)
    plain = predicted_seconds(_blocks(1000, base), gpu, {}, binary)
    for more in (
        Work(2e8, DType.f16, 1e5, 1e4, 1e4),
        Work(1e8, DType.f32, 1e5, 1e4, 1e4),
        Work(1e8, DType.f16, 1e7, 1e4, 1e4),
        Work(1e8, DType.f16, 1e5, 1e4, 1e4, instructions=1e7),
    ):
        assert predicted_seconds(_blocks(1000, more), gpu, {}, binary) > plain
    spilling = _binary(registers=128, spilled=512)
    assert predicted_seconds(_blocks(1000, base), gpu, {}, spilling) > plain


def test_stages_hide_what_is_not_the_bound() -> None:
    gpu, binary = device("h200"), _binary(registers=255, warps=8)
    work = Work(1e8, DType.f16, 1e6, 1e5, 1e5)
    one, four = (predicted_seconds(_blocks(132, work, warps=8, stages=s), gpu, {}, binary) for s in (1, 4))
    assert four < one


def test_few_rows_want_enough_blocks_to_draw_on_memory() -> None:
    """A product of one row reads its weight at the memory's speed only if all multiprocessors have a share of it."""
    gpu, binary = device("h200"), _binary(registers=64, shared=40000)
    wide, narrow = (
        predicted_seconds(_product(1, 4096, 4096, Tile(16, n, 128, 4, 4)), gpu, {}, binary) for n in (256, 32)
    )
    assert narrow < wide


def test_a_launch_without_work_takes_microseconds() -> None:
    gpu: Device = device("h200")
    found = predict(_blocks(1, Work(1, DType.f32, 4, 4, 4)), gpu, {}, _binary())
    assert found.bound == "latency"
    assert 2e-6 < found.seconds < 5e-6
