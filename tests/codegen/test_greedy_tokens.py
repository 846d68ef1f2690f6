"""The likeliest tokens against torch: ties, undefined numbers, every width, rows and tasks of any number."""

import math

import pytest
import torch

from planish.codegen.tvm.greedy_tokens import GreedyTokens
from planish.codegen.tvm.isa import AVX2, Isa
from planish.compiler import ops
from planish.compiler.ir import Graph
from planish.compiler.types import Size
from tests.codegen.compare import check, leaf, normal
from tests.codegen.harness import call_of, host_isa

R = Size("rows").symbol


def _check(logits: torch.Tensor, tasks: int, isa: Isa | None = None) -> None:
    check(GreedyTokens(), ops.greedy_tokens, logits, rtol=0, atol=0, tasks=tasks, isa=isa or host_isa())


@pytest.mark.parametrize("isa", [host_isa(), AVX2], ids=["host", "avx2"])
@pytest.mark.parametrize("width", [1, 2, 15, 16, 63, 64, 65, 1000, 4099])
def test_any_width(width: int, isa: Isa) -> None:
    for tasks in (1, 2, 3):
        _check(normal(5, width), tasks, isa)


def test_any_number_of_rows() -> None:
    for rows in (1, 2, 9):
        x = normal(rows, 777)
        check(GreedyTokens(), ops.greedy_tokens, x, rtol=0, atol=0, tasks=2, sizes={"rows": rows}, shapes=((R, 777),))


@pytest.mark.parametrize("places", [[0, 999], [3, 4], [499, 500], [63, 64, 128], [998, 999]], ids=str)
def test_the_first_among_equals(places: list[int]) -> None:
    x = normal(2, 1000)
    x[1, places] = 9.0
    for tasks in (1, 2, 5):
        _check(x, tasks)


def test_undefined_numbers_count_as_the_largest() -> None:
    x = normal(5, 300)
    x[0, [200, 70]] = math.nan
    x[1, 5], x[1, 299] = math.inf, math.nan
    x[2, 8] = -math.inf
    x[3] = -math.inf
    x[4] = math.nan
    for tasks in (1, 2, 3):
        _check(x, tasks)


def test_a_vocabulary_of_dynamic_size_is_refused() -> None:
    logits = leaf("logits", normal(2, 8), (2, R))
    call = call_of(Graph("main", (logits,), (ops.greedy_tokens(logits),), (Size("rows", hint=8),)), ops.greedy_tokens)
    assert "a known width" in str(GreedyTokens().refuse(call, host_isa()))
