"""What is said, before anything is launched, where an artifact and the machine do not fit."""

import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from planish.codegen.triton.compile import check_backend
from planish.codegen.triton.device import device_of
from planish.errors import ArtifactError, BackendMissing
from planish.hardware_profiles import load_profile
from planish.runtime.artifact import write
from planish.runtime.device.launcher import check_kernels
from planish.runtime.launches import KernelSpec
from planish.runtime.loading import cannot_run, load
from planish.runtime.manifest import Target
from tests.runtime.small import affine_contents

H200 = Target("h200", "", (), "", "cuda:90")


@pytest.fixture
def a100(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine with an A100, as torch tells of it."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device=None: "NVIDIA A100-SXM4-80GB")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device=None: (8, 0))


def _words(folder: Path, target: Target, library: Path) -> str:
    """What is said when an artifact for the target is loaded."""
    write(folder / "a.planish", affine_contents(library, target=target))
    with pytest.raises(ArtifactError) as refused:
        load(folder / "a.planish")
    return str(refused.value)


def test_another_gpu_than_the_artifacts_is_refused_with_both_names(tmp_path: Path, a100: None, library: Path) -> None:
    words = _words(tmp_path, H200, library)
    assert (
        "the artifact is for h200 (cuda:90) and cannot run here: the GPU here is NVIDIA A100-SXM4-80GB (cuda:80)"
        in words
    )


def test_an_artifact_for_amd_is_refused_on_an_nvidia_machine(tmp_path: Path, a100: None, library: Path) -> None:
    words = _words(tmp_path, Target("mi300x", "", (), "", "hip:gfx942"), library)
    assert "the artifact is for mi300x (hip:gfx942) and cannot run here: this torch is built for cuda devices" in words


def test_a_machine_without_a_gpu_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert cannot_run(H200) == "this machine has no GPU that torch can use"


def test_the_same_architecture_is_taken(a100: None) -> None:
    assert cannot_run(replace(H200, device="cuda:80")) is None


@pytest.mark.parametrize(
    "properties", [{"shared_memory_per_block_optin": 101_376}, {"shared_memory_per_block": 101_376}]
)
def test_a_kernel_with_more_shared_memory_than_the_device_is_named(properties: Mapping[str, int]) -> None:
    kernels = {"k3": KernelSpec("kernels/k3.cubin", "gemm", 8, 166_912, 200, 0)}
    words = (
        "kernel 'k3' takes 166912 bytes of shared memory a block, the NVIDIA L40S gives 101376; compile the model for"
    )
    with pytest.raises(ArtifactError, match=words):
        check_kernels(kernels, SimpleNamespace(**properties), "NVIDIA L40S")
    check_kernels({"k3": replace(kernels["k3"], shared_bytes=101_376)}, SimpleNamespace(**properties), "NVIDIA L40S")


def test_a_missing_triton_is_named_with_the_command_that_installs_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "triton.backends", None)
    with pytest.raises(BackendMissing, match=r"a GPU target needs Triton: pip install 'planish\[gpu\]'"):
        check_backend(device_of(load_profile("h200")))


def test_a_missing_backend_of_triton_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("triton.backends.backends", {"nvidia": object()})
    with pytest.raises(BackendMissing, match="mi300x needs Triton's backend 'amd'; this Triton has nvidia"):
        check_backend(device_of(load_profile("mi300x")))
