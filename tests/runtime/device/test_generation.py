"""Text from the runtime of devices, on kernels in Triton's interpreter, against transformers."""

import math
from functools import cache
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch
import transformers

from planish.generation import Generation
from planish.passes.split_generation import SplitGeneration
from planish.runtime.device.generation import DeviceScores
from tests.generation import architectures
from tests.generation.stepping import Stepper, imported, split
from tests.runtime.device.interpreted import language_executable


@cache
def _net() -> Any:
    sizes = {**architectures._GATED, "vocab_size": 64}
    return architectures.build(transformers.LlamaForCausalLM, transformers.LlamaConfig(**sizes))


def _unwanted(scores: DeviceScores) -> None:
    raise AssertionError("all logits were fetched")


def test_greedy_tokens_are_those_of_transformers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(DeviceScores, "logits", _unwanted)
    net, prompt = _net(), [5, 9, 11, 3, 17]
    run = language_executable(net, torch.tensor([prompt]), tmp_path, Generation(context=16, chunk=4))
    found = [token.id for token in run.generate(prompt, max_new_tokens=4)]
    given = torch.tensor([prompt])
    wanted = net.generate(given, attention_mask=torch.ones_like(given), max_new_tokens=4, do_sample=False)
    assert found == wanted[0, len(prompt) :].tolist()


def test_a_session_begun_in_inference_mode_goes_on_outside_of_it(tmp_path: Path) -> None:
    sizes = {**architectures._GATED, "vocab_size": 32, "num_hidden_layers": 1}
    net = architectures.build(transformers.LlamaForCausalLM, transformers.LlamaConfig(**sizes))
    run = language_executable(net, torch.tensor([[5, 9]]), tmp_path, Generation(context=8, chunk=2))
    with torch.inference_mode():
        wanted = [token.id for token in run.generate([5, 9], max_new_tokens=2)]
    assert [token.id for token in run.generate([5, 9], max_new_tokens=2)] == wanted


def test_the_likeliest_tokens_of_a_device_are_those_of_numpy() -> None:
    torch.manual_seed(0)
    scores = torch.randn(5, 1000)
    scores[1, [7, 900]] = 9.0  # the first among equals
    scores[2, [30, 20]] = math.nan
    scores[3, 4] = math.inf
    scores[4, 999] = 16777217.0
    tokens, largest = DeviceScores(scores).likeliest()
    wanted = scores.numpy().argmax(axis=1)
    assert tokens == wanted.tolist()
    assert wanted.tolist()[1:] == [7, 20, 4, 999]
    numpy.testing.assert_array_equal(largest, scores.numpy()[range(5), wanted])


def test_rows_that_sample_see_all_logits() -> None:
    scores = torch.tensor([[1.0, 2.0], [4.0, 3.0]])
    assert DeviceScores(scores).logits().tolist() == scores.tolist()


def test_caches_of_four_bits_give_the_tokens_of_the_reference(tmp_path: Path) -> None:
    net, prompt = _net(), [5, 9, 11, 3, 17]
    run = language_executable(net, torch.tensor([prompt]), tmp_path, Generation(context=16, chunk=4, cache="i4"))
    found = [token.id for token in run.generate(prompt, max_new_tokens=5)]
    reference = Stepper(split(imported(net, batch=1), SplitGeneration(context=16, chunk=4, cache="i4")), 1)
    wanted = [int(reference.read([prompt], 4)[0].argmax())]
    while len(wanted) < 5:
        wanted.append(int(reference.step("decode", [wanted[-1:]])[0].argmax()))
    assert found == wanted
    assert {spec.type.dtype for spec in run.function("decode").plan.inputs[3:]} == {"u8"}
