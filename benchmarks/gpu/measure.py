"""One case on the GPU at hand: compiled, compared with f32, timed beside its peers, each as a CUDA graph."""

import copy
import inspect
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

import planish
from benchmarks.gpu.cases import GpuCase
from benchmarks.gpu.clock import on_events, recorded
from benchmarks.gpu.results import GpuResult
from benchmarks.zoo import tensors
from planish.compiler.pass_ import Pass
from planish.hardware_profiles import limit
from planish.passes import EXACT
from planish.targets import profile_of

_EXAMPLE = 64  # rows or length that is captured: any would do, a small one is quickly recorded


def measure(case: GpuCase, sizes: tuple[int, ...], *, seconds: float, tune: int) -> Iterator[GpuResult]:
    """The results at each of the sizes, one after another. Raises what planish, Triton or the driver raise."""
    start = time.perf_counter()
    module = case.module()
    compiled = _compiled(case, module, tune)
    prepared = time.perf_counter() - start
    with torch.inference_mode():
        exact = copy.deepcopy(module).float().cuda()
        wanted = {size: _output(exact, _floats(case.inputs(size))).cpu() for size in sizes}
        del exact
        peers = {name: _PEERS[name](module.cuda()) for name in case.peers}
        for size in sizes:
            yield _measured(case, size, compiled, peers, wanted[size], prepared, seconds)


def _compiled(case: GpuCase, module: nn.Module, tune: int) -> Any:
    names = list(inspect.signature(module.forward).parameters)
    dynamic = {name: dict(axes) for name, axes in zip(names, case.axes, strict=False) if axes}
    passes: list[Pass | str] | None = None if case.passes is None else [*EXACT, *case.passes]
    wanted = tune if case.tune is None else case.tune
    return planish.compile(module, "gpu", inputs=case.inputs(_EXAMPLE), dynamic=dynamic, passes=passes, tune=wanted)


def _measured(
    case: GpuCase,
    size: int,
    compiled: Any,
    peers: Mapping[str, Callable[..., Any]],
    wanted: Tensor,
    prepared: float,
    seconds: float,
) -> GpuResult:
    inputs = tuple(t.cuda() for t in case.inputs(size))
    found = tensors(compiled(*inputs))[0].float().cpu()
    error = ((found - wanted).abs().max() / wanted.abs().max()).item()
    main = compiled.executable.main
    calls = {"planish": main.bind(main.leaves(inputs, {}))}
    for name, peer in peers.items():
        calls |= _recorded(name, peer, inputs)
    times = on_events(calls, seconds=seconds)
    least = limit(profile_of("gpu"), case.flops(size), case.moved_bytes(size), case.rate).ms
    return GpuResult(
        case=case.name,
        group=case.group,
        size=size,
        median_ms={name: timing.median_ms for name, timing in times.items()},
        p10_ms={name: timing.p10_ms for name, timing in times.items()},
        limit_ms=least,
        error=error,
        tolerance=case.tolerance,
        prepare_seconds=round(prepared, 3),
    )


def _recorded(name: str, peer: Callable[..., Any], inputs: tuple[Tensor, ...]) -> dict[str, Callable[[], object]]:
    """The peer's call as a graph; nothing where it cannot run or be recorded, which is no fault of planish."""
    try:
        return {name: recorded(lambda: peer(*inputs))}
    except RuntimeError:
        return {}


def _output(module: nn.Module, inputs: tuple[Tensor, ...]) -> Tensor:
    return tensors(module(*inputs))[0].float()


def _floats(inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return tuple((t.float() if t.is_floating_point() else t).cuda() for t in inputs)


def _torch_compile(module: nn.Module) -> Callable[..., Any]:
    # graphs are recorded here for every peer alike
    return torch.compile(module, mode="max-autotune-no-cudagraphs", dynamic=False)


def _scaled_mm(module: nn.Module) -> Callable[..., Any]:
    """Activations rounded to f8 token by token, times the weight in f8, by the library's product with a scale a row."""
    assert isinstance(module, nn.Linear)
    weight, scale = _rounded_to_f8(module.weight.detach())

    def call(x: Tensor) -> Tensor:
        codes, of_rows = _rounded_to_f8(x)
        return torch._scaled_mm(codes, weight.t(), of_rows, scale.t(), out_dtype=torch.bfloat16, use_fast_accum=True)

    return torch.compile(call, dynamic=False)


def _rounded_to_f8(x: Tensor) -> tuple[Tensor, Tensor]:
    scale = x.float().abs().amax(1, keepdim=True) / torch.finfo(torch.float8_e4m3fn).max
    return (x.float() / scale).to(torch.float8_e4m3fn), scale


_PEERS: Mapping[str, Callable[[nn.Module], Callable[..., Any]]] = {
    "torch": lambda module: module,
    "torch.compile": _torch_compile,
    "torch._scaled_mm": _scaled_mm,
}
