"""One case on a GPU: compiled, compared with f32, timed beside its peers, each as a CUDA graph."""

import copy
import inspect
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.gpu.cases import GpuCase
from benchmarks.gpu.hardware import Hardware
from benchmarks.gpu.results import GpuResult, of_variants
from benchmarks.peers.peer import PeerError
from benchmarks.zoo import tensors
from planish.compiler.pass_ import Pass
from planish.hardware_profiles import limit
from planish.passes import EXACT

_EXAMPLE = 64  # rows or length that is captured: any would do, a small one is quickly recorded


def measure(
    case: GpuCase, sizes: tuple[int, ...], hardware: Hardware, *, seconds: float, tune: int
) -> Iterator[GpuResult]:
    """The results at each of the sizes, one after another: first beside torch as it is, which takes no time to prepare,
    then beside all peers. Raises what planish, Triton or the driver raise."""
    start = time.perf_counter()
    module = case.module()
    compiled = _compiled(case, module, hardware, tune)
    prepared = time.perf_counter() - start
    with torch.inference_mode():
        exact = copy.deepcopy(module).float().to(hardware.device)
        wanted = {size: _output(exact, _floats(case.inputs(size), hardware)).cpu() for size in sizes}
        del exact
        module = module.to(hardware.device)
        for names in stages(case.peers):
            peers = {name: PEERS[name](module) for name in names}
            for size in sizes:
                found = _measured(case, size, compiled, peers, wanted[size], hardware, seconds)
                facts = of_variants(compiled.report.variants) if size == case.sizes[0] else {}
                yield replace(found, prepare_seconds=round(prepared, 3), **facts)


def stages(peers: tuple[str, ...]) -> list[tuple[str, ...]]:
    """The peers that are ready at once, then all of them where some are compiled."""
    quick = tuple(name for name in peers if name == "torch")
    return [quick, peers] if len(quick) < len(peers) else [quick]


def _compiled(case: GpuCase, module: nn.Module, hardware: Hardware, tune: int) -> Any:
    names = list(inspect.signature(module.forward).parameters)
    dynamic = {name: dict(axes) for name, axes in zip(names, case.axes, strict=False) if axes}
    passes: list[Pass | str] | None = None if case.passes is None else [*EXACT, *case.passes]
    wanted = tune if case.tune is None else case.tune
    return hardware.compile(module, inputs=case.inputs(_EXAMPLE), dynamic=dynamic, passes=passes, tune=wanted)


def _measured(
    case: GpuCase,
    size: int,
    compiled: Any,
    peers: Mapping[str, Callable[..., Any]],
    wanted: Tensor,
    hardware: Hardware,
    seconds: float,
) -> GpuResult:
    inputs = tuple(t.to(hardware.device) for t in case.inputs(size))
    main = compiled.executable.main
    found = main.run(main.leaves(inputs, {}))[0].float().cpu()
    error = ((found - wanted).abs().max() / wanted.abs().max()).item()
    calls = {"planish": main.bind(main.leaves(inputs, {}))}
    notes: dict[str, str] = {}
    for name, peer in peers.items():
        add_peer(calls, notes, name, lambda peer=peer: peer(*inputs), hardware)  # type: ignore[misc]
    times = hardware.times(calls, seconds)
    return GpuResult(
        case=case.name,
        group=case.group,
        size=size,
        median_ms={name: timing.median_ms for name, timing in times.items()},
        p10_ms={name: timing.p10_ms for name, timing in times.items()},
        limit_ms=limit(hardware.profile, case.flops(size), case.moved_bytes(size), case.rate).ms,
        error=error,
        tolerance=case.tolerance,
        notes=notes,
    )


def add_peer(
    calls: dict[str, Callable[[], object]],
    notes: dict[str, str],
    name: str,
    call: Callable[[], object],
    hardware: Hardware,
) -> None:
    """Add the peer's call as a graph, or to the notes why it cannot run or be recorded."""
    try:
        calls[name] = _recorded(call, hardware)
    except PeerError as error:
        notes[name] = str(error)


def _recorded(call: Callable[[], object], hardware: Hardware) -> Callable[[], object]:
    try:
        return hardware.recorded(call)
    except Exception as error:  # torch.compile raises what its compilers do
        raise PeerError(f"{type(error).__name__}: {' '.join(str(error).split())[:300]}") from error


def _output(module: nn.Module, inputs: tuple[Tensor, ...]) -> Tensor:
    return tensors(module(*inputs))[0].float()


def _floats(inputs: tuple[Tensor, ...], hardware: Hardware) -> tuple[Tensor, ...]:
    return tuple((t.float() if t.is_floating_point() else t).to(hardware.device) for t in inputs)


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


PEERS: Mapping[str, Callable[[nn.Module], Callable[..., Any]]] = {
    "torch": lambda module: module,
    "torch.compile": _torch_compile,
    "torch._scaled_mm": _scaled_mm,
}
