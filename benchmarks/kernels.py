"""Single kernels through planish on one-op modules, each as a share of the peak or bandwidth sampled around it."""

from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Literal, TypeAlias

import torch
from pydantic import TypeAdapter
from torch import Tensor, nn

from benchmarks.moves import Moves, in_huge_pages, time_moves
from benchmarks.peers import PeerError
from benchmarks.results import Machine, write
from benchmarks.run import machine, max_abs_error
from benchmarks.timing import Effort, take_turns
from planish.compiler.pass_ import Pass
from planish.errors import PlanishError
from planish.hardware_profiles import measure_peak

if TYPE_CHECKING:
    from planish.api import CompiledModel

_Bound: TypeAlias = Literal["peak", "bandwidth"]

_TURNS, _REPEAT = 9, 10
_BYTES = {"f32": 4, "bf16": 2}
_DTYPES = {"f32": torch.float32, "bf16": torch.bfloat16}


class _Product(nn.Module):
    def __init__(self, width: int, out: int) -> None:
        super().__init__()
        self.linear = nn.Linear(width, out)

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.gelu(self.linear(x))


class _Linear(nn.Module):
    def __init__(self, width: int, out: int) -> None:
        super().__init__()
        self.linear = nn.Linear(width, out, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        product: Tensor = self.linear(x)
        return product


class _Norm(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)

    def forward(self, x: Tensor) -> Tensor:
        normed: Tensor = self.norm(x)
        return normed


class _Softmax(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.softmax(x, -1)


class _Gelu(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.gelu(x)


class _Add(nn.Module):
    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return x + y


class _AddNorm(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(768)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        normed: Tensor = self.norm(x + y)
        return normed


@dataclass(frozen=True, slots=True)
class _Roof:
    """What bounds a kernel now: `work` at `rate`, in 10^9 operations or bytes and their count a second."""

    bound: _Bound
    work: float
    rate: float

    @property
    def seconds(self) -> float:
        return self.work / self.rate


@dataclass(frozen=True, slots=True)
class KernelCase:
    """One module at one size: `rows` is dynamic, `width` is the inner size, `out` the columns of a product.

    A product is measured against the peak rate of `compute`, which is `dtype` where nothing else is said; `passes` run
    after the exact ones. Everything else is measured against the slower one of a C loop that moves its bytes, and of
    `instructions`, those of one element on the units that multiply and add, at the rate of the peak.
    """

    name: str
    module: Callable[[], nn.Module]
    rows: int
    width: int
    dtype: str
    operands: int = 1
    out: int | None = None
    instructions: int = 0
    compute: str = ""
    passes: tuple[str, ...] = ()

    def inputs(self, rows: int | None = None) -> tuple[Tensor, ...]:
        """Normal noise `(rows, width)` for each operand, from a fixed seed."""
        noise = torch.Generator().manual_seed(0)
        shape = (rows or self.rows, self.width)
        return tuple(torch.randn(shape, generator=noise).to(_DTYPES[self.dtype]) for _ in range(self.operands))

    @property
    def operations(self) -> float:
        """Operations as the peak counts them: a multiply-add, or another instruction in its place, is two."""
        return 2.0 * self.rows * self.width * (self.out or self.instructions)

    @property
    def moved(self) -> int:
        """The bytes that are read and written, without weights."""
        return self.written * (self.operands + 1)

    @property
    def written(self) -> int:
        """The bytes of the result, which are also those of each operand that is no weight."""
        return self.rows * self.width * _BYTES[self.dtype]


@dataclass(frozen=True, slots=True)
class KernelResult:
    """One kernel: `kernels_ms` inside a call, `call_ms` and `eager_ms` of whole calls, all medians.

    Products are timed inside calls from Python, in turns with the peak: `shares` has each turn's part of the mean of
    the peaks before and after it. Everything else is timed as the loop that it is measured against: calls one after
    another from C, so that what fits into a cache is found there.
    `rate` is the work over `kernels_ms` in G/s, of operations or of bytes as `bound` says; `share` is the median of
    `shares`, or the part of `limit` where there are no turns.
    """

    name: str
    dtype: str
    rows: int
    width: int
    out: int | None
    bound: _Bound
    kernels_ms: float
    call_ms: float
    eager_ms: float
    rate: float
    limit: float
    share: float
    max_abs_error: float
    other_cores: float | None
    shares: tuple[float, ...] = ()


def _product(width: int, out: int, dtype: str) -> Callable[[], nn.Module]:
    return lambda: _Product(width, out).to(_DTYPES[dtype])


def _linear(width: int, out: int) -> Callable[[], nn.Module]:
    return lambda: _Linear(width, out)


PRODUCTS = tuple(
    KernelCase(f"linear-gelu-{width}x{out}", _product(width, out, dtype), rows, width, dtype, out=out)
    for dtype in ("f32", "bf16")
    for width, out in ((384, 1536), (1536, 384), (768, 3072))
    for rows in (16, 128, 1024)
)
# Multiply-adds that take Zen 4 as long as the instructions of an element: those of GELU and of a norm that it runs
# where it multiplies, since sums, extremes and shifts have units of their own. Softmax has 13 instructions, of which
# two begin in a cycle, and two stores, which hold back half of one: on registers alone they take 7.1 cycles a vector.
_SOFTMAX, _GELU, _NORM = 7, 12, 3
ROWWISE = tuple(
    case
    for rows in (128, 8192, 65536)  # 0.4 MB, 25 MB and 201 MB an array: in L2, about the last cache, in memory
    for case in (
        KernelCase("layer-norm", lambda: _Norm(768), rows, 768, "f32", instructions=_NORM),
        KernelCase("add-layer-norm", _AddNorm, rows, 768, "f32", operands=2, instructions=_NORM),
        KernelCase("rms-norm", lambda: nn.RMSNorm(768), rows, 768, "f32", instructions=_NORM),
        KernelCase("softmax", _Softmax, rows, 768, "f32", instructions=_SOFTMAX),
        KernelCase("gelu", _Gelu, rows, 768, "f32", instructions=_GELU),
        KernelCase("add", _Add, rows, 768, "f32", operands=2),
    )
)
_ROUNDED = {
    "int4-g128": 'quantize-weights{bits=4, group=128, activations="int8"}',
    "int8": 'quantize-weights{bits=8, activations="int8"}',
}
# a linear layer of the 1.1B LLaMA, with the rounding of its inputs; the error is that of the format
INTEGER = tuple(
    KernelCase(
        f"linear-{form}-2048x5632", _linear(2048, 5632), rows, 2048, "f32", out=5632, compute="i8", passes=(text,)
    )
    for form, text in _ROUNDED.items()
    for rows in (8, 128, 512)
)
KERNELS: tuple[KernelCase, ...] = PRODUCTS + ROWWISE + INTEGER


@dataclass(frozen=True, slots=True)
class KernelSuite:
    """One run over kernels; `failures` names each kernel that could not be measured, with the reason."""

    name: str
    created: str
    machine: Machine
    results: tuple[KernelResult, ...]
    failures: tuple[str, ...]


def run_kernels(
    cases: tuple[KernelCase, ...], name: str, path: Path, *, threads: int, effort: Effort, say: Callable[[str], None]
) -> KernelSuite:
    """Measures `cases` and writes the suite as JSON to `path`."""
    results: list[KernelResult] = []
    failures: list[str] = []
    for case in cases:
        say(f"{case.name}, {case.rows} rows, {case.dtype}")
        try:
            results.append(measure(case, threads, effort))
        except (PlanishError, PeerError) as error:
            failures.append(f"{case.name}, {case.rows} rows, {case.dtype}: {error}")
    created = datetime.now(UTC).isoformat(timespec="seconds")
    suite = KernelSuite(name, created, machine(threads), tuple(results), tuple(failures))
    write(TypeAdapter(KernelSuite).dump_json(suite, indent=1), path)
    return suite


def measure(case: KernelCase, threads: int, effort: Effort) -> KernelResult:
    """Compiles the module with its rows dynamic; times whole calls beside eager, then the kernels inside the call."""
    import planish
    from planish.passes import EXACT

    torch.set_num_threads(threads)
    torch.manual_seed(0)
    module, inputs = case.module().eval(), case.inputs()
    dynamic = {name: {0: "rows"} for name in ("x", "y")[: case.operands]}
    passes: list[Pass | str] | None = [*EXACT, *case.passes] if case.passes else None
    compiled = planish.compile(module, "cpu", inputs=inputs, dynamic=dynamic, passes=passes, threads=threads)
    eager = torch.inference_mode()(module.__call__)
    turns = take_turns({"planish": lambda: compiled(*inputs), "eager": lambda: eager(*inputs)}, effort)
    beside = _beside_peak if case.out else _beside_loop
    found = beside(case, compiled, inputs, threads)
    return KernelResult(
        name=case.name,
        dtype=case.compute or case.dtype,
        rows=case.rows,
        width=case.width,
        out=case.out,
        bound=found.bound,
        kernels_ms=found.kernels_ms,
        call_ms=turns.timings["planish"].median_ms,
        eager_ms=turns.timings["eager"].median_ms,
        rate=found.rate,
        limit=found.limit,
        share=found.share,
        max_abs_error=max_abs_error(compiled(*inputs), eager(*inputs)),
        other_cores=turns.other_cores,
        shares=found.shares,
    )


@dataclass(frozen=True, slots=True)
class _Found:
    bound: _Bound
    kernels_ms: float
    rate: float
    limit: float
    share: float
    shares: tuple[float, ...] = ()


def _beside_peak(case: KernelCase, compiled: "CompiledModel", inputs: tuple[Tensor, ...], threads: int) -> _Found:
    """Calls in turns with the peak, so that both meet the machine in the same state."""
    peaks, times = [machine_limit(case, threads, None).rate], []
    for _ in range(_TURNS):
        times.append(sum(row.ms for row in compiled.profile(*inputs, repeat=_REPEAT).rows))
        peaks.append(machine_limit(case, threads, None).rate)
    rates = [case.operations / 1e6 / ms for ms in times]
    shares = tuple(2 * rate / (a + b) for rate, a, b in zip(rates, peaks, peaks[1:], strict=False))
    return _Found("peak", median(times), median(rates), median(peaks), median(shares), shares)


def _beside_loop(case: KernelCase, compiled: "CompiledModel", inputs: tuple[Tensor, ...], threads: int) -> _Found:
    moves = time_moves(compiled, [in_huge_pages(x.numpy()) for x in inputs], threads)
    roof = machine_limit(case, threads, moves)
    rate = roof.work / moves.kernels
    return _Found(roof.bound, 1e3 * moves.kernels, rate, roof.rate, rate / roof.rate)


def machine_limit(case: KernelCase, threads: int, moves: Moves | None) -> _Roof:
    """What bounds the case: the peak rate right now or, where that is slower, a C loop that moves as many bytes."""
    peak = _Roof("peak", case.operations / 1e9, measure_peak(case.compute or case.dtype, 0.1, threads=threads))
    if moves is None:
        return peak
    work = case.moved / 1e9
    return max(peak, _Roof("bandwidth", work, work / moves.loop), key=lambda roof: roof.seconds)
