"""How much arithmetic and memory traffic a model cannot do without, and the time that takes at the least."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.results import Limit
from benchmarks.zoo import Inputs, tensors
from planish.hardware_profiles import measure_peak, measure_stream

_SMALLEST_READ = 1 << 16


@dataclass(frozen=True, slots=True)
class Rates:
    """What the machine does right now: GFLOP/s in one dtype and 10^9 B/s of reading."""

    peak_gflops: float
    bandwidth_gbs: float


def measure_rates(threads: int, footprint_bytes: float, dtype: str = "f32") -> Rates:
    """The peak of `dtype`, and the bandwidth of reading that many bytes again and again, from the cache that fits."""
    size = max(int(footprint_bytes), _SMALLEST_READ)
    return Rates(measure_peak(dtype, 0.15, threads=threads), measure_stream(0.15, threads=threads, read_bytes=size))


def flops(module: nn.Module, inputs: Inputs) -> float:
    """Operations of matrix products and convolutions in one call, as PyTorch counts them; a multiply-add is two."""
    # The counter knows the products of the plain spelling of attention, not every fused kernel of the CPU.
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        module(**inputs)
    return float(counter.get_total_flops())


def moved_bytes(module: nn.Module, inputs: Inputs, outputs: object) -> float:
    """Bytes of weights, inputs and outputs, each once; of a table that is only looked up, the rows looked up."""
    tables = [child for child in module.modules() if isinstance(child, nn.Embedding)]
    others = [child for child in module.modules() if not isinstance(child, nn.Embedding)]
    read = {weight.data_ptr(): _bytes(weight) for child in others for weight in child.parameters(recurse=False)}
    tokens = max(value.numel() for value in inputs.values())
    rows = sum(
        min(_bytes(table.weight), tokens * table.embedding_dim * table.weight.element_size())
        for table in tables
        if table.weight.data_ptr() not in read
    )
    return float(sum(read.values()) + rows + sum(map(_bytes, (*inputs.values(), *tensors(outputs)))))


def limit(work: tuple[float, float], samples: tuple[Rates, ...]) -> Limit:
    """The limit for `work` (flops, bytes) at the mean of the rates sampled around the timings."""
    peaks, bandwidths = (
        tuple(values) for values in zip(*((s.peak_gflops, s.bandwidth_gbs) for s in samples), strict=True)
    )
    count, moved = work
    ms = max(count / _mean(peaks), moved / _mean(bandwidths)) / 1e6
    return Limit(count, moved, peaks, bandwidths, ms)


def _mean(values: tuple[float, ...]) -> float:
    return sum(values) / len(values)


def _bytes(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()
