"""Whole programs from text: built, written as artifacts, loaded and compared with the reference evaluator."""

from pathlib import Path

import pytest
import torch

from planish.codegen.build import build
from planish.codegen.function_plan import Interface
from planish.compiler.evaluate import evaluate
from planish.compiler.ir import Program
from planish.compiler.ops import weight
from planish.compiler.text import parse
from planish.runtime.artifact import Contents, load, write
from planish.runtime.executor import Executable
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


def compiled(program: Program, folder: Path) -> Executable:
    """The program as a loaded artifact."""
    isa = host_isa()
    names = [str(v.node.attrs["name"]) for v in program.main.inputs]
    signature = Signature(tuple(Parameter(name, tensor()) for name in names), len(names))
    interface = Interface(signature, sequence("tuple", [tensor() for _ in program.main.outputs]))
    (folder / "build").mkdir()
    built = build(program, {"main": interface}, isa, folder / "build")
    target = Target("test", isa.triple, (), "0")
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
