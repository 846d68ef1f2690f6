"""Linear layers over codes of activations and of weights: formats, tensors, and what they mean by sums in 64 bits."""

from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn import functional

from planish.codegen.call import Call
from planish.compiler import ops
from planish.compiler.ir import Graph, Value
from planish.compiler.types import DType, Shape
from tests.codegen.harness import call_of

DTYPES = {
    torch.int8: DType.i8,
    torch.uint8: DType.u8,
    torch.float16: DType.f16,
    torch.bfloat16: DType.bf16,
    torch.float32: DType.f32,
}


@dataclass(frozen=True)
class Case:
    """A linear of `columns` over rows of `depth`: groups of x and of the weight, and the weight's codes."""

    columns: int
    depth: int
    x_group: int
    w_group: int
    bits: int = 4
    zero: bool = False
    codes: torch.dtype = torch.uint8
    scale: torch.dtype = torch.float32

    def tensors(self, *rows: int) -> dict[str, Tensor]:
        generator = torch.Generator().manual_seed(0)
        unsigned = self.codes is torch.uint8
        low, high = (0, 1 << self.bits) if unsigned else (-(1 << (self.bits - 1)), 1 << (self.bits - 1))
        groups = -(-self.depth // self.w_group)
        found = {
            "xq": torch.randint(-127, 128, (*rows, self.depth), generator=generator, dtype=torch.int8),
            "xs": torch.rand((*rows, -(-self.depth // self.x_group)), generator=generator) / 127,
            "q": torch.randint(low, high, (self.columns, self.depth), generator=generator, dtype=torch.int16),
            "ws": torch.rand((self.columns, groups), generator=generator) / (1 << self.bits),
            "b": torch.randn(self.columns, generator=generator),
            "r": torch.randn((*rows, self.columns), generator=generator),
        }
        found["q"], found["ws"] = found["q"].to(self.codes), found["ws"].to(self.scale)
        if self.zero:
            zero = torch.randint(0, 1 << self.bits, (self.columns, groups), generator=generator, dtype=torch.int16)
            found["zero"] = zero.to(torch.uint8)
        return found

    def wanted(self, t: dict[str, Tensor]) -> Tensor:
        """x and the weight as numbers, multiplied in f64."""

        def spread(values: Tensor, group: int) -> Tensor:
            return values.double().repeat_interleave(group, -1)[..., : self.depth]

        middle = 1 << (self.bits - 1) if self.codes is torch.uint8 else 0
        zero = spread(t["zero"], self.w_group) if self.zero else middle
        w = (t["q"].double() - zero) * spread(t["ws"], self.w_group)
        return functional.linear(t["xq"].double() * spread(t["xs"], self.x_group), w, t["b"].double())

    def linear(self, t: dict[str, Tensor], rows: Shape) -> tuple[tuple[Value, ...], Value]:
        """The graph's inputs and the result of the layer."""
        shapes: dict[str, Shape] = {"xq": (*rows, self.depth), "xs": (*rows, t["xs"].shape[-1])}
        xq, xs = (ops.input_(name=n, shape=s, dtype=DTYPES[t[n].dtype]) for n, s in shapes.items())
        names = ("q", "ws", "zero") if self.zero else ("q", "ws")
        leaves = [ops.weight(name=n, shape=tuple(t[n].shape), dtype=DTYPES[t[n].dtype]) for n in (*names, "b")]
        w = ops.dequantize(*leaves[:-1], group=self.w_group, bits=self.bits)
        return (xq, xs), ops.linear(ops.dequantize(xq, xs, group=self.x_group), w, leaves[-1])

    def call(self, t: dict[str, Tensor], rows: Shape) -> Call:
        inputs, y = self.linear(t, rows)
        return call_of(Graph("main", inputs, (y,)), ops.linear)


def close(got: Tensor, wanted: Tensor) -> None:
    """Sums within a group are exact, so that only a few roundings of f32 remain."""
    torch.testing.assert_close(got.double(), wanted, rtol=1e-5, atol=1e-5 * float(wanted.abs().max()))


PLAIN = Case(70, 200, 32, 32)
FORMATS = {
    "int4": PLAIN,
    "int4 with zeros": replace(PLAIN, zero=True),
    "int4 of signed codes": replace(PLAIN, codes=torch.int8),
    "int3": replace(PLAIN, bits=3),
    "int8": replace(PLAIN, bits=8, codes=torch.int8),
    "int8 of unsigned codes": replace(PLAIN, bits=8),
    "int8 with zeros": replace(PLAIN, bits=8, zero=True),
    "int8 of signed codes with zeros": replace(PLAIN, bits=8, codes=torch.int8, zero=True),
    "int6": replace(PLAIN, bits=6, codes=torch.int8),
}
