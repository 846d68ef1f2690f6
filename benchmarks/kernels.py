"""Single kernels through planish on one-op modules, each as a share of the peak or bandwidth sampled around it."""

from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

import torch
from pydantic import TypeAdapter
from torch import Tensor, nn

from benchmarks.peers import PeerError
from benchmarks.results import Machine, write
from benchmarks.run import machine, max_abs_error
from benchmarks.timing import Effort, take_turns
from planish.errors import PlanishError
from planish.hardware_profiles import measure_peak, measure_stream

_REPEAT = 50
_BYTES = {"f32": 4, "bf16": 2}
_DTYPES = {"f32": torch.float32, "bf16": torch.bfloat16}


class _Product(nn.Module):
    def __init__(self, width: int, out: int) -> None:
        super().__init__()
        self.linear = nn.Linear(width, out)

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.gelu(self.linear(x))


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


class _Add(nn.Module):
    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return x + y


@dataclass(frozen=True, slots=True)
class KernelCase:
    """One module at one size: `rows` is dynamic, `width` is the inner size, `out` the columns of a product.

    `bound` says what it is measured against: the peak rate of `dtype`, or the bandwidth of reading its footprint.
    """

    name: str
    module: Callable[[], nn.Module]
    rows: int
    width: int
    dtype: str
    bound: Literal["peak", "bandwidth"]
    operands: int = 1
    out: int | None = None

    def inputs(self, rows: int | None = None) -> tuple[Tensor, ...]:
        """Normal noise `(rows, width)` for each operand, from a fixed seed."""
        noise = torch.Generator().manual_seed(0)
        shape = (rows or self.rows, self.width)
        return tuple(torch.randn(shape, generator=noise).to(_DTYPES[self.dtype]) for _ in range(self.operands))

    @property
    def work(self) -> float:
        """Operations of a product (a multiply-add is two), or the bytes read and written."""
        if self.bound == "peak":
            return 2.0 * self.rows * self.width * (self.out or self.width)
        return float(self.rows * self.width * (self.operands + 1) * _BYTES[self.dtype])


@dataclass(frozen=True, slots=True)
class KernelResult:
    """One kernel: `kernels_ms` inside a call, `call_ms` and `eager_ms` of whole calls, all medians.

    `rate` is the work over `kernels_ms` in G/s (operations or bytes), `share` its part of `limit`.
    """

    name: str
    dtype: str
    rows: int
    width: int
    out: int | None
    bound: str
    kernels_ms: float
    call_ms: float
    eager_ms: float
    rate: float
    limit: float
    share: float
    max_abs_error: float
    other_cores: float | None


def _product(width: int, out: int, dtype: str) -> Callable[[], nn.Module]:
    return lambda: _Product(width, out).to(_DTYPES[dtype])


PRODUCTS = tuple(
    KernelCase(f"linear-gelu-{width}x{out}", _product(width, out, dtype), rows, width, dtype, "peak", out=out)
    for dtype in ("f32", "bf16")
    for width, out in ((384, 1536), (1536, 384), (768, 3072))
    for rows in (16, 128, 1024)
)
ROWWISE = tuple(
    case
    for rows in (128, 8192)
    for case in (
        KernelCase("layer-norm", lambda: _Norm(768), rows, 768, "f32", "bandwidth"),
        KernelCase("softmax", _Softmax, rows, 768, "f32", "bandwidth"),
        KernelCase("add", _Add, rows, 768, "f32", "bandwidth", operands=2),
    )
)
KERNELS: tuple[KernelCase, ...] = PRODUCTS + ROWWISE


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

    torch.set_num_threads(threads)
    torch.manual_seed(0)
    module, inputs = case.module().eval(), case.inputs()
    dynamic = {name: {0: "rows"} for name in ("x", "y")[: case.operands]}
    compiled = planish.compile(module, "cpu", inputs=inputs, dynamic=dynamic, threads=threads)
    eager = torch.inference_mode()(module.__call__)
    turns = take_turns({"planish": lambda: compiled(*inputs), "eager": lambda: eager(*inputs)}, effort)
    before = machine_limit(case, threads)
    kernels_ms = sum(row.ms for row in compiled.profile(*inputs, repeat=_REPEAT).rows)
    limit = (before + machine_limit(case, threads)) / 2
    rate = case.work / kernels_ms / 1e6
    return KernelResult(
        name=case.name,
        dtype=case.dtype,
        rows=case.rows,
        width=case.width,
        out=case.out,
        bound=case.bound,
        kernels_ms=kernels_ms,
        call_ms=turns.timings["planish"].median_ms,
        eager_ms=turns.timings["eager"].median_ms,
        rate=rate,
        limit=limit,
        share=rate / limit,
        max_abs_error=max_abs_error(compiled(*inputs), eager(*inputs)),
        other_cores=turns.other_cores,
    )


def machine_limit(case: KernelCase, threads: int) -> float:
    """G/s right now: the peak rate of the case's dtype, or the bandwidth of reading as many bytes as it touches."""
    if case.bound == "peak":
        return measure_peak(case.dtype, 0.15, threads=threads)
    return measure_stream(0.15, threads=threads, read_bytes=max(int(case.work), 1 << 16))
