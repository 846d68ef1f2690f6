"""Whole architectures in f16 compiled for a GPU, which need not be there: artifacts, and what runs as torch."""

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

import planish
from planish.codegen.triton import build
from planish.codegen.triton.build import Library
from planish.codegen.triton.choose import Tuner
from planish.codegen.triton.compile import compile_all
from planish.codegen.triton.device import Device
from planish.compile_report import CompileReport
from planish.errors import ArtifactError
from planish.runtime.inspection import inspect
from tests.compiler.models import TRANSFORMERS
from tests.runtime.device.interpreted import uncompiled

AS_TORCH = {
    "bert": set[str](),
    "llama": set[str](),
    "vit": {"convolution", "permute"},
    "resnet": {"convolution", "permute", "max_pool2d_with_indices"},
}


def _half(x: object) -> object:
    return x.half() if isinstance(x, Tensor) and x.is_floating_point() else x


@pytest.mark.parametrize("name", AS_TORCH)
def test_an_architecture_compiles_for_a_gpu_that_is_not_here(
    tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    compiler = compile_all if name == "bert" else uncompiled  # one goes through Triton, which takes long

    def library(device: Device, tuner: Tuner, most: int) -> Library:
        return Library(device, compiler=compiler, tuner=tuner, most=1)

    monkeypatch.setattr(build, "Library", library)
    case = TRANSFORMERS[name]()
    inputs = pytree.tree_map(_half, case.args or dict(case.kwargs))
    compiled = planish.compile(case.model.half(), "h200", inputs=inputs, dynamic=case.dynamic)
    report = compiled.report
    assert isinstance(report, CompileReport)
    assert {row.ops[0].split(".")[1] for row in report.kernels if row.template == "torch"} == AS_TORCH[name]
    told = "conv in '" in str(report) and "has no template on h200" in str(report)
    assert told == bool(AS_TORCH[name])
    compiled.save(tmp_path / "model.planish")
    with pytest.raises(ArtifactError, match="h200"):
        planish.load(tmp_path / "model.planish")


def test_an_artifact_tells_the_resources_of_its_kernels(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(16, 24), nn.ReLU()).half().eval()
    compiled = planish.compile(model, "a100", inputs=torch.ones(4, 16).half())
    compiled.save(tmp_path / "model.planish")
    info = inspect(tmp_path / "model.planish")
    assert "target a100 (cuda:80)" in str(info)
    assert info.device_kernels
    for kernel in info.device_kernels.values():
        assert kernel.num_warps in (1, 2, 4, 8)
        assert 16 <= kernel.registers <= 255
        assert f"{kernel.registers} registers, {kernel.shared_bytes} bytes shared" in str(info)
