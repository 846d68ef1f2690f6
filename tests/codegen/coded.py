"""Linear layers over weights of 8 and 4 bits: forms of codes, tensors, and what they mean by a formula in torch."""

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch.nn import functional

from planish.codegen.tvm.isa import AVX2, AVX512, NEON, ZEN4, Isa
from planish.compiler import ops
from planish.compiler.ir import Value
from planish.compiler.types import DType, Shape
from planish.passes.weight_codes import NF4
from tests.codegen.harness import host_isa

Tensors = dict[str, torch.Tensor]


@dataclass(frozen=True)
class Form:
    """How codes stand for numbers."""

    bits: int
    signed: bool = False
    zero: bool = False
    codebook: tuple[float, ...] = ()
    f8: bool = False

    @property
    def attrs(self) -> dict[str, object]:
        return {"bits": self.bits, "codebook": self.codebook}

    @property
    def dtype(self) -> DType:
        return DType.f8 if self.f8 else DType.i8 if self.signed else DType.u8


TABLE = (0.3, -2.0, 1.5, 0.1, -0.1, 2.5, -1.0, 0.9, -0.6, 0.6, 2.0, -1.4, 0.0, 1.2, -0.3, -3.0)
FORMS = {
    "int8": Form(8, signed=True),
    "uint8": Form(8),
    "int4": Form(4),
    "int4 signed": Form(4, signed=True),
    "int4 with zeros": Form(4, zero=True),
    "nf4": Form(4, codebook=NF4),
    "table": Form(4, codebook=TABLE),
}
F8 = Form(8, f8=True)  # of GPUs alone, with one scale a row
NO_TWINS = FORMS.keys() - {"nf4"}  # a kernel looks the levels of any table up alike
DISTINCT = ("int8", "int4 with zeros", "table")  # what else there is differs from one of them by a shift


def forms(default: Collection[str], isa: Isa, name: str) -> list[Any]:
    """Every form with an instruction set, as parameters `form` and `isa`; those outside of `default` are slow."""
    slow = {key: [] if key in default else [pytest.mark.slow] for key in FORMS}
    return [pytest.param(form, isa, id=f"{key}-{name}", marks=slow[key]) for key, form in FORMS.items()]


EVERY_FORM = pytest.mark.parametrize(
    "form", [pytest.param(f, id=key, marks=[pytest.mark.slow] * (key not in NO_TWINS)) for key, f in FORMS.items()]
)
ON_BOTH = pytest.mark.parametrize(
    ("form", "isa"), [*forms(NO_TWINS, host_isa(), "host"), *forms(DISTINCT, AVX2, "avx2")]
)
COMPILED = [
    *forms(NO_TWINS, NEON, "neon"),
    *forms(DISTINCT, AVX512, "avx512"),
    *forms(("int4",), AVX2, "avx2"),
    *forms(("int4",), ZEN4, "zen4"),
]


def tensors(
    rows: Shape, columns: int, depth: int, group: int, form: Form, dtype: torch.dtype = torch.float32
) -> Tensors:
    generator = torch.Generator().manual_seed(0)

    def codes(*size: int) -> torch.Tensor:
        span = 1 << form.bits
        if form.f8:
            return torch.randn(size, generator=generator).mul_(100).clamp_(-448, 448).to(torch.float8_e4m3fn)
        found = torch.randint(0, span, size, generator=generator) - (span // 2 if form.signed else 0)
        return found.to(torch.int8 if form.signed else torch.uint8)

    groups = -(-depth // group)

    def scales() -> torch.Tensor:
        drawn = torch.rand(columns, groups, generator=generator) / 2**form.bits + 0.01
        return drawn / 100 if form.f8 else drawn.half()

    return {
        "x": torch.randn(*rows, depth, generator=generator).to(dtype),
        "q": codes(columns, depth),
        "s": scales(),
        "z": torch.randint(0, 16, (columns, groups), generator=generator).to(torch.uint8),
        "b": torch.randn(columns, generator=generator).to(dtype),
        "r": torch.randn(*rows, columns, generator=generator).to(dtype),
    }


def weight_of(t: Tensors, group: int, form: Form) -> torch.Tensor:
    """The numbers that the codes stand for, by the definition of each format."""
    columns, depth = t["q"].shape
    at = torch.arange(depth) // group
    middle = 0 if form.signed or form.f8 else 1 << (form.bits - 1)
    offset = t["z"].double()[:, at] if form.zero else torch.full((columns, depth), float(middle)).double()
    levels = torch.tensor(form.codebook)[t["q"].long()].double() if form.codebook else t["q"].double() - offset
    return levels * t["s"].double()[:, at]


def linear(rows: Shape, t: Tensors, group: int, form: Form, dtype: DType = DType.f32) -> tuple[Value, Value]:
    """The layer over x: (x, result)."""
    columns, depth = t["q"].shape
    scale = t["s"]
    x = ops.input_(name="x", shape=(*rows, depth), dtype=dtype)
    q = ops.weight(name="q", shape=(columns, depth), dtype=form.dtype)
    s = ops.weight(name="s", shape=tuple(scale.shape), dtype=DType.f16 if scale.dtype is torch.float16 else DType.f32)
    z = ops.weight(name="z", shape=tuple(scale.shape), dtype=DType.u8) if form.zero else None
    b = ops.weight(name="b", shape=(columns,), dtype=dtype)
    w = ops.dequantize(q, s, z, group=group, dtype=dtype, **form.attrs)
    return x, ops.linear(x, w, b)


def wanted(t: Tensors, group: int, form: Form) -> torch.Tensor:
    return functional.linear(t["x"].double(), weight_of(t, group, form), t["b"].double())


def close(got: torch.Tensor, expected: torch.Tensor, tolerance: float = 2e-6) -> None:
    """Errors relative to the largest result, since sums cancel."""
    largest = float(expected.abs().max())
    torch.testing.assert_close(got.double(), expected, rtol=tolerance, atol=tolerance * largest)
