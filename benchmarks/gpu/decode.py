"""Decoding on a GPU: a whole model in 4 bits beside torch in f16, and the time from its artifact to the first token."""

import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor

from benchmarks.gpu.decoder import Decoder, decode_layer
from benchmarks.gpu.first_token import first_token
from benchmarks.gpu.hardware import Hardware
from benchmarks.gpu.llama import SHAPES, DecodeCase, llama
from benchmarks.gpu.measure import add_peer, stages
from benchmarks.gpu.results import GpuResult, of_variants
from planish import Generation
from planish.errors import PlanishError
from planish.hardware_profiles import limit
from planish.runtime.dtypes import TORCH

_PROMPT = 8  # tokens whose logits are compared


def decode(
    case: DecodeCase,
    sizes: tuple[int, ...],
    hardware: Hardware,
    *,
    seconds: float,
    tune: int,
    first: Callable[[Path], Mapping[str, float]] = first_token,
) -> Iterator[GpuResult]:
    """The results at each number of tokens in the cache, first beside torch as it is, then beside all peers. Raises
    what planish, Triton or the driver raise."""
    start = time.perf_counter()
    model = llama(case.shape, case.layers)
    drawn = time.perf_counter() - start
    compiled = _compiled(case, model, hardware, tune)
    prepared = time.perf_counter() - start
    notes: dict[str, str] = {}
    facts = {"draw_seconds": drawn, **_first(compiled, first, notes)}
    model = model.to(hardware.device)
    with torch.inference_mode():
        error = _error(compiled.executable, model, hardware)
        for names in stages(case.peers):
            for size in sizes:
                found = _measured(case, size, names, compiled, model, hardware, seconds)
                found = replace(found, error=error, prepare_seconds=round(prepared, 3))
                if size == case.sizes[0]:
                    found = replace(
                        found,
                        facts={**found.facts, **facts},
                        notes={**found.notes, **notes},
                        **of_variants(compiled.report.variants),
                    )
                yield found


def _compiled(case: DecodeCase, model: Any, hardware: Hardware, tune: int) -> Any:
    return hardware.compile(
        model,
        inputs=(torch.ones((1, 16), dtype=torch.int64),),
        passes=["quantize-weights{bits=4}"],
        generate=Generation(context=case.context, chunk=case.chunk, cache=case.cache, end=()),
        tune=tune if case.tune is None else case.tune,
    )


def _first(compiled: Any, first: Callable[[Path], Mapping[str, float]], notes: dict[str, str]) -> Mapping[str, float]:
    """The times to the first token of the saved artifact, whose pages are in memory since it was written; or to the
    notes why there are none."""
    folder = Path(tempfile.mkdtemp())
    try:
        compiled.save(folder / "model.planish")
        return first(folder / "model.planish")
    except (RuntimeError, PlanishError, subprocess.TimeoutExpired) as error:
        notes["first_token_seconds"] = str(error)
        return {}
    finally:
        shutil.rmtree(folder)


def _measured(
    case: DecodeCase,
    past: int,
    peers: tuple[str, ...],
    compiled: Any,
    model: Any,
    hardware: Hardware,
    seconds: float,
) -> GpuResult:
    executable = compiled.executable
    calls = {"planish": executable.function("decode").bind(_inputs(executable, "decode", 1, past, hardware))}
    notes: dict[str, str] = {}
    for name in peers:
        layer = decode_layer if name == "torch" else _compiled_layer()
        decoder = Decoder(model, past + 1, layer)
        decoder.position.fill_(past)
        add_peer(calls, notes, name, decoder.step, hardware)
    times = hardware.times(calls, seconds)
    return GpuResult(
        case=case.name,
        group=case.group,
        size=past,
        median_ms={name: timing.median_ms for name, timing in times.items()},
        p10_ms={name: timing.p10_ms for name, timing in times.items()},
        limit_ms=limit(hardware.profile, case.flops(past), case.moved_bytes(past), "f16").ms,
        tolerance=case.tolerance,
        facts={"generated_token_ms": _generated_ms(compiled, past, case)},
        notes=notes,
    )


def _compiled_layer() -> Callable[..., Tensor]:
    # graphs are recorded here for every peer alike
    found: Callable[..., Tensor] = torch.compile(decode_layer, mode="max-autotune-no-cudagraphs", dynamic=False)
    return found


def _generated_ms(compiled: Any, past: int, case: DecodeCase) -> float:
    """Milliseconds between tokens of `generate`, the copy of the logits to the host and its sampling included."""
    prompt = [1 + i % (SHAPES[case.shape].vocabulary - 1) for i in range(past)]
    moments = [time.perf_counter() for _ in compiled.generate(prompt, max_new_tokens=case.answer)]
    return 1e3 * median(b - a for a, b in pairwise(moments))


def _error(executable: Any, model: Any, hardware: Hardware) -> float:
    """The largest difference of logits after a prompt, relative to the largest of torch's."""
    prompt = torch.arange(3, 3 + _PROMPT)
    wanted = Decoder(model, _PROMPT).read(prompt).float()
    given = _inputs(executable, "prefill", _PROMPT, 0, hardware)
    given[0].copy_(prompt[None])
    found = executable.function("prefill").run(given)[0].flatten().float()
    return float((found - wanted).abs().max() / wanted.abs().max())


def _inputs(executable: Any, function: str, tokens: int, past: int, hardware: Hardware) -> list[Tensor]:
    """Ids, tokens before them, tokens in them, and empty caches, on the device."""
    plan = executable.function(function).plan
    sizes = {size.name: {"tokens": tokens}.get(size.name, 1) for size in plan.sizes}
    shapes = [tuple(d.evaluate(sizes) for d in spec.type.shape) for spec in plan.inputs]
    given = [
        torch.zeros(shape, dtype=getattr(torch, TORCH[spec.type.dtype]), device=hardware.device)
        for shape, spec in zip(shapes, plan.inputs, strict=True)
    ]
    given[1].fill_(past)
    given[2].fill_(tokens)
    return given
