"""Runs a pass on a text and compares texts and numbers."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from planish.compiler.evaluate import evaluate
from planish.compiler.ir import Graph, Program
from planish.compiler.ops import weight
from planish.compiler.ops.structure import TORCH_DTYPE
from planish.compiler.pass_ import Context, Pass
from planish.compiler.rewrite import Hit
from planish.compiler.text import parse
from planish.compiler.types import DType, TensorType, evaluate_shape
from planish.compiler.verify import verify


def program_of(text: str, weights: Mapping[str, Tensor] | None = None) -> Program:
    """The program of one graph; weights that are not given are random, of a fixed seed."""
    graph, given = parse(text), weights or {}
    generator = torch.Generator().manual_seed(0)
    drawn = {str(n.attrs["name"]): _random(n.types[0], {}, generator) for n in graph.nodes() if n.op is weight}
    return Program({"main": graph}, {**drawn, **given})


def random_inputs(graph: Graph, sizes: Mapping[str, int], seed: int = 1) -> list[Tensor]:
    """Inputs of the graph's types: normal floats, integers from 0 to 2, bools that mostly hold."""
    generator = torch.Generator().manual_seed(seed)
    return [_random(value.type, sizes, generator) for value in graph.inputs]


def _random(of: TensorType, sizes: Mapping[str, int], generator: torch.Generator) -> Tensor:
    shape = evaluate_shape(of.shape, sizes)
    if of.dtype is DType.bool:
        return torch.rand(shape, generator=generator) > 0.3
    if of.dtype.is_integer:
        return torch.randint(0, 3, shape, generator=generator, dtype=TORCH_DTYPE[of.dtype])
    drawn = torch.randn(shape, generator=generator, dtype=torch.float64)
    return drawn.to(TORCH_DTYPE[of.dtype])


def rewritten(each: Pass, text: str, weights: Mapping[str, Tensor] | None = None) -> tuple[str, tuple[Hit, ...]]:
    """The text after the pass and its hits; the result verifies and computes the same numbers at two sizes."""
    before = program_of(text, weights)
    change = each.apply(before, Context())
    verify(change.program)
    for extra in (0, 3):
        sizes = {size.name: min(size.hint + extra, size.high) for size in before.main.sizes}
        inputs = random_inputs(before.main, sizes)
        same_numbers(evaluate_program(before, inputs), evaluate_program(change.program, inputs))
    return str(change.program.main), change.hits


def evaluate_program(program: Program, inputs: Sequence[Tensor]) -> tuple[Tensor, ...]:
    return evaluate(program.main, inputs, program.weights)


def same_numbers(expected: Sequence[Tensor], actual: Sequence[Tensor]) -> None:
    """Equal within 1e-6 of the largest expected value."""
    for a, b in zip(expected, actual, strict=True):
        scale = float(a.double().abs().nan_to_num(0, 0, 0).max()) if a.numel() else 1.0
        torch.testing.assert_close(b.double(), a.double(), rtol=0, atol=max(2e-6 * scale, 1e-9), equal_nan=True)


def refusals(hits: Sequence[Hit]) -> list[str]:
    return [hit.refused for hit in hits if hit.refused is not None]


def graph_text(inputs: str, *lines: str, outputs: str, sizes: str = "B: 1..64 = 2, S: 1..32 = 5") -> str:
    """A graph of numbered lines: line i defines `%i`."""
    body = "".join(f"  %{i} = {line}\n" for i, line in enumerate(lines))
    return f"graph main<{sizes}>({inputs}) {{\n{body}  return {outputs}\n}}"
