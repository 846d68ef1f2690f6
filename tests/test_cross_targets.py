"""Programs for CPUs other than the one at hand: compiled anywhere, and run under emulation where it is installed."""

import shutil
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from planish.codegen.build import build
from planish.codegen.function_plan import Interface
from planish.compiler.evaluate import evaluate
from planish.compiler.ir import Program
from planish.compiler.ops import weight
from planish.compiler.text import parse
from planish.hardware_profiles import load_profile
from planish.runtime.signature import Parameter, Signature
from planish.runtime.tensors import TensorFile, write_weights
from planish.runtime.tree import sequence, tensor
from planish.targets import isa_of_profile

BLOCK = """graph main<S: 1..64 = 13>(%x: f32[S, 32]) {
  %0 = layer_norm(%x, @g: f32[32], @h: f32[32]) {eps=1e-05}: f32[S, 32]
  %1 = linear(%0, @w: f32[96, 32], @b: f32[96]): f32[S, 96]
  %2 = gelu(%1): f32[S, 96]
  %3 = linear(%2, @u: f32[72, 96]): f32[S, 72]
  %4 = slice(%3) {axis=1, stop=36}: f32[S, 36]
  %5 = slice(%3) {axis=1, start=36, stop=72}: f32[S, 36]
  %6 = silu(%4): f32[S, 36]
  %7 = mul(%6, %5): f32[S, 36]
  %8 = linear(%7, @v: f32[32, 36]): f32[S, 32]
  %9 = add(%8, %x): f32[S, 32]
  %10 = softmax(%9) {axis=1}: f32[S, 32]
  return %10
}"""

DRIVER = r"""
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
int64_t planish_main_0_arena_bytes(const int64_t *sizes, int32_t threads);
int32_t planish_main_0(const void *const *inputs, void *const *outputs, const int64_t *sizes,
    const void *weights, void *arena, int32_t threads, double *times);
static void *read_all(const char *path) {
  FILE *f = fopen(path, "rb"); fseek(f, 0, SEEK_END); long n = ftell(f); rewind(f);
  char *p = aligned_alloc(64, (n + 127) / 64 * 64); if (fread(p, 1, n, f) != (size_t)n) exit(2); fclose(f); return p;
}
int main(int argc, char **argv) {
  int64_t sizes[1] = {atoi(argv[3])}; float *out = calloc(sizes[0] * 32, 4);
  const void *inputs[1] = {read_all(argv[2])}; void *outputs[1] = {out};
  void *arena = aligned_alloc(64, (planish_main_0_arena_bytes(sizes, 2) + 63) / 64 * 64);
  int code = planish_main_0(inputs, outputs, sizes, read_all(argv[1]), arena, 2, 0);
  fwrite(out, 4, sizes[0] * 32, stdout); return code;
}
"""


def block() -> Program:
    graph, generator = parse(BLOCK), torch.Generator().manual_seed(3)
    leaves = [n for n in graph.nodes() if n.op is weight]
    return Program(
        {"main": graph},
        {str(n.attrs["name"]): torch.randn(n.types[0].shape, generator=generator) * 0.3 for n in leaves},  # type: ignore[arg-type]
    )


def built_for(target: str, folder: Path) -> Path:
    """The build folder of the block for a target; its weights lie in it as raw bytes."""
    interface = Interface(Signature((Parameter("x", tensor()),), 1), sequence("tuple", [tensor()]))
    made = build(block(), {"main": interface}, isa_of_profile(load_profile(target)), folder)
    write_weights(folder / "weights.safetensors", made.weights)
    assert TensorFile(folder / "weights.safetensors", aligned=True)
    raw = (folder / "weights.safetensors").read_bytes()
    (folder / "weights.bin").write_bytes(raw[8 + struct.unpack("<Q", raw[:8])[0] :])
    return folder


@pytest.mark.parametrize(
    ("target", "machine"),
    [("neoverse-v2", "AArch64"), ("sapphire-rapids", "X86-64"), ("x86-64-v3", "X86-64"), ("zen5", "X86-64")],
)
def test_a_program_is_compiled_and_linked_for_another_cpu(tmp_path: Path, target: str, machine: str) -> None:
    library = built_for(target, tmp_path) / "model.so"
    header = subprocess.run(["readelf", "-h", library], capture_output=True, text=True, check=True).stdout
    assert machine in header


@pytest.mark.skipif(not shutil.which("qemu-aarch64") and not shutil.which("qemu-aarch64-static"), reason="no qemu-user")
def test_the_arm_program_computes_the_same_numbers_under_emulation(tmp_path: Path) -> None:
    emulator = shutil.which("qemu-aarch64") or shutil.which("qemu-aarch64-static")
    folder = built_for("neoverse-v2", tmp_path)
    (folder / "driver.c").write_text(DRIVER)
    sources = [str(folder / name) for name in ("driver.c", "program.c", "pool.c", "kernels.o")]
    zig = [sys.executable, "-m", "ziglang", "cc", "-O1", "-static", "-target", "aarch64-linux-musl"]
    subprocess.run([*zig, *sources, "-o", str(folder / "driver"), "-lpthread"], check=True, capture_output=True)
    program = block()
    for size in (1, 13):
        x = torch.randn(size, 32, generator=torch.Generator().manual_seed(size))
        (folder / "x.bin").write_bytes(x.numpy().tobytes())
        command = [str(emulator), str(folder / "driver"), str(folder / "weights.bin"), str(folder / "x.bin"), str(size)]
        done = subprocess.run(command, capture_output=True, check=True, timeout=120)
        expected = evaluate(program.main, (x,), program.weights)[0].numpy()
        np.testing.assert_allclose(
            np.frombuffer(done.stdout, np.float32).reshape(size, 32), expected, rtol=1e-4, atol=1e-5
        )
