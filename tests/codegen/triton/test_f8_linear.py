"""Products of activations and weights of f8 on GPUs against sums in f64: sizes, rows, epilogues, AMD's f8, refusals."""

from dataclasses import dataclass

import numpy
import pytest
import torch
from torch import Tensor
from torch.nn import functional

from planish.codegen.call import Call
from planish.codegen.triton.int8_linear import F8Linear, Int8Linear, pack_f8
from planish.compiler import ops
from planish.compiler.ir import Graph, Value
from planish.compiler.types import Dim, DType, symbol
from tests.codegen.coded import close
from tests.codegen.harness import call_of
from tests.codegen.triton.harness import device, run_call
from tests.codegen.triton.interpreter import needs_amds_f8


@dataclass(frozen=True)
class Case:
    """A linear of `columns` over rows of `depth`: groups of x and of the weight; whole rows are one group."""

    columns: int
    depth: int
    x_group: int = 1 << 20
    w_group: int = 1 << 20

    def tensors(self, rows: int) -> dict[str, Tensor]:
        generator = torch.Generator().manual_seed(0)

        def codes(count: int) -> Tensor:
            drawn = 100 * torch.randn(count, self.depth, generator=generator)
            drawn[:, :2] = torch.tensor([-1e-9, 3e-3])  # a negative zero and a small number
            return drawn.clamp(-448, 448).to(torch.float8_e4m3fn)

        def scales(count: int, group: int) -> Tensor:
            return torch.rand(count, -(-self.depth // group), generator=generator) / 100

        return {
            "xq": codes(rows),
            "xs": scales(rows, self.x_group),
            "q": codes(self.columns),
            "ws": scales(self.columns, self.w_group),
            "b": torch.randn(self.columns, generator=generator),
            "r": torch.randn(rows, self.columns, generator=generator),
        }

    def linear(self, rows: Dim) -> tuple[tuple[Value, Value], Value]:
        """The graph's inputs and the result of the layer."""
        counts = (-(-self.depth // self.x_group), -(-self.depth // self.w_group))
        xq = ops.input_(name="xq", shape=(rows, self.depth), dtype=DType.f8)
        xs = ops.input_(name="xs", shape=(rows, counts[0]), dtype=DType.f32)
        q = ops.weight(name="q", shape=(self.columns, self.depth), dtype=DType.f8)
        ws = ops.weight(name="ws", shape=(self.columns, counts[1]), dtype=DType.f32)
        b = ops.weight(name="b", shape=(self.columns,), dtype=DType.f32)
        w = ops.dequantize(q, ws, group=self.w_group)
        return (xq, xs), ops.linear(ops.dequantize(xq, xs, group=self.x_group), w, b)

    def call(self, rows: Dim) -> Call:
        inputs, y = self.linear(rows)
        return call_of(Graph("main", inputs, (y,)), ops.linear)

    def wanted(self, t: dict[str, Tensor]) -> Tensor:
        """x and the weight as numbers, multiplied in f64."""

        def spread(values: Tensor, group: int) -> Tensor:
            return values.double().repeat_interleave(min(group, self.depth), -1)[:, : self.depth]

        x, w = t["xq"].double() * spread(t["xs"], self.x_group), t["q"].double() * spread(t["ws"], self.w_group)
        return functional.linear(x, w, t["b"].double())


def check(case: Case, rows: int, on: str = "h200") -> None:
    t = case.tensors(rows)
    for found in run_call(F8Linear(), case.call(symbol("m")), t, sizes={"m": rows}, on=on):
        close(found, case.wanted(t), 1e-5)


@pytest.mark.parametrize("rows", [1, 11, 20, 70])
def test_rows_of_one_scale_are_right(rows: int) -> None:
    check(Case(40, 300), rows)


def test_groups_are_right() -> None:
    check(Case(20, 200, 64, 32), 3)


@needs_amds_f8
@pytest.mark.parametrize("rows", [3, 70])
def test_an_amd_gpu_multiplies_the_same_numbers(rows: int) -> None:
    check(Case(20, 200), rows, on="mi300x")


def test_zeros_are_packed_without_a_sign() -> None:
    codes = torch.tensor([[-0.0, 0.0, -1.0, 448.0]]).to(torch.float8_e4m3fn)
    packed = pack_f8(codes.view(torch.uint8).numpy())
    assert packed.shape == (1, 64)
    assert not (packed == 0x80).any()
    numpy.testing.assert_array_equal(
        torch.from_numpy(packed[:, :4].copy()).view(torch.float8_e4m3fn).float(), [[0, 0, -1, 448]]
    )


def test_activation_and_residual_join_the_product() -> None:
    case, rows = Case(35, 64), 9
    t = case.tensors(rows)
    inputs, y = case.linear(symbol("s"))
    r = ops.input_(name="r", shape=y.shape, dtype=DType.f32)
    call = call_of(Graph("main", (*inputs, r), (ops.add(r, ops.gelu(y)),)), ops.linear)
    for found in run_call(F8Linear(), call, t, sizes={"s": rows}):
        close(found, t["r"] + functional.gelu(case.wanted(t)), 1e-5)


def test_a_gate_joins_the_product() -> None:
    case, rows, width = Case(54, 96), 3, 27
    t = case.tensors(rows)
    inputs, y = case.linear(symbol("m"))
    first, second = (ops.slice_(y, axis=1, start=s, stop=s + width) for s in (0, width))
    call = call_of(Graph("main", inputs, (ops.mul(ops.silu(first), second),)), ops.linear)
    expected = case.wanted(t)
    for found in run_call(F8Linear(), call, t, sizes={"m": rows}):
        close(found, functional.silu(expected[:, :width]) * expected[:, width:], 1e-5)


def test_refuses_a_gpu_without_the_units() -> None:
    assert F8Linear().refuse(Case(8, 64).call(2), device("a100")) == "a100 has no f8 matrix units"


def test_integers_and_f8_are_not_mixed() -> None:
    call = Case(8, 64).call(2)
    why = "the rows are no i8 codes with f32 scales and no zero points"
    assert Int8Linear().refuse(call, device("h200")) == why
    x = ops.input_(name="x", shape=(2, 64), dtype=DType.f8)
    scale = ops.input_(name="s", shape=(2, 1), dtype=DType.f32)
    parts = (ops.weight(name="q", shape=(8, 64), dtype=DType.i8), ops.weight(name="t", shape=(8, 1), dtype=DType.f32))
    y = ops.linear(ops.dequantize(x, scale, group=64), ops.dequantize(*parts, group=64))
    mixed = call_of(Graph("main", (x, scale), (y,)), ops.linear)
    assert F8Linear().refuse(mixed, device("h200")) == "codes of i8 are not multiplied with codes of f8"
