"""Products of integers that round their row of activations themselves: against torch, and what joins them."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from planish.codegen.call import Call
from planish.codegen.select import Choice, select
from planish.codegen.tvm.int8_linear import Int8Linear
from planish.codegen.tvm.isa import AVX2, AVX512, Isa
from planish.codegen.tvm.templates import TEMPLATES
from planish.compiler import ops
from planish.compiler.ir import Graph
from planish.compiler.text import parse
from planish.compiler.types import DType
from tests.codegen.coded_pairs import DTYPES, FORMATS, PLAIN, Case, close
from tests.codegen.harness import call_of, host_isa, run_call


def _rounded_call(case: Case, t: dict[str, Tensor], rows: tuple[int, ...], normed: bool) -> Call:
    """The layer over `x`, which the graph rounds, after a norm where it is `normed`."""
    x = ops.input_(name="x", shape=(*rows, case.depth), dtype=DType.f32)
    names = ("q", "ws", "b")
    q, ws, b = (ops.weight(name=n, shape=tuple(t[n].shape), dtype=DTYPES[t[n].dtype]) for n in names)
    number = ops.rms_norm(x, ops.weight(name="gain", shape=(case.depth,), dtype=DType.f32)) if normed else x
    scale = ops.quantization_scale(number, group=case.x_group)
    codes = ops.quantize(number, scale, group=case.x_group)
    left = ops.dequantize(codes, scale, group=case.x_group)
    y = ops.linear(left, ops.dequantize(q, ws, group=case.w_group, bits=case.bits), b)
    return call_of(Graph("main", (x,), (y,)), ops.linear)


def _rounded(x: Tensor, group: int) -> dict[str, Tensor]:
    """Codes and scales of x, one scale a group."""
    groups = [part.abs().amax(-1, keepdim=True) / 127 for part in x.split(group, -1)]
    codes = [
        (part * torch.where(scale == 0, 0, 1 / scale)).round().clamp(-127, 127)
        for part, scale in zip(x.split(group, -1), groups, strict=True)
    ]
    return {"xq": torch.cat(codes, -1).to(torch.int8), "xs": torch.cat(groups, -1)}


@pytest.mark.parametrize("form", ["int4", "int8"])
@pytest.mark.parametrize("group", [32, 200], ids=["groups", "rows"])
@pytest.mark.parametrize("rows", [(1,), (1, 1)])
def test_a_single_row_is_rounded_in_the_kernel(form: str, group: int, rows: tuple[int, ...]) -> None:
    case = replace(FORMATS[form], x_group=group)
    t = case.tensors(*rows)
    t["x"] = torch.randn((*rows, case.depth), generator=torch.Generator().manual_seed(1))
    t["x"][..., 32:64] = 0
    got = run_call(Int8Linear(), _rounded_call(case, t, rows, normed=False), t)
    close(got, case.wanted({**t, **_rounded(t["x"], group)}))


@pytest.mark.parametrize("isa", [AVX2, AVX512], ids=["avx2", "avx512"])
def test_a_row_is_rounded_with_narrower_vectors(isa: Isa) -> None:
    t = PLAIN.tensors(1)
    t["x"] = torch.randn((1, PLAIN.depth), generator=torch.Generator().manual_seed(1))
    got = run_call(Int8Linear(), _rounded_call(PLAIN, t, (1,), normed=False), t, isa=isa)
    close(got, PLAIN.wanted({**t, **_rounded(t["x"], 32)}))


def test_a_single_row_is_normed_in_the_kernel() -> None:
    t = PLAIN.tensors(1)
    generator = torch.Generator().manual_seed(1)
    t["x"], t["gain"] = torch.randn((1, 200), generator=generator), torch.rand(200, generator=generator)
    got = run_call(Int8Linear(), _rounded_call(PLAIN, t, (1,), normed=True), t)
    wanted = PLAIN.wanted({**t, **_rounded(functional.rms_norm(t["x"], (200,), t["gain"], 1e-6), 32)})
    torch.testing.assert_close(got.double(), wanted, rtol=0, atol=2e-2 * float(wanted.abs().max()))


def test_several_rows_are_rounded_by_a_kernel_of_their_own() -> None:
    call = _rounded_call(PLAIN, PLAIN.tensors(3), (3,), normed=False)
    assert Int8Linear().refuse(call, host_isa()) == "the codes of x are computed in the kernel, and not by it alone"


_ROUNDED = """graph main(%x: f32[ROWS, 64]) {
  %0 = rms_norm(%x): f32[ROWS, 64]
  %1 = quantization_scale(%0) {group=32}: f32[ROWS, 2]
  %2 = quantize(%0, %1) {group=32}: i8[ROWS, 64]
  %3 = dequantize(%2, %1) {group=32}: f32[ROWS, 64]
  %4 = dequantize(@w.codes: i8[64, 64], @w.scale: f32[64, 2]) {group=32}: f32[64, 64]
  %5 = linear(%3, %4): f32[ROWS, 64]
"""


def _kernels(rows: int, rest: str) -> list[str]:
    """The ops of each kernel that the layer above, with `rest` after it, is computed by."""
    graph = parse(_ROUNDED.replace("ROWS", str(rows)) + rest.replace("ROWS", str(rows)))
    found = select(graph, TEMPLATES, host_isa())
    return ["+".join(n.op.name for n in work.call.nodes) for work in found.work if isinstance(work, Choice)]


def test_what_rounds_a_row_joins_the_product_that_reads_it_alone() -> None:
    joined = "rms_norm+quantization_scale+quantize+dequantize+dequantize+linear"
    assert _kernels(1, "  return %5\n}") == [joined]
    assert _kernels(8, "  return %5\n}") == [
        "rms_norm+quantization_scale+quantize",
        "dequantize+dequantize+linear",
    ]


def test_a_row_that_two_products_read_is_rounded_once() -> None:
    rest = "  %6 = gelu(%3): f32[ROWS, 64]\n  %7 = linear(%6, @v: f32[64, 64]): f32[ROWS, 64]\n  return %5, %7\n}"
    assert _kernels(1, rest)[0] == "rms_norm+quantization_scale+quantize"


def test_a_row_of_odd_width_is_rounded_elsewhere() -> None:
    case = replace(PLAIN, depth=202)
    call = _rounded_call(case, case.tensors(1), (1,), normed=False)
    assert not any(Int8Linear().fuses_before(call.anchor, node) for node in call.nodes if node.op is ops.quantize)
