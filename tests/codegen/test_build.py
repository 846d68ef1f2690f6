"""Whole programs from text: built, written as artifacts, loaded and compared with the reference evaluator."""

from pathlib import Path

import pytest
import torch

from planish.codegen.build import Built, build
from planish.codegen.function_plan import Interface
from planish.compiler.evaluate import evaluate
from planish.compiler.ir import Program
from planish.compiler.ops import weight
from planish.compiler.text import parse
from planish.errors import TemplateError
from planish.runtime.artifact import Contents, write
from planish.runtime.executor import Executable
from planish.runtime.loading import load
from planish.runtime.manifest import Target
from planish.runtime.signature import Parameter, Signature
from planish.runtime.tree import sequence, tensor
from tests.codegen.harness import host_isa


def program_of(text: str) -> Program:
    """The text's graph with normal weights."""
    graph, generator = parse(text), torch.Generator().manual_seed(1)
    leaves = [n for n in graph.nodes() if n.op is weight]
    weights = {str(n.attrs["name"]): torch.randn(n.types[0].shape, generator=generator) for n in leaves}  # type: ignore[arg-type]
    return Program({"main": graph}, weights)


def built_of(program: Program, folder: Path) -> Built:
    """The program built for this machine in a folder of its own."""
    names = [str(v.node.attrs["name"]) for v in program.main.inputs]
    signature = Signature(tuple(Parameter(name, tensor()) for name in names), len(names))
    interface = Interface(signature, sequence("tuple", [tensor() for _ in program.main.outputs]))
    (folder / "build").mkdir()
    return build(program, {"main": interface}, host_isa(), folder / "build")


def compiled(program: Program, folder: Path) -> Executable:
    """The program as a loaded artifact."""
    built = built_of(program, folder)
    target = Target("test", host_isa().triple, (), "0")
    contents = Contents(
        plan=built.plan,
        target=target,
        weights=built.weights,
        library=built.library,
        planish="0",
        sources=built.sources,
        declarations=built.declarations,
    )
    write(folder / "artifact", contents)
    return load(folder / "artifact", threads=2)


def check(text: str, folder: Path, *calls: tuple[torch.Tensor, ...]) -> None:
    program = program_of(text)
    executable = compiled(program, folder)
    for inputs in calls:
        expected = evaluate(program.main, inputs, program.weights)
        for ours, reference in zip(executable(*inputs), expected, strict=True):
            torch.testing.assert_close(ours, reference, rtol=1e-4, atol=1e-4)


TWO_LAYERS = """graph main<B: 1..64 = 4>(%x: f32[B, 24]) {
  %0 = linear(%x, @w0: f32[48, 24], @b0: f32[48]): f32[B, 48]
  %1 = linear(%0, @w1: f32[10, 48], @b1: f32[10]): f32[B, 10]
  return %1
}"""


def test_two_linear_layers_run_for_every_batch(tmp_path: Path) -> None:
    check(TWO_LAYERS, tmp_path, *((torch.randn(batch, 24),) for batch in (1, 4, 7, 33)))


def test_equal_layers_share_one_kernel(tmp_path: Path) -> None:
    text = """graph main(%x: f32[5, 24]) {
      %0 = linear(%x, @w0: f32[24, 24], @b0: f32[24]): f32[5, 24]
      %1 = linear(%0, @w1: f32[24, 24], @b1: f32[24]): f32[5, 24]
      return %1
    }"""
    check(text, tmp_path, (torch.randn(5, 24),))
    sources = [path.name for path in (tmp_path / "artifact" / "kernels" / "sources").iterdir()]
    assert sum(name.endswith(".py") for name in sources) == 1


def test_a_torch_op_between_kernels_splits_the_plan_and_keeps_the_numbers(tmp_path: Path) -> None:
    text = """graph main<B: 1..64 = 4>(%x: f32[B, 24]) {
      %0 = linear(%x, @w0: f32[24, 24]): f32[B, 24]
      %1 = opaque(%0) {target="aten.erfc.default", arguments="{\\"args\\": [{\\"input\\": 0}], \\"kwargs\\": {}}", shapes=[[`B`, 24]], dtypes=[f32]}: f32[B, 24]
      %2 = linear(%1, @w1: f32[24, 24]): f32[B, 24]
      return %2
    }"""
    check(text, tmp_path, (torch.randn(4, 24),), (torch.randn(9, 24),))


def test_the_library_needs_libc_alone(tmp_path: Path) -> None:
    import subprocess

    program = program_of(TWO_LAYERS)
    compiled(program, tmp_path)
    library = tmp_path / "artifact" / "kernels" / "model.so"
    undefined = subprocess.run(["nm", "-D", "--undefined-only", library], capture_output=True, text=True, check=True)
    foreign = [line for line in undefined.stdout.splitlines() if " U " in line and "GLIBC" not in line]
    assert not foreign


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_any_number_of_threads_gives_the_same_bits(tmp_path: Path, threads: int) -> None:
    program = program_of(TWO_LAYERS)
    compiled(program, tmp_path)
    x = torch.randn(13, 24)
    one, many = (load(tmp_path / "artifact", threads=n)(x)[0] for n in (1, threads))
    assert torch.equal(one, many)


CODED = """graph main(%x: f32[1, 64]) {
  %0 = rms_norm(%x, @g: f32[64]) {eps=1e-05}: f32[1, 64]
  %1 = dequantize(@up.codes: u8[8192, 64], @up.scale: f16[8192, 2]) {group=32, bits=4}: f32[8192, 64]
  %2 = linear(%0, %1): f32[1, 8192]
  %3 = slice(%2) {axis=1, stop=4096}: f32[1, 4096]
  %4 = silu(%3): f32[1, 4096]
  %5 = slice(%2) {axis=1, start=4096, stop=8192}: f32[1, 4096]
  %6 = mul(%4, %5): f32[1, 4096]
  %7 = dequantize(@down.codes: u8[64, 4096], @down.scale: f16[64, 32]) {group=128, bits=4}: f32[64, 4096]
  %8 = linear(%6, %7): f32[1, 64]
  %9 = add(%x, %8): f32[1, 64]
  return %9
}"""


def coded() -> Program:
    """CODED with codes of 4 bits and scales that keep its numbers near 1."""
    generator = torch.Generator().manual_seed(2)

    def codes(*shape: int) -> torch.Tensor:
        return torch.randint(0, 16, shape, generator=generator).to(torch.uint8)

    def scales(*shape: int) -> torch.Tensor:
        return (torch.rand(shape, generator=generator) / 64 + 0.01).half()

    weights = {"g": torch.rand(64, generator=generator) + 0.5, "up.codes": codes(8192, 64), "up.scale": scales(8192, 2)}
    return Program({"main": parse(CODED)}, {**weights, "down.codes": codes(64, 4096), "down.scale": scales(64, 32)})


def test_norms_of_a_single_row_run_in_the_product_that_reads_them_and_gates_in_that_they_are_made_of(
    tmp_path: Path,
) -> None:
    program = coded()
    executable, x = compiled(program, tmp_path), torch.randn(1, 64, generator=torch.Generator().manual_seed(3))
    (expected,) = evaluate(program.main, (x,), program.weights)
    for _ in range(20):
        torch.testing.assert_close(executable(x)[0], expected, rtol=1e-4, atol=1e-4)
    labels = [call.label for call in executable.plan.functions["main"].calls]
    assert labels == ["rms_norm+dequantize+linear+slice+slice+silu+mul", "dequantize+linear+add"]


def test_a_barrier_fetches_the_first_codes_of_the_next_product(tmp_path: Path) -> None:
    lines = built_of(coded(), tmp_path).sources["program.c"].splitlines()
    (ranges,) = (line for line in lines if "struct planish_range" in line)
    (wait,) = (line for line in lines if "planish_barrier_ahead(" in line)
    # 64 x 4096 codes of 4 bits: 32 KiB for each of two tasks; a scale for 128 of them
    assert ranges.endswith(", 131072, 32768}};")
    assert ", 0, 4096}" in ranges
    assert wait.strip().endswith("w, ahead1, 2);")


def test_refuses_f8_by_name(tmp_path: Path) -> None:
    text = "graph main(%x: f32[4]) {\n  %0 = cast(%x) {dtype=f8}: f8[4]  # up\n  %1 = cast(%0) {dtype=f32}: f32[4]\n  return %1\n}"
    with pytest.raises(TemplateError, match=r"cast in 'up' is f8\[4\]: CPUs have no kernels for f8; cast it to f32"):
        built_of(program_of(text), tmp_path)
