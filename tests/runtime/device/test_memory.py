"""Memory of a device: told before it is taken, and what is said where it is not there."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor, nn

from planish.errors import ArtifactError
from planish.generation import Generation
from planish.runtime.device.executor import DeviceExecutable
from planish.runtime.device.generation import DeviceSession, session_bytes
from planish.runtime.device.memory import check_room
from tests.generation import architectures
from tests.runtime.device.interpreted import InterpretedLauncher, executable, language_executable

BATCH = torch.export.Dim("batch", max=64)


class _Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(64, 128), nn.Linear(128, 64)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(torch.relu(self.up(x)))


class _Pools(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        for _ in range(3):
            x = nn.functional.max_pool2d(x, 3, stride=1, padding=1)
        return x.sum(1)


def _launcher(run: DeviceExecutable) -> InterpretedLauncher:
    launcher = run.main._launcher
    assert isinstance(launcher, InterpretedLauncher)
    return launcher


def test_a_call_that_does_not_fit_is_refused_before_anything_runs(tmp_path: Path) -> None:
    run = executable(_Net(), (torch.randn(2, 64),), tmp_path, dynamic={"x": {0: BATCH}})
    _launcher(run).free = 30_000
    words = (
        r"calling main with batch=64 takes 49152 bytes on the interpreter, which has 30000 free; free some there, or"
    )
    with pytest.raises(ArtifactError, match=words):  # 64 rows of 128 and of 64 numbers of 4 bytes
        run(torch.randn(64, 64))
    assert _launcher(run).launched == []
    assert run(torch.randn(2, 64)).shape == (2, 64)


def test_memory_that_runs_out_all_the_same_is_told_with_both_numbers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = executable(_Net(), (torch.randn(2, 64),), tmp_path)

    def full(*args: Any, **kwargs: Any) -> Tensor:
        raise torch.OutOfMemoryError("fragmented")

    x = torch.randn(2, 64)
    monkeypatch.setattr(torch, "empty", full)
    with pytest.raises(
        ArtifactError, match="calling main with its inputs takes 1536 bytes on the interpreter, which has"
    ):
        run(x)


def test_values_between_torch_steps_are_let_go_of(tmp_path: Path) -> None:
    run = executable(_Pools(), (torch.randn(1, 4, 16, 16),), tmp_path)
    needed = run.main.needs(((1, 4, 16, 16),))
    assert needed.output_bytes == 16 * 16 * 4
    one = 4 * 16 * 16 * 4
    assert needed.value_bytes < 3 * (one + 2 * one)  # each pool gives values and their indices of 8 bytes
    x = torch.randn(1, 4, 16, 16)
    torch.testing.assert_close(run(x), _Pools()(x))


def _language(tmp_path: Path, generation: Generation) -> Any:
    sizes = {**architectures._GATED, "vocab_size": 64}
    net = architectures.build(transformers.LlamaForCausalLM, transformers.LlamaConfig(**sizes))
    return net.config, language_executable(net, torch.tensor([[5, 9, 11]]), tmp_path, generation)


def test_generation_that_does_not_fit_is_refused_before_caches_are_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, run = _language(tmp_path, Generation(context=64, chunk=4, batch=2))
    caches, work = session_bytes(run.functions, run.generator.settings)
    wide = config.num_key_value_heads * (config.hidden_size // config.num_attention_heads)
    assert caches == 2 * config.num_hidden_layers * 2 * 64 * wide * 4
    assert work > 2 * 64 * 4  # the logits at least
    monkeypatch.setattr(InterpretedLauncher, "free_bytes", lambda self: caches + work - 1)
    monkeypatch.setattr(DeviceSession, "_cache", lambda *given: pytest.fail("a cache was made"))
    words = (
        rf"generating 2 x 64 tokens, {caches} bytes of caches and {work} for work, takes {caches + work} bytes on the"
    )
    with pytest.raises(ArtifactError, match=words):
        next(run.generate([5, 9, 11], max_new_tokens=1))


def test_a_model_in_a_cycle_that_nobody_uses_gives_its_memory_first() -> None:
    class Model:
        free = 10

        def __init__(self) -> None:
            self.own = self

        def __del__(self) -> None:
            Model.free = 100

    Model()
    check_room(SimpleNamespace(name="d", free_bytes=lambda: Model.free), 50, "loading the weights")
    with pytest.raises(ArtifactError, match="loading the weights takes 101 bytes on the d, which has 100 free"):
        check_room(SimpleNamespace(name="d", free_bytes=lambda: Model.free), 101, "loading the weights")
