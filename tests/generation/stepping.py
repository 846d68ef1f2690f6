"""Runs `prefill` and `decode` by the reference evaluator, as a runtime would: in chunks, then token by token."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from planish.compiler.evaluate import evaluate
from planish.compiler.importers import import_torch
from planish.compiler.ir import Program
from planish.compiler.ops.structure import TORCH_DTYPE
from planish.compiler.pass_ import Context, Pass
from planish.compiler.pipeline import Pipeline
from planish.passes import EXACT


def imported(model: nn.Module, *, batch: int = 2, **inputs: Tensor) -> Program:
    """The program of a decoder after the exact passes, with a dynamic sequence; the batch is dynamic if it is over 1."""
    generator = torch.Generator().manual_seed(2)
    given = {"input_ids": torch.randint(3, 90, (batch, 8), generator=generator), **inputs}
    axes = {1: ("sequence", 1, 64)} if batch == 1 else {0: "batch", 1: ("sequence", 1, 64)}
    dynamic = dict.fromkeys(given, axes)
    program = import_torch(model, (), {**given, "use_cache": False}, dynamic=dynamic).program
    return Pipeline(EXACT).run(program, Context())[0]


def split(program: Program, each: Pass) -> Program:
    """The program after the pass, verified."""
    return Pipeline((each,)).run(program, Context())[0]


@dataclass(slots=True)
class Stepper:
    """The state of a batch: how many tokens of each row are in the caches, and the caches."""

    program: Program
    rows: int
    past: list[int] = field(init=False)
    caches: list[Tensor] = field(init=False)

    def __post_init__(self) -> None:
        self.past = [0] * self.rows
        self.caches = []
        for value in self.program.functions["decode"].inputs[3:]:
            shape = [self.rows, *(d for d in value.shape[1:] if isinstance(d, int))]
            self.caches.append(torch.zeros(shape, dtype=TORCH_DTYPE[value.dtype]))

    def step(self, function: str, tokens: Sequence[Sequence[int]], padding: int = 7) -> Tensor:
        """The logits [rows, V] of the last token of each row, after `tokens` of each (padded to the longest)."""
        count = [len(row) for row in tokens]
        wide = max(count)
        ids = torch.tensor([[*row, *[padding] * (wide - len(row))] for row in tokens])
        inputs = [ids, torch.tensor(self.past), torch.tensor(count), *self.caches]
        logits, *self.caches = evaluate(self.program.functions[function], inputs, self.program.weights)
        self.past = [p + c for p, c in zip(self.past, count, strict=True)]
        return logits

    def read(self, tokens: Sequence[Sequence[int]], chunk: int) -> list[Tensor]:
        """Prefill of whole rows in chunks; the logits [V] after the last token of each row."""
        found: list[Tensor] = [torch.empty(0)] * self.rows
        for start in range(0, max(map(len, tokens)), chunk):
            parts = [row[start : start + chunk] for row in tokens]
            logits = self.step("prefill", parts)
            found = [logits[i] if part else found[i] for i, part in enumerate(parts)]
        return found


@torch.no_grad()
def expected(model: nn.Module, row: Sequence[int], cache: Any = None) -> Tensor:
    """The model's own logits [tokens, V] of one row, through an empty cache of transformers where one is given."""
    ids, used = torch.tensor([list(row)]), cache is not None
    logits: Tensor = model(input_ids=ids, past_key_values=cache, use_cache=used).logits[0].float()
    return logits
