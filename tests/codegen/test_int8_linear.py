"""Products of quantized activations and weights against sums in 64 bits: formats, odd sizes, epilogues, CPUs."""

import re
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from planish.codegen.call import Call
from planish.codegen.tvm.build import build_object
from planish.codegen.tvm.int8_linear import Int8Linear
from planish.codegen.tvm.isa import AVX2, AVX512, NEON, ZEN4, Isa
from planish.codegen.tvm.kernel import Kernel
from planish.codegen.view import View
from planish.compiler import ops
from planish.compiler.ir import Graph
from planish.compiler.types import Dim, DType, symbol
from tests.codegen.coded_pairs import DTYPES, FORMATS, Case, close
from tests.codegen.gated import SILU, gated_call, of_halves
from tests.codegen.harness import call_of, host_isa, run_call

GROUPS = {
    "equal": (32, 32),
    "wider of x": (64, 32),
    "wider of the weight": (32, 96),
    "rows of x": (200, 32),
    "rows of the weight": (64, 200),
    "rows of both": (200, 200),
    "beyond the row": (512, 256),
}


def check(case: Case, *rows: int, isa: Isa | None = None, tasks: int = 2, named: str | None = None) -> None:
    t = case.tensors(*rows)
    first: Dim = symbol(named) if named else rows[0]
    sizes = {named: rows[0]} if named else {}
    got = run_call(Int8Linear(), case.call(t, (first, *rows[1:])), t, sizes=sizes, isa=isa, tasks=tasks)
    close(got, case.wanted(t))


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("groups", GROUPS)
def test_formats_and_groups_are_right(form: str, groups: str) -> None:
    x_group, w_group = GROUPS[groups]
    check(replace(FORMATS[form], x_group=x_group, w_group=w_group), 5)


@pytest.mark.parametrize("isa", [AVX2, AVX512, replace(host_isa(), int8_dot=False)], ids=["avx2", "avx512", "no-vnni"])
@pytest.mark.parametrize("form", ["int4", "int4 with zeros", "int8"])
def test_cpus_without_the_instruction_are_right(form: str, isa: Isa) -> None:
    check(FORMATS[form], 9, isa=isa)


@pytest.mark.parametrize("scale", [torch.float16, torch.bfloat16])
def test_scales_of_half_precision_are_right(scale: torch.dtype) -> None:
    check(Case(70, 200, 32, 32, scale=scale), 5)


@pytest.mark.parametrize(("columns", "depth"), [(1, 1), (3, 5), (32, 8), (33, 127), (100, 576), (31, 13)])
@pytest.mark.parametrize(("bits", "codes"), [(4, torch.uint8), (8, torch.int8)])
def test_odd_sizes_are_right(columns: int, depth: int, bits: int, codes: torch.dtype) -> None:
    check(Case(columns, depth, 128, 128, bits=bits, codes=codes), 3)


@pytest.mark.parametrize("rows", [1, 2, 3, 7, 8, 11, 12, 13, 24, 31, 70])
def test_counts_of_rows_are_right(rows: int) -> None:
    check(Case(40, 64, 32, 32), rows)


@pytest.mark.parametrize("rows", [1, 2, 5, 6, 7, 9, 12, 13, 70, 300])
def test_a_dynamic_count_of_rows_is_right(rows: int) -> None:
    check(Case(40, 96, 32, 32, zero=True), rows, named="m")


@pytest.mark.parametrize("tasks", [1, 3, 5, 64])
def test_any_split_of_the_work_is_right(tasks: int) -> None:
    check(Case(100, 8000, 128, 128), 130, tasks=tasks)


def test_one_vector_is_a_product_without_rows() -> None:
    case = Case(40, 64, 32, 32)
    t = case.tensors()
    close(run_call(Int8Linear(), case.call(t, ()), t), case.wanted(t))


def test_the_largest_codes_do_not_overflow() -> None:
    case = Case(33, 32768, 32768, 32768, bits=8, codes=torch.int8)
    t = case.tensors(2)
    t["xq"].fill_(127)
    t["q"].fill_(-128)
    close(run_call(Int8Linear(), case.call(t, (2,)), t), case.wanted(t))


def test_activation_and_residual_are_computed_on_the_tiles() -> None:
    case = Case(35, 64, 32, 32)
    t = case.tensors(2, 9)
    inputs, y = case.linear(t, (symbol("b"), symbol("s")))
    r = ops.input_(name="r", shape=y.shape, dtype=DType.f32)
    call = call_of(Graph("main", (*inputs, r), (ops.add(r, ops.gelu(y)),)), ops.linear)
    got = run_call(Int8Linear(), call, t, sizes={"b": 2, "s": 9})
    close(got, t["r"] + functional.gelu(case.wanted(t)))


def test_rows_of_views_are_read_where_they_lie() -> None:
    case = Case(35, 64, 32, 32)
    t = case.tensors(3, 5)
    inputs, y = case.linear(t, (3, 5))
    views = {n: View.contiguous(v.type) for n, v in zip(("xq", "xs"), inputs, strict=True)}
    turned = {n: View(v.shape, (v.shape[2], 3 * v.shape[2], 1), 0, v.dtype) for n, v in views.items()}
    call = call_of(Graph("main", inputs, (y,)), ops.linear, views=turned)
    moved = {n: t[n].transpose(0, 1).contiguous() for n in views}
    close(run_call(Int8Linear(), call, {**t, **moved}), case.wanted(t))


@pytest.mark.parametrize("form", ["int4", "int8"])
def test_the_result_in_bf16_is_rounded_once(form: str) -> None:
    case = replace(FORMATS[form], depth=64, w_group=64)
    t = case.tensors(4)
    (xq, xs), _ = case.linear(t, (4,))
    q, ws = (ops.weight(name=n, shape=tuple(t[n].shape), dtype=DTYPES[t[n].dtype]) for n in ("q", "ws"))
    x = ops.dequantize(xq, xs, group=32, dtype=DType.bf16)
    y = ops.linear(x, ops.dequantize(q, ws, group=64, bits=case.bits, dtype=DType.bf16))
    got = run_call(Int8Linear(), call_of(Graph("main", (xq, xs), (y,)), ops.linear), t)
    wanted = case.wanted(t) - t["b"]
    torch.testing.assert_close(got.double(), wanted, rtol=2**-8, atol=1e-4)


@pytest.mark.parametrize("rows", [1, 20])
@pytest.mark.parametrize("group", [64, 192])
def test_the_dot_product_instruction_of_the_host_agrees_with_its_stand_in(rows: int, group: int) -> None:
    case = Case(50, 192, group, group, bits=8, codes=torch.int8)
    t = case.tensors(rows)
    found = [run_call(Int8Linear(), case.call(t, (rows,)), t, isa=isa) for isa in (host_isa(), AVX512)]
    torch.testing.assert_close(*found, rtol=0, atol=0)


@pytest.mark.skipif(not shutil.which("qemu-aarch64"), reason="no qemu-user")
@pytest.mark.parametrize("form", ["int4 with zeros", "int8"])
@pytest.mark.parametrize("features", [(), ("+dotprod",)], ids=["plain", "dotprod"])
def test_arm_kernels_are_right_under_emulation(form: str, features: tuple[str, ...], tmp_path: Path) -> None:
    isa = replace(NEON, cpu="generic", features=features)
    case = FORMATS[form]
    t = case.tensors(7)
    call = case.call(t, (7,))
    close(_emulated(Int8Linear().build(call, isa), call, t, isa, tmp_path), case.wanted(t))


_DRIVER = """
#include <stdio.h>
int kernel_under_test(POINTERS, void *, void *, int, int);
static _Alignas(64) unsigned char in[INPUTS][1 << 16], scratch[1 << 20];
static float out[1 << 12];
int main(int argc, char **argv) {
  for (int i = 0; i < argc - 1; i++) {
    FILE *file = fopen(argv[i + 1], "rb");
    if (!file || !fread(in[i], 1, sizeof in[i], file)) return 1;
  }
  for (int task = 0; task < 2; task++) kernel_under_test(CALL, out, scratch, task, 2);
  return fwrite(out, 4, COUNT, stdout) != COUNT;
}
"""


def _emulated(kernel: Kernel, call: Call, t: dict[str, Tensor], isa: Isa, folder: Path) -> Tensor:
    """The result of a kernel for aarch64; its inputs travel in files."""
    build_object({"kernel_under_test": kernel.function}, isa, folder / "k.o")
    paths = [folder / f"{i}.bin" for i in range(len(call.inputs))]
    for path, value in zip(paths, call.inputs, strict=True):
        array = t[str(value.node.attrs["name"])].numpy()
        path.write_bytes((kernel.packings[value].pack(array) if value in kernel.packings else array).tobytes())
    values = {
        "POINTERS": ", ".join("void *" for _ in paths),
        "INPUTS": str(len(paths)),
        "CALL": ", ".join(f"in[{i}]" for i in range(len(paths))),
        "COUNT": str(t["r"].numel()),
    }
    driver = re.sub("|".join(values), lambda found: values[found[0]], _DRIVER)
    (folder / "driver.c").write_text(driver)
    zig = [sys.executable, "-m", "ziglang", "cc", "-O1", "-static", "-target", "aarch64-linux-musl"]
    subprocess.run(
        [*zig, folder / "driver.c", folder / "k.o", "-o", folder / "driver"], check=True, capture_output=True
    )
    command = ["qemu-aarch64", "-cpu", "max", str(folder / "driver"), *map(str, paths)]
    done = subprocess.run(command, capture_output=True, check=True, timeout=60)
    return torch.frombuffer(bytearray(done.stdout), dtype=torch.float32).reshape(t["r"].shape)


@pytest.mark.skipif(not shutil.which("qemu-aarch64"), reason="no qemu-user")
@pytest.mark.parametrize("width", [5, 16])
def test_arm_kernels_compute_their_gate_under_emulation(width: int, tmp_path: Path) -> None:
    isa, case = replace(NEON, cpu="generic"), replace(FORMATS["int4"], columns=2 * width)
    t = case.tensors(7)
    t["r"] = t["r"][:, :width]
    inputs, y = case.linear(t, (7,))
    call = gated_call(inputs, y, SILU, width)
    close(_emulated(Int8Linear().build(call, isa), call, t, isa, tmp_path), of_halves(case.wanted(t), SILU, width))


def test_the_instruction_is_used_where_the_cpu_has_it(tmp_path: Path) -> None:
    case = Case(64, 256, 128, 128)
    call = case.call(case.tensors(8), (8,))
    build_object({"kernel_under_test": Int8Linear().build(call, ZEN4).function}, ZEN4, tmp_path / "k.o")
    text = subprocess.run(["objdump", "-d", tmp_path / "k.o"], capture_output=True, text=True, check=True).stdout
    assert text.count("vpdpbusd") >= 8 * 2 * 2


def _refusal(case: Case) -> str | None:
    t = case.tensors(2)
    (xq, xs), y = case.linear(t, (2,))
    return Int8Linear().refuse(call_of(Graph("main", (xq, xs), (y,)), ops.linear), host_isa())


def test_groups_that_do_not_fit_each_other_are_refused() -> None:
    assert _refusal(Case(8, 192, 48, 32)) == "groups of 48 elements of x do not fit groups of 32 of the weight"


def test_groups_that_are_not_whole_units_are_refused() -> None:
    assert _refusal(Case(8, 192, 12, 12)) == "groups of 12 are not multiples of 8"


def test_sums_that_would_overflow_are_refused() -> None:
    case = Case(1, 70000, 70000, 70000, bits=8)
    assert _refusal(case) == "sums over 70000 products do not fit 32 bits; groups of at most 65536 do"


def test_float_activations_are_left_to_other_templates() -> None:
    x = ops.input_(name="x", shape=(2, 64), dtype=DType.f32)
    q, ws = ops.weight(name="q", shape=(8, 64), dtype=DType.i8), ops.weight(name="s", shape=(8, 2), dtype=DType.f32)
    y = ops.linear(x, ops.dequantize(q, ws, group=32))
    call = call_of(Graph("main", (x,), (y,)), ops.linear)
    assert Int8Linear().refuse(call, host_isa()) == "x and the weight are not both quantized"
    assert not Int8Linear().fuses_before(y.node, y.node.operands[1].node)


def test_codebooks_are_refused() -> None:
    levels = tuple(float(i) for i in range(16))
    xq, xs = ops.input_(name="xq", shape=(2, 64), dtype=DType.i8), ops.input_(name="xs", shape=(2, 2), dtype=DType.f32)
    q, ws = ops.weight(name="q", shape=(8, 64), dtype=DType.u8), ops.weight(name="s", shape=(8, 2), dtype=DType.f32)
    y = ops.linear(ops.dequantize(xq, xs, group=32), ops.dequantize(q, ws, group=32, bits=4, codebook=levels))
    why = Int8Linear().refuse(call_of(Graph("main", (xq, xs), (y,)), ops.linear), host_isa())
    assert why is not None
    assert "codebook" in why


def test_both_operands_are_read_as_codes() -> None:
    case = Case(8, 64, 32, 32)
    _, y = case.linear(case.tensors(2), (2,))
    assert all(Int8Linear().fuses_before(y.node, value.node) for value in y.node.operands[:2])
