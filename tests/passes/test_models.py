"""The default passes on real architectures: the numbers of PyTorch, and the ops that should be left."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache

import pytest
import torch
from torch.utils import _pytree as pytree

from planish.compiler.evaluate import evaluate
from planish.compiler.ir import Program
from planish.compiler.pass_ import Context
from planish.compiler.pipeline import Pipeline
from planish.passes import EXACT
from tests.compiler.models import TRANSFORMERS, each, imported


@dataclass(frozen=True)
class Expected:
    """Ops left in two layers (`counts`), and ops that must be gone."""

    counts: Mapping[str, int] = field(default_factory=dict)
    gone: tuple[str, ...] = ()


_SPELLED = ("softmax", "matmul", "mean", "rsqrt", "pow", "erf", "sigmoid", "batch_norm")
_ENCODER = Expected({"attention": 2, "linear": 9, "layer_norm": 5, "gelu": 2, "transpose": 8}, _SPELLED)
_DECODER = Expected(
    {"attention": 2, "linear": 9, "rms_norm": 5, "rope": 4, "silu": 2, "transpose": 8},
    (*_SPELLED, "expand", "le", "gt", "logical_and", "where", "neg"),
)

EXPECTED: Mapping[str, Expected] = {
    "bert": _ENCODER,
    "bert_eager": _ENCODER,
    "roberta": _ENCODER,
    "distilbert": Expected({**_ENCODER.counts, "linear": 10, "layer_norm": 6, "gelu": 3}, _SPELLED),
    "minilm": Expected({**_ENCODER.counts, "linear": 8}, _SPELLED),
    "vit": Expected({**_ENCODER.counts, "transpose": 9, "conv": 1}, (*_SPELLED, "ge", "where")),
    "vit_eager": Expected({**_ENCODER.counts, "transpose": 9, "conv": 1}, (*_SPELLED, "ge", "where")),
    "swin": Expected(
        {"attention": 4, "linear": 18, "layer_norm": 11, "gelu": 4, "roll": 2},
        ("softmax", "matmul", "index_select", "embedding", "eq", "ne", "arange"),
    ),
    "convnext": Expected({"conv": 4, "linear": 5, "layer_norm": 5, "transpose": 1}, (*_SPELLED[:2], "mul", "reshape")),
    "resnet": Expected({"conv": 12, "relu": 10, "add": 3, "transpose": 1, "linear": 1}, ("batch_norm", "mul")),
    "whisper_encoder": Expected({"attention": 2, "linear": 8, "conv": 2, "layer_norm": 5}, (*_SPELLED, "mul")),
    "whisper_decoder": Expected(
        {"attention": 4, "linear": 14, "layer_norm": 7}, (*_SPELLED, "mul", "cumsum", "eq", "le", "concat", "arange")
    ),
    "gpt2": Expected(
        {"attention": 2, "linear": 9, "layer_norm": 5, "gelu": 2}, (*_SPELLED, "tanh", "mul", "le", "logical_and")
    ),
    "gpt2_eager": Expected({"attention": 2, "linear": 9, "layer_norm": 5, "gelu": 2}, (*_SPELLED, "tanh", "mul")),
    "llama": _DECODER,
    "llama_eager": Expected(_DECODER.counts, (*_SPELLED, "expand", "neg")),
    "mistral": _DECODER,
    "qwen2": _DECODER,
    "t5_encoder": Expected({"attention": 2, "linear": 8, "rms_norm": 5}, _SPELLED),
}


@cache
def _optimized(name: str) -> Program:
    return Pipeline(EXACT).run(imported(name)[1].program, Context())[0]


@pytest.mark.parametrize("name", each(TRANSFORMERS))
def test_a_model_keeps_its_numbers_and_loses_its_detours(name: str) -> None:
    case, found = imported(name)
    program = _optimized(name)
    for args, kwargs in ((case.args, case.kwargs), (case.other_args or (), case.other_kwargs)):
        with torch.no_grad():
            expected = case.model(*args, **kwargs)
        actual = found.rebuild(evaluate(program.main, found.leaves(args, kwargs), program.weights))
        for a, b in zip(pytree.tree_leaves(expected), pytree.tree_leaves(actual), strict=True):
            torch.testing.assert_close(b, a, rtol=0, atol=1e-5)
    counts = Counter(node.op.name for node in program.main.nodes())
    expected_ops = EXPECTED[name]
    assert {op: counts[op] for op in expected_ops.counts} == dict(expected_ops.counts)
    assert [op for op in expected_ops.gone if counts[op]] == []


@pytest.mark.parametrize(
    ("name", "attrs", "mask"),
    [
        ("bert", {"causal": False, "window": None}, "bool[batch, 1, 1, sequence]"),
        ("vit_eager", {"causal": False, "window": None}, None),
        ("llama", {"causal": True, "window": None}, "bool[batch, 1, 1, sequence]"),
        ("mistral", {"causal": True, "window": 4}, "bool[batch, 1, 1, sequence]"),
        ("gpt2", {"causal": True, "window": None}, "bool[batch, 1, 1, sequence]"),
        ("t5_encoder", {"causal": False, "scale": 1.0}, "f32[batch, 4, sequence, sequence]"),
    ],
)
def test_attention_says_what_its_mask_means(name: str, attrs: Mapping[str, object], mask: str | None) -> None:
    program = _optimized(name)
    found = [node for node in program.main.nodes() if node.op.name == "attention"]
    for node in found:
        assert {key: node.attrs[key] for key in attrs} == attrs
        assert (str(node.inputs[3].type) if len(node.inputs) > 3 and node.inputs[3] else None) == mask
    assert len({node.inputs[3:] for node in found}) == 1


def test_keys_and_values_keep_their_few_heads() -> None:
    program = _optimized("llama")
    for node in program.main.nodes():
        if node.op.name == "attention":
            assert [v.shape[1] for v in node.operands[:3]] == [4, 2, 2]
