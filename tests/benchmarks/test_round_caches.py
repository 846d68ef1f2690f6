"""Rounding keys and values of whole sequences as caches do: against the cache of transformers that rounds them."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from benchmarks.language.round_caches import RoundCaches
from planish.compiler.evaluate import evaluate
from planish.compiler.importers import import_torch
from planish.compiler.pass_ import Context
from planish.compiler.pipeline import Pipeline
from planish.passes import EXACT
from tests.generation.architectures import llama
from tests.generation.rounding import Rounding, signed, sixteen
from tests.generation.stepping import expected

ROW = torch.randint(3, 90, (1, 24), generator=torch.Generator().manual_seed(3))


@pytest.mark.parametrize(("cache", "rounded"), [("i8", signed), ("i4", sixteen)])
def test_whole_sequences_see_what_generation_with_the_cache_sees(
    cache: str, rounded: Callable[[Tensor], Tensor]
) -> None:
    model = llama()
    program = import_torch(model, (ROW,), {"use_cache": False}).program
    changed, report = Pipeline((*EXACT, RoundCaches(cache))).run(program, Context())
    assert report.rows[-1].applied == {"round": 2}
    (found,) = evaluate(changed.main, (ROW,), changed.weights)
    row = ROW[0].tolist()
    torch.testing.assert_close(found[0], expected(model, row, Rounding(model, rounded)), rtol=0, atol=1e-4)
    assert (found[0] - expected(model, row)).abs().max() > 1e-2
