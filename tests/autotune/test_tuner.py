"""Measuring variants without a device: trials run in Triton's interpreter, timed by a clock that a test sets."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy
import torch
from numpy.typing import NDArray

from planish.autotune.child import ChildError, ChildUnavailable
from planish.autotune.contents import _packed
from planish.autotune.measure import Effort, measure
from planish.autotune.operands import trial_of
from planish.autotune.store import Machine, Store
from planish.autotune.trial import CANDIDATE, Dropped, Outcome, Skipped, Times, Trial
from planish.autotune.tuner import Measuring, Recorded, triton_version
from planish.codegen.call import Call
from planish.codegen.select import Choice, select
from planish.codegen.triton.block_attention import BlockAttention
from planish.codegen.triton.cache_update import CacheUpdate
from planish.codegen.triton.cached_attention import CachedAttention
from planish.codegen.triton.choose import Contest, choose
from planish.codegen.triton.compile import Binary, Request
from planish.codegen.triton.device import Device
from planish.codegen.triton.gemm import Gemm
from planish.codegen.triton.grouped import GroupedLinear
from planish.codegen.triton.kernel import Kernel, Launch, Output, Packing, Variant
from planish.codegen.triton.quantized_linear import QuantizedLinear
from planish.codegen.triton.quantized_rows import QuantizedRows
from planish.codegen.triton.request import passed, request_of
from planish.codegen.triton.templates import TEMPLATES
from planish.codegen.view import View
from planish.compiler import ops
from planish.compiler.ir import Graph, Op, Value
from planish.compiler.types import DType, Size
from planish.runtime.device.launcher import Part, Passed
from tests.codegen.harness import call_of
from tests.codegen.triton.harness import device
from tests.runtime.device.interpreted import InterpretedLauncher

QUICK = Effort(warm=1, least=3, most=3, sets=2)
MACHINE = Machine("Device", device().profile.fingerprint, triton_version(), "1")


class _Clock:
    """Runs what it times, and says the seconds that a test gives, in turns."""

    def __init__(self, *seconds: float) -> None:
        self.seconds_given, self.asked = seconds, 0

    def seconds(self, body: Callable[[], None]) -> float:
        body()
        self.asked += 1
        return self.seconds_given[self.asked % len(self.seconds_given)]


def _named(request: Request) -> bytes:
    return repr(request).encode()


def _compiler(requests: Sequence[Request], _: Device) -> tuple[Binary, ...]:
    """The code of a kernel is the name of its request, by which the interpreter finds what to run."""
    return tuple(Binary(r.name, _named(r), "", r.num_warps, 0, 32, 0, 0.0) for r in requests)


def _variants(call: Call, kernel: Kernel) -> dict[bytes, tuple[Launch, Variant]]:
    return {
        _named(request_of(call, launch, variant)): (launch, variant)
        for launch in kernel.launches
        for regime in launch.regimes
        for variant in regime.variants
    }


@dataclass(slots=True)
class _Interpreted:
    """Stands for the process with the device; `said` takes the place of what it would measure of the n-th trial."""

    kernels: Mapping[bytes, tuple[Launch, Variant]]
    said: Mapping[int, Outcome | ChildError] = field(default_factory=dict)
    trials: list[Trial] = field(default_factory=list)

    def run(self, asked: Trial, *, timeout: float) -> Outcome:
        self.trials.append(asked)
        match self.said.get(len(self.trials)):
            case None:
                launcher = InterpretedLauncher({n: self.kernels[k.code] for n, k in asked.kernels().items()})
                return measure(asked, launcher, _Clock(1e-3 * len(self.trials)), QUICK)
            case ChildError() as error:
                raise error
            case outcome:
                return outcome


def _call(output: Value, leaves: Sequence[Value], anchor: Op, **hints: int) -> Call:
    return call_of(Graph("main", tuple(leaves), (output,), tuple(Size(n, hint=h) for n, h in hints.items())), anchor)


def _product() -> tuple[Call, Kernel]:
    x = ops.input_(name="x0", shape=(5, 48), dtype=DType.f32)
    w = ops.input_(name="x1", shape=(40, 48), dtype=DType.f32)
    call = _call(ops.linear(x, w), (x, w), ops.linear)
    return call, Gemm().build(call, device())


def _tuned(  # type: ignore[no-untyped-def]
    child: _Interpreted, path: Path, call: Call, kernel: Kernel, most: int = 3, on: Device | None = None
):
    gpu = on or device()
    tuner = Measuring(gpu, Store(path), MACHINE, child)
    said: list[str] = []
    found = choose({"k0": (call, kernel)}, gpu, {}, said.append, _compiler, tuner, most)
    return found["k0"], tuner, said


def test_variants_are_measured_on_the_kernels_themselves_and_the_fastest_is_chosen(tmp_path: Path) -> None:
    call, kernel = _product()
    child = _Interpreted(_variants(call, kernel), {2: Times(1e-9, 1e-9)})
    ((chosen,),), tuner, said = _tuned(child, tmp_path / "k.sqlite", call, kernel)
    assert len(child.trials) == 3
    assert {row.basis for row in chosen.rows} == {"measured"}
    assert chosen.seconds == 1e-9
    assert chosen.binary.code == child.trials[1].candidate.code
    assert all(trial.reference == child.trials[0].candidate for trial in child.trials)
    assert said[-1] == "measuring k0 (1 of 1)"
    assert tuner.notes == []


def test_a_second_compilation_measures_nothing_again(tmp_path: Path) -> None:
    call, kernel = _product()
    first = _Interpreted(_variants(call, kernel))
    before, _, _ = _tuned(first, tmp_path / "k.sqlite", call, kernel)
    second = _Interpreted({})
    after, _, _ = _tuned(second, tmp_path / "k.sqlite", call, kernel)
    assert second.trials == []
    assert [c.seconds for c in after[0]] == [c.seconds for c in before[0]]
    records = Recorded(device(), Store(tmp_path / "k.sqlite"))
    assert {records.known(request_of(call, kernel.launches[0], before[0][0].variant), {})} == {before[0][0].seconds}


def test_a_variant_that_kills_its_process_is_dropped_and_remembered(tmp_path: Path) -> None:
    call, kernel = _product()
    child = _Interpreted(_variants(call, kernel), {1: ChildError("the process died with status -11")})
    ((chosen,),), _, _ = _tuned(child, tmp_path / "k.sqlite", call, kernel)
    assert [row.refused for row in chosen.rows if row.refused] == ["on the device: the process died with status -11"]
    assert child.trials[2].reference == child.trials[1].candidate
    again = _Interpreted({})
    ((chosen,),), _, _ = _tuned(again, tmp_path / "k.sqlite", call, kernel)
    assert again.trials == []
    assert len([row for row in chosen.rows if row.refused]) == 1


def test_where_no_process_can_be_made_ready_times_are_predicted_and_the_report_says_so(tmp_path: Path) -> None:
    call, kernel = _product()
    child = _Interpreted({}, {1: ChildUnavailable("RuntimeError: no device")})
    ((chosen,),), tuner, _ = _tuned(child, tmp_path / "k.sqlite", call, kernel)
    assert {row.basis for row in chosen.rows} == {"predicted"}
    assert tuner.notes == ["nothing more was measured, times are predicted: RuntimeError: no device"]


def test_what_does_not_fit_into_memory_is_no_fault_of_the_variant(tmp_path: Path) -> None:
    call, kernel = _product()
    child = _Interpreted(_variants(call, kernel), {i: Skipped("no room") for i in (1, 2, 3)})
    ((chosen,),), tuner, _ = _tuned(child, tmp_path / "k.sqlite", call, kernel)
    assert {(row.basis, row.refused) for row in chosen.rows} == {("predicted", None)}
    assert all(note.endswith("was not measured: no room") for note in tuner.notes)
    assert not (tmp_path / "k.sqlite").exists()


def test_a_folder_that_cannot_be_written_costs_the_record_alone(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    call, kernel = _product()
    ((chosen,),), tuner, _ = _tuned(_Interpreted(_variants(call, kernel)), tmp_path / "file" / "k", call, kernel)
    assert {row.basis for row in chosen.rows} == {"measured"}
    assert len(tuner.notes) == 1
    assert tuner.notes[0].startswith("times are not kept: the records in '")


def _trials(call: Call, kernel: Kernel, hints: Mapping[str, int]) -> Iterator[tuple[Trial, InterpretedLauncher]]:
    kept: list[Contest] = []

    class _Keeping:
        def known(self, request: Request, sizes: Mapping[str, int]) -> None: ...

        def measure(self, contests: Sequence[Contest], progress: Callable[[str], None]) -> None:
            kept.extend(contests)

    choose({"k0": (call, kernel)}, device(), hints, lambda text: None, _compiler, _Keeping(), 2)
    kernels = _variants(call, kernel)
    for contest in kept:
        trial = trial_of(contest, len(contest.candidates) - 1, 0, kept, device())
        yield trial, InterpretedLauncher({name: kernels[k.code] for name, k in trial.kernels().items()})


def _tensor(passed: Passed) -> torch.Tensor:
    assert isinstance(passed, Part)
    return passed.tensor()  # type: ignore[no-any-return]


def test_the_median_and_the_tenth_percentile_are_of_one_launch() -> None:
    ((trial, launcher),) = _trials(*_product(), {})
    clock = _Clock(2.0, 4.0, 6.0)
    found = measure(trial, launcher, clock, replace(QUICK, series_seconds=0.0))
    assert clock.asked == 1 + 1 + 3
    assert found == Times(4.0 / 2, 2.0 / 2)  # two sets of memory are visited by each series


def test_launches_visit_more_memory_than_the_l2_holds() -> None:
    ((trial, launcher),) = _trials(*_product(), {})
    l2 = device().profile.level("L2")
    assert l2 is not None
    assert trial.rotated_bytes == 2 * l2.bytes * l2.count
    needed = sum(block.size for block in trial.blocks)
    measure(replace(trial, rotated_bytes=3 * needed), launcher, _Clock(1.0), replace(QUICK, sets=64))
    addresses = {_tensor(arguments[0]).data_ptr() for arguments in launcher.given}
    assert len(addresses) == 3


def test_a_variant_that_computes_something_else_is_dropped() -> None:
    ((trial, launcher),) = _trials(*_product(), {})
    small = replace(trial.candidate, grid=(0, 1, 1))  # writes nothing
    wrong = replace(trial, candidate=small)
    found = measure(wrong, launcher, _Clock(1.0), QUICK)
    assert isinstance(found, Dropped)
    assert "away from what torch computes, whose largest is" in found.reason
    found = measure(replace(wrong, meaning=None), launcher, _Clock(1.0), QUICK)
    assert isinstance(found, Dropped)
    assert "away from that of another variant, whose largest is" in found.reason


class _Spoiling(InterpretedLauncher):
    """The candidate doubles the second result."""

    def launch(self, kernel: str, grid: tuple[int, int, int], arguments: Sequence[Passed]) -> None:
        super().launch(kernel, grid, arguments)
        if kernel == CANDIDATE:
            _tensor(arguments[list(passed(self.kernels[kernel][0])).index(Output(1))]).mul_(2)


def test_all_results_of_a_variant_are_compared() -> None:
    x = ops.input_(name="x0", shape=(3, 40), dtype=DType.f32)
    scale = ops.quantization_scale(x, group=40)
    graph = Graph("main", (x,), (ops.quantize(x, scale, group=40), scale))
    (choice,) = select(graph, TEMPLATES, device()).work
    assert isinstance(choice, Choice)
    ((trial, launcher),) = _trials(choice.call, QuantizedRows().build(choice.call, device()), {})
    assert [place.dtype for place in trial.results] == ["i8", "f32"]
    assert isinstance(measure(trial, launcher, _Clock(1.0), QUICK), Times)
    found = measure(trial, _Spoiling(launcher.kernels), _Clock(1.0), QUICK)
    assert isinstance(found, Dropped)
    assert found.reason.startswith("a result is ")


def test_what_is_computed_is_what_torch_computes_from_the_same_memory() -> None:
    ((trial, launcher),) = _trials(*_product(), {})
    measure(trial, launcher, _Clock(1.0), QUICK)
    x, w, out = map(_tensor, launcher.given[0][:3])
    wanted = x[:240].reshape(5, 48) @ w[: 40 * 48].reshape(40, 48).T
    torch.testing.assert_close(out[:200].reshape(5, 40), wanted, rtol=1e-5, atol=1e-5)


def _coded() -> tuple[Call, Kernel]:
    x = ops.input_(name="x0", shape=(3, 128), dtype=DType.f32)
    codes = ops.weight(name="w", shape=(300, 128), dtype=DType.i8)
    scale = ops.weight(name="s", shape=(300, 2), dtype=DType.f32)
    dense = ops.dequantize(codes, scale, None, bits=4, group=64, codebook=(), dtype=DType.f32)
    call = _call(ops.linear(x, dense), (x,), ops.linear)
    return call, QuantizedLinear().build(call, device())


def test_packed_weights_are_as_long_as_the_kernel_reads_and_variants_agree_on_them() -> None:
    call, kernel = _coded()
    for trial, launcher in _trials(call, kernel, {}):
        assert isinstance(measure(trial, launcher, _Clock(1.0), replace(QUICK, sets=1)), Times)
        codes = list(call.inputs).index(next(v for v in call.inputs if v.dtype is DType.i8))
        assert trial.blocks[codes].size >= 304 * 128 // 2


def test_caches_are_almost_full_when_attention_over_them_is_timed() -> None:
    past = ops.input_(name="x3", shape=(1,), dtype=DType.i64)
    q = ops.input_(name="x0", shape=(1, 2, 1, 16), dtype=DType.f32)
    k, v = (ops.input_(name=f"x{i}", shape=(1, 2, 40, 16), dtype=DType.f32) for i in (1, 2))
    out = ops.attention(q, k, v, None, past, causal=True, window=None, scale=0.25)
    call = _call(out, (q, k, v, past), ops.attention)
    walk, merge = _trials(call, CachedAttention().build(call, device()), {})
    assert (len(walk[0].before), len(walk[0].after)) == (0, 1)
    assert (len(merge[0].before), len(merge[0].after)) == (1, 0)
    index = list(call.inputs).index(next(value for value in call.inputs if value.dtype is DType.i64))
    assert torch.frombuffer(bytearray(walk[0].blocks[index].pattern), dtype=torch.int64).tolist() == [39]
    assert walk[0].candidate != walk[0].reference
    assert isinstance(measure(*walk, _Clock(1.0), Effort(warm=0, least=1, most=1, sets=1)), Times)


def test_a_cache_update_is_timed_on_its_own_memory() -> None:
    cache = ops.input_(name="x0", shape=(1, 2, 8, 4), dtype=DType.f16)
    new = ops.input_(name="x1", shape=(1, 2, 1, 4), dtype=DType.f16)
    past, count = (ops.input_(name=f"x{i}", shape=(1,), dtype=DType.i64) for i in (2, 3))
    call = _call(ops.cache_update(cache, new, past, count), (cache, new, past, count), ops.cache_update)
    for trial, launcher in _trials(call, CacheUpdate().build(call, device()), {}):
        assert isinstance(measure(trial, launcher, _Clock(1.0), replace(QUICK, sets=1)), Times)
        out = _tensor(launcher.given[0][list(launcher.kernels[CANDIDATE][0].arguments).index("output")])
        assert out.reshape(1, 2, 8, 4)[0, :, 7].abs().min() > 0


def test_rows_of_a_mixture_are_spread_over_its_experts() -> None:
    x = ops.input_(name="x0", shape=(40, 32), dtype=DType.f32)
    w = ops.input_(name="x1", shape=(4, 24, 32), dtype=DType.f32)
    index = ops.input_(name="x2", shape=(40,), dtype=DType.i64)
    call = _call(ops.grouped_linear(x, w, index), (x, w, index), ops.grouped_linear)
    order, product = _trials(call, GroupedLinear().build(call, device()), {})
    at = list(call.inputs).index(index)
    drawn = torch.frombuffer(bytearray(product[0].blocks[at].pattern), dtype=torch.int64)
    assert set(drawn[:40].tolist()) == {0, 1, 2, 3}
    assert (len(order[0].after), len(product[0].before)) == (1, 1)
    assert isinstance(measure(*product, _Clock(1.0), replace(QUICK, sets=1)), Times)


def test_of_a_packed_weight_of_experts_some_rows_of_one_are_packed() -> None:
    given: list[tuple[int, ...]] = []

    def pack(array: NDArray[numpy.generic]) -> NDArray[numpy.generic]:
        given.append(array.shape)
        return array

    view = View((8, 1000, 64), (64000, 64, 1), 0, DType.i8)
    block, _ = _packed(view, Packing("a layout of this test", pack, lambda array: array), 8, 0.25)
    assert given == [(1, 256, 64)]
    assert block.size == 8 * 4 * 256 * 64


def test_blocks_of_keys_that_are_drawn_are_among_those_that_there_are() -> None:
    q, k, v = (ops.input_(name=f"x{i}", shape=(1, 2, 64, 16), dtype=DType.f32) for i in range(3))
    kept = ops.input_(name="x3", shape=(1, 1, 2, 2), dtype=DType.i64)
    out = ops.block_attention(q, k, v, kept, query_block=32, key_block=16, causal=False, scale=0.25)
    call = _call(out, (q, k, v, kept), ops.block_attention)
    ((trial, _),) = _trials(call, BlockAttention().build(call, device()), {})
    drawn = torch.frombuffer(bytearray(trial.blocks[list(call.inputs).index(kept)].pattern), dtype=torch.int64)
    assert set(drawn.tolist()) == {0, 1, 2, 3}
