"""Imported models against PyTorch: the same numbers and the same result type, at the example's sizes and at others."""

from collections.abc import Mapping

import pytest
import torch
from torch.utils import _pytree as pytree

from planish.compiler.evaluate import evaluate
from planish.compiler.importers import Imported
from planish.compiler.verify import verify
from tests.compiler.models import CASES, Case, each, imported


def run(found: Imported, args: tuple[object, ...], kwargs: Mapping[str, object]) -> object:
    """The imported program on the reference evaluator, as the model would return it."""
    program = found.program
    return found.rebuild(evaluate(program.main, found.leaves(args, kwargs), program.weights))


def assert_same(got: object, wanted: object, tolerance: float = 1e-5) -> None:
    """One type of result, and tensors within the tolerance of each other."""
    leaves, spec = pytree.tree_flatten(wanted)
    found, own = pytree.tree_flatten(got)
    assert own == spec
    for mine, theirs in zip(found, leaves, strict=True):
        if isinstance(theirs, torch.Tensor):
            torch.testing.assert_close(mine, theirs, rtol=0, atol=tolerance)
        else:
            assert mine == theirs


@pytest.mark.parametrize("name", each(CASES))
def test_computes_what_the_model_computes_at_every_size(name: str) -> None:
    case, found = imported(name)
    verify(found.program)
    assert "opaque" not in found.program.notes
    assert {size.name for size in found.program.main.sizes} == _declared(case)
    for args, kwargs in ((case.args, case.kwargs), (case.other_args or (), case.other_kwargs)):
        with torch.no_grad():
            wanted = case.model(*args, **kwargs)
        assert_same(run(found, args, kwargs), wanted)


def _declared(case: Case) -> set[str]:
    sizes = [size for axes in (case.dynamic or {}).values() for size in axes.values()]
    return {size if isinstance(size, str) else size[0] for size in sizes}


@pytest.mark.parametrize("name", ["bert", "llama", "mistral", "t5_encoder"])
def test_sizes_of_one_compute_the_same(name: str) -> None:
    case, found = imported(name)
    one = {n: x[:1, :1] if isinstance(x, torch.Tensor) else x for n, x in case.kwargs.items()}
    with torch.no_grad():
        wanted = case.model(**one)
    assert_same(run(found, (), one), wanted)
