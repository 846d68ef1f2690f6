"""Sampled text of devices, on kernels in Triton's interpreter: tokens are those that the host draws from the same logits."""

import gc
import math
import weakref
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from planish.errors import GenerationError
from planish.generation import Generation
from planish.runtime.device.generation import DeviceLanguageExecutable, DeviceScores
from tests.generation import architectures
from tests.runtime.device.interpreted import InterpretedLauncher, executable, language_executable

_PROMPTS = [[5, 9, 11, 3, 17], [7, 2]]  # their first tokens come from different chunks


@cache
def _net(undefined: bool = False) -> Any:
    """A small model; `undefined` where it has read an id over 9, and such is the first token after a prompt."""
    sizes = {**architectures._GATED, "vocab_size": 150, "num_hidden_layers": 1}
    net: Any = architectures.build(transformers.LlamaForCausalLM, transformers.LlamaConfig(**sizes))
    if undefined:
        net.model.embed_tokens.weight.data[10:] = math.nan  # ids of the prompt are below
        net.lm_head.weight.data[:10] = 0.0  # the first token is above
    return net


def _made(net: Any, folder: Path, batch: int, *, on_device: bool = True) -> DeviceLanguageExecutable:
    folder.mkdir(exist_ok=True)
    ids = torch.tensor([[5, 9]] * batch)
    return language_executable(net, ids, folder, Generation(context=16, chunk=4, batch=batch), on_device=on_device)


def _texts(run: DeviceLanguageExecutable, **options: Any) -> Sequence[list[int]]:
    stream: Any = run.generate(_PROMPTS, max_new_tokens=3, **options)
    for _ in stream:
        pass
    ids: list[list[int]] = stream.ids
    return ids


def _launcher(run: DeviceLanguageExecutable) -> InterpretedLauncher:
    launcher: Any = run.function("decode")._launcher
    assert isinstance(launcher, InterpretedLauncher)
    return launcher


def _unwanted(scores: DeviceScores) -> None:
    raise AssertionError("all logits were fetched")


def test_tokens_of_a_seed_are_those_that_the_host_draws(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    net = _net()
    run, host = _made(net, tmp_path / "device", 2), _made(net, tmp_path / "host", 2, on_device=False)
    assert set(run.functions) == {"prefill", "decode", "greedy", "sample"}
    assert set(host.functions) == {"prefill", "decode"}
    every: list[dict[str, Any]] = [
        {"temperature": 1.0, "seed": 1},
        {"top_k": 30, "top_p": 0.9, "min_p": 0.01, "temperature": 1.5, "repetition_penalty": 1.8, "seed": 2},
    ]
    wanted = [_texts(host, **options) for options in every]
    stop = {**every[0], "stop": wanted[0][0][1]}  # the first row ends before the second
    wanted.append(_texts(host, **stop))
    assert len(wanted[-1][0]) < len(wanted[-1][1])
    monkeypatch.setattr(DeviceScores, "logits", _unwanted)
    assert [_texts(run, **options) for options in (*every, stop)] == wanted


def test_a_step_and_its_choice_are_one_recording_for_each_way_to_choose(tmp_path: Path) -> None:
    run = _made(_net(), tmp_path, 1)
    launcher = _launcher(run)
    options: dict[str, Any] = {"max_new_tokens": 2, "temperature": 1.0}
    for recordings, more in ((1, {}), (1, {"top_k": 3}), (2, {"repetition_penalty": 1.2}), (3, {"temperature": 0})):
        assert len(list(run.generate([5, 9], **{**options, **more}))) == 2
        assert launcher.recordings == recordings


def test_the_choice_behind_a_step_keeps_its_memory_as_long_as_the_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A graph holds addresses alone, unlike what the interpreter repeats."""

    class Work:
        def __call__(self) -> None:
            """Stands for what chooses."""

    def recorded(launcher: InterpretedLauncher, body: Callable[[], None]) -> Callable[[], None]:
        return lambda: None

    monkeypatch.setattr(InterpretedLauncher, "recorded", recorded)
    x, works = torch.randn(2, 8), list[weakref.ref[Work]]()

    def then(results: Sequence[Any]) -> Work:
        work = Work()
        works.append(weakref.ref(work))
        return work

    bound = executable(torch.nn.Linear(8, 4), (x,), tmp_path).main.bind([x], then=then)
    gc.collect()
    assert works[0]() is not None
    del bound
    gc.collect()
    assert works[0]() is None


def test_sessions_that_run_at_once_do_not_share_what_they_read(tmp_path: Path) -> None:
    run = _made(_net(), tmp_path, 1)
    options: dict[str, Any] = {"max_new_tokens": 3, "temperature": 1.0}
    wanted = [[int(token) for token in run.generate([5, 9], **options, seed=seed)] for seed in (1, 2)]
    pairs = zip(*(run.generate([5, 9], **options, seed=seed) for seed in (1, 2)), strict=True)
    assert [list(map(int, ids)) for ids in zip(*pairs, strict=True)] == wanted


@pytest.mark.parametrize("options", [{}, {"temperature": 1.0, "seed": 1}])
def test_undefined_logits_end_a_text_with_the_layer_at_fault(tmp_path: Path, options: dict[str, Any]) -> None:
    run = _made(_net(undefined=True), tmp_path, 1)
    words = "the logits after 3 tokens of row 0 hold nan: they begin in the keys of layer 0"
    with pytest.raises(GenerationError, match=words):
        list(run.generate([5, 9], max_new_tokens=3, **options))
