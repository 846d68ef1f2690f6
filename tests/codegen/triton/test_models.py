"""Whole architectures in f16 compiled for a GPU, which need not be there: artifacts, and what runs as torch."""

from pathlib import Path

import pytest

import planish
from planish.compile_report import CompileReport
from planish.errors import ArtifactError
from tests.compiler.models import TRANSFORMERS

AS_TORCH = {
    "bert": set[str](),
    "llama": set[str](),
    "vit": {"convolution", "permute"},
    "resnet": {"convolution", "permute", "max_pool2d_with_indices"},
}


@pytest.mark.slow  # compiles a hundred kernels with Triton
@pytest.mark.parametrize("name", AS_TORCH)
def test_an_architecture_compiles_for_a_gpu_that_is_not_here(tmp_path: Path, name: str) -> None:
    case = TRANSFORMERS[name]()
    kwargs = {k: x.half() if x.is_floating_point() else x for k, x in case.kwargs.items()}
    compiled = planish.compile(case.model.half(), "h200", inputs=kwargs, dynamic=case.dynamic)
    report = compiled.report
    assert isinstance(report, CompileReport)
    assert {row.ops[0].split(".")[1] for row in report.kernels if row.template == "torch"} == AS_TORCH[name]
    told = "conv in '" in str(report) and "has no template on h200" in str(report)
    assert told == bool(AS_TORCH[name])
    compiled.save(tmp_path / "model.planish")
    with pytest.raises(ArtifactError, match="h200"):
        planish.load(tmp_path / "model.planish")
