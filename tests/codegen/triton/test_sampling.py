"""The choice of tokens on GPUs in Triton's interpreter, against transformers' processors of logits and the host's draws."""

import math
import re
from collections.abc import Sequence

import numpy
import pytest
import torch

from planish.codegen.call import Call
from planish.codegen.triton.compile import compile_all
from planish.codegen.triton.cost import refuse_resources
from planish.codegen.triton.request import request_of
from planish.codegen.triton.sampling import TokenChoice
from planish.compiler import ops
from planish.compiler.ir import Graph, Op
from planish.compiler.types import Dim, DType, symbol
from planish.runtime.generation.sampling import Sampler, Sampling
from tests.codegen.harness import call_of
from tests.codegen.triton.harness import check, device, run_call
from tests.generation.processors import processed

_MANY = 128256


def _call(op: Op, rows: Dim, vocabulary: int, dtype: DType = DType.f32) -> Call:
    leaves = [ops.input_(name="logits", shape=(rows, vocabulary), dtype=dtype)]
    if op is ops.sampled_tokens:
        leaves.append(ops.input_(name="seen", shape=(rows, vocabulary), dtype=DType.u8))
        leaves.append(ops.input_(name="controls", shape=(rows, 6), dtype=DType.f64))
    return call_of(Graph("main", tuple(leaves), (op(*leaves),)), op)


def _chosen(logits: torch.Tensor, seen: torch.Tensor, controls: torch.Tensor) -> torch.Tensor:
    """f64 [rows, 2]: tokens and the largest logits."""
    call = _call(ops.sampled_tokens, *logits.shape)
    (found,) = run_call(TokenChoice(), call, {"logits": logits, "seen": seen, "controls": controls})
    return found


def _controls(options: Sampling, shares: Sequence[float]) -> torch.Tensor:
    numbers = Sampler(options, 1).controls()
    return torch.tensor([(share, *numbers[1:]) for share in shares], dtype=torch.float64)


def _probabilities(logits: torch.Tensor, options: Sampling, seen: list[int]) -> torch.Tensor:
    """f64 [V] by transformers, 0 for the tokens that it drops."""
    return processed(logits, options, seen).double().softmax(-1)


def _borders(probabilities: torch.Tensor) -> list[tuple[float, int]]:
    """Numbers just inside the ends of the shares of some kept tokens, and those tokens: 64 to a column, in turns."""
    kept = probabilities.nonzero()[:, 0]
    columns = max(1, len(kept) // 64)
    folded = columns * (len(kept) // columns)
    order = torch.cat((torch.arange(folded).reshape(-1, columns).T.flatten(), torch.arange(folded, len(kept))))
    ends = probabilities[kept[order]].cumsum(0)
    middle, last = len(kept) // 2, len(kept) - 1
    starts = torch.cat((torch.zeros(1, dtype=torch.float64), ends))
    found = [
        (float(starts[middle]) + 2e-6, middle),
        (float(ends[middle]) - 2e-6, middle),
        (float(ends[last]) - 2e-6, last),
    ]
    return [(share, int(kept[order[place]])) for share, place in found]


_OPTIONS = (
    Sampling(temperature=0.9),
    Sampling(top_k=1),
    Sampling(top_k=7, temperature=1.3),
    Sampling(top_k=200, temperature=2.0),
    Sampling(top_k=1000, top_p=0.9),
    Sampling(top_p=0.3),
    Sampling(top_p=0.97, temperature=1.7),
    Sampling(min_p=0.05, temperature=0.8),
    Sampling(min_p=1.0),
    Sampling(top_k=20, top_p=0.8, min_p=0.1, temperature=1.4, repetition_penalty=1.6),
    Sampling(temperature=1.0, repetition_penalty=0.7),
)


def test_tokens_and_their_shares_are_those_of_transformers() -> None:
    """Rows of one call have different options; a token more or less would move the ends of the shares."""
    logits = 1.5 * torch.randn(331, generator=torch.Generator().manual_seed(1))
    past = [0, 5, 5, 130, 330]
    controls, wanted = [], []
    for options in _OPTIONS:
        borders = _borders(_probabilities(logits, options, past))
        controls.append(_controls(options, [share for share, _ in borders]))
        wanted += [token for _, token in borders]
    rows = len(wanted)
    seen = torch.zeros(rows, 331, dtype=torch.uint8)
    seen[:, past] = 1
    found = _chosen(logits.expand(rows, -1).contiguous(), seen, torch.cat(controls))
    assert found[:, 0].long().tolist() == wanted
    assert found[:, 1].unique().tolist() == [float(logits.max())]


@pytest.mark.parametrize(("dtype", "vocabulary"), [(torch.float32, 1), (torch.float16, 70), (torch.bfloat16, 4101)])
def test_any_vocabulary_in_any_float_draws_as_the_host(dtype: torch.dtype, vocabulary: int) -> None:
    generator = torch.Generator().manual_seed(vocabulary)
    controls = [
        (0.71, 1.0, 0, 1, 0, 1),
        (0.2, 1.1, 9, 0.8, 0, 1.2),
        (0.999, 0.5, 0, 0.95, 0.01, 1),
        (0, 0, 0, 1, 0, 1.4),
    ]
    logits = (3 * torch.randn(len(controls), vocabulary, generator=generator)).to(dtype)
    seen = (torch.rand(logits.shape, generator=generator) < 0.2).to(torch.uint8)
    check(TokenChoice(), ops.sampled_tokens, logits, seen, torch.tensor(controls, dtype=torch.float64))


def test_ties_are_kept_by_top_k_and_cut_in_order_by_top_p() -> None:
    logits = torch.tensor([[1.0, 2, 2, 2, 0, -1, 2]]).expand(4, -1).contiguous()
    shares = (0.01, 0.99)
    controls = torch.cat((_controls(Sampling(top_k=2), shares), _controls(Sampling(top_p=0.5), shares)))
    found = _chosen(logits, torch.zeros(4, 7, dtype=torch.uint8), controls)
    # two of the four largest hold 0.415 of the probability, three 0.623
    assert found[:, 0].tolist() == [1, 6, 1, 3]


def test_masked_tokens_are_never_drawn() -> None:
    logits = torch.full((6, 300), -math.inf)
    logits[:, [6, 290]] = torch.tensor([1.0, 0.5])  # of one column in the order of draws
    options = (Sampling(temperature=1.0), Sampling(top_k=50), Sampling(top_p=1.0, min_p=0.0, top_k=299))
    controls = torch.cat([_controls(each, (0.0, 1 - 2**-53)) for each in options])
    found = _chosen(logits, torch.zeros(6, 300, dtype=torch.uint8), controls)
    assert found.tolist() == [[6, 1.0], [290, 1.0]] * 3


@pytest.mark.parametrize("op", [ops.greedy_tokens, ops.sampled_tokens])
def test_undefined_and_infinite_logits_are_told(op: Op) -> None:
    logits = torch.randn(4, 600, generator=torch.Generator().manual_seed(0))
    logits[0, 599], logits[1, 3], logits[2] = math.nan, math.inf, -math.inf
    buffers = {"logits": logits, "seen": torch.zeros(4, 600, dtype=torch.uint8)}
    buffers["controls"] = _controls(Sampling(top_k=5, top_p=0.5), [0.5] * 4)
    call = _call(op, 4, 600)
    (found,) = run_call(TokenChoice(), call, {name: buffers[name] for name in list(buffers)[: len(call.inputs)]})
    numpy.testing.assert_array_equal(found[:, 1], [math.nan, math.inf, -math.inf, float(logits[3].max())])


def test_the_largest_logit_is_the_first_of_equals() -> None:
    logits = torch.randn(5, 1300, generator=torch.Generator().manual_seed(0))
    logits[1, [7, 900]] = 9.0
    logits[2] = 0.0
    logits[3, 1299] = 16.0
    check(TokenChoice(), ops.greedy_tokens, logits)
    check(TokenChoice(), ops.greedy_tokens, logits.half())


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (_call(ops.greedy_tokens, 2, 9, DType.f64), "f64 logits; it takes f32, f16 and bf16"),
        (_call(ops.sampled_tokens, 2, 1 << 22), "4194304 tokens are over its 2097152"),
    ],
)
def test_refuses_by_words(call: Call, words: str) -> None:
    assert TokenChoice().refuse(call, device()) == words


@pytest.mark.parametrize("profile", ["a100", "rtx-4090", "h200", "mi300x"])
def test_it_compiles_for_every_gpu_without_spills(profile: str) -> None:
    gpu = device(profile)
    calls = [_call(op, symbol("rows"), _MANY) for op in TokenChoice.ops]
    requests = [
        request_of(call, launch, variant)
        for call in calls
        for launch in TokenChoice().build(call, gpu).launches
        for variant in launch.regimes[0].variants
    ]
    for request, binary in zip(requests, compile_all(requests, gpu), strict=True):
        assert refuse_resources(binary, gpu) is None, request.name
        assert binary.spilled_bytes == 0, request.name
        assert not re.search(r"\b(atom|red)\.\S*f\d|atomic\w*_f\d", binary.assembly), request.name
