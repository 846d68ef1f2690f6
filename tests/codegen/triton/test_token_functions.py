"""The functions of an artifact that choose tokens on a GPU, and the report where there is no kernel for them."""

from pathlib import Path

import pytest
import torch
import transformers

import planish
from planish.codegen.triton import build
from planish.codegen.triton.build import Library
from planish.codegen.triton.choose import Tuner
from planish.codegen.triton.device import Device
from planish.codegen.triton.sampling import TokenChoice
from planish.runtime.inspection import FunctionInfo, inspect
from tests.generation import architectures
from tests.runtime.device.interpreted import uncompiled


@pytest.fixture
def without_triton(monkeypatch: pytest.MonkeyPatch) -> None:
    def library(device: Device, tuner: Tuner, most: int) -> Library:
        return Library(device, compiler=uncompiled, tuner=tuner, most=1)

    monkeypatch.setattr(build, "Library", library)


def _compiled(folder: Path) -> tuple[planish.CompiledModel, dict[str, FunctionInfo]]:
    sizes = {**architectures._GATED, "vocab_size": 64, "num_hidden_layers": 1}
    net = architectures.build(transformers.LlamaForCausalLM, transformers.LlamaConfig(**sizes))
    generation = planish.Generation(context=16, chunk=4, batch=3)
    compiled = planish.compile(net, "h200", inputs=(torch.tensor([[5, 9], [1, 2]]),), generate=generation)
    compiled.save(folder / "lm.planish")
    return compiled, dict(inspect(folder / "lm.planish").functions)


@pytest.mark.usefixtures("without_triton")
def test_an_artifact_holds_the_kernels_that_choose_tokens(tmp_path: Path) -> None:
    _, functions = _compiled(tmp_path)
    assert list(functions) == ["prefill", "decode", "greedy", "sample"]
    logits = "f32[rows, 64]"
    assert functions["greedy"].inputs == (f"logits: {logits}",)
    assert functions["sample"].inputs == (f"logits: {logits}", "seen: u8[rows, 64]", "controls: f64[rows, 6]")
    for name in ("greedy", "sample"):
        assert functions[name].outputs == ("f64[rows, 2]",)
        assert dict(functions[name].kernels) == {"token-choice": 1}
        assert functions[name].torch_ops == ()


@pytest.mark.usefixtures("without_triton")
def test_the_report_says_why_the_host_chooses(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(TokenChoice, "refuse", lambda self, call, device: "there is no such kernel")
    compiled, functions = _compiled(tmp_path)
    assert list(functions) == ["prefill", "decode"]
    words = (
        "sampling: tokens are chosen on the host: greedy_tokens in '' f64[rows, 2] has no kernel here: token-choice: "
    )
    assert f"{words}there is no such kernel" in str(compiled.report)
