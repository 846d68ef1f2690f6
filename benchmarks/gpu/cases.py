"""What is measured on a GPU: modules with their inputs, how planish compiles them, and the least work they are."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

_HALF = torch.float16


@dataclass(frozen=True, slots=True)
class GpuCase:
    """A module, made on the CPU in f16, that is called at several sizes; `axes` are the dynamic ones of each input.

    `moved_bytes` and `flops` of a size are what no implementation can do without; `rate` is the dtype whose peak bounds
    the flops. `tolerance` is relative to the largest magnitude of the f32 reference. `peers` run the module on the GPU.
    `tune` variants of each kernel are measured, where that is not left to the run, and `timeout_seconds` is for all:
    compilation, sizes and peers.
    """

    name: str
    group: str
    module: Callable[[], nn.Module]
    inputs: Callable[[int], tuple[Tensor, ...]]
    sizes: tuple[int, ...]
    axes: tuple[Mapping[int, str], ...]
    flops: Callable[[int], float]
    moved_bytes: Callable[[int], float]
    passes: tuple[str, ...] | None = None
    rate: str = "f16"
    tolerance: float = 5e-3
    peers: tuple[str, ...] = ("torch",)
    tune: int | None = None
    timeout_seconds: float = 180.0


def exact_weights(rows: int, columns: int, *, bits: int, group: int, seed: int = 0) -> Tensor:
    """A weight [rows, columns] in f16 that symmetric rounding to `bits` with one scale a group leaves as it is."""
    most = (1 << (bits - 1)) - 1
    device = "cuda" if torch.cuda.is_available() else "cpu"  # billions of numbers are drawn in no time there
    generator = torch.Generator(device).manual_seed(seed)
    codes = torch.randint(-most, most + 1, (rows, columns), generator=generator, dtype=torch.int8, device=device)
    codes[:, :: group or columns] = most  # so that the scale is found again
    return (codes.to(_HALF) * 2.0 ** -(bits + 5)).cpu()  # a scale that f16 holds as it is


def linear(rows: int, columns: int, *, bits: int = 16, group: int = 0) -> nn.Module:
    """A linear map without bias whose weight loses nothing where it is quantized."""
    module = nn.Linear(columns, rows, bias=False, dtype=_HALF)
    module.weight.data = exact_weights(rows, columns, bits=min(bits, 8), group=group)
    return module.eval()


class _Attention(nn.Module):
    def __init__(self, causal: bool) -> None:
        super().__init__()
        self.causal = causal

    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """q [B, H, Q, D], k and v [B, H, K, D] -> [B, H, Q, D]."""
        return functional.scaled_dot_product_attention(q, k, v, is_causal=self.causal)


class _Gated(nn.Module):
    def forward(self, gate: Tensor, up: Tensor) -> Tensor:
        """Both [rows, width] -> [rows, width]."""
        return functional.silu(gate) * up


class _Softmax(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        """[rows, width] -> [rows, width]."""
        return torch.softmax(x, -1)


def _normal(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(_HALF)


def _linear_case(label: str, n: int, k: int, weight_bits: float, sizes: tuple[int, ...], **more: object) -> GpuCase:
    bits, group = (4, 128) if weight_bits < 8 else (8, 0) if weight_bits < 16 else (16, 0)
    bits = 4 if label == "f8" else bits  # whole numbers up to 7 are numbers of f8 beside 7 as the largest
    return GpuCase(
        name=f"{label}-{n}x{k}",
        group=label,
        module=lambda: linear(n, k, bits=bits, group=group),
        inputs=lambda m: (_normal(m, k),),
        sizes=sizes,
        axes=({0: "rows"},),
        flops=lambda m: 2.0 * m * n * k,
        moved_bytes=lambda m: n * k * weight_bits / 8 + 2.0 * m * (n + k),
        **more,  # type: ignore[arg-type]
    )


def _attention_case(
    label: str, heads: int, width: int, lengths: tuple[int, ...], *, decode: bool, tune: int
) -> GpuCase:
    def inputs(length: int) -> tuple[Tensor, ...]:
        asked = 1 if decode else length
        return tuple(_normal(1, heads, n, width, seed=i) for i, n in enumerate((asked, length, length)))

    return GpuCase(
        name=label,
        group="attention",
        module=lambda: _Attention(causal=not decode).eval(),
        inputs=inputs,
        sizes=lengths,
        axes=({}, {2: "keys"}, {2: "keys"}) if decode else ({2: "keys"},) * 3,
        flops=lambda s: (4.0 if decode else 2.0 * s) * heads * s * width,
        moved_bytes=lambda s: 2.0 * heads * width * (2 * s + (2 if decode else 2 * s)),
        tune=tune,
    )


def _rowwise(
    label: str, module: Callable[[], nn.Module], width: int, tensors: int = 1, tune: int | None = None
) -> GpuCase:
    return GpuCase(
        name=f"{label}-{width}",
        group="memory",
        module=module,
        inputs=lambda m: tuple(_normal(m, width, seed=i) for i in range(tensors)),
        sizes=(1, 8192),
        axes=({0: "rows"},) * tensors,
        flops=lambda m: 8.0 * m * width,
        moved_bytes=lambda m: 2.0 * m * width * (tensors + 1),
        rate="f32",
        tune=tune,
    )


# (outputs, inputs) of layers: 1.1B (TinyLlama), 8B and 70B (LLaMA 3); the first three are also N = K
_SQUARE = ((4096, 4096), (8192, 8192), (14336, 14336))
_LAYERS = ((5632, 2048), (2048, 5632), (6144, 4096), (28672, 4096), (4096, 14336), (10240, 8192), (8192, 28672))
_ROWS = (1, 4, 16, 64, 256, 1024, 4096)
_INT4, _INT8 = ("quantize-weights{bits=4}",), ('quantize-weights{bits=8, activations="int8"}',)
_F8 = ('quantize-weights{format="f8", activations="f8"}',)
_INT4_BITS = 4 + 16 / 128
_W8A8_ROWS = (1, 16, 256, 4096)

# six variants of each kernel of some cases are measured, to compare the choice of the static model with the best
_RANKED = 6
CASES: tuple[GpuCase, ...] = (
    _linear_case("int4", 4096, 4096, _INT4_BITS, _ROWS, passes=_INT4, tune=_RANKED),
    *(_linear_case("int4", n, k, _INT4_BITS, _ROWS, passes=_INT4) for n, k in _SQUARE[1:]),
    _linear_case("f16", 4096, 4096, 16, _ROWS, tune=_RANKED),
    _linear_case("f16", 8192, 8192, 16, _ROWS),
    _attention_case("prefill-32x128", 32, 128, (512, 2048, 8192), decode=False, tune=_RANKED),
    _attention_case("decode-32x128", 32, 128, (512, 4096, 32768), decode=True, tune=_RANKED),
    _rowwise("rms-norm", lambda: nn.RMSNorm(4096, eps=1e-5, dtype=_HALF).eval(), 4096, tune=_RANKED),
    _rowwise("layer-norm", lambda: nn.LayerNorm(4096, dtype=_HALF).eval(), 4096),
    _rowwise("softmax", lambda: _Softmax().eval(), 32000, tune=_RANKED),
    _rowwise("silu-times", lambda: _Gated().eval(), 14336, tensors=2, tune=_RANKED),
    _linear_case("w8a8", 4096, 4096, 8, _W8A8_ROWS, passes=_INT8, rate="i8", tolerance=3e-2, tune=_RANKED),
    _linear_case(
        "f8", 4096, 4096, 8, _W8A8_ROWS, passes=_F8, rate="f8", tolerance=5e-2, peers=("torch", "torch._scaled_mm")
    ),
    *(_linear_case("int4", n, k, _INT4_BITS, (1, 16, 1024), passes=_INT4) for n, k in _LAYERS),
)
